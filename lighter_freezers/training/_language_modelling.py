"""Training a GPT as a language model, without a Lightning base class: both namespaces build on it."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lighter_freezers.arguments import choice, count, number, positive
from lighter_freezers.evaluation.text_likelihood import TextLikelihood
from lighter_freezers.gpt.model import GPT

__all__ = ["LanguageModelling"]

Batch = Mapping[str, Tensor]


class LanguageModelling:
    """Trains, evaluates and runs a language model; to be mixed with a LightningModule.

    Batches are dictionaries: `input_ids` and `targets` (B, T), and `num_bytes` (B), the bytes of text that
    the targets of a row stand for, as `TextDataModule` gives them.

    | logged key | what |
    |---|---|
    | `train/loss` | nats per token of the batch, each step |
    | `val/loss`, `test/loss` | nats per token over all batches and ranks |
    | `val/perplexity`, `test/perplexity` | exp of that |
    | `val/bits_per_byte`, `test/bits_per_byte` | bits per byte of text, which no tokenizer can flatter |

    Args:
        network: The GPT.
        optimizer: An optimizer over `network.parameters()`, as YAML builds it. None for AdamW with the two
            values below.
        scheduler: An LR scheduler of that optimizer, as YAML builds it, or Lightning's dictionary with one
            under `scheduler`. None for a constant rate.
        learning_rate: For AdamW, if no optimizer is given.
        weight_decay: The same; matrices decay, vectors do not.
        scheduler_interval: Whether the scheduler goes on after each `step` or each `epoch`; a
            `ReduceLROnPlateau` of a validation metric wants `epoch`.
        scheduler_monitor: The metric that a `ReduceLROnPlateau` looks at. None for the others.
        max_new_tokens: How many tokens `predict` adds to each sequence.
        temperature: How boldly it draws them; 0 always takes the most likely.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A value is out of range, a scheduler comes without its optimizer, or a
            `ReduceLROnPlateau` without its metric.
    """

    def __init__(
        self,
        network: GPT,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: LRScheduler | Mapping[str, Any] | None = None,
        *,
        learning_rate: float = 1.0e-3,
        weight_decay: float = 0.1,
        scheduler_interval: str = "step",
        scheduler_monitor: str | None = None,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
    ) -> None:
        super().__init__()
        if not isinstance(network, GPT):
            raise TypeError(f"network must be a lighter_freezers.GPT. Got {type(network).__name__}.")
        if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch optimizer. Got {optimizer!r}.")
        if scheduler is not None and optimizer is None:
            raise ValueError("A scheduler drives an optimizer: give that optimizer too.")
        self.network = network
        self.optimizer = optimizer
        self._lr_plan = _lr_plan(scheduler, scheduler_interval, scheduler_monitor)
        self.learning_rate = positive("learning_rate", learning_rate)
        self.weight_decay = _not_negative("weight_decay", weight_decay)
        if not count("max_new_tokens", max_new_tokens):
            raise ValueError(f"max_new_tokens must be at least 1. Got {max_new_tokens}.")
        self.max_new_tokens = max_new_tokens
        self.temperature = _not_negative("temperature", temperature)
        self.val_likelihood = TextLikelihood()
        self.test_likelihood = TextLikelihood()

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits of the next token: (B, T) -> (B, T, V)."""
        logits: Tensor = self.network(input_ids)[0]
        return logits

    def on_fit_start(self) -> None:
        """Check that the model has a row for every token of the data.

        Raises:
            ValueError: The data have more tokens than the model.
        """
        datamodule: Any = getattr(self.trainer, "datamodule", None)  # type: ignore[attr-defined]
        num_tokens = getattr(datamodule, "vocab_size", None)
        if num_tokens is not None and num_tokens > self.network.config.vocab_size:
            raise ValueError(
                f"The data have {num_tokens} tokens, but the model has "
                f"vocab_size={self.network.config.vocab_size}. "
                f"Set the GPT's vocab_size to {num_tokens} or more, or the data's to less."
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The mean loss of one batch."""
        _, loss = self.network(batch["input_ids"], batch["targets"])
        self.log("train/loss", loss)  # type: ignore[attr-defined]
        assert isinstance(loss, Tensor)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add one batch to the validation figures."""
        self.val_likelihood.update(self(batch["input_ids"]), batch["targets"], batch["num_bytes"])  # type: ignore[operator]

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add one batch to the test figures."""
        self.test_likelihood.update(self(batch["input_ids"]), batch["targets"], batch["num_bytes"])  # type: ignore[operator]

    def on_validation_epoch_end(self) -> None:
        """Log the validation figures."""
        self._log_likelihood("val", self.val_likelihood)

    def on_test_epoch_end(self) -> None:
        """Log the test figures."""
        self._log_likelihood("test", self.test_likelihood)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Continue each sequence: the new tokens, (B, max_new_tokens)."""
        num_given = batch["input_ids"].shape[1]
        return self.network.generate(batch["input_ids"], self.max_new_tokens, self.temperature)[:, num_given:]

    def configure_optimizers(self) -> Any:
        """The optimizer and scheduler given, or AdamW over all parameters, frozen ones too."""
        if self.optimizer is None:
            return self._adamw()
        if self._lr_plan is None:
            return self.optimizer
        return {"optimizer": self.optimizer, "lr_scheduler": self._lr_plan}

    def _adamw(self) -> torch.optim.Optimizer:
        matrices = [parameter for parameter in self.network.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in self.network.parameters() if parameter.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": self.weight_decay, "name": "matrices"},
            {"params": vectors, "weight_decay": 0.0, "name": "vectors"},
        ]
        return torch.optim.AdamW(groups, lr=self.learning_rate, betas=(0.9, 0.95), fused=True)

    def _log_likelihood(self, stage: str, likelihood: TextLikelihood) -> None:
        figures = {f"{stage}/{name}": value for name, value in likelihood.compute().items()}
        self.log_dict(figures, sync_dist=True)  # type: ignore[attr-defined]
        likelihood.reset()


def _lr_plan(
    scheduler: LRScheduler | Mapping[str, Any] | None, interval: str, monitor: str | None
) -> dict[str, Any] | None:
    """Lightning's dictionary about a scheduler; what a given dictionary says comes first."""
    choice("scheduler_interval", interval, ("step", "epoch"))
    if scheduler is None:
        return None
    given = dict(scheduler) if isinstance(scheduler, Mapping) else {"scheduler": scheduler}
    plan = {"interval": interval, **({} if monitor is None else {"monitor": monitor}), **given}
    if not isinstance(plan.get("scheduler"), LRScheduler):
        raise TypeError(
            "scheduler must be a torch LR scheduler, or a dictionary with one under 'scheduler'. "
            f"Got {scheduler!r}."
        )
    if isinstance(plan["scheduler"], ReduceLROnPlateau) and "monitor" not in plan:
        raise ValueError(
            "A ReduceLROnPlateau looks at a metric: name it, such as `scheduler_monitor: val/loss` with "
            "`scheduler_interval: epoch`."
        )
    return plan


def _not_negative(argument: str, value: object) -> float:
    checked = number(argument, value)
    if not 0 <= checked < math.inf:
        raise ValueError(f"{argument} must be at least 0 and finite. Got {value}.")
    return checked
