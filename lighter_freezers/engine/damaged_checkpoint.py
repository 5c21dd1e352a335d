"""Says of a checkpoint file that is not whole what is wrong with it, in place of what reading it raised."""

import re
import struct
import traceback
import zipfile
from os import PathLike
from pathlib import Path

__all__ = ["explain", "is_not_whole"]


def is_not_whole(path: Path) -> str:
    """The sentence about such a file."""
    return (
        f"'{path}' ({path.stat().st_size} bytes) is not a whole checkpoint of torch.save: it is cut short, "
        "or another kind of file. Save or download it again."
    )


def explain(error: BaseException, path: str | PathLike[str] | None) -> None:
    """Put the sentence before the message of an error that reading a file on this machine raised.

    Lightning tells no callback what it is about to read, only, in `on_exception`, what it failed to read.
    An error raised there would keep other callbacks and the strategy from cleaning up, so this one is edited.

    Args:
        error: What ended a run; left alone unless the file is the reason.
        path: `trainer.ckpt_path`: a file, a folder, a URL or None.
    """
    file = Path(str(path).removeprefix("file://"))
    if path is None or not _is_of_torch_load(error) or str(file) in str(error):
        return
    try:
        if not file.is_file() or not _is_damaged(file, error):
            return
    except OSError:  # a file that cannot be read at all is another matter
        return
    said = f"{is_not_whole(file)} ({error or type(error).__name__})"
    if isinstance(error, OSError) and error.errno:  # its message is not in `args`
        error.strerror = said
    else:
        error.args = (said,)


def _is_of_torch_load(error: BaseException) -> bool:
    """Whether `torch.load` raised it: another format may be read in another way, and be whole."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(frame.f_globals.get("__name__") == "torch.serialization" for frame in frames)


def _is_damaged(file: Path, error: BaseException) -> bool:
    if zipfile.is_zipfile(file):  # the format of torch.save
        try:
            with zipfile.ZipFile(file) as archive:
                return not any(name.endswith("data.pkl") for name in archive.namelist())
        except zipfile.BadZipFile:
            return True
    with file.open("rb") as opened:
        is_pickle = opened.read(1) == b"\x80"  # its older format, which has no end to look for
    ended = isinstance(error, EOFError | struct.error) or re.search("unexpected EOF|truncated", str(error))
    return not is_pickle or bool(ended)
