"""What loss-aware truncation needs to know: second moments at the bottleneck of each layer, from training.

Shapes: N positions of a batch, r rank; z (N, r) what passes the bottleneck, g (N, r) its gradient.
"""

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lighter_freezers.engine.effects.module_hooks import ModuleHook
from lighter_freezers.engine.trainer_like import SavedState
from lighter_freezers.lora.sites import LoraFactors, LoraSite

__all__ = ["BottleneckStatistics"]

_MEMORY = 0.95  # of the running means: about the last twenty batches count


class BottleneckStatistics:
    """Running means of z z^T and g g^T, (r, r) each, of some layers while they train.

    Two small products per layer and batch, and nothing is read on the host.

    Args:
        sites: Name -> layer with LoRA.
    """

    def __init__(self, sites: Mapping[str, LoraSite]) -> None:
        self._factors = {name: site.factors for name, site in sites.items()}
        self._means: dict[str, tuple[Tensor, Tensor]] = {}  # of z z^T, of g g^T
        self._handles: list[RemovableHandle] = []

    def install(self) -> None:
        """Install the hooks."""
        for name, factors in self._factors.items():
            hook = ModuleHook(self._listener(name, factors))
            self._handles.append(factors.layer.register_forward_hook(hook))

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def of(self, name: str) -> tuple[Tensor, Tensor]:
        """S_z and S_g of a layer; zeros where nothing was seen at its present rank."""
        r = self._factors[name].rank
        means = self._means.get(name)
        if means is None or means[0].shape[0] != r:
            return torch.zeros(r, r), torch.zeros(r, r)
        return means

    def state(self) -> dict[str, list[Tensor]]:
        """The running means, on the CPU."""
        return {name: [mean.cpu() for mean in means] for name, means in self._means.items()}

    def remember(self, state: SavedState) -> None:
        """Restore what `state` returned."""
        self._means = {name: (means[0], means[1]) for name, means in state.items()}

    def _listener(
        self, name: str, factors: LoraFactors
    ) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def listen(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not (layer.training and torch.is_grad_enabled() and output.requires_grad and factors.rank):
                return
            z = _bottleneck(factors, inputs[0])
            hook = functools.partial(self._hear, name, z, factors)
            output.register_hook(hook)  # type: ignore[no-untyped-call]

        return listen

    def _hear(self, name: str, z: Tensor, factors: LoraFactors, gradient: Tensor) -> None:
        self._note(name, z, _pulled_back(factors, gradient))

    @torch.no_grad()
    def _note(self, name: str, z: Tensor, g: Tensor) -> None:
        fresh = z.T @ z / len(z), g.T @ g / len(g)
        means = self._means.get(name)
        if means is None or means[0].shape != fresh[0].shape:
            self._means[name] = fresh
            return
        # a batch whose gradients overflowed under mixed precision is passed over
        old = tuple(mean.to(new.device) for mean, new in zip(means, fresh, strict=True))
        is_usable = fresh[0].isfinite().all() & fresh[1].isfinite().all()
        self._means[name] = tuple(  # type: ignore[assignment]
            torch.where(is_usable, _MEMORY * mean + (1 - _MEMORY) * new, mean)
            for mean, new in zip(old, fresh, strict=True)
        )


@torch.no_grad()
def _bottleneck(factors: LoraFactors, x: Tensor) -> Tensor:
    """What passes the bottleneck: z = A x, (N, r)."""
    A, _ = factors.matrices  # (r, n)
    if factors.is_embedding:
        return A.T[x].flatten(0, -2).float()
    if factors.parameters[0].ndim > 2:
        z: Tensor = factors.layer.lora_A[factors.adapter_name].forward(
            x.to(A.dtype)
        )  # (batch, r, *positions)
        return z.movedim(1, -1).flatten(0, -2).float()
    return (x.to(A.dtype) @ A.T).flatten(0, -2).float()


@torch.no_grad()
def _pulled_back(factors: LoraFactors, gradient: Tensor) -> Tensor:
    """Its gradient: g = B^T times that of the output, (N, r)."""
    _, B = factors.matrices  # (m, r)
    if factors.parameters[0].ndim > 2:
        gradient = gradient.movedim(1, -1)
    return (gradient.to(B.dtype) @ B).flatten(0, -2).float()
