"""Batches for a classifier and a scorer, and from rows of one's own, under real Trainers."""

import json
import logging
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lighter_freezers.experiments.data.standard_library import standard_library
from lighter_freezers.experiments.tasks.code_labels import CLASS_NAMES
from lighter_freezers.experiments.training import batch_data, labelled_data, text_data
from tests.distributed.run_ranks import run_ranks
from tests.lab import NAMESPACES, adamw, trainer

HOMES = {"pytorch_lightning": "lighter_freezers", "lightning.pytorch": "lighter_freezers.lightning"}
KINDS = ("TextDataModule", "TokenLabelDataModule", "SequenceScoreDataModule")
FILES = {"train_file": "train.jsonl", "val_file": "val.jsonl", "test_file": "test.jsonl"}
PL = "pytorch_lightning"
torch.set_num_threads(1)
both = pytest.mark.parametrize("namespace", NAMESPACES)
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small standard library instead of the real one."""
    root = tmp_path / "library"
    root.mkdir()
    for index in range(60):
        lines = [f"def area{index}(width):", f"    return width * {index}  # number {index}", "", ""]
        (root / f"module{index}.py").write_text("\n".join(lines * 10))
    for room in (batch_data, labelled_data, text_data):
        monkeypatch.setattr(room, "standard_library", lambda: standard_library(root))


def write_rows(folder: Path) -> Path:
    """Rows of 1 to 9 words that serve all three data modules: 35 to train, 13 to validate, 5 to test."""
    for name, num_rows in (("train", 35), ("val", 13), ("test", 5)):
        with (folder / f"{name}.jsonl").open("w") as file:
            for index in range(num_rows):
                words = [f"{name}{index}", *["and", "x"] * (index % 5)]
                row = {
                    "text": " ".join(words),
                    "score": index / 40,
                    "tokens": words,
                    "labels": ["NAME", *["O", "X"] * (index % 5)],
                }
                file.write(json.dumps(row) + "\n")
    return folder


def data_of(namespace: str, kind: str, folder: Path, **options: Any) -> Any:
    """A data module with small batches and a cache in the folder."""
    arguments = {"cache_dir": str(folder / "cache"), "vocab_size": 300, "batch_size": 8, **options}
    return getattr(import_module(HOMES[namespace]), kind)(**arguments)


def own_data(namespace: str, kind: str, folder: Path, **options: Any) -> Any:
    """The same on rows of one's own: four batches an epoch, two to validate."""
    if not (folder / "train.jsonl").exists():
        write_rows(folder)
    files = {argument: str(folder / name) for argument, name in FILES.items()}
    return data_of(namespace, kind, folder, **{**files, **options})


