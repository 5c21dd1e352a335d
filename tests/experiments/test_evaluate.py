"""Evaluations by one call: what they return and write, and that it is what a test of the module logs."""

import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from lighter_freezers import (
    CausalLMModule,
    EvaluationResult,
    GenerationDataModule,
    evaluate_e2e,
    evaluate_multi_nli,
    evaluate_samsum,
    evaluate_wikisql,
)
from lighter_freezers.experiments import evaluate
from lighter_freezers.experiments.evaluation.text_metrics import exact_match
from lighter_freezers.experiments.tasks.squad import SQUAD
from lighter_freezers.reports.results_file import versions, write_results
from lighter_freezers.reports.whole_files import unused_path
from tests.experiments.training.causal_lms import causal_lm, tokenizer
from tests.lab import trainer

ROOM = 1024
SMALL: dict[str, Any] = {"num_samples": 5, "batch_size": 2, "max_length": ROOM}
FEW = {"max_new_tokens": 6}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "e2e_nlg": evaluate_e2e,
    "samsum": evaluate_samsum,
    "wikisql": evaluate_wikisql,
    "multi_nli": evaluate_multi_nli,
}
DOCUMENT = {
    *("bleu", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge1", "rouge2", "rougeL", "rougeLsum", "meteor"),
    *("perplexity", "num_samples", "generation_config"),
}
SHARES = {
    "wikisql": {"exact_match", "sql_match", "sql_unparsed", "perplexity", "num_samples"},
    "multi_nli": {"accuracy", "unparsed", "perplexity", "num_samples"},
}
NAMES = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l", "rougeLsum": "rouge_lsum"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Llama with room for whole prompts of characters, and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    causal_lm(num_positions=ROOM + 64).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("task", FUNCTIONS)
def test_a_call_gives_what_a_test_of_the_module_logs(task: str, model: str, tmp_path: Path) -> None:
    """The adapter of a run on its base: the same settings, the same figures, the names of the document."""
    module = CausalLMModule(model, lora={"r": 2, "target": "both"}, save_final_model=True, learning_rate=0.05)
    data = GenerationDataModule(
        task,
        "fixture",
        tokenizer=model,
        max_length=ROOM,
        max_new_tokens=6,
        num_train_sequences=16,
        num_val_sequences=2,
        num_test_sequences=5,
    )
    run = trainer("pytorch_lightning", max_steps=2, default_root_dir=tmp_path)
    run.fit(module, datamodule=data)
    (logged,) = run.test(module, datamodule=data, verbose=False)
    result = FUNCTIONS[task](tmp_path / "final_model", source="fixture", generation=FEW, **SMALL)

    fields = asdict(result) if isinstance(result, EvaluationResult) else dict(result)
    assert set(fields) == (DOCUMENT if isinstance(result, EvaluationResult) else SHARES[task])
    assert fields.pop("num_samples") == 5
    settings = fields.pop("generation_config", None)
    assert settings in (None, {**FEW, "temperature": 0.0, "top_p": None, "top_k": None, "seed": 0})
    renamed = {NAMES.get(name, {"meteor": "meteor_nltk"}.get(name, name)): v for name, v in fields.items()}
    assert {f"test/{name}": value for name, value in renamed.items()} == pytest.approx(logged, rel=1e-4)


def test_a_task_of_ones_own_is_evaluated_too(model: str) -> None:
    """By the task itself, as by the name of one that the package has; the others are short for this."""
    options = {**SMALL, "num_samples": 2, "source": "fixture", "generation": FEW}
    scores = evaluate.evaluate(SQUAD, model, **options)

    assert scores == evaluate.evaluate("squad", model, **options)
    assert scores.num_samples == 2
    assert {"exact_match", "perplexity"} <= scores.scores.keys()


def test_an_unknown_task_is_told_before_a_model_is_loaded() -> None:
    """With the names that there are."""
    with pytest.raises(ValueError, match="There is no task 'sqad'. Known: .*squad"):
        evaluate.evaluate("sqad", "no/such/model")


@pytest.mark.parametrize("task", FUNCTIONS)
def test_each_shows_the_arguments_of_all(task: str) -> None:
    """In `help` and editors, with what it returns itself."""
    shown, general = inspect.signature(FUNCTIONS[task]), inspect.signature(evaluate.evaluate)
    returned = EvaluationResult if task in ("e2e_nlg", "samsum") else dict[str, float | int]

    assert list(shown.parameters.values()) == list(general.parameters.values())[1:]
    assert next(iter(shown.parameters)) == "model_path"
    assert shown.return_annotation == returned


def test_a_model_in_memory_needs_its_tokenizer(model: str, tmp_path: Path) -> None:
    """And is then the same as the one on disk; results are written if there is a folder for them."""
    network = causal_lm(num_positions=ROOM + 64)
    with pytest.raises(ValueError, match="comes without its tokenizer"):
        evaluate_wikisql(network, **SMALL)
    in_memory = evaluate_wikisql(network, tokenizer=model, generation=FEW, output_dir=str(tmp_path), **SMALL)
    on_disk = evaluate_wikisql(model, generation=FEW, output_dir=str(tmp_path), **SMALL)
    assert in_memory == pytest.approx(on_disk)

    first, second = (
        json.loads((tmp_path / name).read_text())
        for name in ("evaluation_results.json", "evaluation_results_1.json")
    )
    assert (first["model"], second["model"]) == ("LlamaForCausalLM", model)
    assert first["task"] == "wikisql"
    assert "fixtures" in first["data"]
    assert first["scores"] == pytest.approx({name: on_disk[name] for name in first["scores"]})
    assert len(first["samples"]) == first["num_samples"] == 5
    assert first["samples"][0].keys() == {"prompt", "prediction", "references"}


def test_the_batch_size_makes_no_difference(model: str) -> None:
    """Left padding, for greedy answers."""
    one, five = (
        evaluate_multi_nli(model, **{**SMALL, "batch_size": size}, generation=FEW) for size in (1, 5)
    )

    assert one == pytest.approx(five, rel=1e-4)


def test_a_model_that_knows_the_answers_is_right() -> None:
    """Answers come out of the model as they went in: prompts and references belong together."""

    class Oracle(type(causal_lm())):  # type: ignore[misc]
        """Writes the right answer after each prompt."""

        def generate(self, input_ids: Any = None, **_: Any) -> torch.Tensor:
            prompts = [encode.decode(row, skip_special_tokens=True) for row in input_ids]
            new = [[*encode(known[prompt]).input_ids, 0] for prompt in prompts]
            longest = max(map(len, new))
            return torch.cat(
                [input_ids, torch.tensor([row + [0] * (longest - len(row)) for row in new])], dim=1
            )

    encode = tokenizer()
    data = GenerationDataModule("wikisql", "fixture", tokenizer=encode, max_length=ROOM)
    data.setup("test")
    known = {
        prompt: references[0]
        for batch in data.test_dataloader()
        for prompt, references in zip(batch["prompts"], batch["references"], strict=True)
    }
    network = Oracle(causal_lm(num_positions=ROOM + 64).config)
    result = evaluate_wikisql(network, tokenizer=encode, max_length=ROOM)

    assert (result["exact_match"], result["sql_match"], result["num_samples"]) == (1.0, 1.0, len(known))
    assert exact_match(list(known.values()), [[text] for text in known.values()]) == {"exact_match": 1.0}


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"generation": {"temperature": -1.0}}, ValueError, "temperature must be at least 0"),
        ({"generation": {"bold": True}}, TypeError, "bold"),
        ({"source": "nowhere"}, ValueError, "nowhere"),
        ({"no_such_option": 1}, TypeError, "no_such_option"),
        ({"base_model_id": "base"}, ValueError, "no adapter_config.json, so it is not a PEFT adapter"),
    ],
)
def test_mistakes_are_told(wrong: Any, error: type[Exception], message: str, model: str) -> None:
    """By the code that uses the option."""
    with pytest.raises(error, match=message):
        evaluate_multi_nli(model, **{**SMALL, **wrong})


