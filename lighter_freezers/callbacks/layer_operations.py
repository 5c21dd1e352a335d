"""The LayerOperations callback: a list of operations, done one after another as a loss decreases."""

from collections.abc import Mapping, Sequence

from torch import nn

from lighter_freezers import arguments
from lighter_freezers.engine.actions import Action
from lighter_freezers.engine.effects.order_check import check_order
from lighter_freezers.engine.engine import EngineCallback
from lighter_freezers.engine.rule_arguments import parse_terms
from lighter_freezers.engine.terms import CutGradient, OptimizerState
from lighter_freezers.engine.trainer_like import TrainerLike
from lighter_freezers.layers.operations.action import OnFailure, QueuedOperations
from lighter_freezers.layers.operations.parse import read_operations
from lighter_freezers.selection.anatomy import anatomy_of
from lighter_freezers.selection.block_indices import counts_blocks

__all__ = ["LayerOperations"]


class LayerOperations(EngineCallback):
    """Freeze, unfreeze and re-rank layers, one operation after another, as a loss decreases.

    The operations are done strictly in their order, each once. Only the next one is checked: when it is due
    it is done between two optimizer steps, and then the one after it is checked, with the same loss.

    | in an entry | means |
    |---|---|
    | `trigger_loss: 2.5` | once the latest value of the loss is below 2.5 |
    | `trigger_loss: .inf` | at once, when its turn comes; no loss is needed |
    | no `trigger_loss` | the loss does not matter |
    | `max_wait_iters: 1000` | at the latest 1000 optimizer steps after the operation before it |
    | `max_wait_iters: 0` | at once, whatever the loss |
    | no `max_wait_iters` | wait for the loss as long as it takes |
    | `reevaluate: true` | the next operation waits for a loss that is measured after this one |

    | name | value | effect |
    |---|---|---|
    | `freeze_layer` | `attn.2` | freezes the whole layer |
    | `unfreeze_layer` | `attn.2` | unfreezes it; if it has LoRA, only the factors |
    | `set_layer_lora_rank` | `[attn.3, 16]` | sets the LoRA rank; 0 merges the update into the weight |
    | `set_layer_lora_rank` | `[wte, 0, drop]` | rank 0 without merging, as required for a tied weight |
    | `set_attn_lora_rank` | `16` | the same for every attention |
    | `set_embedding_lora_rank` | `8` | the same for the token embeddings |
    | `merge_lora_weights` | nothing, or a layer | merges the update into the weight and restarts LoRA |
    | `set_lr` | `1.0e-4` | sets the learning rate, or with a scheduler its base rate |
    | `scale_lr` | `0.5` | multiplies the whole learning-rate curve by this factor |
    | `reset_lr_schedule` | nothing | restarts the schedule, including warm-up |

    `mlp.*` and `attn.0-3` select several layers; a module path such as `encoder.layer1` also works.

    Args:
        operations: The list, or the path of a YAML or JSON file with it, which is only read.
        monitor: The loss: a metric logged in validation or in training, averaged over all ranks; or
            `training_loss`, the mean of the loss returned by `training_step`, which needs no validation.
        average_over: Optimizer steps in one mean of `training_loss`. It stays on the device and is read one
            step late, and only while an operation that is still to come needs it.
        on_failure: What happens when an operation fails: `stop` the run with the reason, or `skip` the
            operation, which the log names; it is recorded as skipped and not tried again.
        optimizer_state: The optimizer state of parameters that operations freeze: `keep` it,
            `reset` it when the hold begins, or `free` it and remove the parameter from its group until it
            thaws.
        cut_gradient: `auto` ends the backward pass above a frozen prefix of blocks if only an embedding tied
            to the head would use the gradient; `never` keeps the gradient of such an embedding.

    Raises:
        TypeError: A value has the wrong type, such as a string instead of a number.
        ValueError: An operation or one of its values is unknown; unknown layers are an error in `setup`.

    Runs on: `setup`; the Trainer's engine does everything else, at `on_train_batch_start` between two
    optimizer steps.

    Saves: the result of each operation, the step from which the next one waits, the latest loss, and what is
    held. A resumed run repeats no operation. Pending operations may be changed before a resume.

    Logs: one line per operation; `operations/log`, a table, to TensorBoard; and the number of completed
    operations as `operations/done`.

    Example:
        ```yaml
        trainer:
          callbacks:
            - _target_: lighter_freezers.LayerOperations
              operations:
                - {name: freeze_layer, value: wte, trigger_loss: .inf}
                - {name: unfreeze_layer, value: wte, trigger_loss: 2.5, max_wait_iters: 1000}
        ```
    """

    def __init__(
        self,
        operations: Sequence[Mapping[str, object]] | str,
        monitor: str = "val/loss",
        *,
        average_over: int = 10,
        on_failure: OnFailure = "stop",
        optimizer_state: OptimizerState = "keep",
        cut_gradient: CutGradient = "auto",
    ) -> None:
        super().__init__()
        if not isinstance(monitor, str) or not monitor:
            raise TypeError(f"monitor must be the name of a metric, or training_loss. Got {monitor!r}.")
        self._operations = read_operations(operations, monitor)
        self._monitor = monitor
        self._average_over = arguments.at_least("average_over", average_over, 1)
        self._on_failure: OnFailure = arguments.choice("on_failure", on_failure, ("stop", "skip"))
        self._terms = parse_terms(optimizer_state, cut_gradient)

    def on_train_start(self, trainer: TrainerLike, pl_module: nn.Module) -> None:
        """Let the first forward pass check the order of the blocks that an operation counts."""
        values = [operation.value for operation in self._operations]
        layers = [each for value in values for each in (value if isinstance(value, tuple) else (value,))]
        if any(counts_blocks(str(layer)) for layer in layers):
            check_order(pl_module, anatomy_of(pl_module))

    def actions(self) -> list[Action]:
        """The one action that does these operations; another fit of the same Trainer continues it."""
        queued = QueuedOperations(
            self._operations,
            monitor=self._monitor,
            average_over=self._average_over,
            on_failure=self._on_failure,
            terms=self._terms,
        )
        return [queued]
