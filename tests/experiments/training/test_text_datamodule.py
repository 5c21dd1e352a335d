"""Batches of text under real Trainers: what is in them, in which order, after a resume and on two ranks."""

import logging
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.distributed.run_ranks import run_ranks
from tests.lab import NAMESPACES, adamw, trainer
from tests.texts import write_texts

HOMES = {"pytorch_lightning": "lighter_freezers", "lightning.pytorch": "lighter_freezers.lightning"}
ROWS = {"block_size": 16, "batch_size": 8, "num_train_sequences": 36, "num_val_sequences": 12}  # 4 batches
torch.set_num_threads(1)
both = pytest.mark.parametrize("namespace", NAMESPACES)


def text_data(namespace: str, folder: Path, **options: Any) -> Any:
    """A TextDataModule of either namespace on a small text: four batches an epoch, two to validate."""
    text = folder / "texts"
    if not text.exists():
        write_texts(text)
    arguments = {"text": str(text), "vocab_size": 300, "cache_dir": str(folder / "cache"), **ROWS, **options}
    return import_module(HOMES[namespace]).TextDataModule(**arguments)


def language_model(namespace: str, see: Callable[[str, Any], None] = lambda *_: None) -> Any:
    """A bigram model; `see` is told of every batch."""
    base = import_module(namespace).LightningModule

    class Bigram(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table = nn.Embedding(300, 300)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            see("train", batch)
            return nn.functional.cross_entropy(
                self.table(batch["input_ids"]).flatten(0, 1), batch["targets"].flatten()
            )

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            see("val", batch)

        test_step = validation_step

        def configure_optimizers(self) -> Any:
            return adamw(self.parameters())

    return Bigram()


def rows_seen(
    namespace: str, data: Any, checkpoint: Path | None = None, **options: Any
) -> dict[str, list[list[list[int]]]]:
    """Fit, and return the input_ids of every training and validation batch."""
    seen: dict[str, list[list[list[int]]]] = {"train": [], "val": []}
    model = language_model(namespace, lambda split, batch: seen[split].append(batch["input_ids"].tolist()))
    trainer(namespace, **{"max_epochs": 2, **options}).fit(model, datamodule=data, ckpt_path=checkpoint)
    return seen


@both
def test_batches_have_what_a_language_model_needs(namespace: str, tmp_path: Path) -> None:
    """Inputs, the tokens that follow them, and the bytes that these stand for."""
    data = text_data(namespace, tmp_path)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    decoded = [len(data.decode(row).encode()) for row in batch["targets"]]

    assert batch["input_ids"].shape == batch["targets"].shape == (8, 16)
    assert torch.equal(batch["input_ids"][:, 1:], batch["targets"][:, :-1])
    assert {value.dtype for value in batch.values()} == {torch.int64}
    assert data.vocab_size == 300
    assert sum(batch["num_bytes"].tolist()) == pytest.approx(sum(decoded), rel=0.05)  # cut characters


@both
def test_each_epoch_has_an_order_of_its_own(namespace: str, tmp_path: Path) -> None:
    """Drawn from the seed: the same again in another run, another with another seed; never for validation."""
    seen = rows_seen(namespace, text_data(namespace, tmp_path))
    again = rows_seen(namespace, text_data(namespace, tmp_path))
    other = rows_seen(namespace, text_data(namespace, tmp_path, seed=1))

    assert len(seen["train"]) == 8
    assert seen["train"][:4] != seen["train"][4:]
    assert seen == again
    assert seen["train"] != other["train"]
    assert seen["val"][:2] == seen["val"][2:] == other["val"][:2]


def weights_after(namespace: str, folder: Path, stops: list[int], **options: Any) -> torch.Tensor:
    """Train up to each number of steps in turn, each time resumed from the checkpoint of the time before."""
    checkpoint = folder / "cut.ckpt"
    for index, max_steps in enumerate(stops):
        model = language_model(namespace)
        run = trainer(namespace, max_epochs=-1, max_steps=max_steps, limit_val_batches=0, **options)
        run.fit(model, datamodule=text_data(namespace, folder), ckpt_path=checkpoint if index else None)
        run.save_checkpoint(checkpoint)
    return model.table.weight.detach()


@pytest.mark.parametrize(
    ("namespace", "limit", "cuts"),
    [
        ("pytorch_lightning", 1.0, (2, 4, 7)),
        ("lightning.pytorch", 1.0, (6,)),
        ("pytorch_lightning", 3, (2, 6, 7)),  # epochs of three of the four batches
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    namespace: str, limit: float, cuts: tuple[int, ...], tmp_path: Path
) -> None:
    """Bit for bit, cut by `max_steps` in an epoch or between two, and over the next epochs."""
    whole = weights_after(namespace, tmp_path, [10], limit_train_batches=limit)
    for cut in cuts:
        resumed = weights_after(namespace, tmp_path, [cut, 10], limit_train_batches=limit)
        assert torch.equal(resumed, whole), f"cut after {cut} steps"


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
@both
def test_a_checkpoint_of_a_running_epoch_goes_on_there(namespace: str, tmp_path: Path) -> None:
    """As ModelCheckpoint writes it, in an epoch and after its last batch: the rest, in the same order."""
    saver = import_module(namespace + ".callbacks").ModelCheckpoint(
        tmp_path / "cuts", "{step}", every_n_train_steps=1, save_top_k=-1, auto_insert_metric_name=False
    )
    options = {"callbacks": [saver], "enable_checkpointing": True, "limit_val_batches": 0}
    whole = rows_seen(namespace, text_data(namespace, tmp_path), **options)["train"]

    assert len(whole) == 8
    for step in (3, 4, 5):
        checkpoint = tmp_path / "cuts" / f"{step}.ckpt"
        assert rows_seen(namespace, text_data(namespace, tmp_path), checkpoint)["train"] == whole[step:]


def test_a_limit_on_the_batches_hides_no_text(tmp_path: Path) -> None:
    """Under `limit_train_batches` the next epoch takes up where this one was left."""
    whole = rows_seen("pytorch_lightning", text_data("pytorch_lightning", tmp_path))["train"]
    limited = rows_seen("pytorch_lightning", text_data("pytorch_lightning", tmp_path), limit_train_batches=3)[
        "train"
    ]

    assert len(limited) == 6
    assert limited == whole[:6]


def test_the_loader_draws_from_no_global_generator(tmp_path: Path) -> None:
    """Dropout would notice, and a resumed run would differ."""
    data = text_data("pytorch_lightning", tmp_path)
    data.setup("fit")
    before = torch.get_rng_state()
    for _ in data.train_dataloader():
        pass

    assert torch.equal(torch.get_rng_state(), before)


@both
def test_overfitting_takes_the_same_batches_each_epoch(namespace: str, tmp_path: Path) -> None:
    """`overfit_batches` means so."""
    seen = rows_seen(namespace, text_data(namespace, tmp_path), overfit_batches=2)["train"]

    assert len(seen) == 4
    assert seen[:2] == seen[2:]


def _rank(folder: Path) -> dict[str, Any]:
    """What a rank sees with and without Lightning's own sampler."""
    options = {"strategy": "ddp", "devices": 2}
    seen = {}
    for injects in (True, False):
        data = text_data("pytorch_lightning", folder, batch_size=4, num_val_sequences=13)
        seen[str(injects)] = rows_seen("pytorch_lightning", data, use_distributed_sampler=injects, **options)
    return seen


def test_two_ranks_see_what_one_process_sees(tmp_path: Path) -> None:
    """Each global batch is that of one process with twice the batch size; no sequence comes twice."""
    one = rows_seen("pytorch_lightning", text_data("pytorch_lightning", tmp_path, num_val_sequences=13))
    one["val"] = [batch[:8] if index % 2 == 0 else batch[:4] for index, batch in enumerate(one["val"])]
    ranks = run_ranks(_rank, tmp_path, 2, tmp_path)

    for injects in ("True", "False"):
        for split in ("train", "val"):
            first, second = (rank[injects][split] for rank in ranks)
            together = [sorted(a + b) for a, b in zip(first, second, strict=True)]
            assert together == [sorted(batch) for batch in one[split]], (split, injects)


@both
def test_one_line_tells_what_text_it_is(
    namespace: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Source, sizes and digest, once in a run."""
    with caplog.at_level(logging.INFO, logger="lighter_freezers"):
        rows_seen(namespace, text_data(namespace, tmp_path))
    lines = [record.getMessage() for record in caplog.records if "digest" in record.getMessage()]

    assert len(lines) == 1
    assert "12 text files" in lines[0]
    assert "bytes" in lines[0]


@both
def test_test_and_validate_cut_only_what_they_need(namespace: str, tmp_path: Path) -> None:
    """Each stage alone, in the order of the text."""
    for stage, limit in (("validate", {"num_val_sequences": 3}), ("test", {"num_test_sequences": 5})):
        seen: list[int] = []
        model = language_model(namespace, lambda _, batch, seen=seen: seen.append(len(batch["targets"])))
        data = text_data(namespace, tmp_path, **limit)
        getattr(trainer(namespace), stage)(model, datamodule=data, verbose=False)

        assert seen == list(limit.values())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"vocab_size": 256}, ValueError, "vocab_size must be at least 257. Got 256"),
        ({"block_size": "128"}, TypeError, "block_size must be a whole number.*Remove the quotes"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"num_val_sequences": 0}, ValueError, "num_val_sequences must be at least 1"),
        ({"seed": None}, TypeError, "seed must be a whole number. Got None"),
        ({"num_workers": -1}, ValueError, "num_workers counts from 0"),
        ({"text": 5}, TypeError, "text must be a path. Got 5"),
    ],
)
def test_wrong_arguments_are_refused_at_once(
    arguments: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    """Before any text is read."""
    with pytest.raises(error, match=message):
        text_data("pytorch_lightning", tmp_path, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"block_size": 10**6},
            "The train text has .* tokens: too few for one sequence of block_size=1000000",
        ),
        ({"batch_size": 64}, "A batch needs 64 sequences .* but there are 36 to train on"),
    ],
)
def test_too_little_text_is_refused_before_the_first_batch(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """The error says how much there is, and what to change."""
    with pytest.raises(ValueError, match=message):
        rows_seen("pytorch_lightning", text_data("pytorch_lightning", tmp_path, **arguments))


@both
def test_it_prints_before_and_after_setup(namespace: str, tmp_path: Path) -> None:
    """Lightning's own text of a data module takes each loader for one of torch."""
    data = text_data(namespace, tmp_path)
    assert str(data) == "TextDataModule\nno text before setup()"
    data.setup("fit")
    name, train, val = str(data).splitlines()
    assert name == "TextDataModule"
    assert train.startswith("train: ")
    assert val.endswith(" tokens")


def test_the_tokenizer_is_there_after_setup(tmp_path: Path) -> None:
    """Before `setup`, the error says to call it."""
    with pytest.raises(RuntimeError, match=r"after setup\(\)"):
        _ = text_data("pytorch_lightning", tmp_path).vocab_size


@pytest.mark.wide
def test_one_namespace_does_not_import_the_other() -> None:
    """In fresh interpreters."""
    runs = []
    for namespace, other in (("pytorch_lightning", "lightning"), ("lightning.pytorch", "pytorch_lightning")):
        code = (
            f"from {HOMES[namespace]} import TextDataModule; import sys; sys.exit({other!r} in sys.modules)"
        )
        runs.append(subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2]))

    assert [run.wait() for run in runs] == [0, 0]