def test_a_missing_package_is_told_before_anything_is_generated(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is not asked."""
    monkeypatch.setitem(sys.modules, "nltk", None)
    monkeypatch.setattr(evaluate, "answers_to", None)
    with pytest.raises(ImportError, match="The metric meteor needs nltk"):
        evaluate_e2e(model, **SMALL)


def test_a_results_file_is_plain_and_never_overwritten(tmp_path: Path) -> None:
    """What is no number becomes null, as JSON has it; the third file has the number 2."""
    for number in range(3):
        write_results(tmp_path, {"number": number, "loss": float("nan"), "path": tmp_path, "pair": (1, True)})
    contents = [
        json.loads((tmp_path / f"evaluation_results{end}.json").read_text()) for end in ("", "_1", "_2")
    ]

    assert [content["number"] for content in contents] == [0, 1, 2]
    assert contents[0] == {
        "number": 0,
        "loss": None,
        "path": str(tmp_path),
        "pair": [1, True],
        "versions": versions(),
    }
    assert unused_path(tmp_path / "new") == tmp_path / "new"


@pytest.mark.parametrize(
    ("answer", "accuracy"), [("entailment or neutral", 0), ("neutral", 0), ("Entailment.", 1)]
)
def test_multi_nli_knows_its_labels_whatever_the_sample(
    answer: str, accuracy: int, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows with one label only: an answer that names two is wrong, by a call and by a test of the module."""
    rows = [{"premise": each, "hypothesis": "h", "label": 0} for each in "abc"]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = dict.fromkeys(("train_file", "val_file", "test_file"), str(file))
    monkeypatch.setattr(
        evaluate, "answers_to", lambda network, inputs, *_: [answer] * len(inputs["input_ids"])
    )
    assert evaluate_multi_nli(model, batch_size=2, max_length=ROOM, **files)["accuracy"] == accuracy

    module = CausalLMModule(model)
    data = GenerationDataModule("multi_nli", **files, tokenizer=model, max_length=ROOM)
    monkeypatch.setattr(
        module._answers, "texts", lambda network, batch, data: [answer] * len(batch["input_ids"])
    )
    [scores] = trainer("pytorch_lightning", default_root_dir=tmp_path).test(module, data, verbose=False)
    assert scores["test/accuracy"] == accuracy
