"""Evaluation in one call: a model on disk or in memory answers the prompts of a task, and is scored."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeAlias, TypeVar

import torch
from torch import nn

from lighter_freezers.arguments import at_least, checked
from lighter_freezers.experiments.causal_models import Tokenizer, check_causal, load_evaluated
from lighter_freezers.experiments.data.prompt_tokenizer import check_tokenizer
from lighter_freezers.experiments.data.prompts import PromptedTask
from lighter_freezers.experiments.evaluation.answers import GenerationSettings, answers_to
from lighter_freezers.experiments.evaluation.metrics import check_metric_packages
from lighter_freezers.experiments.evaluation.perplexity import perplexity
from lighter_freezers.experiments.evaluation.scored_answers import GenerationFigures
from lighter_freezers.experiments.tasks.generation_tasks import task_named
from lighter_freezers.reports.results_file import write_results

if TYPE_CHECKING:
    from lighter_freezers.experiments.training.generation_datamodule import GenerationDataModule

__all__ = [
    "EvaluationResult",
    "TaskScores",
    "evaluate",
    "evaluate_e2e",
    "evaluate_multi_nli",
    "evaluate_samsum",
    "evaluate_wikisql",
]

ModelOrPath: TypeAlias = "str | os.PathLike[str] | nn.Module"
Given: TypeAlias = Any  # an argument of `evaluate`, which says its type
P = ParamSpec("P")
Result = TypeVar("Result")
_ROUGE = ("rouge_1", "rouge_2", "rouge_l", "rouge_lsum")


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of generated text. BLEU, ROUGE and METEOR are from 0 to 100.

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
        perplexity: Over the tokens of all correct answers.
        num_samples: The number of prompts.
        generation_config: The settings of the generation.
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
    generation_config: Mapping[str, object]


@dataclass(frozen=True)
class TaskScores:
    """Scores of a model on a task.

    Attributes:
        scores: Figure -> value, by the names of `METRICS`, and `perplexity`.
        num_samples: The number of prompts.
        settings: The settings of the generation.
    """

    scores: Mapping[str, float]
    num_samples: int
    settings: GenerationSettings

    def as_text(self) -> EvaluationResult:
        """For a task whose answers are sentences."""
        bleu = {name: self.scores[name] for name in ("bleu", "bleu_1", "bleu_2", "bleu_3", "bleu_4")}
        return EvaluationResult(
            **bleu,
            **{name.replace("_l", "L").replace("_", ""): self.scores[name] for name in _ROUGE},
            meteor=self.scores["meteor_nltk"],
            perplexity=self.scores["perplexity"],
            num_samples=self.num_samples,
            generation_config=asdict(self.settings),
        )

    def as_shares(self) -> dict[str, float | int]:
        """For a task whose answers are right or wrong."""
        return {**self.scores, "num_samples": self.num_samples}


@checked
def evaluate(
    task: str | PromptedTask,
    model_path: ModelOrPath,
    base_model_id: str | os.PathLike[str] | None = None,
    num_samples: int | None = None,
    batch_size: int = 8,
    *,
    source: str | os.PathLike[str] | None = None,
    tokenizer: Tokenizer = None,
    generation: Mapping[str, Any] | None = None,  # GenerationSettings checks each
    output_dir: str | os.PathLike[str] | None = None,
    **data: Any,  # GenerationDataModule checks each
) -> TaskScores:
    """Evaluate a model on a task: it answers each test prompt once, scored against all references.

    Args:
        task: Its name or a task of your own, as for `GenerationDataModule`.
        model_path: The folder of an adapter of PEFT, such as a run's `final_model`, or of a whole model, or
            its id on the hub; or a model of transformers that is in memory.
        base_model_id: Path or id of the base model of an adapter. None: the one named in the adapter.
        num_samples: Prompts to answer, spread evenly over the test data. None for all.
        batch_size: Prompts per batch.
        source: The source of the data, as for `GenerationDataModule`. None for the fixtures, on which scores
            mean nothing; `hub` for the data set.
        tokenizer: A tokenizer of transformers, or its path. None for that in the model's folder.
        generation: Values for `GenerationSettings`: `max_new_tokens`, by default that of the task,
            `temperature`, `top_p`, `top_k`, `seed`. None is greedy.
        output_dir: A folder for `evaluation_results.json`, where nothing is overwritten. None writes nothing.
        data: Other arguments of `GenerationDataModule`, such as `test_file` or `max_length`.

    Raises:
        TypeError: A value has the wrong type, or an argument is unknown.
        ImportError: A package for the task's metrics is missing.
        ValueError: There is no such task, a value is out of range, or a model in memory comes without a
            tokenizer.
        OSError: There is no such model.
    """
    at_least("batch_size", batch_size, 1)
    at_least("num_samples", 1 if num_samples is None else num_samples, 1)
    GenerationSettings.of({"max_new_tokens": 1, **(generation or {})})
    check_tokenizer(tokenizer)
    chosen = task_named(task)
    base_model_id = None if base_model_id is None else os.fspath(base_model_id)
    network, known_tokenizer = _model_and_tokenizer(model_path, base_model_id, tokenizer)
    sizes = {"batch_size": batch_size, "num_test_sequences": num_samples}
    prompts = _test_data(chosen, source, tokenizer=known_tokenizer, **sizes, **data)
    check_metric_packages(prompts.task.metrics)
    settings = GenerationSettings.of({"max_new_tokens": prompts.max_new_tokens, **(generation or {})})
    figures, loader = GenerationFigures(), prompts.test_dataloader()
    device = next(network.parameters()).device
    for batch in loader:
        inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
        figures.add(batch, answers_to(network, inputs, settings, prompts))
    scores = figures.scores(prompts.task.metrics, prompts.task.labels)
    scores["perplexity"] = perplexity(network, (batch["answers"] for batch in loader))
    if output_dir is not None:
        name = type(network).__name__ if isinstance(model_path, nn.Module) else model_path
        said = {"model": name, "base_model": base_model_id, **figures.report(prompts, settings)}
        write_results(Path(output_dir), {**said, "scores": scores})
    return TaskScores(scores, len(figures.answers), settings)


def _of_one_task(
    general: Callable[Concatenate[str, P], TaskScores],
) -> Callable[[Callable[..., Result]], Callable[P, Result]]:
    """Give a function the signature of `evaluate` without the task, for `help`, editors and type checkers."""

    def showing(function: Callable[..., Result]) -> Callable[P, Result]:
        shown, returned = signature(general), signature(function).return_annotation
        arguments = list(shown.parameters.values())[1:]
        vars(function)["__signature__"] = shown.replace(parameters=arguments, return_annotation=returned)
        return function

    return showing


@_of_one_task(evaluate)  # type: ignore[arg-type] # the task may also be named
def evaluate_e2e(*args: Given, **named: Given) -> EvaluationResult:
    """Evaluate a model on E2E: it describes restaurants. The arguments are those of `evaluate`."""
    return evaluate("e2e_nlg", *args, **named).as_text()


@_of_one_task(evaluate)  # type: ignore[arg-type] # the task may also be named
def evaluate_samsum(*args: Given, **named: Given) -> EvaluationResult:
    """Evaluate a model on SAMSum, summaries of dialogues. The arguments are those of `evaluate`."""
    return evaluate("samsum", *args, **named).as_text()


@_of_one_task(evaluate)  # type: ignore[arg-type] # the task may also be named
def evaluate_wikisql(*args: Given, **named: Given) -> dict[str, float | int]:
    """Evaluate a model on WikiSQL, SQL for questions about tables. The arguments are those of `evaluate`.

    Returns:
        `exact_match`, the share of queries that equal a reference except for case, quotes and white space;
        `sql_match`, of those with the same meaning; `sql_unparsed`, of answers that are not queries;
        `num_samples`.
    """
    return evaluate("wikisql", *args, **named).as_shares()


@_of_one_task(evaluate)  # type: ignore[arg-type] # the task may also be named
def evaluate_multi_nli(*args: Given, **named: Given) -> dict[str, float | int]:
    """Evaluate a model on MultiNLI, the relation of two sentences. The arguments are those of `evaluate`.

    Returns:
        `accuracy`, the share of correct labels; `unparsed`, of answers that are not a label and count as
        wrong; `num_samples`.
    """
    return evaluate("multi_nli", *args, **named).as_shares()


def _model_and_tokenizer(
    model: ModelOrPath, base_model_id: str | None, tokenizer: Tokenizer
) -> tuple[nn.Module, Tokenizer]:
    if isinstance(model, nn.Module):
        if tokenizer is None:
            raise ValueError("A model in memory comes without its tokenizer: pass `tokenizer` as well.")
        return check_causal(model), tokenizer
    network, saved_tokenizer = load_evaluated(model, base_model_id)
    network = network.to("cuda" if torch.cuda.is_available() else "cpu")
    return network, saved_tokenizer if tokenizer is None else tokenizer


def _test_data(
    task: PromptedTask, source: str | os.PathLike[str] | None, **options: Given
) -> "GenerationDataModule":
    """The test data of a task, encoded for a model."""
    from lighter_freezers.experiments.training.generation_datamodule import (
        GenerationDataModule,  # imports Lightning
    )

    data = GenerationDataModule(task, source, **options)
    data.prepare_data()
    data.setup("test")
    return data
