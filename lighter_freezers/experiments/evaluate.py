"""Evaluations by one call: a model on disk or in memory answers the prompts of a task, and is scored."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from lighter_freezers.experiments.causal_models import check_causal, load_evaluated
from lighter_freezers.experiments.evaluation.answers import GenerationSettings, answers_to
from lighter_freezers.experiments.evaluation.metrics import check_metric_packages
from lighter_freezers.experiments.evaluation.perplexity import perplexity
from lighter_freezers.experiments.evaluation.scored_answers import GenerationFigures
from lighter_freezers.reports.results_file import write_results

__all__ = ["EvaluationResult", "evaluate_e2e", "evaluate_multi_nli", "evaluate_samsum", "evaluate_wikisql"]

ModelOrPath: TypeAlias = "str | os.PathLike[str] | nn.Module"


@dataclass(frozen=True)
class EvaluationResult:
    """How well a model writes. BLEU, ROUGE and METEOR are from 0 to 100.

    Attributes:
        bleu: The same as `bleu_4`.
        bleu_1: BLEU of single tokens.
        bleu_2: BLEU up to pairs.
        bleu_3: BLEU up to triples.
        bleu_4: BLEU up to four tokens.
        rouge1: ROUGE-1, F measure; like the next three the best over references, mean over prompts.
        rouge2: ROUGE-2.
        rougeL: ROUGE-L.
        rougeLsum: ROUGE-L of texts with a line for each sentence.
        meteor: That of NLTK; not comparable with METEOR 1.5, which the E2E challenge reports.
        perplexity: Over the tokens of all right answers.
        num_samples: Prompts that were answered.
        generation_config: How they were.
    """

    bleu: float
    bleu_1: float
    bleu_2: float
    bleu_3: float
    bleu_4: float
    rouge1: float
    rouge2: float
    rougeL: float
    rougeLsum: float
    meteor: float
    perplexity: float
    num_samples: int
    generation_config: Mapping[str, Any]


def evaluate_e2e(
    model_path: ModelOrPath,
    base_model_id: str | None = None,
    num_samples: int | None = None,
    batch_size: int = 8,
    *,
    source: str | None = None,
    tokenizer: Any = None,
    generation: Mapping[str, Any] | None = None,
    output_dir: str | None = None,
    **data: Any,
) -> EvaluationResult:
    """Let a model describe restaurants, each meaning representation once, against all its references.

    Args:
        model_path: The folder of an adapter of PEFT, such as a run's `final_model`, or of a whole model, or
            its id on the hub; or a model of transformers that is in memory.
        base_model_id: Path or id of the model that the adapter is for. None: what the adapter says.
        num_samples: Prompts to answer, spread evenly over the test data. None for all.
        batch_size: Prompts that are answered at a time.
        source: Where the data are from, as for `GenerationDataModule`. None for the fixtures, about which no
            figure means anything; `hub` for the data set.
        tokenizer: Of transformers, or the path of one. None for the one in the model's folder.
        generation: Values for `GenerationSettings`: `max_new_tokens`, by default what suits the task,
            `temperature`, `top_p`, `top_k`, `seed`. None is greedy.
        output_dir: A folder for `evaluation_results.json`, where nothing is overwritten. None writes nothing.
        data: Other arguments of `GenerationDataModule`, such as `test_file` or `max_length`.

    Raises:
        TypeError: A value has the wrong type, or an argument is unknown.
        ImportError: A package that counts the task's metrics is missing.
        ValueError: A value is out of range, or a model in memory comes without a tokenizer.
        OSError: There is no such model.
    """
    asked = _Asked(base_model_id, num_samples, batch_size, source, tokenizer, generation, output_dir, data)
    return _text_result(_evaluated("e2e_nlg", model_path, asked))


def evaluate_samsum(
    model_path: ModelOrPath,
    base_model_id: str | None = None,
    num_samples: int | None = None,
    batch_size: int = 8,
    *,
    source: str | None = None,
    tokenizer: Any = None,
    generation: Mapping[str, Any] | None = None,
    output_dir: str | None = None,
    **data: Any,
) -> EvaluationResult:
    """Let a model summarise dialogues. The arguments are those of `evaluate_e2e`."""
    asked = _Asked(base_model_id, num_samples, batch_size, source, tokenizer, generation, output_dir, data)
    return _text_result(_evaluated("samsum", model_path, asked))


def evaluate_wikisql(
    model_path: ModelOrPath,
    base_model_id: str | None = None,
    num_samples: int | None = None,
    batch_size: int = 8,
    *,
    source: str | None = None,
    tokenizer: Any = None,
    generation: Mapping[str, Any] | None = None,
    output_dir: str | None = None,
    **data: Any,
) -> dict[str, float | int]:
    """Let a model turn questions about tables into SQL. The arguments are those of `evaluate_e2e`.

    Returns:
        `exact_match`, the share of queries that are the same text but for case, quotes and blanks;
        `sql_match`, of those that ask the same; `sql_unparsed`, of answers that are no query; `num_samples`.
    """
    asked = _Asked(base_model_id, num_samples, batch_size, source, tokenizer, generation, output_dir, data)
    return _shares(_evaluated("wikisql", model_path, asked))


def evaluate_multi_nli(
    model_path: ModelOrPath,
    base_model_id: str | None = None,
    num_samples: int | None = None,
    batch_size: int = 8,
    *,
    source: str | None = None,
    tokenizer: Any = None,
    generation: Mapping[str, Any] | None = None,
    output_dir: str | None = None,
    **data: Any,
) -> dict[str, float | int]:
    """Let a model say how two sentences are related. The arguments are those of `evaluate_e2e`.

    Returns:
        `accuracy`, the share of right labels; `unparsed`, of answers that are no label, which are wrong;
        `num_samples`.
    """
    asked = _Asked(base_model_id, num_samples, batch_size, source, tokenizer, generation, output_dir, data)
    return _shares(_evaluated("multi_nli", model_path, asked))


@dataclass(frozen=True)
class _Asked:
    """What a caller asks for, whatever the task."""

    base_model_id: str | None
    num_samples: int | None
    batch_size: int
    source: str | None
    tokenizer: Any
    generation: Mapping[str, Any] | None
    output_dir: str | None
    data: Mapping[str, Any]


@dataclass(frozen=True)
class _Outcome:
    """What came out of it."""

    scores: dict[str, float]
    num_samples: int
    settings: GenerationSettings


def _evaluated(task: str, model: ModelOrPath, asked: _Asked) -> _Outcome:
    network, tokenizer = _model_and_tokenizer(model, asked)
    data = _data(task, tokenizer, asked)
    check_metric_packages(data.task.metrics)
    chosen = {"max_new_tokens": data.max_new_tokens, **(asked.generation or {})}
    settings, figures, loader = GenerationSettings(**chosen), GenerationFigures(), data.test_dataloader()
    device = next(network.parameters()).device
    for batch in loader:
        prompts = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
        figures.add(batch, answers_to(network, prompts, settings, data))
    scores = figures.scores(data.task.metrics)
    scores["perplexity"] = perplexity(network, (batch["answers"] for batch in loader))
    if asked.output_dir is not None:
        said = {"model": model if isinstance(model, (str, os.PathLike)) else type(network).__name__}
        write_results(
            asked.output_dir,
            {**said, "base_model": asked.base_model_id, **figures.report(data, settings), "scores": scores},
        )
    return _Outcome(scores, len(figures.answers), settings)


def _model_and_tokenizer(model: ModelOrPath, asked: _Asked) -> tuple[nn.Module, Any]:
    if isinstance(model, nn.Module):
        if asked.tokenizer is None:
            raise ValueError("A model in memory does not know its tokenizer: give tokenizer, too.")
        return check_causal(model), asked.tokenizer
    network, tokenizer = load_evaluated(model, asked.base_model_id)
    network = network.to("cuda" if torch.cuda.is_available() else "cpu")
    return network, tokenizer if asked.tokenizer is None else asked.tokenizer


def _data(task: str, tokenizer: Any, asked: _Asked) -> Any:
    """The test data of a task, encoded for a model."""
    from lighter_freezers.experiments.training.generation_datamodule import (
        GenerationDataModule,  # needs Lightning
    )

    data = GenerationDataModule(
        task,
        asked.source,
        tokenizer=tokenizer,
        batch_size=asked.batch_size,
        num_test_sequences=asked.num_samples,
        **asked.data,
    )
    data.prepare_data()
    data.setup("test")
    return data


def _text_result(outcome: _Outcome) -> EvaluationResult:
    scores = outcome.scores
    bleu = {name: scores[name] for name in ("bleu", "bleu_1", "bleu_2", "bleu_3", "bleu_4")}
    kinds = ("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL"), ("rouge_lsum", "rougeLsum")
    return EvaluationResult(
        **bleu,
        **{field: scores[name] for name, field in kinds},
        meteor=scores["meteor_nltk"],
        perplexity=scores["perplexity"],
        num_samples=outcome.num_samples,
        generation_config=asdict(outcome.settings),
    )


def _shares(outcome: _Outcome) -> dict[str, float | int]:
    return {**outcome.scores, "num_samples": outcome.num_samples}
