"""The frozen prefix of a model with its store: which batches run, and which are served from the store."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lighter_freezers._log import log
from lighter_freezers.engine.effects.call_detour import Call, CallDetour
from lighter_freezers.prefix.frozen_blocks import FrozenBlocks, HookWatch
from lighter_freezers.prefix.handed import Handed
from lighter_freezers.prefix.passes import (
    Before,
    BlockCall,
    BlockForm,
    Pass,
    Refusal,
    autocast_of,
    hidden_of,
    mode_of,
    refuse_gradient,
)
from lighter_freezers.prefix.store import RowStore
from lighter_freezers.prefix.weights import WeightWatch

__all__ = ["CachedBlocks", "CacheOptions", "Counts", "PrefixCost"]

# for another batch around a row; on a GPU float32 products may be rounded to TF32
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float64: 1e-6}


@dataclass(frozen=True)
class CacheOptions:
    """How rows are stored and checked.

    Attributes:
        folder: Of the store of this node.
        dtype: Of the stored rows, where they are float32.
        max_bytes: Of the store.
        check_every: After so many served batches the blocks run once more, and the rows are compared.
    """

    folder: Path
    dtype: torch.dtype
    max_bytes: int
    check_every: int


@dataclass
class PrefixCost:
    """What the prefix costs in the batches that are measured.

    Attributes:
        flops: Floating-point operations of its blocks, which a served batch does without.
        stored_bytes: Of the rows that are stored.
    """

    flops: int = 0
    stored_bytes: int = 0


@dataclass
class Counts:
    """Batches since the last reset.

    Attributes:
        num_served: Those that got stored rows.
        num_run: Those for which the blocks ran.
    """

    num_served: int = 0
    num_run: int = 0


class CachedBlocks:
    """The blocks of a frozen prefix while their output is cached.

    Args:
        frozen: The prefix.
        options: Of the store.
        said: The reasons that a warning has given; a new one is added.
        is_silent: Log nothing, as all ranks but one should.
    """

    def __init__(
        self, frozen: FrozenBlocks, options: CacheOptions, said: set[str], *, is_silent: bool = False
    ) -> None:
        self.title = frozen.title
        self.counts = Counts()
        self.cost: PrefixCost | None = None  # to add to; while it is there, no batch is served
        self.why = ""  # it is off
        self.is_served = False  # the blocks were skipped for the last batch
        self._options = options
        self._names = frozen.phrase
        self._said = said
        self._is_silent = is_silent
        self._last: Handed | None = None  # what was handed on last, until the last block has it
        self._num_found = 0
        self._differences: list[tuple[float, Tensor]] = []  # tolerance, and what a check found; read later
        self._format = torch.contiguous_format
        self._store: RowStore | None = None
        self._digest = ""
        self._is_suspect = True  # the content of the weights has to be read
        self._use(list(frozen.blocks))
        numbered = enumerate(frozen.blocks)
        self._detours = [CallDetour(block, self._caller(number)) for number, block in numbered]

    @property
    def num_rows(self) -> int:
        """How many rows are stored."""
        return 0 if self._store is None else len(self._store)

    @property
    def num_bytes(self) -> int:
        """The size of the store, of all processes of this node."""
        return 0 if self._store is None else self._store.num_bytes

    def suspect(self) -> None:
        """Read the content of the weights at the next batch; their marks are compared at each batch."""
        self._is_suspect = True

    def close(self, *, deletes: bool) -> None:
        """Let the blocks run again.

        Args:
            deletes: Whether to remove the store.
        """
        self._read_differences()
        for detour in self._detours:
            detour.remove()
        self._detours, self._last = [], None
        if self._store is not None:
            self._store.delete() if deletes else self._store.close()

    def _use(self, blocks: list[nn.Module]) -> None:
        self._blocks = blocks
        self._forms: list[BlockForm | None] = [None] * len(blocks)
        self._weights = WeightWatch(blocks, (len(blocks), str(self._options.dtype)))
        self._hooks = HookWatch(blocks)
        self._is_suspect = True

    def _caller(self, number: int) -> Callable[[Call, tuple[object, ...], dict[str, object]], object]:
        return lambda own, arguments, keywords: self._call(number, own, BlockCall(arguments, keywords))

    def _call(self, number: int, own: Call, call: BlockCall) -> object:
        is_backward = torch._C._current_graph_task_id() != -1  # checkpointing runs a block again
        is_cached = not (self.why or is_backward or number >= len(self._blocks))
        current = self._pass_of(number, call) if is_cached else None
        if current is None:
            real = call.real
            return own(*real.arguments, **real.keywords)
        follow = self._skip if current.before is None else self._run
        output = follow(current, number, own, call)
        if number == len(self._blocks) - 1:
            self._last = None
        return output

    def _pass_of(self, number: int, call: BlockCall) -> Pass | None:
        """The batch that this call belongs to; None if the block just runs."""
        if number == 0:
            self._last = None
            return self._begin(call)
        hidden = call.tensors[0] if call.tensors else None
        if isinstance(hidden, Handed) and hidden.number == number - 1:
            hidden.pass_on()
            current = hidden.origin
            return current if isinstance(current, Pass) and current.store is self._store else None
        last = self._last
        if last is not None and last.number == number - 1 and last.is_used:
            self._shorten(number)  # something else ran between the two
        return None

    def _begin(self, call: BlockCall) -> Pass | None:
        """Decide what happens to this batch; None if it just runs."""
        self.is_served = False
        try:
            if self._is_suspect or self._weights.has_moved:
                self._verify()
            if hook := self._hooks.found():
                raise Refusal(hook)
            refuse_gradient(call.hidden, self._names)
            if self.why or (call.has_history and not torch.is_grad_enabled()):
                return None
            keys = call.keys((mode_of(self._blocks, call.hidden), self._weights.settings))
        except Refusal as refusal:
            self._turn_off(str(refusal))
            return None
        assert self._store is not None
        rows = self._store.find(keys)
        current = Pass(keys, rows, self._store, call.hidden.device, autocast_of(call.hidden))
        if rows is None:
            self.counts.num_run += 1
            current.before = Before(self._blocks, call.hidden)
            return current
        self.counts.num_served += 1
        self._num_found += 1
        is_due = self._num_found % self._options.check_every == 0
        if is_due or None in self._forms or self.cost is not None:
            self._read_differences()
            current.before = Before(self._blocks, call.hidden)
        self.is_served = current.before is None
        return current

    def _run(self, current: Pass, number: int, own: Call, call: BlockCall) -> object:
        """Run a block, and learn from it; after the last one, store or compare the rows."""
        real = call.real
        with FlopCounterMode(display=False) if self.cost is not None else nullcontext() as counter:
            output = own(*real.arguments, **real.keywords)
        if self.cost is not None and counter is not None:
            self.cost.flops += int(counter.get_total_flops())
        try:
            form, hidden = BlockForm.of(real, output, is_first=number == 0), hidden_of(output)
            if self._forms[number] not in (None, form):
                raise Refusal("its layers return something else than in earlier batches")
            self._forms[number] = form
            if number == len(self._blocks) - 1:
                self._finish(current, hidden)
                return output
        except Refusal as refusal:
            self._turn_off(str(refusal))
            return output
        return form.filled(self._hand_on(current, number, hidden, lambda: hidden), real, output)

    def _hand_on(
        self,
        current: Pass,
        number: int,
        stand_in: Tensor,
        compute: Callable[[], Tensor],
        *,
        is_alike: bool = True,
    ) -> Handed:
        tell = partial(self._leak, number)
        self._last = handed = Handed.of(number, current, stand_in, compute, tell, is_alike=is_alike)
        return handed

    def _finish(self, current: Pass, hidden: Tensor) -> None:
        """The last block has run: store its output, or compare it with stored rows."""
        assert current.before is not None
        current.before.check()
        if len(hidden) != len(current.keys):
            raise Refusal("its output has not as many rows as its input")
        if torch.is_grad_enabled() and hidden.requires_grad:
            raise Refusal(
                "a gradient flows through it, as re-entrant checkpointing asks for: use_reentrant=False"
            )
        is_last = hidden.ndim == 4 and not hidden.is_contiguous()
        self._format = torch.channels_last if is_last else torch.contiguous_format
        if self.cost is not None:
            self.cost.stored_bytes += current.store.size_of(hidden)
        if current.rows is None:
            current.store.put(current.keys, hidden)
            return
        hidden, stored = hidden.detach(), current.store.get(current.rows, hidden.device)
        largest = hidden.abs().amax().clamp(min=torch.finfo(hidden.dtype).tiny)
        # what is not finite, or 0 everywhere, is equal to itself
        worst = torch.where(
            stored.isclose(hidden, 0, 0, equal_nan=True), 0, (stored - hidden).abs() / largest
        ).amax()
        is_exact = stored.device.type == "cpu" and current.rows[0].dtype == torch.float32
        self._differences.append((1e-5 if is_exact else _TOLERANCE[current.rows[0].dtype], worst))

    def _skip(self, current: Pass, number: int, own: Call, call: BlockCall) -> object:
        """Hand the input on, or after the last block return the stored rows."""
        form = self._forms[number]
        assert form is not None
        assert current.rows is not None

        def compute() -> Tensor:
            real = call.real
            with torch.no_grad(), current.autocast:
                return hidden_of(own(*real.arguments, **real.keywords))

        output = own(*call.arguments, **call.keywords) if form.runs else None
        if number == len(self._blocks) - 1:
            rows = current.store.get(current.rows, current.device)
            return form.filled(rows.contiguous(memory_format=self._format), call, output)
        if output is not None:
            hidden = hidden_of(output)
            return form.filled(self._hand_on(current, number, hidden, lambda: hidden), call, output)
        hidden = call.hidden
        is_alike = form.is_alike and (not isinstance(hidden, Handed) or hidden.is_alike)
        return form.filled(self._hand_on(current, number, hidden, compute, is_alike=is_alike), call)

    def _leak(self, number: int) -> None:
        if not self.why:
            self._turn_off(f"a skip connection takes the output of its layer {number} past it")

    def _shorten(self, num_blocks: int) -> None:
        """Only the first blocks run directly one after another."""
        self._last = None
        self.title = f"{self.title}, of which the first {num_blocks} layers run one after another"
        self._use(self._blocks[:num_blocks])

    def _verify(self) -> None:
        """Open the store of the current weights; drop the one of earlier weights."""
        self._read_differences()
        digest, self._is_suspect = self._weights.digest(), False
        if digest == self._digest:
            return
        if self._store is not None:
            if self._store.num_bytes and not self._is_silent:
                log.info("PrefixCache drops %d rows: the weights of %s changed", self.num_rows, self.title)
            self._store.delete()
        self._digest = digest
        options = self._options
        self._store = RowStore(options.folder / digest, options.dtype, options.max_bytes)

    def _read_differences(self) -> None:
        """Read what earlier checks found."""
        found, self._differences = self._differences, []
        for tolerance, worst in found:
            difference = float(worst)
            if not difference <= tolerance and not self.why:
                self._turn_off(
                    f"rows that were computed again differ from the stored ones by {difference:.2g} of their "
                    "largest value, so their output depends on more than their input. Look for weights "
                    "changed by hand (p.data), hooks, and functions that draw random numbers"
                )

    def _turn_off(self, why: str) -> None:
        self.why, self._last = why, None
        if why not in self._said and not self._is_silent:
            self._said.add(why)
            log.warning("PrefixCache is off, and %s runs as without it: %s.", self.title, why)
        if self._store is not None:
            self._store.delete()
