"""Reads the tensors of a checkpoint from a file, a folder or the hub, and never runs a pickle's code.

`checkpoint_names.py` maps their names to those of a GPT, `checkpoint_config.py` derives the config they need.
"""

import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lighter_freezers._extras import require
from lighter_freezers.gpt.checkpoint_config import config_of_model_args, config_of_transformers
from lighter_freezers.selection.names import closest_names

__all__ = ["Checkpoint", "read_checkpoint"]

WHOLE_FILES = ("model.safetensors", "pytorch_model.bin")  # in a transformers folder, in order of preference
INDEX_FILES = tuple(f"{name}.index.json" for name in WHOLE_FILES)  # the index of weights in several files
SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
STATE_DICT_KEYS = ("model", "state_dict", "model_state_dict")  # nanoGPT, Lightning, and common ones


@dataclass(frozen=True)
class Checkpoint:
    """Tensors, and what their file states about the model.

    Attributes:
        source: The requested source, for messages.
        tensors: Name in the file -> tensor on the CPU.
        stated: `GPTConfig` values that the file itself states; often empty.
    """

    source: str
    tensors: Mapping[str, Tensor]
    stated: Mapping[str, int | bool]


def read_checkpoint(source: str | PathLike[str]) -> Checkpoint:
    """Read the weights of a model.

    Args:
        source: A file of torch or Lightning, a `.safetensors` file, a transformers folder, or a model's id
            on the Hugging Face hub, which is fetched if no local path has this name.

    Raises:
        TypeError: It is not a path.
        FileNotFoundError: It is not on this machine and could not be fetched.
        ValueError: It holds no weights, is damaged, or is a pickle that would have to run code.
    """
    if not isinstance(source, (str, PathLike)) or not str(source):
        raise TypeError(f"source must be a path or a hub id. Got {source!r} ({type(source).__name__}).")
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(path, str(source))
    if path.is_file():
        tensors, stated = _read_file(path)
        beside = _config_in(path.parent) if path.name in WHOLE_FILES else {}
        return Checkpoint(str(source), tensors, stated or beside)
    if isinstance(source, str) and HUB_ID.fullmatch(source) and path.suffix not in SUFFIXES:
        return _read_folder(_fetched(source), source)
    raise FileNotFoundError(f"There is no '{source}'. {_closest_files(path)}")


def _read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, int | bool]]:
    """The tensors of one file, and what it states about their model."""
    if path.suffix == ".safetensors":
        return _read_safetensors(path), {}
    content = _unpickled(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"'{path}' holds a {type(content).__name__} instead of a state dict.")
    model_args = content.get("model_args")
    stated = config_of_model_args(model_args) if isinstance(model_args, Mapping) else {}
    for part in (*(content.get(key) for key in STATE_DICT_KEYS), content):
        tensors = _tensors_of(part)
        if tensors:
            return tensors, stated
    raise ValueError(
        f"'{path}' holds no state dict: neither at its top nor under {', '.join(STATE_DICT_KEYS)}. "
        f"It has {', '.join(map(repr, content)) or 'nothing at all'}."
    )


def _tensors_of(part: object) -> dict[str, Tensor]:
    items = part.items() if isinstance(part, Mapping) else ()
    return {str(name): value for name, value in items if isinstance(value, Tensor)}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    require(f"'{path}'", "safetensors")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"'{path}' is not a whole safetensors file ({error}). Get it again, or give the right file."
        ) from error


