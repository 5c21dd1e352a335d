"""A second start encodes nothing: calls of the package tokenizers are counted in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from lighter_freezers import GenerationDataModule, TextDataModule
from lighter_freezers.experiments.data import cache
from lighter_freezers.experiments.data.cache import encoded_once, kept_arrays
from tests.experiments.data.prompt_tokenizers import llama
from tests.texts import write_texts

ROOT = Path(__file__).parents[3]
DATA = ROOT / "configs" / "data"
COUNTED = """
import sys

import pytorch_lightning
import transformers
import lighter_freezers
from lighter_freezers import GPT, GenerationDataModule, TextDataModule

calls = 0


def count(frame, event, called):
    global calls
    owner = type(getattr(called, "__self__", None)).__module__ if event == "c_call" else ""
    calls += owner.startswith("tokenizers") and called.__name__.startswith("encode")


"""
MODULES = """
import json

sys.setprofile(count)
for name, options in json.loads(sys.argv[1]):
    data = getattr(lighter_freezers, name)(**options)
    data.prepare_data()
    data.setup("fit")
    data.setup("validate" if "val_file" in options else "test")
print(calls)
"""
QUICKSTART = """
from lighter.engine.runner import cli

sys.setprofile(count)
try:
    cli()
finally:
    sys.setprofile(None)
    print(calls)
"""


TWO_PROCESSES = """
import torch


class Module(pytorch_lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Embedding(300, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch["input_ids"]).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters())


sys.setprofile(count)
trainer = pytorch_lightning.Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_steps=1, logger=False, enable_checkpointing=False
)
trainer.fit(Module(), TextDataModule(sys.argv[1], vocab_size=300, block_size=8, batch_size=2))
sys.setprofile(None)
with open(f"calls{trainer.global_rank}", "w") as file:
    print(calls, file=file)
print(calls)
"""


def calls_in(script: str, folder: Path, *arguments: str) -> int:
    """The number of calls that encode a text in a new process."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    (folder / "script.py").write_text(COUNTED + script)
    command = [sys.executable, "script.py", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout.split()[-1])


@pytest.mark.wide
def test_of_two_processes_that_start_together_one_encodes(tmp_path: Path) -> None:
    """The other waits, and reads."""
    write_texts(tmp_path / "texts")
    calls_in(TWO_PROCESSES, tmp_path, "texts")  # each process writes down its own
    assert {rank: int((tmp_path / f"calls{rank}").read_text()) > 0 for rank in (0, 1)} == {0: True, 1: False}


@pytest.mark.wide
def test_the_second_start_of_the_quickstart_encodes_nothing(tmp_path: Path) -> None:
    """The whole of `lighter fit`, twice, each in a process of its own."""
    arguments = ("fit", str(ROOT / "configs" / "quickstart.yaml"), "trainer::max_steps=2")
    assert calls_in(QUICKSTART, tmp_path, *arguments) > 0
    assert calls_in(QUICKSTART, tmp_path, *arguments) == 0


@pytest.mark.wide
def test_the_second_start_of_every_data_module_encodes_nothing(tmp_path: Path) -> None:
    """Windows, rows, words with labels, texts with scores; prompts for our tokenizer and transformers'."""
    llama().save_pretrained(tmp_path / "tokenizer")
    rows = {f"{split}_file": str(DATA / f"notes_{split}.jsonl") for split in ("train", "val")}
    words = {f"{split}_file": str(DATA / f"entities_{split}.jsonl") for split in ("train", "val")}
    scores = {f"{split}_file": str(DATA / f"reviews_{split}.csv") for split in ("train", "val")}
    modules: list[tuple[str, dict[str, Any]]] = [
        ("TextDataModule", rows),
        ("TokenLabelDataModule", {}),
        ("TokenLabelDataModule", words),
        ("SequenceScoreDataModule", {}),
        ("SequenceScoreDataModule", scores),
        ("GenerationDataModule", {"task": "e2e_nlg", "vocab_size": 400}),
        ("GenerationDataModule", {"task": "samsum", "tokenizer": "tokenizer", "max_length": 300}),
    ]
    assert calls_in(MODULES, tmp_path, json.dumps(modules)) >= len(modules)
    # the tokenizers of both prompt modules are loaded twice, and asked for the tokens around an empty text
    assert calls_in(MODULES, tmp_path, json.dumps(modules)) <= 4


