"""Reading checkpoints: a pickle's code is never run, and what cannot be read says why and what to do."""

import json
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from lighter_freezers.gpt.checkpoint_files import read_checkpoint

WEIGHTS = {"transformer.wte.weight": torch.ones(3, 2)}


class Mode:
    """A harmless class that people keep in their `model_args`."""


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("kind", ["archive", "older", "pickle 2", "pickle 4", "in a transformers folder"])
def test_a_malicious_pickle_is_refused_and_not_run(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would have made a folder, as an unguarded load shows; torch's variable changes nothing."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    content = {"model": WEIGHTS, "config": Malicious(tmp_path / "made by the pickle")}
    path = tmp_path / "pytorch_model.bin" if "folder" in kind else tmp_path / "ckpt.pt"
    if "pickle" in kind:
        path.write_bytes(pickle.dumps({"config": content["config"]}, protocol=int(kind[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind != "older")

    with pytest.raises(ValueError, match="was refused, and nothing in it was run") as caught:
        read_checkpoint(tmp_path if "folder" in kind else path)

    assert not (tmp_path / "made by the pickle").exists()
    assert "safetensors" in str(caught.value)
    assert kind in ("pickle 2", "pickle 4") or f"{os.name}.mkdir" in str(caught.value)
    if kind in ("archive", "older"):
        torch.load(path, weights_only=False)
        assert (tmp_path / "made by the pickle").exists()


def test_a_harmless_class_is_explained_and_can_be_allowed(tmp_path: Path) -> None:
    """An object in `model_args` is code of the file as well."""
    torch.save({"model": WEIGHTS, "model_args": {"n_head": 2, "mode": Mode()}}, tmp_path / "ckpt.pt")

    with pytest.raises(ValueError, match=r"it holds \S+\.Mode, .*add_safe_globals"):
        read_checkpoint(tmp_path / "ckpt.pt")
    with torch.serialization.safe_globals([Mode]):
        checkpoint = read_checkpoint(tmp_path / "ckpt.pt")
    assert checkpoint.stated == {"n_head": 2}


def test_a_damaged_file_says_so(tmp_path: Path) -> None:
    """Cut short in either format, empty, or a text such as git-lfs leaves behind."""
    from safetensors.torch import save

    torch.save(WEIGHTS, tmp_path / "archive.pt")
    torch.save(WEIGHTS, tmp_path / "older.pt", _use_new_zipfile_serialization=False)
    whole = {name: (tmp_path / name).read_bytes() for name in ("archive.pt", "older.pt")}
    damaged = {
        "cut.pt": whole["archive.pt"][:-200],
        "older_cut.pt": whole["older.pt"][:-4],
        "older_cut_early.pt": whole["older.pt"][:40],
        "empty.pt": b"",
        "text.bin": b"version https://git-lfs.github.com/spec/v1\n",
        "page.ckpt": b"<!DOCTYPE html>",
        "cut.safetensors": save(WEIGHTS)[:-4],
        "empty.safetensors": b"",
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        told = f"{re.escape(str(tmp_path / name))}.*(not a whole|is damaged)"
        with pytest.raises(ValueError, match=told):
            read_checkpoint(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("a.txt", "not a checkpoint")
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        read_checkpoint(tmp_path / "other.pt")


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 0.9])
def test_a_file_cut_anywhere_gets_the_same_sentence(share: float, tmp_path: Path) -> None:
    """Near its start, too, where torch itself fails with a number instead of a sentence."""
    torch.save({str(index): torch.ones(64, 64) for index in range(20)}, tmp_path / "whole.ckpt")
    content = (tmp_path / "whole.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(content[: int(len(content) * share)])

    with pytest.raises(ValueError, match=r"is not a whole checkpoint of torch.save: it is cut short"):
        read_checkpoint(tmp_path / "cut.ckpt")


def test_a_file_without_weights_says_what_it_has(tmp_path: Path) -> None:
    """Steps of training are no model."""
    torch.save({"iter_num": 3, "loss": 0.5}, tmp_path / "state.pt")
    torch.save([torch.ones(2)], tmp_path / "list.pt")

    with pytest.raises(ValueError, match=r"no state dict: .*It has 'iter_num', 'loss'"):
        read_checkpoint(tmp_path / "state.pt")
    with pytest.raises(ValueError, match="holds a list instead of a state dict"):
        read_checkpoint(tmp_path / "list.pt")


@pytest.mark.parametrize("source", ["runs/chpt.pt", "runs/chkpt", "rums/ckpt.pt", "runs/a/b/ckpt.pt"])
def test_a_path_that_is_not_there_names_what_is(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The closest names, also of the folder that is misspelt; a Path is never looked for on the hub."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "ckpt.pt").touch()
    monkeypatch.chdir(tmp_path)

    with pytest.raises(FileNotFoundError, match=f"There is no '{source}'. '.*' has no '") as caught:
        read_checkpoint(Path(source))
    if "/a/" not in source:
        assert f"the closest names are {'runs' if 'rums' in source else 'ckpt.pt'}" in str(caught.value)


def test_a_folder_without_weights_says_what_it_has(tmp_path: Path) -> None:
    """The files that can be given instead, or just what there is."""
    with pytest.raises(ValueError, match="It is empty"):
        read_checkpoint(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(
        ValueError, match=r"has no model\.safetensors or pytorch_model\.bin\. It has notes\.txt"
    ):
        read_checkpoint(tmp_path)
    (tmp_path / "ckpt.pt").touch()
    with pytest.raises(ValueError, match=r"Give one of its files instead: ckpt\.pt\."):
        read_checkpoint(tmp_path)


def test_an_incomplete_folder_says_what_is_lost(tmp_path: Path) -> None:
    """A file that the index names is not there; an index or a config is no JSON."""
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.bin", "b": "two.bin"}}))
    torch.save(WEIGHTS, tmp_path / "one.bin")
    with pytest.raises(
        FileNotFoundError, match=r"names 2 files of weights, of which 1 are not there: two\.bin"
    ):
        read_checkpoint(tmp_path)
    index.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_checkpoint(tmp_path)
    index.write_text("[]")
    with pytest.raises(ValueError, match="holds a list instead of a mapping"):
        read_checkpoint(tmp_path)


def test_a_model_of_the_hub_that_cannot_be_fetched_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline it is refused at once, and the way round is named."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        FileNotFoundError, match=r"'nobody/no-such-model' is neither a file nor a folder here"
    ) as caught:
        read_checkpoint("nobody/no-such-model")
    assert "HF_HUB_OFFLINE" in str(caught.value) or "outgoing traffic has been disabled" in str(caught.value)
    assert "give the folder" in str(caught.value)


def test_a_cached_model_of_the_hub_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's cache is laid out by hand, so that its real client finds a model without a network."""
    import huggingface_hub
    from safetensors.torch import save_file

    revision = "0" * 40
    snapshot = tmp_path / "models--somebody--tiny" / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (tmp_path / "models--somebody--tiny" / "refs").mkdir()
    (tmp_path / "models--somebody--tiny" / "refs" / "main").write_text(revision)
    save_file(WEIGHTS, snapshot / "model.safetensors")
    (snapshot / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_head": 2}))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    checkpoint = read_checkpoint("somebody/tiny")

    assert list(checkpoint.tensors) == list(WEIGHTS)
    assert checkpoint.stated == {"n_head": 2, "exact_gelu": False}


@pytest.mark.parametrize("source", [None, 3, ""])
def test_a_source_is_a_path(source: Any) -> None:
    """Nothing is guessed."""
    with pytest.raises(TypeError, match="source must be a path or a hub id. Got "):
        read_checkpoint(source)
