"""Batches of prompts and answers for a causal language model, under real Trainers."""

import json
import logging
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lighter_freezers.experiments.data.standard_library import standard_library
from lighter_freezers.experiments.data.tokenizer import cached_tokenizer
from tests.experiments.data import prompt_tokenizers
from tests.lab import NAMESPACES, trainer

HOMES = {"pytorch_lightning": "lighter_freezers", "lightning.pytorch": "lighter_freezers.lightning"}
PL = "pytorch_lightning"
NUM_QUESTIONS = {"e2e_nlg": 5, "samsum": 5, "wikisql": 7, "multi_nli": 9}  # in the fixtures
torch.set_num_threads(1)
both = pytest.mark.parametrize("namespace", NAMESPACES)


@pytest.fixture(scope="module")
def library_cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Docstrings and tokenizer of the real standard library, made once."""
    return str(tmp_path_factory.mktemp("library"))


def data_of(folder: Path, task: str = "e2e_nlg", namespace: str = PL, **options: Any) -> Any:
    """A data module with small batches and a cache in the folder."""
    arguments = {"cache_dir": str(folder / "cache"), "vocab_size": 400, "batch_size": 4, **options}
    return import_module(HOMES[namespace]).GenerationDataModule(task, **arguments)


def ready(folder: Path, task: str = "e2e_nlg", **options: Any) -> Any:
    """The same after `setup` of everything."""
    data = data_of(folder, task, **options)
    data.prepare_data()
    data.setup()
    return data


def rows_of(batch: dict[str, Tensor]) -> list[tuple[list[int], list[int]]]:
    """The real tokens of each row, and those that have a label."""
    columns = (batch["input_ids"], batch["attention_mask"], batch["labels"])
    return [
        (ids[mask == 1].tolist(), labels[labels != -100].tolist())
        for ids, mask, labels in zip(*columns, strict=True)
    ]


def prompts_of(batch: dict[str, Any]) -> list[list[int]]:
    """The real tokens of each prompt."""
    columns = (batch["input_ids"], batch["attention_mask"])
    return [ids[mask == 1].tolist() for ids, mask in zip(*columns, strict=True)]


def model_of(namespace: str, seen: list[Any]) -> Any:
    """Learns something from each batch, and notes it."""
    base = import_module(namespace).LightningModule

    class Table(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table = nn.Embedding(2000, 4)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            seen.append(("train", batch))
            return self.table(batch["input_ids"]).square().mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            seen.append(("val", batch))

        def test_step(self, batch: Any, batch_idx: int) -> None:
            seen.append(("test", batch))

        def predict_step(self, batch: Any, batch_idx: int) -> list[str]:
            return list(batch["prompts"])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Table()


@both
@pytest.mark.parametrize("task", NUM_QUESTIONS)
def test_each_task_goes_through_fit_test_and_predict(namespace: str, task: str, tmp_path: Path) -> None:
    """With the fixtures and no network, in both namespaces: every training row once, every question once."""
    seen: list[Any] = []
    data, model = data_of(tmp_path, task, namespace), model_of(namespace, seen)
    run = trainer(namespace)
    run.fit(model, datamodule=data)
    run.test(model, datamodule=data, verbose=False)
    predicted = run.predict(model, datamodule=data)

    kinds = [kind for kind, _ in seen]
    assert kinds == sorted(kinds, key=["train", "val", "test"].index)
    prompts = [prompt for kind, batch in seen if kind == "test" for prompt in batch["prompts"]]
    assert [prompt for batch in predicted for prompt in batch] == prompts
    assert len(set(prompts)) == len(prompts) == NUM_QUESTIONS[task]


@pytest.mark.parametrize("task", NUM_QUESTIONS)
def test_training_batches_teach_the_answer_and_its_end_and_nothing_else(task: str, tmp_path: Path) -> None:
    """Right-padded; labels stand on the last real tokens and are these tokens; the last one is the end."""
    data = ready(tmp_path, task)
    for batch in [*data.train_dataloader(), *data.val_dataloader()]:
        assert {key: value.dtype for key, value in batch.items()} == dict.fromkeys(
            ("input_ids", "attention_mask", "labels"), torch.int64
        )
        for row, (ids, answer) in enumerate(rows_of(batch)):
            mask = batch["attention_mask"][row].tolist()
            assert mask == sorted(mask, reverse=True)  # on the right
            assert ids[-len(answer) :] == answer
            assert answer[-1] == data.eos_id
            assert answer.count(data.eos_id) == 1
            assert batch["labels"][row][len(ids) - len(answer)] == answer[0]  # and not shifted
            assert data.decode(ids).endswith(f":\n{data.decode(answer)}")


def test_test_batches_ask_as_training_taught(tmp_path: Path) -> None:
    """Left-padded prompts are the beginnings of the rows behind them, with all their references."""
    data = ready(tmp_path)
    batches = list(data.test_dataloader())
    assert [len(batch["prompts"]) for batch in batches] == [4, 1]
    batch = batches[0]
    prompts = prompts_of(batch)
    references = batch["references"]
    answers = rows_of(batch["answers"])

    assert all(mask.tolist() == sorted(mask.tolist()) for mask in batch["attention_mask"])  # on the left
    assert [len(texts) for texts in references] == [3, 2, 2, 2]
    assert all(type(texts) is tuple for texts in references)
    taught = [ids[: -len(answer)] for ids, answer in answers]
    assert taught == [ids for ids, texts in zip(prompts, references, strict=True) for _ in texts]
    assert [data.decode(answer) for _, answer in answers] == [text for texts in references for text in texts]
    assert [data.decode(ids) for ids in prompts] == batch["prompts"]


def test_a_tokenizer_of_transformers_gives_its_own_tokens(tmp_path: Path) -> None:
    """From a folder, as YAML has it, and as an object; `<s>` stands first."""
    tokenizer = prompt_tokenizers.llama()
    tokenizer.save_pretrained(tmp_path / "saved")
    of_object = ready(tmp_path, tokenizer=tokenizer)
    of_folder = ready(tmp_path, tokenizer=str(tmp_path / "saved"))
    batch = next(iter(of_object.val_dataloader()))

    assert of_object.vocab_size == len(tokenizer)
    assert of_object.eos_id == tokenizer.eos_token_id
    assert all(ids[0] == tokenizer.bos_token_id for ids, _ in rows_of(batch))
    assert torch.equal(batch["input_ids"], next(iter(of_folder.val_dataloader()))["input_ids"])
    assert of_object.tokenizer.source is tokenizer


def test_the_longest_contexts_are_cut_and_counted_once_per_split(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With the number in the log; no answer is cut, and a prompt leaves room for the answer to come."""
    caplog.set_level(logging.INFO, "lighter_freezers")
    whole, cut = (ready(tmp_path, "samsum", max_length=n, max_new_tokens=40) for n in (512, 100))
    remarks = [r.message for r in caplog.records if "rows with a cut context" in r.message]

    assert len(remarks) == 6
    assert all("rows with a cut context: 0." in remark for remark in remarks[:3])
    assert all("rows with a cut context: 0." not in remark for remark in remarks[3:5])
    for loader in ("train_dataloader", "val_dataloader"):
        before = [row for batch in getattr(whole, loader)() for row in rows_of(batch)]
        after = [row for batch in getattr(cut, loader)() for row in rows_of(batch)]
        assert [answer for _, answer in before] == [answer for _, answer in after]
        assert max(len(ids) for ids, _ in before) > 100
        assert 90 < max(len(ids) for ids, _ in after) <= 100
    assert all(batch["input_ids"].shape[1] <= 60 for batch in cut.test_dataloader())


