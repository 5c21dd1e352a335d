"""Real fits of a module that hardly computes anything, of either Lightning namespace."""

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

__all__ = ["Fit", "alive", "empty_callback", "quiet", "run"]

OURS, OTHER = "pytorch_lightning", "lightning.pytorch"

OnStep = Callable[[Any, Any, int], None]  # trainer, module, batch index


class Steps:
    """A loader of empty batches."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps

    def __len__(self) -> int:
        return self._num_steps

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._num_steps))


@dataclass
class Fit:
    """What to fit.

    Attributes:
        network: Has a parameter `head`, the only one that the loss depends on.
        callbacks: Of the Trainer.
        namespace: Which Lightning.
        steps: Batches per epoch.
        epochs: How many.
        logger: Of the Trainer.
        is_filtered: Whether the optimizer gets only what is trainable when it is built, as FTS asks for.
        num_groups: Parameter groups of the optimizer.
    """

    network: Any
    callbacks: Sequence[Any] = ()
    namespace: str = OURS
    steps: int = 3
    epochs: int = 1
    logger: Any = False
    is_filtered: bool = False
    num_groups: int = 1


def run(fit: Fit, on_step: OnStep) -> None:
    """Fit, and call `on_step` inside every training step."""
    base = import_module(fit.namespace).LightningModule

    class Module(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.network = fit.network

        def training_step(self, batch: int, batch_idx: int) -> torch.Tensor:
            on_step(self.trainer, self, batch_idx)
            return self.network.head.sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            parameters = [p for p in self.parameters() if p.requires_grad or not fit.is_filtered]
            groups = [{"params": parameters[first :: fit.num_groups]} for first in range(fit.num_groups)]
            return torch.optim.SGD(groups, lr=1.0e-3)

    with tempfile.TemporaryDirectory() as folder:
        trainer = import_module(fit.namespace).Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=fit.epochs,
            logger=fit.logger,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            log_every_n_steps=1,
            callbacks=list(fit.callbacks),
            default_root_dir=folder,
        )
        trainer.fit(Module(), Steps(fit.steps))


def alive(fits: Sequence[Fit], then: Callable[[list[tuple[Any, Any]]], None]) -> None:
    """Call `then` with the trainer and the module of each fit while all of the fits are at their third step.

    Each fit is started inside a step of the one before, so that all are alive in one thread.
    """
    _descend(list(fits), [], then)


def _descend(
    fits: list[Fit], outer: list[tuple[Any, Any]], then: Callable[[list[tuple[Any, Any]]], None]
) -> None:
    if not fits:
        then(outer)
        return

    def on_step(trainer: Any, module: Any, batch_idx: int) -> None:
        if batch_idx == 2 and trainer.current_epoch == 0:
            _descend(fits[1:], [*outer, (trainer, module)], then)

    run(fits[0], on_step)


def empty_callback(namespace: str) -> Any:
    """A callback whose one hook does nothing."""

    class Empty(import_module(namespace).Callback):  # type: ignore[misc]
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            pass

    return Empty()


class Count(logging.Handler):
    """Formats records, as a terminal would need them, and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.num_lines = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.num_lines += self.format(record).count("\n") + 1


LOGGERS = (
    "pytorch_lightning",
    "lightning_fabric",
    "lightning.pytorch",
    "lightning.fabric",
    "lightning",
    "lighter_freezers",
)


@contextmanager
def quiet(heard: str = "lighter_freezers") -> Iterator[Count]:
    """Let no logger reach the terminal; format and count what one of them says.

    Args:
        heard: The logger that counts.
    """
    torch.set_num_threads(1)
    count = Count()
    before = {}
    for name in LOGGERS:
        logger = logging.getLogger(name)
        before[name] = (logger.handlers[:], logger.propagate)
        logger.handlers, logger.propagate = [logging.NullHandler()], False
    logging.getLogger(heard).handlers = [count]
    try:
        yield count
    finally:
        for name, (handlers, propagate) in before.items():
            logging.getLogger(name).handlers, logging.getLogger(name).propagate = handlers, propagate
