"""What Trainer says of a `ckpt_path` that is not a whole checkpoint: the sentence of our own readers."""

import gzip
import io
import re
import zipfile
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from lighter_freezers import Freezer, GradualUnfreezing, LayerOperations
from tests.lab import NAMESPACES, batches, first_now, recorder, regression, trainer

OPERATIONS = [{"name": "freeze_layer", "value": "layer1", "max_wait_iters": 1}]
CALLBACKS: dict[str, Any] = {
    "Freezer": lambda: Freezer(name_starts_with="layer1.", until_step=2),
    "GradualUnfreezing": lambda: GradualUnfreezing(blocks=["layer1", "layer2", "layer10"], every_n_steps=2),
    "LayerOperations": lambda: LayerOperations(operations=OPERATIONS),
}


def written(folder: Path, kind: str) -> Path:
    """A checkpoint, whole, in torch's older format, or damaged."""
    fit = trainer(NAMESPACES[0], max_epochs=1)
    fit.fit(regression(NAMESPACES[0]), batches(), batches())
    fit.save_checkpoint(folder / "whole.ckpt")
    content = (folder / "whole.ckpt").read_bytes()
    older, other = io.BytesIO(), io.BytesIO()
    checkpoint = torch.load(folder / "whole.ckpt", weights_only=False)
    torch.save(checkpoint, older, _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("a.txt", "hello")
    name, _, share = kind.partition(" ")
    content = {"older": older.getvalue(), "text": b"hello\n" * 99, "zip": other.getvalue()}.get(name, content)
    path = folder / f"{kind}.ckpt"
    path.write_bytes(content[: int(len(content) * float(share or 100) / 100)])
    return path


@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_a_checkpoint_cut_anywhere_gets_one_sentence(namespace: str, name: str, tmp_path: Path) -> None:
    """At 1, 50 and 99 %, empty, and of another kind, in a fit and in a validation."""
    for kind in ("new 1", "new 50", "new 99", "new 0", "older 1", "older 50", "older 99", "text", "zip"):
        path = written(tmp_path, kind)
        for method in ("fit", "validate"):
            run = trainer(namespace, callbacks=[CALLBACKS[name]()])
            given = [regression(namespace), batches(), *([batches()] if method == "fit" else [])]
            with pytest.raises(Exception, match="is not a whole checkpoint of torch.save: it is cut") as told:
                getattr(run, method)(*given, ckpt_path=path)
            assert str(told.value).count(f"'{path}' ({path.stat().st_size} bytes)") == 1, kind


def test_the_path_may_be_a_url_of_this_machine(tmp_path: Path) -> None:
    """As fsspec writes it; and the other callbacks are told of the error as without ours."""
    path = written(tmp_path, "new 50")
    errors = recorder(NAMESPACES[0], lambda *_: "told", when="on_exception")
    run = trainer(NAMESPACES[0], callbacks=[CALLBACKS["Freezer"](), errors])

    with pytest.raises((OSError, RuntimeError), match="not a whole checkpoint"):
        run.fit(regression(NAMESPACES[0]), batches(), batches(), ckpt_path=f"file://{path}")
    assert errors.seen == ["told"]


def flipped(content: bytes, share: float) -> bytes:
    """With four bytes turned round in the table of what is saved, as a bad disk leaves them."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        name = next(each for each in archive.namelist() if each.endswith("data.pkl"))
        table = archive.read(name)
    at = content.find(table) + int(len(table) * share)
    return content[:at] + bytes(byte ^ 0xFF for byte in content[at : at + 4]) + content[at + 4 :]


@pytest.mark.parametrize("namespace", first_now(NAMESPACES))
@pytest.mark.parametrize("place", ["{folder}/", "memory://bucket/"])
def test_damage_in_the_middle_and_in_a_store_gets_it(place: str, namespace: str, tmp_path: Path) -> None:
    """Before the first batch; a whole checkpoint in the store is read as ever."""
    whole = written(tmp_path, "new").read_bytes()
    contents = [flipped(whole, share) for share in (0.02, 0.3, 0.5, 0.9)]
    contents += [whole[: len(whole) * part // 100] for part in (0, 1, 50, 99)]
    path = place.format(folder=tmp_path) + "damaged.ckpt"
    for content in contents:
        with fsspec.open(path, "wb") as file:
            file.write(content)
        run = trainer(namespace, callbacks=[CALLBACKS["Freezer"]()], max_epochs=2)
        sentence = (
            f"'{path}' ({len(content)} bytes) is not a whole checkpoint of torch.save: it is cut short, "
        )
        with pytest.raises(Exception, match=re.escape(sentence)):
            run.fit(regression(namespace), batches(), batches(), ckpt_path=path)
        assert run.global_step == 0
    with fsspec.open(path, "wb") as file:
        file.write(whole)
    run = trainer(namespace, callbacks=[CALLBACKS["Freezer"]()], max_epochs=2)
    run.fit(regression(namespace), batches(), batches(), ckpt_path=path)
    assert run.global_step == 8


@pytest.mark.parametrize("kind", ["new", "older"])
def test_a_whole_checkpoint_is_no_reason(kind: str, tmp_path: Path) -> None:
    """It resumes, in either format; a later error, and one about a folder, are left as they are."""
    path = written(tmp_path, kind)
    failing = recorder(NAMESPACES[0], lambda *_: torch.load(tmp_path / "empty.pt"), when="on_train_start")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "folder.ckpt").mkdir()

    trainer(NAMESPACES[0], callbacks=[CALLBACKS["Freezer"]()]).fit(
        regression(NAMESPACES[0]), batches(), batches(), ckpt_path=path
    )
    for given, kind_of_error, callbacks in (
        (path, EOFError, [failing]),
        (tmp_path / "folder.ckpt", OSError, []),
        (tmp_path / "missing.ckpt", FileNotFoundError, []),
    ):
        run = trainer(NAMESPACES[0], callbacks=[CALLBACKS["Freezer"](), *callbacks], max_epochs=2)
        with pytest.raises(kind_of_error) as told:
            run.fit(regression(NAMESPACES[0]), batches(), batches(), ckpt_path=given)
        assert "not a whole" not in str(told.value)


@pytest.mark.parametrize("kind", ["own", "older"])
def test_another_failure_beside_a_whole_checkpoint_is_left_as_it_is(kind: str, tmp_path: Path) -> None:
    """Of a run that has read the file, in a format of its own or torch's older one."""

    class Compressed(TorchCheckpointIO):
        def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> Any:
            return torch.load(io.BytesIO(gzip.decompress(Path(path).read_bytes())), weights_only=False)

    def fail(*_: Any) -> None:
        raise EOFError("of the data")

    path = written(tmp_path, "new" if kind == "own" else "older")
    if kind == "own":
        path.write_bytes(gzip.compress(path.read_bytes()))
    plugins = [Compressed()] if kind == "own" else []
    for hook, method in (("on_load_checkpoint", "fit"), ("validation_step", "validate")):
        module = regression(NAMESPACES[0])
        setattr(module, hook, fail)
        run = trainer(NAMESPACES[0], callbacks=[CALLBACKS["Freezer"]()], plugins=plugins)
        with pytest.raises(EOFError) as told:
            getattr(run, method)(module, *[batches()] * (2 if method == "fit" else 1), ckpt_path=path)
        assert str(told.value) == "of the data"


def test_a_broken_table_of_contents_keeps_nobody_from_cleaning_up(tmp_path: Path) -> None:
    path = written(tmp_path, "new")
    content = bytearray(path.read_bytes())
    content[content.find(b"PK\x01\x02")] = 0  # its first entry
    path.write_bytes(content)
    errors = recorder(NAMESPACES[0], lambda *_: "told", when="on_exception")
    run = trainer(NAMESPACES[0], callbacks=[CALLBACKS["Freezer"](), errors])

    with pytest.raises(RuntimeError, match="not a whole checkpoint"):
        run.fit(regression(NAMESPACES[0]), batches(), batches(), ckpt_path=path)
    assert errors.seen == ["told"]
