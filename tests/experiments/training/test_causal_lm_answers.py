"""Tests and predictions of CausalLMModule: answers, their figures, and the file with the results."""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from lighter_freezers import CausalLMModule
from lighter_freezers.experiments.evaluation.answers import GenerationSettings, generate_texts
from lighter_freezers.experiments.evaluation.metrics import score_texts
from lighter_freezers.experiments.evaluation.perplexity import perplexity
from lighter_freezers.experiments.evaluation.scored_answers import GeneratedAnswer, in_order
from tests.experiments.training.causal_lms import causal_lm, module, question_batch, saved_model, tokenizer
from tests.lab import NAMESPACES, trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
LONE = "pytorch_lightning"
both = pytest.mark.parametrize("namespace", NAMESPACES)
METRICS = ("exact_match", "rouge")
QUESTIONS = [
    ("2 + 2 =", ("4", "four")),
    ("a", ("b",)),
    ("The ferry sleeps. Who?", ("The ferry",)),
    ("1, 2, 3,", ("4",)),
    ("x y z", ("z", "z y", "z y x")),
]


def questions(batch_size: int = 2) -> DataLoader[Any]:
    batches = [
        question_batch(QUESTIONS[first : first + batch_size])
        for first in range(0, len(QUESTIONS), batch_size)
    ]
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def answers(network: Any, num_tokens: int = 8) -> list[str]:
    """What the model says, one prompt at a time."""
    settings = GenerationSettings(max_new_tokens=num_tokens)
    return generate_texts(network, tokenizer(), [prompt for prompt, _ in QUESTIONS], settings, batch_size=1)


def asked(namespace: str = LONE, **options: Any) -> Any:
    given = {"tokenizer": tokenizer(), "metrics": METRICS, "max_new_tokens": 8, **options}
    return module(namespace, **given)


@both
def test_a_test_scores_every_answer(namespace: str, tmp_path: Path) -> None:
    """Figures over all rows, not means of batches; perplexity over the right answers."""
    model = asked(namespace)
    (logged,) = trainer(namespace, default_root_dir=tmp_path).test(model, questions(), verbose=False)
    references = [every for _, every in QUESTIONS]
    expected = score_texts(METRICS, answers(model.network), references)
    expected["perplexity"] = perplexity(
        model.network, [question_batch([one])["answers"] for one in QUESTIONS]
    )

    assert logged == pytest.approx({f"test/{name}": value for name, value in expected.items()}, rel=1e-5)
    assert logged["test/rouge_1"] > 0 or max(map(len, answers(model.network))) > 0


@both
def test_the_results_are_written_with_what_made_them(namespace: str, tmp_path: Path) -> None:
    """Settings, versions, samples; a second test writes a second file."""
    run, lora = trainer(namespace, default_root_dir=tmp_path), {"r": 2, "target": "mlp_only"}
    model = asked(namespace, model=saved_model(tmp_path / "model"), lora=lora, tokenizer=None)
    (logged,) = run.test(model, questions(), verbose=False)
    results = json.loads((tmp_path / "evaluation_results.json").read_text())
    texts = answers(model.network)

    assert {f"test/{name}": value for name, value in results["scores"].items()} == pytest.approx(
        logged, rel=1e-5
    )
    assert results["generation"] == {
        "max_new_tokens": 8,
        "temperature": 0.0,
        "top_p": None,
        "top_k": None,
        "seed": 0,
    }
    assert (results["model"], results["lora"]) == (str(tmp_path / "model"), lora)
    assert (results["dtype"], results["checkpoint"]) == ("float32", None)
    assert results["versions"]["torch"] == version("torch")
    assert results["versions"].keys() >= {"python", "transformers", "peft", "lighter-freezers"}
    assert results["num_samples"] == 5
    assert results["samples"] == [
        {"prompt": prompt, "prediction": text, "references": list(every)}
        for (prompt, every), text in zip(QUESTIONS, texts, strict=True)
    ]

    before = (tmp_path / "evaluation_results.json").read_text()
    run.test(asked(namespace, max_new_tokens=2), questions(), verbose=False)
    assert (tmp_path / "evaluation_results.json").read_text() == before
    second = json.loads((tmp_path / "evaluation_results_1.json").read_text())
    assert second["generation"]["max_new_tokens"] == 2
    assert second["model"] == "LlamaForCausalLM"
    assert second["num_samples"] == 5  # nothing is left from the test before


