"""Everything public for the Trainer of `lightning.pytorch`: the same names, arguments and behaviour.

Callbacks and functions are those of `lighter_freezers` and work in both Trainers. What derives from a class
of Lightning derives from that of `lightning.pytorch` here. It is built when it is first used, so a plain
install has the callbacks, and `from lighter_freezers.lightning import GPTModule` no `pytorch_lightning`.
Type checkers and editors read the names in `lightning.pyi`.
"""

from collections.abc import Mapping
from importlib import import_module

from lightning.pytorch import LightningDataModule, LightningModule, loggers

import lighter_freezers
from lighter_freezers._extras import missing_package
from lighter_freezers.reports.loggers import with_late_epoch

__all__ = lighter_freezers.__all__

_PARTS = {  # class -> (what it adds to Lightning's, Lightning's)
    "CausalLMModule": ("causal_lm_training.CausalLMTraining", LightningModule),
    "GPTModule": ("gpt_training.GPTTraining", LightningModule),
    "GenerationDataModule": ("generation_data.GenerationData", LightningDataModule),
    "SequenceScoreDataModule": ("labelled_data.SequenceScoreData", LightningDataModule),
    "TextDataModule": ("text_data.TextData", LightningDataModule),
    "TokenLabelDataModule": ("labelled_data.TokenLabelData", LightningDataModule),
}


class TensorBoardLogger(loggers.TensorBoardLogger):
    """`lighter_freezers.TensorBoardLogger`, with the same arguments, for `lightning.pytorch`."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write numbers."""
        super().log_metrics(with_late_epoch(metrics), step)


def _of_lightning(name: str) -> type:
    """One of the classes, from its parts."""
    place, base = _PARTS[name]
    home, _, part = place.partition(".")
    doc = f"`lighter_freezers.{name}`, with the same arguments, for the Trainer of `lightning.pytorch`."
    try:
        module = import_module(f"lighter_freezers.experiments.training.{home}")
    except ModuleNotFoundError as error:
        raise missing_package(error, f"lighter_freezers.lightning.{name}") from error
    return type(name, (getattr(module, part), base), {"__module__": __name__, "__doc__": doc})


def __getattr__(name: str) -> object:
    """Find a public name when it is first used."""
    if name not in __all__:
        raise AttributeError(
            f"module 'lighter_freezers.lightning' has no attribute {name!r}. "
            f"Public names: {', '.join(__all__)}"
        )
    value = _of_lightning(name) if name in _PARTS else getattr(lighter_freezers, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
