"""Rejects schedules under which nothing would train, and warns of parameters that would never thaw."""

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from lighter_freezers._log import log
from lighter_freezers.engine import ledger, trainer_clock
from lighter_freezers.engine.actions import Action, StepContext
from lighter_freezers.engine.rules import ActiveRule
from lighter_freezers.engine.trainer_clock import NEVER
from lighter_freezers.engine.trainer_like import TrainerLike
from lighter_freezers.engine.triggers import Moment, Schedule
from lighter_freezers.selection.element_counts import is_empty
from lighter_freezers.selection.name_summary import NameSummary, first_few
from lighter_freezers.selection.names import canonical_parameters

__all__ = [
    "found_by",
    "refuse_idle_now",
    "refuse_idle_phase",
    "refuse_replaced",
    "warn_of_short_run",
    "warn_of_user_frozen",
]

_WAY_OUT = "End one of them earlier, or exclude something (except_names, except_name_starts_with)."


def refuse_idle_phase(active_rules: Sequence[ActiveRule], model: nn.Module) -> None:
    """Raise if the schedules leave nothing to train at some moment.

    Only moments that are certain count: steps while no epoch matters, or epochs while no step does, and no
    rule whose end depends on a metric.

    Raises:
        RuntimeError: Nothing trains at such a moment, or nothing can be trained at all.
    """
    refuse_idle_now(model, None)
    trainable = {id(p) for p in model.parameters() if not ledger.is_user_frozen(p)}
    if trainable - {id(p) for active in active_rules for p in active.selected.values()}:
        return
    for moment in _certain_moments(active_rules):
        holding = [active for active in active_rules if active.rule.schedule.is_active(moment)]
        if any(active.rule.trigger for active in holding):
            continue
        if not trainable - {id(p) for active in holding for p in active.selected.values()}:
            when = (
                f"From step {moment.optimizer_step}"
                if moment.optimizer_step
                else f"From epoch {moment.epoch}"
            )
            names = ", ".join(active.rule.title for active in holding)
            raise RuntimeError(
                f"{when} on, {names} would hold every parameter, so nothing trains. {_WAY_OUT}"
            )


def found_by(actions: Iterable[Action], model: nn.Module) -> list[tuple[str, dict[str, nn.Parameter]]]:
    """What each action may freeze, by name; not of those that replace parameters themselves."""
    names = {id(parameter): name for name, parameter in canonical_parameters(model).items()}
    return [
        (action.title, {names[id(each)]: each for each in action.freezable(model) if id(each) in names})
        for action in actions
        if not action.reshapes
    ]


def refuse_replaced(
    active_rules: Sequence[ActiveRule],
    found: Iterable[tuple[str, Mapping[str, nn.Parameter]]],
    model: nn.Module,
    moment: Moment,
) -> None:
    """Raise where the model no longer has the layers that rules and actions found at set-up.

    What a rule has released for good may be replaced.

    Args:
        active_rules: The rules.
        found: `found_by` the actions, at set-up.
        model: As it is now.
        moment: The current one.

    Raises:
        RuntimeError: A layer was replaced; the message names it.
    """
    ids = {id(parameter) for parameter in model.parameters()}
    held = [{id(each) for each in active.hold.parameters} for active in active_rules]
    of_rules = [
        (active.title, {name: each for name, each in active.selected.items() if id(each) in own})
        for active, own in zip(active_rules, held, strict=True)
        if not (active.rule.schedule.has_ended(moment) or active.history.has_fired)
    ]
    for title, parameters in (*of_rules, *found):
        names = [name for name, parameter in parameters.items() if id(parameter) not in ids]
        if names:
            raise RuntimeError(
                f"{title} found {first_few(names)} at set-up, but the module has replaced them since "
                "then, so they would train unnoticed. Replace layers in __init__, setup or "
                "configure_model, not in on_fit_start or on_train_start."
            )


def refuse_without_optimizer(
    active_rules: Sequence[ActiveRule], actions: Sequence[Action], context: StepContext
) -> None:
    """Raise where a rule or action needs an optimizer, but `configure_optimizers` returned None.

    Under manual optimization Lightning then counts no optimizer step either.

    Raises:
        RuntimeError: It would wait forever, or has no optimizer to change.
    """
    is_counted = getattr(context.model, "automatic_optimization", True)
    waiting = [(each.title, bool(each.rule.schedule.steps)) for each in active_rules]
    waiting += [(each.title, each.counts_steps(context.moment)) for each in actions]
    reasons = {title: "counts optimizer steps" for title, waits in waiting if waits and not is_counted}
    changing = [(each.title, each.rule.terms, bool(each.rule.learning_rate)) for each in active_rules]
    changing += [(each.title, each.terms, bool(each.rate_factors)) for each in actions]
    for title, terms, sets_rates in changing:
        if sets_rates:
            reasons[title] = "sets learning rates"
        elif terms.optimizer_state != "keep":
            reasons[title] = f"has optimizer_state='{terms.optimizer_state}'"
    for title, reason in reasons.items():
        raise RuntimeError(
            f"{title} {reason}, but configure_optimizers returned None: Lightning has no optimizer"
            f"{'' if is_counted else ' and counts no steps'}. Return the optimizer from "
            "configure_optimizers, or use epochs (until_epoch) and leave rates and optimizer state alone."
        )