def test_a_second_test_of_a_module_starts_from_nothing(tmp_path: Path) -> None:
    """Neither answers nor likelihoods stay."""
    model, run = asked(), trainer(LONE, default_root_dir=tmp_path)
    first, second = (run.test(model, questions(), verbose=False)[0] for _ in range(2))

    assert first == second
    results = json.loads((tmp_path / "evaluation_results_1.json").read_text())
    assert (results["num_samples"], len(results["samples"])) == (5, 5)


def test_drawn_answers_are_the_same_in_a_second_run(tmp_path: Path) -> None:
    """And others with another seed."""
    texts = []
    for seed in (3, 3, 4):
        model = asked(temperature=1.0, top_p=0.95, generation_seed=seed)
        texts.append([row["predictions"] for row in trainer(LONE).predict(model, questions())])

    assert texts[0] == texts[1] != texts[2]


@both
def test_predictions_are_texts(namespace: str) -> None:
    """Batch by batch, with the prompts where they are known."""
    model = asked(namespace)
    predictions = trainer(namespace).predict(model, questions())
    (bare,) = trainer(namespace).predict(
        model, DataLoader([{"input_ids": torch.tensor([tokenizer()("a").input_ids])}], batch_size=None)
    )

    assert [text for batch in predictions for text in batch["predictions"]] == answers(model.network)
    assert [text for batch in predictions for text in batch["prompts"]] == [prompt for prompt, _ in QUESTIONS]
    assert bare == {"predictions": answers(model.network)[1:2]}


def test_a_model_that_has_learnt_the_answers_gets_full_marks(tmp_path: Path) -> None:
    """The whole way: prompts and answers, the end of text learnt, generation, score."""
    known = [(prompt, every[:1]) for prompt, every in QUESTIONS]
    batch = question_batch(known)
    model = asked(learning_rate=0.02, warmup_steps=0, weight_decay=0.0, max_new_tokens=12)
    run = trainer(LONE, max_epochs=60, default_root_dir=tmp_path)
    run.fit(model, DataLoader([batch["answers"]], batch_size=None))
    (logged,) = run.test(model, DataLoader([batch], batch_size=None), verbose=False)

    assert logged["test/exact_match"] == 1.0
    assert logged["test/rouge_l"] == 100.0
    assert logged["test/perplexity"] < 1.1


def test_what_cannot_be_scored_is_told_before_the_first_batch(tmp_path: Path) -> None:
    """No metrics, no tokenizer."""
    run = trainer(LONE, default_root_dir=tmp_path)
    with pytest.raises(ValueError, match="There are no metrics to score the answers by"):
        run.test(asked(metrics=None), questions(), verbose=False)
    with pytest.raises(ValueError, match="There is no tokenizer to decode the answers"):
        run.test(asked(tokenizer=None), questions(), verbose=False)
    causal_lm().save_pretrained(tmp_path / "alone")  # without a tokenizer
    with pytest.raises(ValueError, match="There is no tokenizer to decode the answers"):
        run.predict(CausalLMModule(str(tmp_path / "alone")), questions())


def test_a_missing_package_is_told_before_the_first_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that takes an hour is not generated for a score that cannot be counted."""
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    with pytest.raises(ImportError, match="The metric rouge needs rouge_score"):
        trainer(LONE, default_root_dir=tmp_path).test(asked(), [], verbose=False)


def answer(text: str) -> GeneratedAnswer:
    return GeneratedAnswer("", text, ())


def test_rows_that_were_dealt_out_come_back_in_order() -> None:
    """Also if the last round was not full."""
    parts = [[answer("a"), answer("d"), answer("g")], [answer("b"), answer("e")], [answer("c"), answer("f")]]

    assert "".join(one.prediction for one in in_order(parts)) == "abcdefg"
