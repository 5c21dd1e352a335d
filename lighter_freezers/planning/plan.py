"""`plan(trainer, model)`: rehearse a run a few times on copies, and combine the measurements."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import nn

from lighter_freezers import arguments
from lighter_freezers.arguments import checked
from lighter_freezers.engine.trainer_like import TrainerLike
from lighter_freezers.planning.copied_trainer import hushed, rehearse, untouched_randomness
from lighter_freezers.planning.costs.memory import parameter_bytes
from lighter_freezers.planning.phase_meter import PhaseRecord
from lighter_freezers.planning.rehearsal import Rehearsal, RehearsedPhase
from lighter_freezers.planning.values import Plan, PlannedPhase
from lighter_freezers.selection.element_counts import num_elements

__all__ = ["plan"]


@checked
def plan(
    trainer: TrainerLike,
    model: nn.Module,
    train_dataloaders: object = None,
    val_dataloaders: object = None,
    datamodule: object = None,
    *,
    num_rounds: int = 3,
    num_timed: int = 4,
    progress: Callable[[str], object] = lambda text: None,
) -> Plan:
    """Predict what a run will freeze, when, and what that costs, before its first step.

    The same engine that runs the schedule in training runs it here, from the first step to the last, on a
    copy of the model. In each phase a few real steps are taken, with real batches, through `training_step`,
    backward pass and optimizer. Model, Trainer and files are not changed; no logger or checkpoint writes.

    | call | what it does |
    |---|---|
    | `plan(trainer, model, loader)`, `plan(trainer, model, datamodule)` | as `trainer.fit` is called |
    | `plan(trainer, model)` | the module has its own loader |
    | `plan(trainer, model, num_rounds=1, num_timed=0)` | one step in each phase: counts, no times |

    Args:
        trainer: The Trainer of the run, of either namespace.
        model: Its LightningModule.
        train_dataloaders: Its data, as `trainer.fit` takes them: loaders, or a datamodule.
        val_dataloaders: Accepted as `trainer.fit` does; a plan measures training steps only.
        datamodule: Its data, instead of loaders.
        num_rounds: How many times to run the whole schedule, at least 1; ratios of times are medians over
            rounds.
        num_timed: Steps to time in each phase of a round.
        progress: Called with a short text whenever the next phase is measured.

    Returns:
        The plan: `print` it, `plan.draw("plan.png")`, or `plan.as_dict()`.

    Raises:
        ValueError: The run has no end, or a callback refuses its arguments for this model.
        RuntimeError: The run would stop before its first step, such as one in which nothing trains.

    Example:
        ```python
        import pytorch_lightning as pl
        import torch

        from lighter_freezers import Freezer, plan


        class Model(pl.LightningModule):
            def __init__(self):
                super().__init__()
                self.encoder, self.head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)

            def training_step(self, batch, batch_idx):
                return self.head(self.encoder(batch)).square().mean()

            def configure_optimizers(self):
                return torch.optim.AdamW(self.parameters())

            def train_dataloader(self):
                return torch.utils.data.DataLoader(torch.randn(20, 4), batch_size=4)


        trainer = pl.Trainer(max_epochs=3, callbacks=[Freezer(name_starts_with="encoder.", until_epoch=1)])
        planned = plan(trainer, Model())
        assert [(phase.step, phase.num_trainable) for phase in planned.phases] == [(0, 5), (5, 25)]
        ```
    """
    rounds = arguments.at_least("num_rounds", num_rounds, 1)
    timed = arguments.count("num_timed", num_timed) or 0
    if not hasattr(trainer, "fit_loop"):
        raise TypeError(f"trainer must be a Lightning Trainer. Got {trainer!r} ({type(trainer).__name__}).")
    if datamodule is not None and not hasattr(datamodule, "prepare_data"):
        kind = type(datamodule).__name__
        raise TypeError(f"datamodule must be a LightningDataModule. Got {datamodule!r} ({kind}).")
    if datamodule is None and hasattr(train_dataloaders, "prepare_data"):
        datamodule, train_dataloaders = train_dataloaders, None
    rehearsals: list[Rehearsal] = []

    def say(step: int) -> None:
        progress(f"measuring, round {len(rehearsals) + 1} of {rounds}: the phase from step {step}")

    with hushed() as said:
        for _ in range(rounds):
            with untouched_randomness():
                rehearsals.append(
                    rehearse(trainer, model, datamodule, train_dataloaders, timed, progress=say)
                )
    planned = _summed_up(trainer, model, rehearsals, said)
    free = [phase.record for phase in rehearsals[0].rehearsed_phases if not phase.transition.holders]
    with hushed(), untouched_randomness():
        everything = free[0] if free else _without_rules(trainer, model, datamodule, train_dataloaders)
    return replace(planned, everything=everything and replace(everything, optimizer_step=0, epoch=0))


def _without_rules(
    trainer: TrainerLike, model: nn.Module, datamodule: object, train_dataloaders: object
) -> PhaseRecord | None:
    """A step in which no rule holds anything; None where that fails, such as for lack of memory."""
    try:
        rehearsal = rehearse(trainer, model, datamodule, train_dataloaders, 0, has_rules=False)
    except (RuntimeError, ValueError):
        return None
    return rehearsal.rehearsed_phases[0].record if rehearsal.rehearsed_phases else None


def _summed_up(
    trainer: TrainerLike, model: nn.Module, rehearsals: Sequence[Rehearsal], said: Sequence[str]
) -> Plan:
    first = rehearsals[0]
    if first.length is None:
        raise RuntimeError("This run takes no step: it has no batches, or max_steps or max_epochs is 0.")
    rehearsed_phases = [rehearsed for rehearsed in first.rehearsed_phases if rehearsed.record is not None]
    times = _times(rehearsals, len(rehearsed_phases))
    ends = [rehearsed.transition.optimizer_step for rehearsed in rehearsed_phases[1:] if not rehearsed.when]
    num_steps = first.num_steps or first.clock.step
    phases = [
        _phase(rehearsed, end, seconds, relative)
        for rehearsed, end, (seconds, relative) in zip(
            rehearsed_phases, [*ends, num_steps, *[None] * len(rehearsed_phases)], times, strict=False
        )
    ]
    windows = first.length.windows_per_epoch
    return Plan(
        model=type(model).__name__,
        num_parameters=num_elements(model.parameters()),
        num_steps=num_steps,
        steps_per_epoch=None if windows is None else windows * first.clock.steps_per_window,
        device=str(trainer.strategy.root_device),
        rules=tuple(first.rules),
        phases=tuple(phase for phase in phases if phase.step is not None),
        undated=tuple(phase for phase in phases if phase.step is None),
        warnings=tuple(dict.fromkeys([*said, *first.warnings])),
        weight_bytes=parameter_bytes(list(model.parameters())),
    )


def _phase(
    rehearsed: RehearsedPhase, end: int | None, seconds: float | None, relative: float | None
) -> PlannedPhase:
    record, transition = rehearsed.record, rehearsed.transition
    assert record is not None
    has_date = not rehearsed.when
    return PlannedPhase(
        when=rehearsed.when or f"step {transition.optimizer_step}",
        step=transition.optimizer_step if has_date else None,
        epoch=transition.epoch if has_date else None,
        end_step=end if has_date else None,
        or_when=rehearsed.or_when,
        changes=rehearsed.changes,
        holders=transition.holders,
        trains=record.trains,
        num_trainable=record.num_trainable,
        trainable_share=rehearsed.share,
        flops=record.flops,
        gradient_bytes=record.gradient_bytes,
        optimizer_bytes=record.optimizer_bytes,
        activation_bytes=record.activation_bytes,
        skipped_flops=record.skipped_flops,
        stored_bytes=record.stored_bytes,
        peak_bytes=record.peak_bytes,
        step_seconds=seconds,
        relative_time=relative,
        states=rehearsed.states,
        ranks=dict(transition.ranks),
        learning_rates=rehearsed.rates,
    )


def _times(rehearsals: Sequence[Rehearsal], num_phases: int) -> list[tuple[float | None, float | None]]:
    """For each phase the median time, and the median ratio to the phase with the most FLOPs in a round."""
    rounds = [
        [rehearsed.record for rehearsed in each.rehearsed_phases if rehearsed.record is not None]
        for each in rehearsals
    ]
    rounds = [records for records in rounds if len(records) == num_phases]
    reference = max(range(num_phases), key=lambda index: rounds[0][index].flops or 0) if num_phases else 0
    times: list[tuple[float | None, float | None]] = []
    for index in range(num_phases):
        pairs = [(records[index].step_seconds, records[reference].step_seconds) for records in rounds]
        known = [(one, base) for one, base in pairs if one is not None and base]
        times.append(
            (statistics.median(one for one, _ in known), statistics.median(one / base for one, base in known))
            if known
            else (None, None)
        )
    return times
