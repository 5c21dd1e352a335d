"""LoRA ranks as curves in every logger of a Trainer, written only where they change."""

from collections.abc import Iterable, Mapping

from lighter_freezers.engine.trainer_like import TrainerLike
from lighter_freezers.lora.ranks import RankChange
from lighter_freezers.lora.sites import LoraSite
from lighter_freezers.reports.loggers import write_metrics

__all__ = ["RankCurves"]


class RankCurves:
    """`lora/rank/<layer>`, `lora/parameters` and `lora/discarded/<layer>`, by optimizer step.

    Args:
        sites: Every layer with LoRA.
    """

    def __init__(self, sites: Mapping[str, LoraSite]) -> None:
        self._sites = list(sites.values())
        self._shown: dict[str, float] = {}  # the curves as they stand
        self._step = -1  # the last with points

    def begin(self, trainer: TrainerLike, optimizer_step: int) -> None:
        """The first points of a fit."""
        self._shown = self._now()
        self._write(trainer, self._shown, optimizer_step)

    def note(
        self, trainer: TrainerLike, optimizer_step: int, changes: Iterable[tuple[LoraSite, RankChange]]
    ) -> None:
        """A step in each curve that changed, and the size of what was lost."""
        now = self._now()
        changed = {key: value for key, value in now.items() if self._shown.get(key) != value}
        if optimizer_step - 1 > self._step:  # so that the curve is a step, not a slope
            self._write(trainer, {key: self._shown[key] for key in changed}, optimizer_step - 1)
        lost = {f"lora/discarded/{site.title}": c.discarded for site, c in changes if c.discarded}
        self._write(trainer, changed | lost, optimizer_step)
        self._shown = now

    def end(self, trainer: TrainerLike, optimizer_step: int) -> None:
        """The last points, so that every curve reaches the end of the run."""
        if optimizer_step > self._step:
            self._write(trainer, self._shown, optimizer_step)

    def _now(self) -> dict[str, float]:
        ranks = {f"lora/rank/{site.title}": float(site.factors.rank) for site in self._sites}
        sizes = (parameter.numel() for site in self._sites for parameter in site.factors.parameters)
        return {**ranks, "lora/parameters": float(sum(sizes))}

    def _write(self, trainer: TrainerLike, metrics: Mapping[str, float], optimizer_step: int) -> None:
        if metrics and trainer.is_global_zero:
            write_metrics(trainer.loggers, metrics, optimizer_step)
        self._step = optimizer_step
