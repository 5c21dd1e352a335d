"""Tests and predictions of a causal language model: it answers prompts, and the answers are scored."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.utils.data import DistributedSampler

from lighter_freezers.engine.trainer_like import OfLightning
from lighter_freezers.experiments.causal_models import Tokenizer, load_tokenizer
from lighter_freezers.experiments.data.batches import Batch
from lighter_freezers.experiments.data.prompt_tokenizer import check_tokenizer, prompt_tokenizer
from lighter_freezers.experiments.evaluation.answers import AnswerText, GenerationSettings, answers_to
from lighter_freezers.experiments.evaluation.metrics import check_metric_names, check_metric_packages
from lighter_freezers.experiments.evaluation.scored_answers import GenerationFigures
from lighter_freezers.experiments.training.batch_loader import EvaluationLoader

__all__ = ["AnswerEvaluation", "dealt_rows", "labels_of"]

MAX_NEW_TOKENS = 128  # where neither the module nor the data set it


class AnswerEvaluation:
    """Answers prompts and scores the answers, by the settings of the module or else of its data.

    Args:
        generation: Values for `GenerationSettings`; `max_new_tokens` may be None.
        metrics: Names of metrics. None for those of the data's task.
        tokenizer: A tokenizer of transformers, or its path, for data that cannot decode. None for no
            tokenizer.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A value is out of range, or a metric is unknown.
    """

    def __init__(
        self, generation: Mapping[str, object], metrics: Sequence[str] | None, tokenizer: Tokenizer | None
    ) -> None:
        self._generation: dict[str, Any] = dict(generation)  # GenerationSettings checks each
        self._settings_for(None)  # raises now for an invalid value
        self._metrics = None if metrics is None else check_metric_names(metrics)
        check_tokenizer(tokenizer)
        self._tokenizer = os.fspath(tokenizer) if isinstance(tokenizer, os.PathLike) else tokenizer
        self.figures = GenerationFigures()

    def check(self, datamodule: object) -> None:
        """Check before a test that its answers can be scored.

        Raises:
            ImportError: A package for one of the metrics is missing.
            ValueError: No metrics are set.
        """
        check_metric_packages(self.metrics_for(datamodule))
        self.figures = GenerationFigures()

    def texts(self, network: nn.Module, batch: Batch, datamodule: object) -> list[str]:
        """The model's answers to a batch of prompts, stripped."""
        return answers_to(network, batch, self._settings_for(datamodule), self._text_for(datamodule))

    def metrics_for(self, datamodule: object) -> tuple[str, ...]:
        """The given metrics, or those of the data's task."""
        metrics = self._metrics or getattr(getattr(datamodule, "task", None), "metrics", None)
        if metrics is None:
            raise ValueError(
                "There are no metrics to score the answers by. Set the model's metrics, such as "
                "[rouge, exact_match], or use a data module with a task."
            )
        return tuple(metrics)

    def report(self, datamodule: object) -> dict[str, object]:
        """The data and the answers for a results file, as plain values."""
        return self.figures.report(datamodule, self._settings_for(datamodule))

    def _settings_for(self, datamodule: object) -> GenerationSettings:
        values = dict(self._generation)
        if values.get("max_new_tokens") is None:
            values["max_new_tokens"] = getattr(datamodule, "max_new_tokens", None) or MAX_NEW_TOKENS
        return GenerationSettings(**values)

    def tokenizer_for(self, datamodule: object) -> Tokenizer | None:
        """The tokenizer of transformers: the module's or the data's; None if there is none."""
        if isinstance(self._tokenizer, str):
            try:
                self._tokenizer = load_tokenizer(self._tokenizer)
            except (OSError, ValueError):  # a model that was saved without one
                self._tokenizer = None
        of_data = getattr(getattr(datamodule, "tokenizer", None), "source", None)
        return self._tokenizer or (of_data if hasattr(of_data, "save_pretrained") else None)

    def _text_for(self, datamodule: object) -> AnswerText:
        if isinstance(datamodule, AnswerText):
            return datamodule
        tokenizer = self.tokenizer_for(datamodule)
        if tokenizer is None:
            raise ValueError(
                "There is no tokenizer to decode the answers. Give the model a tokenizer, or use a data "
                "module that has one, such as GenerationDataModule."
            )
        return prompt_tokenizer(tokenizer)


def labels_of(datamodule: object) -> tuple[str, ...]:
    """All labels of the data's task; empty where answers are free text."""
    return tuple(getattr(getattr(datamodule, "task", None), "labels", ()))


def dealt_rows(loaders: OfLightning) -> tuple[bool, int | None]:
    """How the rows of a test are distributed over ranks.

    Args:
        loaders: The Trainer's test loaders.

    Returns:
        Whether the rows are distributed one by one, as by torch's sampler and our loaders, instead of each
        rank having all; and their number, where the last round may be completed with the first rows.
    """
    loader = loaders[0] if isinstance(loaders, (list, tuple)) else loaders
    if isinstance(loader, EvaluationLoader):
        return True, None
    is_dealt = isinstance(getattr(loader, "sampler", None), DistributedSampler)
    return is_dealt, len(loader.dataset) if is_dealt else None
