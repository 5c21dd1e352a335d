"""Generated answers of a whole data set: collected over batches and ranks, scored, shown."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from lighter_freezers.experiments.evaluation.answers import GenerationSettings
from lighter_freezers.experiments.evaluation.metrics import score_texts

__all__ = ["NUM_SAMPLES_SHOWN", "GeneratedAnswer", "GenerationFigures", "in_order"]

NUM_SAMPLES_SHOWN = 10  # answers that a results file shows


@dataclass(frozen=True)
class GeneratedAnswer:
    """What a model answered to a prompt, and what would have been right."""

    prompt: str
    prediction: str
    references: tuple[str, ...]


@dataclass
class GenerationFigures:
    """Answers of one evaluation, batch after batch.

    Args:
        answers: Those of this process, in the order of its batches.
    """

    answers: list[GeneratedAnswer] = field(default_factory=list)

    def add(self, batch: Mapping[str, Any], texts: Sequence[str]) -> None:
        """Add the answers to one batch.

        Args:
            batch: With `prompts` and `references`.
            texts: What was generated, in the same order.
        """
        rows = zip(batch["prompts"], texts, batch["references"], strict=True)
        self.answers += [GeneratedAnswer(prompt, text, tuple(right)) for prompt, text, right in rows]

    def gather(self, is_dealt: bool, num_rows: int | None = None) -> None:
        """Put the answers of all ranks together, on all ranks; one process alone has all already.

        Args:
            is_dealt: Whether rank r of n saw the rows r, r + n, r + 2 n, ..., or all rows, as every rank did.
            num_rows: Rows of the data; what ranks saw beyond them are the first rows once more. None if there
                is nothing beyond.
        """
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, self.answers)
        self.answers = in_order(parts)[:num_rows] if is_dealt else parts[0]

    def scores(self, metrics: Sequence[str]) -> dict[str, float]:
        """The figures of metrics over all answers.

        Args:
            metrics: Names in `METRICS`.
        """
        predictions = [answer.prediction for answer in self.answers]
        return score_texts(metrics, predictions, [answer.references for answer in self.answers])

    def report(self, datamodule: Any, settings: GenerationSettings) -> dict[str, Any]:
        """What a results file says of the data and of the answers, as plain values.

        Args:
            datamodule: May have a `task` and `describe`. None where the data come from nowhere known.
            settings: How the answers were generated.
        """
        return {
            "task": getattr(getattr(datamodule, "task", None), "name", None),
            "data": datamodule.describe() if hasattr(datamodule, "describe") else None,
            "generation": asdict(settings),
            "num_samples": len(self.answers),
            "samples": [asdict(answer) for answer in self.answers[:NUM_SAMPLES_SHOWN]],
        }


def in_order(parts: Sequence[Sequence[GeneratedAnswer]]) -> list[GeneratedAnswer]:
    """What ranks answered, in the order of the data: torch's sampler deals rows out one by one.

    Args:
        parts: The answers of each rank. The sampler fills up the last round with the first rows again.
    """
    longest = max(map(len, parts))
    return [part[turn] for turn in range(longest) for part in parts if turn < len(part)]
