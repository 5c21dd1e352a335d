"""Tests and predictions of a causal language model: it answers prompts, and its answers are scored."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.utils.data import DistributedSampler

from lighter_freezers.experiments.causal_models import load_tokenizer
from lighter_freezers.experiments.data.prompt_tokenizer import prompt_tokenizer
from lighter_freezers.experiments.evaluation.answers import AnswerText, GenerationSettings, answers_to
from lighter_freezers.experiments.evaluation.metrics import check_metric_names, check_metric_packages
from lighter_freezers.experiments.evaluation.scored_answers import GenerationFigures
from lighter_freezers.experiments.training.batch_loader import EvaluationLoader

__all__ = ["AnswerEvaluation", "dealt_rows"]

MAX_NEW_TOKENS = 128  # where neither the module nor the data say


class AnswerEvaluation:
    """Answers prompts and scores the answers, by what the module says, or else what its data say.

    Args:
        generation: Values for `GenerationSettings`; `max_new_tokens` may be None.
        metrics: Names of metrics. None for those of the data's task.
        tokenizer: Of transformers, or the path of one, for data that cannot decode. None: there is none.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A value is out of range, or a metric is unknown.
    """

    def __init__(
        self, generation: Mapping[str, Any], metrics: Sequence[str] | None, tokenizer: Any | None
    ) -> None:
        self._generation = dict(generation)
        self._settings_for(None)  # a wrong value is told now
        self._metrics = None if metrics is None else check_metric_names(metrics)
        self._tokenizer = tokenizer
        self.figures = GenerationFigures()

    def check(self, datamodule: object) -> None:
        """Make sure before a test that its answers can be scored.

        Raises:
            ImportError: A package that counts one of the metrics is missing.
            ValueError: Nobody says by which metrics.
        """
        check_metric_packages(self.metrics_for(datamodule))
        self.figures = GenerationFigures()

    def texts(self, network: nn.Module, batch: Mapping[str, Any], datamodule: object) -> list[str]:
        """What the model answers to a batch of prompts, without blanks around it."""
        return answers_to(network, batch, self._settings_for(datamodule), self._text_for(datamodule))

    def metrics_for(self, datamodule: object) -> tuple[str, ...]:
        """The metrics asked for, or those of the data's task."""
        metrics = self._metrics or getattr(getattr(datamodule, "task", None), "metrics", None)
        if metrics is None:
            raise ValueError(
                "Nobody says by which metrics to score the answers. Set the model's metrics, such as "
                "[rouge, exact_match], or use a data module with a task."
            )
        return tuple(metrics)

    def report(self, datamodule: object) -> dict[str, Any]:
        """What a results file says of the data and of the answers, as plain values."""
        return self.figures.report(datamodule, self._settings_for(datamodule))

    def _settings_for(self, datamodule: object) -> GenerationSettings:
        values = dict(self._generation)
        if values.get("max_new_tokens") is None:
            values["max_new_tokens"] = getattr(datamodule, "max_new_tokens", None) or MAX_NEW_TOKENS
        return GenerationSettings(**values)

    def tokenizer_for(self, datamodule: object) -> Any | None:
        """The tokenizer of transformers that there is, the module's or the data's; None if there is none."""
        if isinstance(self._tokenizer, str):
            try:
                self._tokenizer = load_tokenizer(self._tokenizer)
            except (OSError, ValueError):  # a model that was saved without one
                self._tokenizer = None
        of_data = getattr(getattr(datamodule, "tokenizer", None), "source", None)
        return self._tokenizer or (of_data if hasattr(of_data, "save_pretrained") else None)

    def _text_for(self, datamodule: Any) -> AnswerText:
        if hasattr(datamodule, "eos_id") and hasattr(datamodule, "decode"):
            text: AnswerText = datamodule
            return text
        tokenizer = self.tokenizer_for(datamodule)
        if tokenizer is None:
            raise ValueError(
                "Nobody can turn tokens into text. Give the model a tokenizer, or use a data module that has "
                "one, such as GenerationDataModule."
            )
        return prompt_tokenizer(tokenizer)


def dealt_rows(loaders: Any) -> tuple[bool, int | None]:
    """How several ranks share the rows of a test.

    Args:
        loaders: What the Trainer tests on.

    Returns:
        Whether the rows are dealt out one by one, as torch's sampler and our loaders do it, or each rank has
        all of them; and how many there are, where the last round may be filled up with the first rows again.
    """
    loader = loaders[0] if isinstance(loaders, (list, tuple)) else loaders
    if isinstance(loader, EvaluationLoader):
        return True, None
    is_dealt = isinstance(getattr(loader, "sampler", None), DistributedSampler)
    return is_dealt, len(loader.dataset) if is_dealt else None
