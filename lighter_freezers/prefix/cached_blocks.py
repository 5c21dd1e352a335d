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
from lighter_freezers.prefix.passes import (
    Before,
    BlockCall,
    BlockForm,
    Pass,
    Probe,
    Refusal,
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
        self._ends = frozen.ends
        self._said = said
        self._is_silent = is_silent
        self._pass: Pass | None = None
        self._num_found = 0
        self._differences: list[tuple[float, Tensor]] = []  # tolerance, and what a check found; read later
        self._format = torch.contiguous_format
        self._store: RowStore | None = None
        self._digest = ""
        self._is_suspect = True  # the content of the weights has to be read
        self._use(list(frozen.blocks))
        numbered = enumerate(frozen.blocks)
        self._detours = [CallDetour(block, self._caller(number)) for number, block in numbered]
        if frozen.after is not None:
            self._detours.append(CallDetour(frozen.after, self._call_after))

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
        self._detours, self._pass = [], None
        if self._store is not None:
            self._store.delete() if deletes else self._store.close()

    def _use(self, blocks: list[nn.Module]) -> None:
        self._blocks = blocks
        self._forms: list[BlockForm | None] = [None] * len(blocks)
        self._is_probed = self._is_proven = False  # whether all of its output leaves by its last block
        self._weights = WeightWatch(blocks, (len(blocks), str(self._options.dtype)))
        self._hooks = HookWatch(blocks)
        self._is_suspect = True

    def _caller(self, number: int) -> Callable[[Call, tuple[object, ...], dict[str, object]], object]:
        return lambda own, arguments, keywords: self._call(number, own, BlockCall(arguments, keywords))

    def _call(self, number: int, own: Call, call: BlockCall) -> object:
        is_backward = torch._C._current_graph_task_id() != -1  # checkpointing runs a block again
        if self.why or is_backward or number >= len(self._blocks):
            return own(*call.arguments, **call.keywords)
        if number == 0:
            self._pass = self._begin(call)
        if self._pass is None:
            return own(*call.arguments, **call.keywords)
        follow = self._skip if self._pass.before is None else self._run
        return follow(self._pass, number, own, call)

    def _call_after(self, own: Call, arguments: tuple[object, ...], keywords: dict[str, object]) -> object:
        """The block behind the prefix: what was handed from block to block inside must be gone by now."""
        if self._pass is not None and not self.why:
            self._look_for_kept(self._pass, len(self._blocks) - 2)
        self._pass = None
        return own(*arguments, **keywords)

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
            keys = call.keys(mode_of(self._blocks, call.hidden))
        except Refusal as refusal:
            self._turn_off(str(refusal))
            return None
        assert self._store is not None
        has_gradient = torch.is_grad_enabled()
        self._is_proven = self._is_proven or (self._is_probed and has_gradient)
        self._is_probed = self._is_probed or has_gradient
        is_probe = has_gradient and not self._is_proven
        rows = self._store.find(keys)
        if rows is None:
            self.counts.num_run += 1
            return Pass(keys, None, Before(self._blocks, call.hidden), is_probe)
        self.counts.num_served += 1
        self._num_found += 1
        is_checked = (
            None in self._forms or self.cost is not None or self._num_found % self._options.check_every == 0
        )
        if is_checked or not self._is_proven:
            self._read_differences()
            return Pass(keys, rows, Before(self._blocks, call.hidden), is_probe)
        self.is_served = True
        return Pass(keys, rows, None, is_probe)

    def _run(self, current: Pass, number: int, own: Call, call: BlockCall) -> object:
        """Run a block, and learn from it; after the last one, store or compare the rows."""
        is_next = not number or current.is_next(number, call)
        inside = call if current.inner is None or not is_next else call.with_hidden(current.inner)
        with FlopCounterMode(display=False) if self.cost is not None else nullcontext() as counter:
            output = own(*inside.arguments, **inside.keywords)
        if self.cost is not None and counter is not None:
            self.cost.flops += int(counter.get_total_flops())
        if not is_next:
            self._shorten(number)
            return output
        try:
            form, hidden = BlockForm.of(inside, output, is_first=number == 0), hidden_of(output)
            if self._forms[number] not in (None, form):
                raise Refusal("its layers return something else than in earlier batches")
            self._forms[number] = form
            if number == len(self._blocks) - 1:
                self._finish(current, hidden)
                return output
        except Refusal as refusal:
            self._turn_off(str(refusal))
            return output
        if not current.is_probe:
            current.handed(number, hidden)
            return output
        # a gradient that arrives here comes from something past the prefix that uses this output too
        probed = Probe.apply(hidden, torch.empty(0, requires_grad=True), partial(self._leak, number))
        assert isinstance(probed, Tensor)
        current.handed(number, probed, inner=hidden)
        return form.filled(probed, inside, output)

    def _finish(self, current: Pass, hidden: Tensor) -> None:
        """The last block has run: store its output, or compare it with stored rows."""
        current.output = current.inner = None
        assert current.before is not None
        current.before.check()
        self._look_for_kept(current, len(self._blocks) - 3)
        if self.why:
            return
        if len(hidden) != len(current.keys):
            raise Refusal("its output has not as many rows as its input")
        if torch.is_grad_enabled() and hidden.requires_grad:
            raise Refusal("a gradient flows through it")
        assert self._store is not None
        is_last = hidden.ndim == 4 and not hidden.is_contiguous()
        self._format = torch.channels_last if is_last else torch.contiguous_format
        if self.cost is not None:
            self.cost.stored_bytes += self._store.size_of(hidden)
        if current.rows is None:
            self._store.put(current.keys, hidden)
            return
        hidden, stored = hidden.detach(), self._store.get(current.rows, hidden)
        worst = (stored - hidden).abs().amax() / hidden.abs().amax()
        is_exact = stored.device.type == "cpu" and current.rows[0].dtype == torch.float32
        self._differences.append((1e-5 if is_exact else _TOLERANCE[current.rows[0].dtype], worst))

    def _skip(self, current: Pass, number: int, own: Call, call: BlockCall) -> object:
        """Hand the input on, or after the last block return the stored rows."""
        if number and not current.is_next(number, call):
            raise RuntimeError(
                f"PrefixCache: the layers of {self.title} no longer run one after another as they did when "
                "their rows were stored. Remove the callback for this model."
            )
        form = self._forms[number]
        assert form is not None
        assert self._store is not None
        assert current.rows is not None
        output = own(*call.arguments, **call.keywords) if form.runs else None
        if number < len(self._blocks) - 1:
            hidden = call.hidden.detach()
            current.handed(number, hidden)
        else:
            current.output = None
            self._look_for_kept(current, number - 2)
            hidden = self._store.get(current.rows, call.hidden).contiguous(memory_format=self._format)
        return form.filled(hidden, call, output)

    def _look_for_kept(self, current: Pass, last: int) -> None:
        number = current.still_kept(last, self._ends)
        if number is not None:
            self._turn_off(
                f"the output of its layer {number} is kept, as output_hidden_states does"
                + (", and what was kept in this batch is that layer's input" if current.rows else "")
            )

    def _leak(self, number: int) -> None:
        if self._is_probed and not self.why:
            self._turn_off(f"a skip connection takes the output of its layer {number} past it")

    def _shorten(self, num_blocks: int) -> None:
        """Only the first blocks run directly one after another."""
        self._pass, self._is_probed = None, False
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
        self.why, self._pass = why, None
        if why not in self._said and not self._is_silent:
            self._said.add(why)
            log.warning("PrefixCache is off, and %s runs as without it: %s.", self.title, why)
        if self._store is not None:
            self._store.delete()
