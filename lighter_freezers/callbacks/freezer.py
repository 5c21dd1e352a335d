"""The Freezer: holds parameters selected by name, on a schedule. It makes one rule; the engine applies it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from torch import nn

from lighter_freezers import arguments
from lighter_freezers._log import log
from lighter_freezers.engine.actions import Action
from lighter_freezers.engine.early_stopping import say_unmet
from lighter_freezers.engine.effects.order_check import check_order
from lighter_freezers.engine.engine import Engine, EngineCallback
from lighter_freezers.engine.row_hold import RowHold, Rows, parse_rows
from lighter_freezers.engine.rule_arguments import (
    parse_learning_rate,
    parse_schedule,
    parse_terms,
    rule_title,
)
from lighter_freezers.engine.rules import FreezeRule
from lighter_freezers.engine.terms import CutGradient, FrozenMode, NormMode, OptimizerState
from lighter_freezers.engine.trainer_clock import certain_end, end_in_words
from lighter_freezers.engine.trainer_like import TrainerLike
from lighter_freezers.engine.triggers import Moment, Schedule, parse_metric_trigger
from lighter_freezers.selection.names import canonical_parameters
from lighter_freezers.selection.select import ParameterSelector
from lighter_freezers.selection.words import names_of_words, parse_words

__all__ = ["Freezer"]

Names = str | Sequence[str] | None


class Freezer(EngineCallback):
    """Freeze parameters by name, until a step, an epoch or a condition on a metric.

    Any number of Freezers compose, in any order: a parameter is frozen while one of them holds it, and
    returns to its previous state once the last one releases it. A parameter that no Freezer selects is never
    touched. If several hold a parameter, the strictest option applies: `free` before `reset` before `keep`,
    `eval` before `stats` before `train`, `never` before `auto`. Of several rates, that of the Freezer that
    releases the parameter last applies; among those that release it at the same step, the lowest.

    | call | what is frozen, and when |
    |---|---|
    | `Freezer(name_starts_with="encoder", until_epoch=5)` | the encoder, in epochs 0 to 4 |
    | `Freezer(name_starts_with="encoder", until_epoch=5, until_step=900)` | the same, 900 steps at most |
    | `Freezer(name_starts_with="encoder", until_step="30%")` | the encoder, for 30 % of the run |
    | `Freezer(patterns="layers:attn.0", windows=[[0, 500], [2000, 2500]])` | steps 0-499 and 2000-2499 |
    | `Freezer(names="wte.weight", rows="-2:")` | all rows of `wte` but the last two |
    | `Freezer(train="head")` | all but the head, for the whole run |
    | `Freezer(names="wte.weight", until_metric={"monitor": "val/loss", "below": 2.5})` | below 2.5: thaws |

    Names match with or without the wrapper's `network.` or `model.`, through the segments that torch.compile,
    DDP, FSDP and checkpoint wrappers add, and by every alias of a tied weight. Exceptions take precedence.

    Args:
        names: Full parameter names.
        name_starts_with: Literal prefixes of parameter names: `layer1` matches `layer10` too, with a warning.
        except_names: Full names to exclude, even if an argument above matches them.
        except_name_starts_with: Prefixes to exclude.
        until_step: Hold before this optimizer step, counted from 0 as `trainer.global_step` does: not
            batches, and with several optimizers each of their steps. None means no limit. This and the other
            bounds may be shares of the run, such as `30%`.
        until_epoch: Hold before this epoch, counted from 0. With `until_step`, whichever comes first.
        train: Instead of the words above and below, hold everything except what this names: parameters, paths
            of modules (`head`, `encoder.layers.3`) and patterns.
        rows: Of the selected embeddings, and of heads tied to them, only these rows move: numbers, or slices
            such as `"50257:"` and `"-8:"`. The others keep their values whatever weight decay and momentum
            would do. Only together with the arguments that say which parameters, and with steps and epochs.
        patterns: Globs on the full name (`encoder.*.bias`; `*` crosses dots), `re:` and a regular expression
            searched in the full name, `class:BatchNorm2d` for what modules of this class own, `layers:attn.2`
            for a layer of a transformer.
        except_patterns: The same kinds of patterns, to exclude.
        from_step: Start holding at this optimizer step. None means at once.
        from_epoch: Start holding at this epoch; with `from_step`, whichever comes first.
        windows: Pairs `[first step, end step)` in which to hold, instead of the four bounds above.
        until_metric: Release permanently when a logged metric meets a condition: `{monitor: val/loss, below:
            2.5}`, `{monitor: val/acc, above: 0.9}`, or
            `{monitor: val/loss, plateau: {patience: 3, min_delta: 1.0e-3, mode: min}}`. It is checked after
            each validation and at the end of each epoch, as the mean over all ranks.
        frozen_norms: What a batch-norm layer does while all its parameters are held: `eval` normalises with
            its running statistics and stops updating them; `stats` normalises with the batch and stops
            updating them; `train` leaves the layer unchanged.
        frozen_mode: `eval` puts every module of which all parameters are held into inference mode, with all
            that is in it: dropout, stochastic depth and norms. `train` leaves them as they are.
        frozen_dtype: `bf16` lets the first blocks of a model compute in bfloat16 while all of their
            parameters are held; weights and checkpoints stay float32. It changes the loss a little.
        unfreeze_lr: Learning rate of thawed parameters, at every step after the thaw, whatever the LR
            scheduler does to the other groups. None leaves it to the optimizer and its scheduler.
        unfreeze_lr_factor: Instead of `unfreeze_lr`: this factor times the scheduled rate of the rest of the
            group.
        unfreeze_lr_growth: Multiplies the rate of thawed parameters after each epoch, until it is that of the
            rest of the group; with `unfreeze_lr` or `unfreeze_lr_factor`.
        unfreeze_weight_decay: Weight decay of thawed parameters. None for that of their group.
        warmup_steps: Optimizer steps over which the learning rate of thawed parameters rises linearly from 0.
        optimizer_state: What happens to a parameter's optimizer state when it freezes: `keep` it, `reset` it,
            or `free` it and remove the parameter from its group until it thaws, so that an optimizer step
            only processes what trains. With `reset` and `free`, moments start from 0 after the thaw.
        optimizer_params: `auto` adds parameters that will thaw but are in no optimizer to a new group, with
            the options of the parameter with the closest name; `error` makes this an error.
        optimizer: The optimizer to which such parameters are added if a run has several and the parameter's
            neighbours do not decide: its index, its class, or a module that only it trains.
        on_overlap: `compose`, or `error` if another Freezer selects the same parameter.
        on_missing: `error` or `warn` if a name, prefix or pattern matches nothing.
        allow_untested: Warn of a strategy that this package does not know, instead of refusing it.
        cut_gradient: `auto` ends the backward pass above a frozen prefix of blocks if nothing below needs the
            gradient, or only an embedding tied to the head, which then learns through the head alone;
            `never` keeps the gradient of such an embedding.
        restore_on_end: Thaw when the run ends. By default flags stay as they were in the last step.
        blocks: Paths of the modules that `layers:block.N` counts, in order, or patterns such as `encoder.*`.
            None to find them. As in `anatomy_of`, this and the next two override detection, and are checked.
        head: Paths of the modules that `layers:head` stands for.
        embeddings: Paths of what `layers:embeddings` stands for.

    Raises:
        TypeError: An argument has the wrong type, such as a string instead of a number.
        ValueError: Nothing is selected, or arguments contradict each other.

    Runs on: `setup`; the Trainer's engine does everything else, at `on_train_batch_start` between two
    optimizer steps.

    Saves: per Freezer, whether its metric condition was met, and the step and epoch of its last release.

    Logs: one line per transition, from the logger `lighter_freezers`. `FreezeStateLogger` shows it in
    TensorBoard.

    Example:
        ```yaml
        trainer:
          callbacks:
            - _target_: lighter_freezers.Freezer
              name_starts_with: [backbone]
              until_epoch: 5
              unfreeze_lr_factor: 0.1
              warmup_steps: 100
        ```
    """

    def __init__(
        self,
        names: Names = None,
        name_starts_with: Names = None,
        except_names: Names = None,
        except_name_starts_with: Names = None,
        until_step: int | str | None = None,
        until_epoch: int | str | None = None,
        *,
        patterns: Names = None,
        except_patterns: Names = None,
        from_step: int | str | None = None,
        from_epoch: int | str | None = None,
        windows: Sequence[Sequence[int | str]] | None = None,
        until_metric: Mapping[str, object] | None = None,
        train: Names = None,
        rows: int | str | Sequence[int | str] | None = None,
        frozen_norms: NormMode = "eval",
        frozen_mode: FrozenMode = "train",
        frozen_dtype: Literal["bf16"] | None = None,
        unfreeze_lr: float | None = None,
        unfreeze_lr_factor: float | None = None,
        unfreeze_lr_growth: float | None = None,
        unfreeze_weight_decay: float | None = None,
        warmup_steps: int = 0,
        optimizer_state: OptimizerState = "keep",
        optimizer_params: Literal["auto", "error"] = "auto",
        optimizer: int | str | None = None,
        on_overlap: Literal["compose", "error"] = "compose",
        on_missing: Literal["error", "warn"] = "error",
        cut_gradient: CutGradient = "auto",
        restore_on_end: bool = False,
        allow_untested: bool = False,
        blocks: Names = None,
        head: Names = None,
        embeddings: Names = None,
    ) -> None:
        super().__init__()
        self.allow_untested = arguments.flag("allow_untested", allow_untested)
        words = {
            "names": names,
            "name_starts_with": name_starts_with,
            "patterns": patterns,
            "except_names": except_names,
            "except_name_starts_with": except_name_starts_with,
            "except_patterns": except_patterns,
        }
        said = {"blocks": blocks, "head": head, "embeddings": embeddings}
        self._train = _trained(train, words)
        selector = ParameterSelector.from_arguments(**({"patterns": "*"} if self._train else words), **said)
        others = (warmup_steps, unfreeze_lr_growth, unfreeze_weight_decay)
        rates = {
            "unfreeze_lr": unfreeze_lr,
            "unfreeze_lr_factor": unfreeze_lr_factor,
            "unfreeze_weight_decay": unfreeze_weight_decay,
        }
        sets_rate = any(rate is not None for rate in rates.values())
        bounds = (from_step, from_epoch, until_step, until_epoch)
        schedule = parse_schedule(*bounds, windows, sets_rate=sets_rate)
        trigger = None if until_metric is None else parse_metric_trigger("until_metric", until_metric)
        self._rule = FreezeRule(
            title=rule_title(selector, schedule, trigger, self._train),
            selector=selector,
            schedule=schedule,
            trigger=trigger,
            learning_rate=parse_learning_rate(unfreeze_lr, unfreeze_lr_factor, *others),
            terms=parse_terms(optimizer_state, cut_gradient, frozen_norms, frozen_mode, frozen_dtype),
            optimizer_params=arguments.choice("optimizer_params", optimizer_params, ("auto", "error")),
            optimizer=arguments.index_or_name("optimizer", optimizer),
            on_overlap=arguments.choice("on_overlap", on_overlap, ("compose", "error")),
            on_missing=arguments.choice("on_missing", on_missing, ("error", "warn")),
            restore_on_end=arguments.flag("restore_on_end", restore_on_end),
        )
        self._rows = None if rows is None else _rows_beside(self._rule, rows, self._train)
        if self._rule.learning_rate is not None and self._rule.never_releases:
            raise ValueError(_idle_rates(rates))

    def rules(self) -> list[FreezeRule]:
        """The one rule of this Freezer; none where it holds rows."""
        return [self._rule] if self._rows is None else []

    def actions(self) -> list[Action]:
        """What holds rows, where it does."""
        if self._rows is None:
            return []
        return [RowHold(f"{self} rows", self._rule.selector, self._rows, self._rule.schedule)]

    def rules_for(self, model: nn.Module) -> list[FreezeRule]:
        """The same; with `train`, on everything else that this model has."""
        if not self._train:
            return self.rules()
        trained = names_of_words(model, self._train, "train")
        held = tuple(name for name in canonical_parameters(model) if name not in trained)
        if not held:
            raise ValueError(f"train={list(self._train)} names every parameter, so there is nothing to hold.")
        return [replace(self._rule, selector=ParameterSelector(names=held))]

    def on_train_start(self, trainer: TrainerLike, pl_module: nn.Module) -> None:
        """Let the first forward pass check the order of blocks; warn where the run ends before the hold."""
        selector = ParameterSelector(patterns=self._train) if self._train else self._rule.selector
        if selector.counts_blocks:
            check_order(pl_module, selector.anatomy(pl_module))
        last = self._end_of_short_run(trainer, pl_module)
        if last is not None and trainer.is_global_zero:
            log.warning("%s never thaws: the run ends %s", self, end_in_words(last))

    def on_train_end(self, trainer: TrainerLike, pl_module: nn.Module) -> None:
        """Say where the hold did not end: the run was stopped, or a condition was never met."""
        on_metric = self._rule.trigger is not None
        if not (trainer.should_stop or on_metric):  # many Freezers need not look for their rules
            return
        title = str(self)
        own = [each for each in Engine.of(trainer).active_rules if each.title == title]
        is_held = any(each.hold.is_active and each.released_at is None for each in own)
        if is_held and not self._rule.never_releases and self._end_of_short_run(trainer, pl_module) is None:
            way_out = "Give EarlyStopping more patience, or thaw at a plateau of less (until_metric)"
            say_unmet(trainer, title, "it thawed", way_out, on_metric=on_metric)

    def _end_of_short_run(self, trainer: TrainerLike, pl_module: nn.Module) -> Moment | None:
        """The last moment of a run that certainly ends before the hold; None for any other."""
        schedule = Engine.of(trainer).shares.resolved(self._rule.schedule)
        last = certain_end(trainer, is_manual=not pl_module.automatic_optimization)
        if last is None or self._rule.trigger:
            return None
        return last if _ends_after(schedule, last) else None

    def __repr__(self) -> str:
        return self._rule.title


def _ends_after(schedule: Schedule, last: Moment) -> bool:
    """Whether it begins in the run and has an end, which comes after the run."""
    bounds = ((schedule.until_step, last.optimizer_step + 1), (schedule.until_epoch, last.epoch + 1))
    is_late = [bound > end for bound, end in bounds if bound is not None]
    return bool(is_late) and all(is_late) and not schedule.beyond(last)


def _trained(train: Names, words: Mapping[str, Names]) -> tuple[str, ...]:
    """What trains while the rest is held; empty where the rest is not what is held.

    Raises:
        TypeError: It is no list of words.
        ValueError: Other words say what to hold.
    """
    if train is None:
        return ()
    if given := [name for name, value in words.items() if value]:
        raise ValueError(f"train holds everything else; {', '.join(given)} would say what to hold, too.")
    found = parse_words("train", train)
    if not found:
        raise TypeError(f"train must be a name, a pattern or a list of them. Got {train!r}.")
    return found


def _rows_beside(rule: FreezeRule, rows: object, train: Sequence[str]) -> Rows:
    """The rows that move; what concerns whole parameters is refused beside them.

    Raises:
        TypeError: They are no rows.
        ValueError: An argument has no meaning for rows.
    """
    others = {
        "until_metric": rule.trigger,
        "a learning rate": rule.learning_rate,
        "optimizer_state": rule.terms.optimizer_state != "keep",
        "frozen_mode": rule.terms.frozen_mode != "train",
        "frozen_dtype": rule.terms.frozen_dtype,
        "restore_on_end": rule.restore_on_end,
        "train": train,
    }
    if given := [name for name, value in others.items() if value]:
        raise ValueError(f"rows concerns parameters that train, so {', '.join(given)} has no meaning there.")
    return parse_rows(rows)


def _idle_rates(rates: Mapping[str, float | None]) -> str:
    """What is wrong with rates for what thaws if nothing does."""
    given = next((name for name, rate in rates.items() if rate is not None), "warmup_steps")
    return (
        f"{given} concerns what thaws, but this Freezer never releases: give until_step, until_epoch, "
        "windows or until_metric."
    )
