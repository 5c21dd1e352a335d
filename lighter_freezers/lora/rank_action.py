"""The action of a schedule of LoRA ranks in one fit: it changes the model, and tracks what is done."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from lighter_freezers._log import log
from lighter_freezers.engine import ledger
from lighter_freezers.engine.actions import Action, ActionResult, StepContext
from lighter_freezers.engine.ledger import Hold
from lighter_freezers.engine.run_shares import RunShares
from lighter_freezers.engine.terms import Terms
from lighter_freezers.engine.trainer_like import SavedState, TrainerLike
from lighter_freezers.engine.triggers import LossOrWait, Moment
from lighter_freezers.lora.optimizer_state import NewComponents
from lighter_freezers.lora.peft_configs import refuse_other_tuners
from lighter_freezers.lora.rank_change import OnZero, RankChange
from lighter_freezers.lora.rank_notes import notes_of
from lighter_freezers.lora.rank_plan import RankPlan, resolved_ranks
from lighter_freezers.lora.rank_schedule import RankEntry
from lighter_freezers.lora.rank_zero import is_empty, is_parallel
from lighter_freezers.lora.ranks import Shrink
from lighter_freezers.lora.restore import install_rank_restore
from lighter_freezers.lora.set_rank import resize_sites
from lighter_freezers.lora.sites import LoraSite, required_sites
from lighter_freezers.lora.statistics import BottleneckStatistics
from lighter_freezers.reports.step_curves import StepCurves
from lighter_freezers.selection.names import canonical_parameters

__all__ = ["RankAction", "RankOptions"]


@dataclass(frozen=True)
class RankOptions:
    """How ranks change, whatever the schedule.

    Attributes:
        adapter_name: PEFT's name of the adapter.
        on_zero: What rank 0 means.
        shrink: How the components are chosen that stay.
        monitor: The metric that entries with `trigger_loss` wait for.
        average_over: Optimizer steps in one mean of the training loss, where that is the metric.
        seed: Of the initial values of new components.
        terms: What else is asked for while rank 0 holds factors.
    """

    adapter_name: str = "default"
    on_zero: OnZero = "drop"
    shrink: Shrink = "svd"
    monitor: str = "val/loss"
    average_over: int = 10
    seed: int = 0
    terms: Terms = Terms()


class RankAction(Action):
    """The entries of one schedule, in one fit.

    Loggers get `lora/rank/<layer>`, `lora/parameters` and `lora/discarded/<layer>` where they change.

    Args:
        entries: From `parse_rank_schedule`.
        options: What holds for all of them.
    """

    reshapes = True

    def __init__(self, entries: Sequence[RankEntry], options: RankOptions) -> None:
        super().__init__()
        self.title = f"LoraRankScheduler[{options.adapter_name}]"
        self._options, self.terms = options, options.terms
        self._plan = RankPlan(entries)
        self.kind, self.entries = f"ranks of {options.adapter_name}", self._plan.titles
        self._ranks: list[dict[str, int]] = []  # of each entry: name of a site -> its rank
        self._sites: dict[str, LoraSite] = {}
        self._frozen: set[str] = set()  # names of sites whose rank 0 is a hold
        self._holds: dict[str, Hold] = {}
        self._new = NewComponents()
        self._statistics = BottleneckStatistics({})
        self._curves = StepCurves()
        self._saved: SavedState | None = None  # what there was to remember

    @property
    def monitors(self) -> frozenset[str]:
        """The loss, while some entry depends on it."""
        return frozenset({self._options.monitor} if self._plan.looks_at_loss else ())

    @property
    def awaits(self) -> LossOrWait | None:
        """What the next entry of the queue waits for, if that is the loss."""
        return self._plan.awaits

    @property
    def average_over(self) -> int:
        """Optimizer steps in one mean of the training loss."""
        return self._options.average_over

    @property
    def holds(self) -> Sequence[Hold]:
        """The factors that a rank of 0 froze."""
        return list(self._holds.values())

    @property
    def ranks(self) -> Mapping[str, int]:
        """Component -> rank; the largest, where a component has several layers with LoRA."""
        ranks: dict[str, int] = {}
        for site in self._sites.values():
            ranks[site.layer] = max(ranks.get(site.layer, 0), site.factors.rank)
        return ranks

    @property
    def wants_gradients(self) -> bool:
        """Whether new components wait for their first gradient, or empty factors have one, as under DDP."""
        return self._new.is_waiting or (is_parallel() and bool(self._empty_sites))

    def before_optimizer_step(self, context: StepContext, optimizer: Optimizer) -> None:
        """Initialise the moments of new components; of rank 0 there are none, as in one process.

        The engine drops gradients without elements, but a convolution of rank 0 has one component, of zeros.
        """
        self._new.start(optimizer)
        if is_parallel():
            ledger.drop_gradients(p for site in self._empty_sites for p in site.factors.parameters)

    @property
    def _empty_sites(self) -> list[LoraSite]:
        return [site for site in self._sites.values() if is_empty(site.factors.layer)]

    def setup(self, trainer: TrainerLike, model: nn.Module, stage: str) -> None:
        """Find the layers and check every rank, before anything is trained or loaded."""
        options = self._options
        refuse_other_tuners(model)
        install_rank_restore(model)
        self._sites = required_sites(model, options.adapter_name)
        self._ranks = [
            resolved_ranks(model, self._sites, entry, options.on_zero, options.shrink)
            for entry in self._plan.entries
        ]
        if options.shrink == "kfac":
            chosen = {name for ranks in self._ranks for name in ranks}
            self._statistics = BottleneckStatistics({n: s for n, s in self._sites.items() if n in chosen})
        if stage == "fit" and self._saved:  # by a checkpoint, where the model was built after it
            self.remember(self._saved)

    def trainable_later(self, model: nn.Module) -> dict[str, Parameter]:
        """The factors whose rank changes, without those that the user froze."""
        chosen = {name for ranks in self._ranks for name in ranks}
        factors = [each for name in chosen for each in self._sites[name].factors.parameters]
        changing = {id(each) for each in factors if not ledger.is_user_frozen(each)}
        return {name: each for name, each in canonical_parameters(model).items() if id(each) in changing}

    def resume(self, context: StepContext) -> None:
        """Hold again what rank 0 froze, and show the ranks there are."""
        resize_sites(context.model, dict.fromkeys(self._frozen, 0), self._sites, on_zero="freeze")
        self._hold_frozen()
        self._curves.begin(context.trainer, self._points(), context.moment.optimizer_step)
        self._statistics.install()

    def resolve(self, shares: RunShares) -> None:
        """Put steps and epochs in place of shares of the run."""
        self._plan.entries = shares.resolved(self._plan.entries)

    def next_step(self, moment: Moment) -> int | None:
        """The next step of the schedule, or the end of a wait."""
        return self._plan.next_step(moment)

    def beyond(self, last: Moment) -> list[str]:
        """The entries whose step or epoch never comes."""
        return [str(each) for each in self._plan.entries if not (each.condition or each.is_reached(last))]

    def is_due(self, moment: Moment) -> bool:
        """Whether any entry is due."""
        return bool(self._plan.due(moment))

    def observe(self, monitor: str, value: float) -> bool:
        """Record the loss; `is_due` then checks it."""
        self._plan.see(value)
        return True

    def apply(self, context: StepContext) -> ActionResult:
        """Change the ranks that are due, once for all entries."""
        due = self._plan.due(context.moment)
        ranks = {name: rank for index in due for name, rank in self._ranks[index].items()}
        changes = self._change(context, ranks)
        self._plan.finish(list(due), context.moment)
        lost = {f"lora/discarded/{site.title}": c.discarded for site, c in changes if c.discarded}
        self._curves.change(context.trainer, self._points(), context.moment.optimizer_step, also=lost)
        touched = {site.layer for site, _ in changes}
        return ActionResult(
            is_reshaped=any(change.rank_before != change.rank_after for _, change in changes),
            notes=tuple(notes_of(changes, [reason for reason in due.values() if reason])),
            ranks={layer: rank for layer, rank in self.ranks.items() if layer in touched},
        )

    def finish(self, trainer: TrainerLike, optimizer_step: int) -> None:
        """End every curve at the last step."""
        self._curves.end(trainer, optimizer_step)

    def state(self) -> dict[str, object]:
        """What is done and since when, what is frozen, what is new; the ranks are in the weights."""
        return {
            **self._plan.state(),
            "frozen": sorted(self._frozen),
            "new": self._new.state(),
            "statistics": self._statistics.state(),
        }

    def remember(self, state: SavedState) -> None:
        """Restore what `state` returned."""
        self._saved = state
        self._plan.remember(state)
        self._frozen = {name for name in state["frozen"] if name in self._sites}
        self._new.remember(state["new"], self._sites)
        self._statistics.remember(state["statistics"])

    def leave(self) -> None:
        """Remove the hooks."""
        self._statistics.remove()
        for hold in self._holds.values():
            hold.abandon()  # at rank 0 they stay frozen, as `resize_lora_layer` leaves them

    def _change(self, context: StepContext, ranks: Mapping[str, int]) -> list[tuple[LoraSite, RankChange]]:
        options = self._options
        context.free_parameters()
        for name in self._holds.keys() & ranks.keys():
            self._holds.pop(name).let_go()
        changes = resize_sites(
            context.model,
            ranks,
            self._sites,
            on_zero=options.on_zero,
            shrink=options.shrink,
            statistics=self._reduced_statistics(context, ranks),
            optimizers=context.optimizers,
            new_components=self._new,
            seed=f"{options.seed}/{context.moment.optimizer_step}",
        )
        held = {name for name, rank in ranks.items() if rank == 0 and options.on_zero == "freeze"}
        self._frozen = (self._frozen - ranks.keys()) | held
        self._hold_frozen()
        lost = math.hypot(*(c.discarded for _, c in changes if c.rank_after == 0))
        if lost and context.trainer.is_global_zero:
            log.warning(
                "LoRA rank 0 drops updates of norm %.3g: on_zero='merge' or 'freeze' would keep them", lost
            )
        return changes

    def _points(self) -> dict[str, float]:
        """What the curves show now."""
        sites = self._sites.values()
        ranks = {f"lora/rank/{site.title}": float(site.factors.rank) for site in sites}
        sizes = (parameter.numel() for site in sites for parameter in site.factors.parameters)
        return {**ranks, "lora/parameters": float(sum(sizes))}

    def _hold_frozen(self) -> None:
        """Hold them in the ledger, and watch them."""
        for name in self._frozen - self._holds.keys():
            hold = self._holds[name] = Hold(self._sites[name].factors.parameters, "LoRA rank 0", self.terms)
            hold.watch(lambda: self.on_intrusion())
            hold.take()

    def _reduced_statistics(
        self, context: StepContext, ranks: Mapping[str, int]
    ) -> dict[str, tuple[Tensor, Tensor]] | None:
        """The statistics of the layers that shrink, reduced over ranks."""
        if self._options.shrink != "kfac":
            return None
        reduce = context.trainer.strategy.reduce
        seen = {name: self._statistics.of(name) for name in ranks}
        return {
            name: (reduce(z, reduce_op="mean"), reduce(g, reduce_op="mean")) for name, (z, g) in seen.items()
        }
