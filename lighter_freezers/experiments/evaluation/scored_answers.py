"""Generated answers of a whole data set: collected over batches and ranks, scored, shown."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch

from lighter_freezers.experiments.data.batches import Batch
from lighter_freezers.experiments.evaluation.answers import GenerationSettings
from lighter_freezers.experiments.evaluation.metrics import score_texts

__all__ = ["NUM_SAMPLES_SHOWN", "GeneratedAnswer", "GenerationFigures", "in_order"]

NUM_SAMPLES_SHOWN = 10  # answers shown in a results file


@dataclass(frozen=True)
class GeneratedAnswer:
    """A generated answer to a prompt, and the correct answers."""

    prompt: str
    prediction: str
    references: tuple[str, ...]


@dataclass
class GenerationFigures:
    """The answers of one evaluation, collected by batch.

    Args:
        answers: Those of this process, in the order of its batches.
    """

    answers: list[GeneratedAnswer] = field(default_factory=list)

    def add(self, batch: Batch, texts: Sequence[str]) -> None:
        """Add the answers to one batch.

        Args:
            batch: With `prompts` and `references`.
            texts: The generated texts, in the same order.
        """
        rows = zip(batch["prompts"], texts, batch["references"], strict=True)
        self.answers += [GeneratedAnswer(prompt, text, tuple(right)) for prompt, text, right in rows]

    def gather(self, is_dealt: bool, num_rows: int | None = None) -> None:
        """Gather the answers of all ranks on all ranks; a single process has them already.

        Args:
            is_dealt: Whether rank r of n saw the rows r, r + n, r + 2 n, ...; otherwise every rank saw all
                rows.
            num_rows: Rows of the data; further rows that ranks saw repeat the first ones. None if there are
                none.
        """
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return
        parts: list[list[GeneratedAnswer]] = [[] for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(parts, self.answers)
        self.answers = in_order(parts)[:num_rows] if is_dealt else parts[0]

    def scores(self, metrics: Sequence[str], labels: Sequence[str] = ()) -> dict[str, float]:
        """The figures of metrics over all answers.

        Args:
            metrics: Names in `METRICS`.
            labels: All labels of the task, whether or not they occur here. Empty where answers are free text.
        """
        predictions = [answer.prediction for answer in self.answers]
        references = [answer.references for answer in self.answers]
        return score_texts(metrics, predictions, references, labels=labels)

    def report(self, datamodule: object, settings: GenerationSettings) -> dict[str, object]:
        """The data and the answers for a results file, as plain values.

        Args:
            datamodule: May have a `task` and `describe`. None for an unknown source.
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
    """The answers of all ranks in the order of the data: torch's sampler distributes rows one by one.

    Args:
        parts: The answers of each rank. The sampler completes the last round with the first rows.
    """
    longest = max(map(len, parts))
    return [part[turn] for turn in range(longest) for part in parts if turn < len(part)]