def test_an_answer_without_room_is_an_error_or_a_counted_loss(
    tmp_path: Path, library_cache: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It names file and row, and what to do; `bad_rows: drop` leaves it out."""
    caplog.set_level(logging.INFO, "lighter_freezers")
    chats = [{"dialogue": f"A: {n}", "summary": "They talk. " * (60 if n == 2 else 1)} for n in range(9)]
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    files = {"train_file": str(file), "val_file": str(file), "test_file": str(file)}
    options = {**files, "max_length": 150, "max_new_tokens": 20, "tokenizer": "standard_library"}
    options |= {"cache_dir": library_cache, "vocab_size": 1024}

    with pytest.raises(ValueError, match=r"chats\.jsonl, line 3: the row needs \d+ tokens .*=150.*drop"):
        ready(tmp_path, "samsum", **options)
    data = ready(tmp_path, "samsum", **options, bad_rows="drop")
    assert sum(len(batch["input_ids"]) for batch in data.val_dataloader()) == 8
    assert sum(len(batch["prompts"]) for batch in data.test_dataloader()) == 8
    assert "Text, train: 8 rows" in caplog.text
    assert "rows too long and left out: 1" in caplog.text
    assert "prompts that are in the training rows too: 9" in caplog.text


def test_without_a_file_to_validate_on_whole_meanings_are_held_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No prompt is on both sides, and the log says what was done."""
    caplog.set_level(logging.INFO, "lighter_freezers")
    rows = [f'"name[{n}], food[French]","Number {n}, {k}."' for k in range(3) for n in range(30)]
    (tmp_path / "mine.csv").write_text("mr,ref\n" + "\n".join(rows) + "\n")
    data = data_of(tmp_path, train_file=str(tmp_path / "mine.csv"))
    data.prepare_data()
    data.setup("fit")
    prompts = [
        {data.decode(ids[: -len(answer)]) for batch in loader for ids, answer in rows_of(batch)}
        for loader in (data.train_dataloader(), data.val_dataloader())
    ]

    assert not prompts[0] & prompts[1]
    assert len(prompts[1]) == 3
    assert "Text, train: 81 rows" in caplog.text
    assert "a tenth is held out to validate on" in caplog.text
    assert "Text, val: 9 rows" in caplog.text
    with pytest.raises(ValueError, match=r"e2e_nlg: there is no test file in .*mine\.csv. Give `test_file:`"):
        data.setup("test")


def test_rows_are_drawn_anew_each_epoch_by_the_seed(tmp_path: Path) -> None:
    """The same for the same seed; validation and test keep their order."""

    def order(seed: int) -> list[list[int]]:
        loader = ready(tmp_path, seed=seed).train_dataloader()
        return [batch["input_ids"].flatten().tolist() for _ in range(2) for batch in loader]

    first = order(0)
    assert first == order(0)
    assert first != order(1)
    assert first[:6] != first[6:]


def test_limits_keep_rows_and_questions(tmp_path: Path) -> None:
    """Spread over the file."""
    data = ready(tmp_path, num_train_sequences=8, num_val_sequences=3, num_test_sequences=2)

    assert sum(len(batch["input_ids"]) for batch in data.train_dataloader()) == 8
    assert sum(len(batch["input_ids"]) for batch in data.val_dataloader()) == 3
    assert [batch["references"] for batch in data.test_dataloader()][0][1][0].startswith("Lantern House near")


def test_docstrings_are_the_default_and_say_where_they_are_from(
    library_cache: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With Python's version and a digest, and the tokenizer of the standard library."""
    caplog.set_level(logging.INFO, "lighter_freezers")
    data = import_module(HOMES[PL]).GenerationDataModule(
        cache_dir=library_cache, num_test_sequences=12, num_val_sequences=1, num_train_sequences=8
    )
    data.prepare_data()
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    corpus = standard_library()

    assert data.task.name == "docstrings"
    assert data.vocab_size == 1024
    assert data.tokenizer.encode_all(["def f(x):"]) == [
        cached_tokenizer(corpus, 1024, Path(library_cache)).encode("def f(x):")
    ]
    assert f"docstrings, functions of the {corpus.source}, digest {corpus.digest[:16]}" in caplog.text
    assert all(prompt.startswith("### Instruction: Say in one line") for prompt in batch["prompts"])
    assert data.describe() in caplog.text


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"task": "e2e"}, ValueError, "no task 'e2e'. Known: docstrings, e2e_nlg"),
        ({"source": "fixture", "train_file": "a.csv"}, ValueError, "Give either `source:` or `train_file:`"),
        ({"source": 3}, TypeError, r"source must be a name or a path. Got 3 \(int\)"),
        ({"max_length": 128}, ValueError, "max_length=128 leaves no room for a prompt before the 128 tokens"),
        ({"max_length": "512"}, TypeError, r"max_length must be a whole number. Got '512' \(str\)"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens must be at least 1"),
        ({"bad_rows": "skip"}, ValueError, "bad_rows must be one of error, drop. Got 'skip'"),
        ({"tokenizer": 5}, TypeError, "tokenizer must be a path or a tokenizer of transformers"),
        ({"train_file": 5}, TypeError, r"train_file must be a path. Got 5 \(int\)"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
    ],
)
def test_mistakes_are_told_when_it_is_built(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    """Before anything is read."""
    with pytest.raises(error, match=message):
        import_module(HOMES[PL]).GenerationDataModule(**{"task": "e2e_nlg", **arguments})


def test_too_few_rows_for_a_batch_say_what_to_change(tmp_path: Path) -> None:
    """In words of rows."""
    data = ready(tmp_path, batch_size=100)
    with pytest.raises(ValueError, match="are 27 to train on. Lower batch_size, raise num_train_sequences"):
        data.train_dataloader()


def test_workers_give_the_same_batches(tmp_path: Path) -> None:
    """Texts and tuples go through another process as they are."""
    here, there = (list(ready(tmp_path, num_workers=n).test_dataloader()) for n in (0, 1))

    assert [batch["references"] for batch in here] == [batch["references"] for batch in there]
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(here, there, strict=True))