def batches(folder: Path, **options: Any) -> tuple[list[torch.Tensor], set[Path]]:
    """What a data module gives for validation, and the files in its cache."""
    options = {"source": "fixture", "vocab_size": 400, "max_length": 256, "max_new_tokens": 32, **options}
    data = GenerationDataModule("samsum", cache_dir=folder / "cache", **options)
    data.prepare_data()
    data.setup("fit")
    return [batch["input_ids"] for batch in data.val_dataloader()], set((folder / "cache").glob("ids-*.npz"))


def test_what_was_read_from_the_cache_is_what_was_encoded(tmp_path: Path) -> None:
    """Cut rows too; for another length, tokenizer or choice of rows, more is encoded."""
    first, files = batches(tmp_path, max_length=64)
    again, files_again = batches(tmp_path, max_length=64)
    assert files == files_again
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))

    for other in ({"max_length": 70}, {"vocab_size": 401}, {"num_val_sequences": 3}):
        _, more = batches(tmp_path, **{"max_length": 64, **other})
        assert more > files, other
        files = more


def texts_of(folder: Path, text: str, **options: Any) -> str:
    """The training text as a data module gives it back, window by window."""
    (folder / "text.txt").write_text(text)
    data = TextDataModule(folder / "text.txt", cache_dir=folder / "cache", batch_size=1, **options)
    data.prepare_data()
    data.setup("fit")
    return "".join(data.decode(batch["input_ids"][0]) for batch in data.val_dataloader())


def test_a_changed_text_is_encoded_again(tmp_path: Path) -> None:
    """Also where its file keeps its length and its time, as tools that copy files can leave it."""
    options = {"vocab_size": 257, "block_size": 16}
    os.makedirs(tmp_path / "cache")
    assert "a" * 16 in texts_of(tmp_path, "a" * 800, **options)
    os.utime(tmp_path / "text.txt", (1, 1))
    assert "b" * 16 in texts_of(tmp_path, "b" * 800, **options)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no archive", b"\x93NUMPY"])
def test_a_damaged_file_is_made_again(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """With a warning that names it; the next start reads it."""
    kept_arrays(tmp_path / "a.npz", lambda: {"ids": torch.arange(3).numpy()})
    (tmp_path / "a.npz").write_bytes(damage)
    again = kept_arrays(tmp_path / "a.npz", lambda: {"ids": torch.arange(3).numpy()})

    assert again["ids"].tolist() == [0, 1, 2]
    assert f"{tmp_path / 'a.npz'} is damaged and is made again" in caplog.text
    assert kept_arrays(tmp_path / "a.npz", dict)["ids"].tolist() == [0, 1, 2]


def test_ids_in_the_layout_of_another_version_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are encoded again, and the other version still finds its own."""
    read = []
    for version, encoded in ((1, [[1]]), (2, [[2]]), (1, []), (2, [])):
        monkeypatch.setattr(cache, "IDS_VERSION", version)
        (ids,) = encoded_once(["text"], "tokenizer", lambda _, ids=encoded: ids, tmp_path)
        read.append(ids.tolist())
    assert read == [[1], [2], [1], [2]]


def test_one_line_says_where_new_text_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """None where it is read; and one if a tokenizer is not known to encode the same each time."""
    batches(tmp_path, num_train_sequences=4)
    assert caplog.text.count(f"What is encoded now is kept in {tmp_path / 'cache'}, and read") == 1
    caplog.clear()
    batches(tmp_path, num_train_sequences=4)
    assert "kept" not in caplog.text

    slow = transformers.ByT5Tokenizer()
    _, files = batches(tmp_path, tokenizer=slow, max_length=2000)
    _, files_again = batches(tmp_path, tokenizer=slow, max_length=2000)
    assert files == files_again
    assert caplog.text.count("Each start encodes the text again: what ByT5Tokenizer makes of it") == 1


def test_a_file_without_one_of_its_arrays_is_made_again(tmp_path: Path) -> None:
    """As where its directory is damaged and what is packed is not."""
    encoded_once(["text"], "tokenizer", lambda _: [[1, 2]], tmp_path)
    (file,) = tmp_path.glob("ids-*.npz")
    np.savez(file, ids=np.arange(3))
    (ids,) = encoded_once(["text"], "tokenizer", lambda _: [[1, 2]], tmp_path)
    assert ids.tolist() == [1, 2]


def test_a_cache_that_cannot_be_written_costs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is kept, and everything else is as usual."""
    (tmp_path / "file").touch()
    for name in ("train", "val"):
        made = kept_arrays(tmp_path / "file" / f"{name}.npz", lambda: {"ids": torch.arange(3).numpy()})
        assert made["ids"].tolist() == [0, 1, 2]

    assert caplog.text.count("cannot be kept") == 1
    assert "`cache_dir:`" in caplog.text
