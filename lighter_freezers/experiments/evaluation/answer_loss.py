"""The loss of a causal language model on the answers in a batch, without logits for other positions.

Shapes: B batch, T time, K last positions with labels, V vocabulary.
"""

import inspect

from torch import Tensor, nn
from torch.nn import functional as F

from lighter_freezers.experiments.causal_models import base_of
from lighter_freezers.experiments.data.batches import IGNORE_INDEX, Batch

__all__ = ["NUM_LOGITS", "answer_nats", "lean_batch"]

NUM_LOGITS = "num_logits"  # the key of K in a batch, a plain number


def lean_batch(batch: Batch) -> dict[str, object]:
    """Prepare a batch on the host so that the same loss needs less work.

    The prompts at the start of all rows need no logits: `num_logits` is the number of last positions that do.
    With padding on the right no real token attends to it, so the attention mask is dropped, and attention
    uses its faster causal kernel.

    Args:
        batch: `input_ids`, `labels` as transformers has them (not shifted), and perhaps `attention_mask`,
            each (B, T); or prompts, with such a batch as `answers`. Any other batch is returned as it is.
    """
    if "labels" in batch:
        return _lean(batch)
    return {**batch, "answers": _lean(batch["answers"])} if "answers" in batch else dict(batch)


def _lean(batch: Batch) -> dict[str, object]:
    lean = dict(batch)
    has_label = (batch["labels"][:, 1:] != IGNORE_INDEX).any(dim=0)  # (B, T) -> (T - 1)
    first = int(has_label.nonzero()[0]) if bool(has_label.any()) else len(has_label)
    lean[NUM_LOGITS] = batch["labels"].shape[1] - first
    mask = batch.get("attention_mask")
    if mask is not None and bool((mask[:, :-1] >= mask[:, 1:]).all()):
        del lean["attention_mask"]
    return lean


def answer_nats(network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The summed cross-entropy of all labelled tokens of a batch, in nats, and the number of these tokens.

    Args:
        network: A causal language model of transformers.
        batch: From a data module, or from `lean_batch`.

    Returns:
        Two scalars, float32 and int64.
    """
    if NUM_LOGITS not in batch and batch["labels"].device.type == "cpu":  # on a GPU this would synchronize
        batch = lean_batch(batch)
    labels: Tensor = batch["labels"]
    num_logits = int(batch.get(NUM_LOGITS, labels.shape[1]))
    options: dict[str, bool | int] = {"use_cache": False}
    if num_logits < labels.shape[1] and _takes_logits_to_keep(network):
        options["logits_to_keep"] = num_logits
    mask = batch.get("attention_mask")
    logits = network(input_ids=batch["input_ids"], attention_mask=mask, **options).logits  # (B, T or K, V)
    kept = logits[:, -num_logits:-1].flatten(0, 1).float()  # (B (K - 1), V): the last one predicts nothing
    targets = labels[:, labels.shape[1] - num_logits + 1 :].flatten()  # (B (K - 1))
    nats = F.cross_entropy(kept, targets, ignore_index=IGNORE_INDEX, reduction="sum")
    return nats, (targets != IGNORE_INDEX).sum()


def _takes_logits_to_keep(network: nn.Module) -> bool:
    return "logits_to_keep" in inspect.signature(base_of(network).forward).parameters