def _unpickled(path: Path) -> object:
    """Load what torch.save wrote, if it is tensors and plain values only."""
    is_archive = zipfile.is_zipfile(path)  # torch's own format; only what is used of it is read from disk
    if not is_archive and _first_bytes(path, 2) == b"PK":  # an archive that lost its end
        raise _cut_short(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the protocol of files refused anyway
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # damaged pickles raise many types: KeyError, IndexError, RuntimeError, ...
        raise _refusal(path, is_archive, error) from error


def _refusal(path: Path, is_archive: bool, error: Exception) -> ValueError:
    """The error for a file that was not read: it holds objects, or it is not a checkpoint."""
    objects = _objects_in(path, is_archive, str(error))
    if objects:
        return ValueError(
            f"'{path}' was refused, and nothing in it was run: besides tensors and plain values it holds "
            f"{', '.join(objects)}, and to read objects is to run code of the file. If you made it, save the "
            "weights alone: torch.save(model.state_dict(), 'weights.pt') or "
            "safetensors.torch.save_model(model, 'weights.safetensors'). A harmless class of your own can be "
            "allowed before loading: torch.serialization.add_safe_globals([TheClass])."
        )
    if _first_bytes(path, 1) == b"\x80":
        return ValueError(
            f"'{path}' was refused, and nothing in it was run: it is a pickle that is damaged or was not "
            "written by torch.save, and to read any pickle is to run code of the file. Save the weights with "
            "torch.save(model.state_dict(), 'weights.pt') or as .safetensors."
        )
    return _cut_short(path)


def _first_bytes(path: Path, number: int) -> bytes:
    with path.open("rb") as file:
        return file.read(number)


def _cut_short(path: Path) -> ValueError:
    from lighter_freezers.engine.damaged_checkpoint import is_not_whole

    return ValueError(is_not_whole(path, path.stat().st_size))


def _objects_in(path: Path, is_archive: bool, message: str) -> list[str]:
    """The classes and functions that a pickle names, without calling any."""
    if is_archive:
        try:
            return torch.serialization.get_unsafe_globals_in_checkpoint(path)
        except (RuntimeError, ValueError):  # another kind of archive
            return []
    return re.findall(r"GLOBAL ([\w.]*\w)", message)[:1]  # the older format: up to the first


def _read_folder(folder: Path, source: str) -> Checkpoint:
    """The weights of a transformers folder, in one file or several."""
    present = [name for name in (*WHOLE_FILES, *INDEX_FILES) if (folder / name).is_file()]
    if not present:
        raise ValueError(f"The folder '{source}' has no {' or '.join(WHOLE_FILES)}. {_files_in(folder)}")
    stated = _config_in(folder)
    if present[0] in WHOLE_FILES:
        return Checkpoint(source, _read_file(folder / present[0])[0], stated)
    parts = sorted(set(_read_json(folder / present[0]).get("weight_map", {}).values()))
    lost = [part for part in parts if not (folder / part).is_file()]
    if lost or not parts:
        raise FileNotFoundError(
            f"'{folder / present[0]}' names {len(parts)} files of weights, of which {len(lost)} are not "
            f"there: {', '.join(lost[:4])}. Download the folder again."
        )
    tensors = {name: tensor for part in parts for name, tensor in _read_file(folder / part)[0].items()}
    return Checkpoint(source, tensors, stated)


def _config_in(folder: Path) -> dict[str, int | bool]:
    file = folder / "config.json"
    return config_of_transformers(_read_json(file), str(file)) if file.is_file() else {}


def _read_json(path: Path) -> dict[str, Any]:  # as Hugging Face writes it
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"'{path}' is not JSON: {error}. Download it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' holds a {type(content).__name__} instead of a mapping.")
    return content


def _fetched(hub_id: str) -> Path:
    """The folder of a hub model, from the cache or the network; a pickle only if nothing else exists."""
    require(f"The hub's model '{hub_id}'", "huggingface_hub")
    from huggingface_hub import snapshot_download

    try:
        for name in WHOLE_FILES:
            stem, _, suffix = name.partition(".")
            patterns = ["config.json", f"{stem}*.{suffix}", f"{name}.index.json"]
            folder = Path(snapshot_download(hub_id, allow_patterns=patterns))
            if any((folder / known).is_file() for known in (*WHOLE_FILES, *INDEX_FILES)):
                break
    except (OSError, ValueError) as error:  # the hub raises only these
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise FileNotFoundError(
            f"'{hub_id}' is neither a file nor a folder here, and could not be fetched from the Hugging Face "
            f"hub: {reason}. {_closest_files(Path(hub_id))} Without a network, download the model "
            "elsewhere and give the folder."
        ) from error
    return folder


def _closest_files(path: Path) -> str:
    """A hint for a missing path: the closest existing names."""
    while not path.parent.is_dir():
        path = path.parent
    names = [child.name for child in path.parent.iterdir()]
    close = closest_names(path.name, names, cutoff=0.6)
    alike = f"; the closest names are {', '.join(close)}" if close else ", nor anything with a name like it"
    return f"'{path.parent.absolute()}' has no '{path.name}'{alike}."


def _files_in(folder: Path) -> str:
    """A hint for a folder without weights: the files in it."""
    names = sorted(child.name for child in folder.iterdir())
    loadable = [name for name in names if Path(name).suffix in SUFFIXES]
    if loadable:
        return f"Give one of its files instead: {', '.join(loadable[:6])}."
    return f"It has {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}." if names else "It is empty."
