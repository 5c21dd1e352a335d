"""Options of a hold, in addition to which parameters it freezes."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = [
    "CutGradient",
    "FrozenDtype",
    "FrozenMode",
    "NormMode",
    "OptimizerState",
    "Terms",
    "strictest_norms",
]

OptimizerState: TypeAlias = Literal["keep", "reset", "free"]
NormMode: TypeAlias = Literal["eval", "stats", "train"]
FrozenMode: TypeAlias = Literal["train", "eval"]
FrozenDtype: TypeAlias = Literal["bf16"]
CutGradient: TypeAlias = Literal["auto", "never"]


@dataclass(frozen=True)
class Terms:
    """The terms of a hold. Where several hold a parameter, the strictest term of each kind counts.

    Attributes:
        optimizer_state: Whether optimizers keep the state of what is held, drop it when the hold begins, or
            lack the parameter itself for as long: `free` before `reset` before `keep`.
        frozen_norms: What norm layers do while all their parameters are held: `eval` before `stats` before
            `train`.
        cut_gradient: Whether the backward pass may end where everything below it is held: `never` before
            `auto`.
        frozen_mode: Whether modules of which all parameters are held stay in training mode, or are in
            inference mode as a whole: `eval` before `train`.
        frozen_dtype: In what the blocks of a frozen prefix compute; None for that of the run.
    """

    optimizer_state: OptimizerState = "keep"
    frozen_norms: NormMode = "eval"
    cut_gradient: CutGradient = "auto"
    frozen_mode: FrozenMode = "train"
    frozen_dtype: FrozenDtype | None = None


def strictest_norms(terms: Iterable[Terms]) -> NormMode:
    """What a norm layer does under all of these; `eval` under none."""
    modes: list[NormMode] = [each.frozen_norms for each in terms]
    return min(modes, key=("eval", "stats", "train").index, default="eval")
