"""LoRA ranks as curves in every logger of a Trainer, written only where they change."""

from collections.abc import Iterable, Mapping

from lighter_freezers.engine.trainer_like import TrainerLike
from lighter_freezers.lora.rank_change import RankChange
from lighter_freezers.lora.sites import LoraSite
from lighter_freezers.reports.step_curves import StepCurves

__all__ = ["RankCurves"]


class RankCurves:
    """`lora/rank/<layer>`, `lora/parameters` and `lora/discarded/<layer>`, by optimizer step.

    Args:
        sites: Every layer with LoRA.
    """

    def __init__(self, sites: Mapping[str, LoraSite]) -> None:
        self._sites = list(sites.values())
        self._curves = StepCurves()

    def begin(self, trainer: TrainerLike, optimizer_step: int) -> None:
        """The first points of a fit."""
        self._curves.begin(trainer, self._now(), optimizer_step)

    def note(
        self, trainer: TrainerLike, optimizer_step: int, changes: Iterable[tuple[LoraSite, RankChange]]
    ) -> None:
        """A step in each curve that changed, and the size of what was lost."""
        lost = {f"lora/discarded/{site.title}": c.discarded for site, c in changes if c.discarded}
        self._curves.change(trainer, self._now(), optimizer_step, also=lost)

    def end(self, trainer: TrainerLike, optimizer_step: int) -> None:
        """The last points, so that every curve reaches the end of the run."""
        self._curves.end(trainer, optimizer_step)

    def _now(self) -> dict[str, float]:
        ranks = {f"lora/rank/{site.title}": float(site.factors.rank) for site in self._sites}
        sizes = (parameter.numel() for site in self._sites for parameter in site.factors.parameters)
        return {**ranks, "lora/parameters": float(sum(sizes))}
