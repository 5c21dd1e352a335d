"""Warns where a policy freezes embeddings or a head that have never been trained."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from lighter_freezers._log import log
from lighter_freezers.selection.anatomy.anatomy import anatomy_of
from lighter_freezers.selection.name_summary import first_few
from lighter_freezers.selection.names import canonical_parameters

__all__ = ["looks_untrained", "warn_of_untrained"]

_SMALLEST = 64  # elements: below this, chance looks like training


def warn_of_untrained(model: nn.Module, frozen: Sequence[Parameter], title: str) -> None:
    """Warn of tables and matrices among `frozen` that look as they were initialised."""
    anatomy, ids = anatomy_of(model), {id(parameter) for parameter in frozen}
    named = {name: p for name, p in canonical_parameters(model).items() if id(p) in ids}
    outer = [name for name in (*anatomy.embeddings, *anatomy.heads) if name in named]
    untrained = [name for name in outer if named[name].dim() > 1 and looks_untrained(named[name])]
    if untrained:
        log.warning(
            "%s freezes %s for the whole run, which looks untrained: the blocks cannot make up for random "
            "embeddings or a random head. Load pretrained weights first, or set rest: train",
            title,
            first_few(untrained),
        )


@torch.no_grad()
def looks_untrained(weight: Tensor) -> bool:
    """Whether a matrix has no direction that stands out from entries drawn independently.

    The largest singular value of n x m independent entries of standard deviation s is s (sqrt(n) + sqrt(m))
    in the limit; that of a trained matrix is far above it. A matrix of zeros is untrained, too.
    """
    if weight.numel() < _SMALLEST or hasattr(weight, "full_tensor") or not weight.is_floating_point():
        return False
    matrix = weight.detach().flatten(1).float()
    num_rows, num_columns = matrix.shape
    matrix = matrix if num_rows >= num_columns else matrix.T
    largest = torch.linalg.eigvalsh(matrix.T @ matrix)[-1].clamp_min(0).sqrt()
    spread = matrix.square().mean().sqrt() * (math.sqrt(num_rows) + math.sqrt(num_columns))
    return bool(largest <= 1.1 * spread)
