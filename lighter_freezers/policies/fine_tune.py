"""The schedule of fastai's `fine_tune`, as two stages."""

from collections.abc import Mapping

from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from lighter_freezers import arguments
from lighter_freezers.arguments import checked
from lighter_freezers.callbacks.gradual_unfreezing import GradualUnfreezing

__all__ = ["fine_tune"]

_MOMENTUMS = (0.85, 0.95)
_DIV_OF_HEAD, _DIV_FINAL = 25.0, 1.0e5  # what the highest rate is divided by for the first rate, and the last


@checked
def fine_tune(
    freeze_epochs: int = 1,
    base_lr: float = 2.0e-3,
    lr_mult: float = 100,
    pct_start: float = 0.3,
    div: float = 5.0,
) -> GradualUnfreezing:
    """Train the head for some epochs, then everything, each with one cycle of the rate, as fastai does.

    | stage | trains | rate of the head | rate of the lowest layer |
    |---|---|---|---|
    | `freeze_epochs` epochs | head | rises from `base_lr / 25` to `base_lr` in 99 % of the steps | |
    | the other epochs | all | from `base_lr / 2 / div` to `base_lr / 2`, then to almost 0 | / `lr_mult` |

    The rates of the layers between have equal ratios. Momentum, or the first beta of Adam, falls from 0.95
    to 0.85 while the rate rises. The optimizer of the run stays, with its state; its LR scheduler is
    replaced, so `configure_optimizers` needs none. The Trainer's `max_epochs` counts both stages. Unlike in
    fastai, batch norms of frozen layers do not train, and each block is a layer with a rate of its own.

    Args:
        freeze_epochs: Epochs in which the head alone trains. At least 1.
        base_lr: The highest rate of the head in these, and twice that of the other epochs.
        lr_mult: The rate of the head divided by that of the lowest layer. At least 1.
        pct_start: The share of the steps of the second stage in which the rate rises, in (0, 1).
        div: What the highest rate is divided by for the first rate of the second stage. At least 1.

    Returns:
        A callback for the Trainer.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: A value is out of its range.

    Example:
        ```yaml
        trainer:
          max_epochs: 6
          callbacks:
            - _target_: lighter_freezers.fine_tune
              freeze_epochs: 1
              base_lr: 2.0e-3
        ```
    """
    epochs = arguments.at_least("freeze_epochs", freeze_epochs, 1)
    base_lr = arguments.positive("base_lr", base_lr)
    for name, value in (("lr_mult", lr_mult), ("div", div)):
        if arguments.positive(name, value) < 1:
            raise ValueError(f"{name} divides the learning rate: at least 1. Got {value!r}.")
    if not 0 < arguments.fraction("pct_start", pct_start) < 1:
        raise ValueError(f"pct_start must be a share of the steps between 0 and 1. Got {pct_start!r}.")
    stages: list[Mapping[str, object]] = [
        {
            "thaw": "layers:head",
            "until_epoch": epochs,
            "scheduler": _one_cycle(base_lr, 0.99, _DIV_OF_HEAD),
        },
        {
            "thaw": "*",
            "unfreeze_lr_factor": [1 / lr_mult, 1.0],
            "scheduler": _one_cycle(base_lr / 2, pct_start, div),
        },
    ]
    return GradualUnfreezing(stages=stages)


def _one_cycle(max_lr: float, pct_start: float, div: float) -> dict[str, object]:
    given = {"num_steps": "stage", "max_lr": max_lr, "pct_start": pct_start, "div": div}
    return {"_target_": f"{__name__}.one_cycle", **given}


def one_cycle(
    optimizer: Optimizer, num_steps: int, max_lr: float, pct_start: float, div: float
) -> OneCycleLR:
    """One cycle of rate and momentum over some steps, at each step as in fastai.

    OneCycleLR has its highest rate a step before `pct_start` of its steps and its lowest at the last of them,
    and fastai both one step later.
    """
    defaults = optimizer.defaults
    return OneCycleLR(
        optimizer,
        max_lr=max_lr,
        total_steps=num_steps + 1,
        pct_start=(pct_start * num_steps + 1) / (num_steps + 1),
        div_factor=div,
        final_div_factor=_DIV_FINAL / div,
        cycle_momentum="betas" in defaults or bool(defaults.get("momentum")),
        base_momentum=_MOMENTUMS[0],
        max_momentum=_MOMENTUMS[1],
    )
