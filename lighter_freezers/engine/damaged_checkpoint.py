"""Says of a checkpoint file that is not whole what is wrong with it, in place of what reading it raised."""

import re
import struct
import traceback
import zipfile
import zlib
from os import PathLike
from typing import BinaryIO

__all__ = ["explain", "is_not_whole"]


def is_not_whole(path: object, size: int) -> str:
    """The sentence about such a file, of so many bytes."""
    return (
        f"'{path}' ({size} bytes) is not a whole checkpoint of torch.save: it is cut short, damaged, or "
        "another kind of file. Save or download it again."
    )


def explain(error: BaseException, path: str | PathLike[str] | None) -> None:
    """Put the sentence before the message of an error that reading a file raised.

    Lightning tells no callback what it is about to read, only, in `on_exception`, what it failed to read.
    An error raised there would keep other callbacks and the strategy from cleaning up, so this one is edited.

    Args:
        error: What ended a run; left alone unless the file is the reason.
        path: `trainer.ckpt_path`: a file, a folder, a URL that fsspec opens, or None.
    """
    name = str(path).removeprefix("file://")
    if path is None or not _is_of_torch_load(error) or name in str(error):
        return
    import fsspec  # type: ignore[import-untyped]

    try:
        with fsspec.open(name, "rb") as file:
            if not _is_damaged(file, error):
                return
            size = file.seek(0, 2)
    except Exception:  # a file that cannot be read at all, or not any more, is another matter
        return
    said = f"{is_not_whole(name, size)} ({error or type(error).__name__})"
    if isinstance(error, OSError) and error.errno:  # its message is not in `args`
        error.strerror = said
    elif isinstance(error, UnicodeError) and hasattr(error, "reason"):  # nor is this one's
        error.reason = said
    else:
        error.args = (said,)


def _is_of_torch_load(error: BaseException) -> bool:
    """Whether `torch.load` raised it: another format may be read in another way, and be whole."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(frame.f_globals.get("__name__") == "torch.serialization" for frame in frames)


def _is_damaged(file: BinaryIO, error: BaseException) -> bool:
    if zipfile.is_zipfile(file):  # the format of torch.save
        try:
            with zipfile.ZipFile(file) as archive:
                pickles = [each for each in archive.namelist() if each.endswith("data.pkl")]
                return not any(archive.read(each) for each in pickles)  # it compares their checksums
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError):
            return True
    file.seek(0)
    is_pickle = file.read(1) == b"\x80"  # its older format, which has no end to look for
    ended = isinstance(error, EOFError | struct.error) or re.search("unexpected EOF|truncated", str(error))
    return not is_pickle or bool(ended)
