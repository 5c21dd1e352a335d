"""Parameter groups for a trunk and a head, and the part that each group of an optimizer belongs to."""

import torch
from torch import nn

from lighter_freezers.arguments import checked, fraction

__all__ = ["HEAD", "TRUNK", "parts_of_groups", "trunk_and_head_groups"]

TRUNK, HEAD = "trunk", "head"


@checked
def trunk_and_head_groups(model: nn.Module, weight_decay: float | None = None) -> list[dict[str, object]]:
    """Parameter groups named `trunk` and `head` for an optimizer, frozen parameters included.

    The trunk is everything in `model.transformer`, the head is the rest: of a `GPT` the classifier's or
    scorer's layer and the scorer's [CLS] embedding, or an `lm_head` with a weight of its own.

    Args:
        model: A `GPT`, or another network with a `transformer`.
        weight_decay: For matrices, in [0, 1]; vectors (norms, biases) get 0 and groups of their own, called
            `trunk-vectors` and `head-vectors`. None leaves it to the optimizer.

    Returns:
        A list for an optimizer's `params`.

    Raises:
        TypeError: The weight decay is not a number.
        ValueError: There is no `transformer`, or no parameter besides it: tied weights have no head.

    Example:
        ```yaml
        optimizer:
          _target_: torch.optim.AdamW
          params:
            _target_: lighter_freezers.gpt.lr_schedules.trunk_and_head_groups
            model: "@model::network"
            weight_decay: 0.1
        ```
    """
    trunk = getattr(model, "transformer", None)
    if not isinstance(trunk, nn.Module):
        raise ValueError(
            f"{type(model).__name__} has no `transformer`, which would be its trunk. "
            "Write the groups out: {params: ..., name: trunk} and {params: ..., name: head}."
        )
    in_trunk = {id(parameter) for parameter in trunk.parameters()}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in in_trunk]
    if not rest:
        raise ValueError(
            f"Every parameter of this {type(model).__name__} is in its transformer, so there is no head. "
            "With tied weights lm_head and the token embedding are one parameter: build the model with "
            "tie_weights=False, or use one learning rate for all."
        )
    groups = [*_groups(TRUNK, list(trunk.parameters()), weight_decay), *_groups(HEAD, rest, weight_decay)]
    return [group for group in groups if group["params"]]


def _groups(part: str, parameters: list[nn.Parameter], weight_decay: float | None) -> list[dict[str, object]]:
    if weight_decay is None:
        return [{"params": parameters, "name": part, "part": part}]
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    decay = fraction("weight_decay", weight_decay)
    return [
        {"params": matrices, "name": part, "part": part, "weight_decay": decay},
        {"params": vectors, "name": f"{part}-vectors", "part": part, "weight_decay": 0.0},
    ]


def parts_of_groups(optimizer: torch.optim.Optimizer) -> list[str]:
    """The part, trunk or head, of each parameter group.

    A group stores it as `part`, so that a group split from it later, under another name, has it too.

    Raises:
        ValueError: A group belongs to neither, or there is no group for one of them.
    """
    for group in optimizer.param_groups:
        if "part" not in group and group.get("name") in (TRUNK, HEAD):
            group["part"] = group["name"]
    parts = [group.get("part") for group in optimizer.param_groups]
    if set(parts) != {TRUNK, HEAD}:
        names = [
            group.get("name", f"(group {i} without a name)") for i, group in enumerate(optimizer.param_groups)
        ]
        raise ValueError(
            f"The optimizer needs parameter groups named 'trunk' and 'head'. It has {', '.join(names)}. "
            "Build its params with lighter_freezers.gpt.lr_schedules.trunk_and_head_groups(model)."
        )
    return [str(part) for part in parts]