def model_of(namespace: str, see: Callable[[str, Any], None] = lambda *_: None) -> Any:
    """Learns something from each batch; `see` is told of every batch."""
    base = import_module(namespace).LightningModule

    class Table(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table = nn.Embedding(400, 4)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            see("train", batch)
            return ((self.table(batch["input_ids"]).mean() - batch["targets"].float().mean()) ** 2).sum()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            see("val", batch)

        test_step = validation_step

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return batch

        def configure_optimizers(self) -> Any:
            return adamw(self.parameters())

    return Table()


def rows_seen(namespace: str, data: Any, **options: Any) -> dict[str, list[list[str]]]:
    """Fit, and return the text of every row of every training and validation batch."""
    seen: dict[str, list[list[str]]] = {"train": [], "val": []}
    first = "SequenceScore" in type(data).__name__

    def see(split: str, batch: Any) -> None:
        masks = batch.get("attention_mask", torch.ones_like(batch["input_ids"], dtype=torch.bool))
        rows = zip(batch["input_ids"], masks, strict=True)
        seen[split].append([data.decode(ids[mask][first:]) for ids, mask in rows])

    trainer(namespace, **{"max_epochs": 2, **options}).fit(model_of(namespace, see), datamodule=data)
    return seen


@pytest.mark.usefixtures("library")
@both
def test_the_three_modules_speak_the_same_tokens(namespace: str, tmp_path: Path) -> None:
    """One tokenizer in one cache, and a classifier's windows are the language model's."""
    texts, labels, scores = (data_of(namespace, kind, tmp_path, block_size=16) for kind in KINDS)
    for data in (labels, texts, scores):
        data.prepare_data()
        data.setup("fit")
    first = {data: next(iter(data.val_dataloader())) for data in (texts, labels, scores)}

    assert len(list((tmp_path / "cache").glob("bpe-*.json"))) == 1
    assert torch.equal(first[texts]["input_ids"], first[labels]["input_ids"])
    assert texts.decode(first[scores]["input_ids"][0, 1:]) == texts.decode(first[texts]["input_ids"][0, :-1])
    assert texts.vocab_size == labels.vocab_size == scores.vocab_size - 1 == scores.cls_token_id


@pytest.mark.usefixtures("library")
@both
def test_batches_have_what_a_classifier_and_a_scorer_need(namespace: str, tmp_path: Path) -> None:
    """Without padding there is no mask."""
    labels, scores = (data_of(namespace, kind, tmp_path, block_size=16) for kind in KINDS[1:])
    assert labels.class_names == CLASS_NAMES  # known before anything is read
    for data in (labels, scores):
        data.setup("fit")
    tokens, texts = next(iter(labels.train_dataloader())), next(iter(scores.train_dataloader()))

    assert labels.num_token_classes == 10
    assert {name: value.shape for name, value in tokens.items()} == {
        "input_ids": (8, 16),
        "targets": (8, 16),
    }
    assert {name: value.shape for name, value in texts.items()} == {"input_ids": (8, 16), "targets": (8,)}
    assert tokens["targets"].dtype == torch.int64
    assert texts["targets"].dtype == torch.float32
    assert bool(((texts["targets"] >= 0) & (texts["targets"] <= 1)).all())
    assert len(set(texts["targets"].tolist())) > 3
    assert bool((texts["input_ids"][:, 0] == scores.cls_token_id).all())


@each_kind
@both
def test_rows_of_ones_own_are_seen_in_an_order_of_each_epoch(
    namespace: str, kind: str, tmp_path: Path
) -> None:
    """Drawn from the seed: the same again in another run, another with another seed; none comes twice."""
    seen = rows_seen(namespace, own_data(namespace, kind, tmp_path))
    again = rows_seen(namespace, own_data(namespace, kind, tmp_path))
    other = rows_seen(namespace, own_data(namespace, kind, tmp_path, seed=1))
    epochs = [sum(seen["train"][:4], []), sum(seen["train"][4:], [])]

    assert seen == again
    assert seen["train"] != other["train"]
    assert [len(set(epoch)) for epoch in epochs] == [32, 32]
    assert epochs[0] != epochs[1]
    assert sum(seen["val"][:2], []) == [
        json.loads(line)["text"] for line in (tmp_path / "val.jsonl").read_text().splitlines()
    ]


@each_kind
def test_a_resumed_run_equals_an_uninterrupted_one(kind: str, tmp_path: Path) -> None:
    """Bit for bit, cut in an epoch and between two."""
    weights = {}
    for stops in ([7], [2, 7], [4, 7]):
        for index, max_steps in enumerate(stops):
            run = trainer(PL, max_epochs=-1, max_steps=max_steps, limit_val_batches=0)
            model = model_of(PL)
            data = own_data(PL, kind, tmp_path)
            run.fit(model, datamodule=data, ckpt_path=tmp_path / "c" if index else None)
            run.save_checkpoint(tmp_path / "c")
        weights[len(stops), stops[0]] = model.table.weight.detach()

    assert torch.equal(weights[2, 2], weights[1, 7])
    assert torch.equal(weights[2, 4], weights[1, 7])


def _rank(folder: Path) -> dict[str, Any]:
    """What a rank sees of each kind."""
    options = {"strategy": "ddp", "devices": 2}
    return {kind: rows_seen(PL, own_data(PL, kind, folder, batch_size=4), **options) for kind in KINDS}


def test_two_ranks_see_what_one_process_sees(tmp_path: Path) -> None:
    """Each global batch is that of one process with twice the batch size."""
    write_rows(tmp_path)
    first, second = run_ranks(_rank, tmp_path, 2, tmp_path)

    for kind in KINDS:
        one = rows_seen(PL, own_data(PL, kind, tmp_path))
        one["val"] = [batch[:8] if index % 2 == 0 else batch[:4] for index, batch in enumerate(one["val"])]
        for split in ("train", "val"):
            pairs = zip(first[kind][split], second[kind][split], strict=True)
            assert [sorted(a + b) for a, b in pairs] == [sorted(batch) for batch in one[split]], (kind, split)


@both
def test_predict_takes_the_rows_of_the_test(namespace: str, tmp_path: Path) -> None:
    """Each once, in the order of the file."""
    data = own_data(namespace, "SequenceScoreDataModule", tmp_path, batch_size=3)
    batches = trainer(namespace).predict(model_of(namespace), datamodule=data)

    assert [batch["targets"].tolist() for batch in batches] == [
        pytest.approx([0, 1 / 40, 2 / 40]),
        pytest.approx([3 / 40, 4 / 40]),
    ]


@each_kind
def test_a_test_file_is_needed_to_test_only(kind: str, tmp_path: Path) -> None:
    """Without one everything else is set up, and the test says what to give."""
    data = own_data(PL, kind, tmp_path, test_file=None)
    data.setup()
    assert len(data.val_dataloader()) == 2

    with pytest.raises(ValueError, match="There is no test file. Give `test_file:`"):
        trainer(PL).test(model_of(PL), datamodule=data, verbose=False)


@pytest.mark.usefixtures("library")
@each_kind
def test_rows_can_have_the_tokenizer_of_a_pretrained_model(kind: str, tmp_path: Path) -> None:
    """That of the standard library by its name, or of any text by its file."""
    pretrained = data_of(PL, "TextDataModule", tmp_path)
    pretrained.setup("fit")
    pretrained.tokenizer.save(tmp_path / "mine.json")
    text = json.loads((write_rows(tmp_path) / "train.jsonl").read_text().splitlines()[0])["text"]
    own = own_data(PL, kind, tmp_path)
    own.setup("fit")

    for choice in ("standard_library", str(tmp_path / "mine.json")):
        data = own_data(PL, kind, tmp_path, tokenizer=choice)
        data.setup("fit")
        assert data.tokenizer.encode(text) == pretrained.tokenizer.encode(text)
        assert data.tokenizer.vocab_size == pretrained.vocab_size
    assert own.tokenizer.encode(text) != pretrained.tokenizer.encode(text)


def test_classes_come_from_the_training_file(tmp_path: Path) -> None:
    """Or from the argument, in its order; before `setup` the error says where they are."""
    data = own_data(PL, "TokenLabelDataModule", tmp_path)
    with pytest.raises(RuntimeError, match=r"read from train_file by setup\(\)"):
        _ = data.num_token_classes
    data.setup("validate")
    named = own_data(PL, "TokenLabelDataModule", tmp_path, class_names=["X", "O", "NAME", "Y"])

    assert data.class_names == ("NAME", "O", "X")
    assert data.num_token_classes == 3
    assert named.class_names == ("X", "O", "NAME", "Y")
    named.setup("validate")
    assert next(iter(named.val_dataloader()))["targets"][:, 0].tolist() == [2] * 8


def test_a_given_cls_token_grows_the_vocabulary_to_it(tmp_path: Path) -> None:
    """So a model's size can be known before the text is; one within it adds nothing."""
    sizes = []
    for cls_token_id in (1024, 0, None):
        data = own_data(PL, "SequenceScoreDataModule", tmp_path, cls_token_id=cls_token_id)
        data.setup("fit")
        assert set(next(iter(data.val_dataloader()))["input_ids"][:, 0].tolist()) == {data.cls_token_id}
        sizes.append(data.vocab_size - data.tokenizer.vocab_size)

    assert sizes == [1025 - data.tokenizer.vocab_size, 0, 1]


@each_kind
def test_the_log_tells_what_rows_there_are(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One line about the text, one for each split with its rows that are too long, one about the cache."""
    with caplog.at_level(logging.INFO, logger="lighter_freezers"):
        rows_seen(PL, own_data(PL, kind, tmp_path, block_size=4))
    said = [record.getMessage() for record in caplog.records if record.name == "lighter_freezers"]
    lines = [line for line in said if line.startswith("Text")]

    assert len(lines) == 3
    assert [line.partition(" in ")[0] for line in said if line not in lines] == [
        "What is encoded now is kept"
    ]
    assert "train.jsonl: train 35 documents" in lines[0]
    assert "rows longer than block_size=4" in lines[1]
    assert "35, c" in lines[1]


@pytest.mark.parametrize(
    ("kind", "arguments", "error", "message"),
    [
        (KINDS[0], {"text": "a", "train_file": "b", "val_file": "c"}, ValueError, "Give either `text:`"),
        (KINDS[0], {"train_file": "a.csv"}, ValueError, "need train_file and val_file.* Give val_file"),
        (KINDS[1], {"val_file": "a.csv"}, ValueError, "Give train_file"),
        (KINDS[2], {"test_file": "a.csv"}, ValueError, "Give train_file"),
        (KINDS[1], {"train_file": 5, "val_file": "a.csv"}, TypeError, "train_file must be a path. Got 5"),
        (KINDS[1], {"class_names": ["a"]}, ValueError, "class_names requires train_file.*other, keyword"),
        (KINDS[1], {"class_names": "a b"}, TypeError, r"must be a list of names such as \[O, PERSON\]"),
        (KINDS[1], {"class_names": ["a", False]}, TypeError, r"Got False \(bool\). Put it in quotes"),
        (KINDS[1], {"class_names": ["a", "a"]}, ValueError, "class_names has 'a' twice"),
        (KINDS[1], {"block_size": "8"}, TypeError, "block_size must be a whole number.*Remove the quotes"),
        (KINDS[2], {"block_size": 1}, ValueError, "block_size must be at least 2. Got 1"),
        (KINDS[2], {"cls_token_id": "5"}, TypeError, "cls_token_id must be a whole number"),
        (KINDS[2], {"cls_token_id": -1}, ValueError, "cls_token_id counts from 0"),
        (KINDS[2], {"tokenizer": 5}, TypeError, "tokenizer must be a path. Got 5"),
    ],
)
def test_wrong_arguments_are_refused_at_once(
    kind: str, arguments: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    """Before anything is read."""
    with pytest.raises(error, match=message):
        data_of(PL, kind, tmp_path, **arguments)


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        (KINDS[0], {"text": ""}, "line 36, field 'text': expected a text that is not blank, got ''"),
        (KINDS[1], {"tokens": ["a"], "labels": ["O", "O"]}, "line 36, field 'labels'"),
        (KINDS[2], {"text": "a", "score": 2}, r"line 36, field 'score': .* got 2 \(int\)"),
    ],
)
def test_a_bad_row_stops_the_run_before_training(
    kind: str, row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """The error names the file and the line."""
    file = write_rows(tmp_path) / "train.jsonl"
    file.write_text(file.read_text() + json.dumps(row) + "\n")

    with pytest.raises(ValueError, match=rf"train\.jsonl, {message}"):
        rows_seen(PL, own_data(PL, kind, tmp_path))
