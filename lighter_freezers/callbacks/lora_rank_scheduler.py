"""The LoraRankScheduler callback: checks its arguments; an action of `lora/rank_action.py` sets the ranks."""

from collections.abc import Mapping, Sequence

from torch import nn

from lighter_freezers import arguments
from lighter_freezers.engine.actions import Action
from lighter_freezers.engine.effects.order_check import check_order
from lighter_freezers.engine.engine import EngineCallback
from lighter_freezers.engine.rule_arguments import parse_terms
from lighter_freezers.engine.terms import CutGradient, OptimizerState
from lighter_freezers.engine.trainer_clock import moment
from lighter_freezers.engine.trainer_like import TrainerLike
from lighter_freezers.lora.rank_action import RankAction, RankOptions
from lighter_freezers.lora.rank_change import OnZero
from lighter_freezers.lora.rank_schedule import parse_rank_schedule
from lighter_freezers.lora.ranks import Shrink
from lighter_freezers.selection.anatomy import anatomy_of
from lighter_freezers.selection.block_indices import counts_blocks

__all__ = ["LoraRankScheduler"]


class LoraRankScheduler(EngineCallback):
    """Change the LoRA rank of layers at a step, an epoch, or when a loss is low enough.

    It works on standard PEFT layers (`apply_lora`). Growing a rank preserves the model's function; shrinking
    loses as little of the update as the lower rank allows. Optimizers keep their groups and the state of the
    components that stay, LR schedulers are unaffected, and frozen adapters stay frozen.

    | entry of `schedule` | what it does |
    |---|---|
    | `{step: 500, rank_pattern: {attn.0: 8, wte: 8}}` | ranks for an attention and for the embeddings |
    | `{epoch: 3, rank_pattern: {"attn.*": 4}}` | one rank for every attention |
    | `{trigger_loss: 2.8, max_wait_iters: 1000, rank_pattern: {attn.3: 16}}` | when `monitor` is below 2.8 |
    | `{step: 900, rank_pattern: {mlp.1: 0}}` | no LoRA there: see `on_zero` |

    Args:
        schedule: Entries with a `rank_pattern` and one of `step` (optimizer steps, counted from 0), `epoch`
            (from 0), or `trigger_loss` and/or `max_wait_iters`; `desc` is a comment. A rank pattern maps
            layers to ranks: `attn.N`, `mlp.N`, `block.N` (N may be `0-3` or `*`), `wte`, `lm_head` stand for
            all layers with LoRA in them, whatever the model calls these; any other key is a regular
            expression for the end of a layer's name, as in PEFT. Entries with `trigger_loss` run in order:
            `trigger_loss` is met by a value strictly below it, `.inf` at once, null never;
            `max_wait_iters` counts optimizer steps since the previous entry, 0 means at once, null no limit.
        adapter_name: PEFT's name of the adapter.
        monitor: The metric for `trigger_loss`, read when it is logged, averaged over all ranks.
            `training_loss` is a running mean of the training loss.
        on_zero: What rank 0 means: `drop` the update (a warning states its norm), `merge` it into the base
            weight, or `freeze` the components as they are. Tied and quantised weights cannot be merged into.
        shrink: `svd` changes the update least, `kfac` the loss; `kfac` collects statistics during training,
            at the cost of two small products per layer.
        average_over: Optimizer steps in one mean of `training_loss`.
        seed: Seed for initialising new components.
        optimizer_state: The optimizer state of components that `on_zero: freeze` holds: `keep` it,
            `reset` it when the hold begins, or `free` it and remove the parameter from its group until it
            thaws.
        cut_gradient: `auto` ends the backward pass above a frozen prefix of blocks if only an embedding tied
            to the head would use the gradient; `never` keeps the gradient of such an embedding.

    Raises:
        TypeError: A value has the wrong type, such as a string instead of a number.
        ValueError: An entry lacks a time or ranks; in `setup`, a name without LoRA or an impossible rank.
        RuntimeError: In `setup`: strategy, optimizer, callback or layer does not support rank changes.

    Runs on: `setup`; the Trainer's engine does everything else, at `on_train_batch_start` between two
    optimizer steps.

    Saves: which entries are done, the step from which the next one waits, and the latest loss. The ranks
    themselves follow from the shapes of the saved weights, and are restored before the weights are loaded.

    Logs: `lora/rank/<layer>`, `lora/parameters`, and `lora/discarded/<layer>` if part of an update is lost.
    `FreezeStateLogger` shows the ranks in its timeline.

    Example:
        ```yaml
        trainer:
          callbacks:
            - _target_: lighter_freezers.LoraRankScheduler
              schedule:
                - {step: 500, rank_pattern: {attn.0: 8, wte: 8}}
                - {trigger_loss: 2.8, max_wait_iters: 1000, rank_pattern: {attn.3: 16}}
        ```
    """

    def __init__(
        self,
        schedule: Sequence[Mapping[str, object]],
        adapter_name: str = "default",
        *,
        monitor: str = "val/loss",
        on_zero: OnZero = "drop",
        shrink: Shrink = "svd",
        average_over: int = 10,
        seed: int = 0,
        optimizer_state: OptimizerState = "keep",
        cut_gradient: CutGradient = "auto",
    ) -> None:
        super().__init__()
        for argument, value in (("adapter_name", adapter_name), ("monitor", monitor)):
            if not isinstance(value, str) or not value:
                raise TypeError(f"{argument} must be a name. Got {value!r}.")
        self._entries = parse_rank_schedule(schedule, monitor)
        num_steps = arguments.at_least("average_over", average_over, 1)
        self._options = RankOptions(
            adapter_name=adapter_name,
            on_zero=arguments.choice("on_zero", on_zero, ("drop", "merge", "freeze")),
            shrink=arguments.choice("shrink", shrink, ("svd", "kfac")),
            monitor=monitor,
            average_over=num_steps,
            seed=arguments.count("seed", seed) or 0,
            terms=parse_terms(optimizer_state, cut_gradient),
        )
        self._action = RankAction(self._entries, self._options)

    def actions(self) -> list[Action]:
        """The one action of this callback, new for each fit."""
        self._action = RankAction(self._entries, self._options)
        return [self._action]

    def on_train_start(self, trainer: TrainerLike, pl_module: nn.Module) -> None:
        """Let the first forward pass check the order of the blocks that an entry counts."""
        if any(counts_blocks(layer) for entry in self._entries for layer, _ in entry.rank_pattern):
            check_order(pl_module, anatomy_of(pl_module))

    def on_train_end(self, trainer: TrainerLike, pl_module: nn.Module) -> None:
        """Log the ranks at the last step, so that their curves end there."""
        self._action.finish(trainer, moment(trainer).optimizer_step)

    def __repr__(self) -> str:
        return f"LoraRankScheduler[{'; '.join(map(str, self._entries))}]"
