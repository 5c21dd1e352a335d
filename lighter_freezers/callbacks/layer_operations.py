"""The LayerOperations callback: a list of operations, done one after another as a loss decreases."""

from collections.abc import Mapping, Sequence

from lighter_freezers import arguments
from lighter_freezers.engine.actions import Action
from lighter_freezers.engine.engine import EngineCallback
from lighter_freezers.engine.rule_arguments import parse_terms
from lighter_freezers.engine.terms import CutGradient, OptimizerState
from lighter_freezers.layers.operations.action import OnFailure, QueuedOperations
from lighter_freezers.layers.operations.parse import read_operations

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

    | name | value | does |
    |---|---|---|
    | `freeze_layer` | `attn.2` | hold all of a layer frozen |
    | `unfreeze_layer` | `attn.2` | let it train; where it has LoRA, the factors only |
    | `set_layer_lora_rank` | `[attn.3, 16]` | LoRA of this rank; 0 merges it into the weight |
    | `set_layer_lora_rank` | `[wte, 0, drop]` | rank 0 without a merge, as a tied weight needs it |
    | `set_attn_lora_rank` | `16` | the same for every attention |
    | `set_embedding_lora_rank` | `8` | the same for the token embeddings |
    | `merge_lora_weights` | nothing, or a layer | the update goes into the weight, LoRA starts again |
    | `set_lr` | `1.0e-4` | the height of the learning rate curve: without a scheduler the rate itself |
    | `scale_lr` | `0.5` | the whole curve times this |
    | `reset_lr_schedule` | nothing | the schedule restarts, warm-up included |

    `mlp.*` and `attn.0-3` are several layers; the path of a module, `encoder.layer1`, is one too.

    Args:
        operations: The list, or the path of a YAML or JSON file with it, which is only read.
        monitor: The loss: a metric that is logged in validation or in training, as the mean over all ranks;
            or `training_loss`, the mean of what `training_step` returns, which needs no validation.
        average_over: Optimizer steps in one mean of `training_loss`. It stays on the device and is read one
            step late, and only while an operation waits for it.
        on_failure: What happens when an operation cannot be done: `stop` the run with the reason, or `skip`
            the operation with a warning. Either way it does not count as done.
        optimizer_state: The optimizer's state of what operations freeze: `keep` it,
            `reset` it when the hold begins, or `free` it and remove the parameter from its group until it
            thaws.
        cut_gradient: `auto` ends the backward pass above a frozen prefix of blocks where only an embedding
            that is tied to the head learns from it; `never` leaves the gradient of such an embedding as it
            is.

    Raises:
        TypeError: A value has the wrong type, such as a string where a number belongs.
        ValueError: An operation or one of its values is unknown; unknown layers are an error in `setup`.

    Runs on: `setup`; the Trainer's engine does everything else, at `on_train_batch_start` between two
    optimizer steps.

    Saves: the result of each operation, since when the next one waits, the latest loss, and what is held. A
    resumed run replays nothing. Operations that are not done yet may be changed before a resume.

    Logs: one line per operation. `operations/log`, a table, to TensorBoard, and the number of operations that
    were done as `operations/done`.

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