def warn_of_user_frozen(active_rules: Sequence[ActiveRule], model: nn.Module) -> None:
    """Warn of what a rule would thaw but for the user, who froze it by hand: it never will.

    The base of a model with adapters is frozen on purpose: there only a rule that thaws nothing is named.
    """
    has_adapters = any("lora_" in name for name, _ in model.named_parameters())
    stuck: dict[str, list[str]] = {}  # title -> names
    for active in active_rules:
        frozen = [
            name for name, p in active.selected.items() if p.is_floating_point() and ledger.is_user_frozen(p)
        ]
        if not active.rule.is_static and (not has_adapters or len(frozen) == len(active.selected)):
            stuck.setdefault(active.title, []).extend(frozen)
    summary = NameSummary(list(canonical_parameters(model))) if any(stuck.values()) else None
    for title, names in stuck.items():
        if names and summary is not None:
            log.warning(
                "%s will not thaw %s: frozen by hand before the run (requires_grad=False), which it leaves "
                "alone. Remove that line: the schedule alone freezes them when it should",
                title,
                summary.compress(names),
            )


def warn_of_short_run(
    active_rules: Sequence[ActiveRule], actions: Sequence[Action], trainer: TrainerLike, model: nn.Module
) -> None:
    """Warn of what begins after the run, and of bounds between which no step lies; not if that is unknown."""
    last = trainer_clock.certain_end(trainer, is_manual=not getattr(model, "automatic_optimization", True))
    if last is None:
        return
    said = {(each.title, *each.rule.schedule.beyond(last)) for each in active_rules}
    said |= {(each.title, *each.beyond(last)) for each in actions}
    known = [(name, at) for name, at in (("step", last.optimizer_step), ("epoch", last.epoch)) if at != NEVER]
    end = " and ".join(f"{name} {at}" for name, at in known)
    for title, *late in sorted(said):
        if late:
            verb = "begins" if len(late) == 1 else "begin"
            log.warning(
                "%s: %s %s after the run has ended, whose last is %s", title, first_few(late), verb, end
            )
    if last.optimizer_step == NEVER or last.epoch == NEVER:
        return
    per_epoch = trainer_clock.steps_per_epoch(trainer)
    assert per_epoch is not None  # or the epoch of the last step were unknown
    idle = {active.title for active in active_rules if _ends_first(active.rule.schedule, last, per_epoch)}
    for title in sorted(idle):
        log.warning(
            "%s never holds: with %d steps to an epoch it would end before it begins. Give both bounds in "
            "steps, or both in epochs",
            title,
            per_epoch,
        )


def _ends_first(schedule: Schedule, last: Moment, per_epoch: int) -> bool:
    """Whether its bounds leave no step between them; not where it begins too late or ends at once."""
    if 0 in (schedule.until_step, schedule.until_epoch) or schedule.beyond(last):
        return False
    steps = {0, *schedule.steps, *(epoch * per_epoch for epoch in schedule.epochs)}
    within = (Moment(step, step // per_epoch) for step in steps if step <= last.optimizer_step)
    return not any(map(schedule.is_active, within))


def refuse_idle_now(model: nn.Module, moment: Moment | None) -> None:
    """Raise if nothing trains now.

    Args:
        model: What is trained.
        moment: The current moment; None before the first step.

    Raises:
        RuntimeError: No parameter is trainable; the message says who holds them.
    """
    # LoRA of rank 0 has nothing to learn; once a run is under way, an action may give it a rank
    counts_empty = moment is not None
    if any(p.requires_grad and (counts_empty or not is_empty(p)) for p in model.parameters()):
        return
    holders = sorted({holder for parameter in model.parameters() for holder in ledger.holders(parameter)})
    when = f"At step {moment.optimizer_step}" if moment else "At the first step"
    if not holders:
        raise RuntimeError(
            f"{when} no parameter is trainable, and no freezer holds one: set requires_grad yourself."
        )
    raise RuntimeError(
        f"{when} every parameter is frozen, so nothing trains: held by {', '.join(holders)}. {_WAY_OUT}"
    )


def _certain_moments(active_rules: Sequence[ActiveRule]) -> list[Moment]:
    steps = sorted({step for active in active_rules for step in active.rule.schedule.steps})
    epochs = sorted({epoch for active in active_rules for epoch in active.rule.schedule.epochs})
    if steps and epochs:
        return []
    return [*(Moment(step, 0) for step in steps), *(Moment(0, epoch) for epoch in epochs)]
