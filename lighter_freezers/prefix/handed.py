"""What one block of a prefix hands to the next one, which is right for everyone else who uses it, too."""

from collections.abc import Callable

from torch import Tensor
from torch._C import DisableTorchFunctionSubclass
from torch.utils._pytree import tree_map_only

__all__ = ["Handed"]

# what a block's output and its stand-in have in common, where the block keeps shape and dtype
_DESCRIBING = ("dtype", "device", "is_cpu", "is_cuda", "is_leaf", "is_meta", "layout", "ndim", "shape")
_DESCRIPTIONS = {getattr(Tensor, name).__get__ for name in (*_DESCRIBING, "requires_grad", "grad_fn")}
_DESCRIPTIONS |= {Tensor.size, Tensor.dim, Tensor.numel, Tensor.get_device, Tensor.__len__}
_DESCRIPTIONS |= {Tensor.is_floating_point, Tensor.is_complex}
_MOVES = {Tensor.to, Tensor.contiguous, Tensor.float}  # which often return what they get
_HARMLESS = _DESCRIPTIONS | _MOVES


class Handed(Tensor):
    """Hidden states between two blocks of a prefix: those of the first, or while it is skipped a stand-in.

    Any operation on them sees what the block returns: a skipped block runs for it then. That is noted, since
    a cache saves nothing where each batch needs it.

    Attributes:
        number: Of the block that hands them on.
        origin: What belongs to the same batch.
        is_alike: Whether their memory has the shape, dtype and device of what the block returns.
        is_used: Whether something else than the next block has used them.
    """

    number: int
    origin: object
    _compute: Callable[[], Tensor]
    _tell: Callable[[], None]
    is_alike: bool
    is_used: bool
    _is_taken: bool
    _found: Tensor | None

    @classmethod
    def of(
        cls,
        number: int,
        origin: object,
        stand_in: Tensor,
        compute: Callable[[], Tensor],
        tell: Callable[[], None],
        *,
        is_alike: bool,
    ) -> "Handed":
        """Hidden states that the next block takes.

        Args:
            number: Of the block that hands them on.
            origin: What belongs to the same batch.
            stand_in: Their memory.
            compute: Returns the real ones, when they are needed for the first time.
            tell: Called when the next block takes them and something else uses them as well.
            is_alike: Whether the stand-in has their shape, dtype and device.
        """
        with DisableTorchFunctionSubclass():
            handed = stand_in.detach().as_subclass(cls)
        handed.number, handed.origin, handed._compute, handed._tell = number, origin, compute, tell
        handed.is_alike, handed.is_used, handed._is_taken, handed._found = is_alike, False, False, None
        return handed

    def pass_on(self) -> None:
        """The next block gets them."""
        if self.is_used and not self._is_taken:
            self._tell()
        self._is_taken = True

    def use(self) -> Tensor:
        """What the block returns, for something else than the next block."""
        if self._is_taken and not self.is_used:
            self._tell()
        self.is_used = True
        return self.computed()

    def computed(self) -> Tensor:
        """What the block returns."""
        if self._found is None:
            self._found = self._compute()
        return self._found

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Run an operation of torch on the real ones."""
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, Handed) and first.is_alike and func in _HARMLESS:
            with DisableTorchFunctionSubclass():
                result = func(*args, **kwargs)
            if func in _DESCRIPTIONS or result is first:
                return result
        args, kwargs = tree_map_only(Handed, Handed.use, (args, kwargs))
        return func(*args, **kwargs)
