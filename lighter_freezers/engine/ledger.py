"""Who holds which parameter frozen: the only package that writes `requires_grad` and clears `.grad`.

There is one ledger per process, keyed by parameter identity, so it does not matter which model, callback or
method a hold comes from. A parameter trains while its baseline is trainable and it has no holder.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch.nn import Parameter
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from lighter_freezers.engine.flips import Flips, between_steps
from lighter_freezers.engine.ledger_records import (
    Holder,
    Record,
    holders,
    is_held,
    is_user_frozen,
    known,
    observed,
    record_of,
    records,
    terms_of,
    unlisted,
)
from lighter_freezers.engine.terms import Terms

__all__ = [
    "Hold",
    "drop_gradients",
    "freeze",
    "hold",
    "holders",
    "is_held",
    "is_user_frozen",
    "leave",
    "reassert",
    "release",
    "flips",
    "succeed",
    "terms_of",
    "thaw",
    "unobserved",
]

_WATCHED_PER_HOLD = 64  # at most so many, so that watching costs the same in a model of 150 or 15,000 tensors


_USUAL = Terms()
_flips = between_steps  # or those of the step that is under way


@contextmanager
def flips() -> Iterator[Flips]:
    """Note which parameters freeze and thaw while it is open, by any hold or function of this module."""
    global _flips
    before, _flips = _flips, Flips(is_open=True)
    try:
        yield _flips
    finally:
        _flips = before


def _grip(pairs: Iterable[tuple[Parameter, Record]]) -> list[Parameter]:
    """Add one holder to each; freeze those that trained until now."""
    frozen = []
    for parameter, record in pairs:
        record.count += 1
        if record.count == 1:
            if parameter.requires_grad:
                record.baseline = True
                parameter.requires_grad = False
                parameter.grad = None
                frozen.append(parameter)
            elif not record.is_left:
                record.baseline = False
    _flips.note(frozen)
    return frozen


def _loosen(pairs: Iterable[tuple[Parameter, Record]]) -> list[Parameter]:
    """Remove one holder from each; thaw those that have no holder left and trained before."""
    thawed = []
    for parameter, record in pairs:
        record.count -= 1
        if not record.count and record.baseline:
            record.is_left = False
            parameter.requires_grad = True
            thawed.append(parameter)
    _flips.note(thawed)
    return thawed


class Hold:
    """One holder's hold on a fixed set of parameters, taken and released as often as its schedule requires.

    Args:
        parameters: The parameters it can freeze. One that cannot train anyway (frozen by the user, an
            integer tensor) is counted and left alone.
        holder: Who holds, in words for logs and errors.
        terms: What else is asked for while it holds.
    """

    def __init__(self, parameters: Iterable[Parameter], holder: str, terms: Terms = _USUAL) -> None:
        self.holder = holder
        self.terms = terms
        self.is_active = False
        self._grips = [(parameter, record_of(parameter)) for parameter in parameters]
        self._watches: list[RemovableHandle] = []
        self._on_intrusion: Callable[[], None] | None = None
        records = [record for _, record in self._grips]
        me: weakref.ref[Holder] = weakref.ref(self, unlisted(id(self), records))
        for record in records:
            record.holds[id(self)] = me

    @property
    def parameters(self) -> list[Parameter]:
        """What this hold covers."""
        return [parameter for parameter, _ in self._grips]

    def take(self) -> list[Parameter]:
        """Freeze: flags off, gradients cleared.

        Returns:
            The parameters that trained until now.
        """
        if self.is_active:
            return []
        self.is_active = True
        self._watch()
        return _grip(self._grips)

    def let_go(self) -> list[Parameter]:
        """Release: thaw what has no other holder and trained before.

        Returns:
            The parameters that train from now on.
        """
        if not self.is_active:
            return []
        self.is_active = False
        self._unwatch()
        return _loosen(self._grips)

    def abandon(self) -> None:
        """Stop holding, but leave the flags as they are: a run ended with the layers still frozen.

        A later hold on the same parameters knows that they trained before, and restores that on release.
        """
        self._unwatch()
        for _, record in self._grips:
            if self.is_active:
                record.count -= 1
                record.is_left = record.baseline and not record.count
            record.holds.pop(id(self), None)
        self.is_active = False
        self._grips = []

    def moved_to(self, parameters: Sequence[Parameter]) -> "Hold":
        """The same hold on the tensors that replaced its own, as FSDP2 does when it shards a module.

        Args:
            parameters: One successor for each parameter of this hold, in the same order.
        """
        for successor, (_, old) in zip(parameters, self._grips, strict=True):
            record = record_of(successor)
            if not successor.requires_grad and (old.baseline and (old.count or old.is_left)):
                record.baseline = record.is_left = True
        was_active = self.is_active
        successor_hold = self.abandoned_for(parameters)
        if was_active:
            successor_hold.take()
        return successor_hold

    def abandoned_for(self, parameters: Iterable[Parameter]) -> "Hold":
        """Stop holding; the same holder's hold on other parameters, not taken yet."""
        self.abandon()
        other = Hold(parameters, self.holder, self.terms)
        other._on_intrusion = self._on_intrusion
        return other

    def replace(self, old: Parameter, new: Parameter) -> None:
        """Hold a successor in place of a parameter; `succeed` calls it."""
        self._grips = [(new if parameter is old else parameter, record) for parameter, record in self._grips]

    def watch(self, on_intrusion: Callable[[], None]) -> None:
        """Call `on_intrusion` when a held parameter gets a gradient because other code switched it on.

        An evenly spread sample of at most 64 parameters is watched, by autograd hooks that never run while
        the flags are as the ledger left them. Call it before `take`.
        """
        self._on_intrusion = on_intrusion

    def _watch(self) -> None:
        on_intrusion = self._on_intrusion
        if on_intrusion is None:
            return
        stride = -(-len(self._grips) // _WATCHED_PER_HOLD) or 1
        for first in range(0, len(self._grips), stride):
            for parameter, _ in self._grips[first : first + stride]:
                can_train = parameter.is_floating_point() or parameter.is_complex()
                if can_train and parameter.is_leaf and not is_lazy(parameter):
                    flag, parameter.requires_grad = parameter.requires_grad, True  # or torch takes no hook
                    watch = parameter.register_post_accumulate_grad_hook(lambda _: on_intrusion())  # type: ignore[no-untyped-call]
                    parameter.requires_grad = flag
                    self._watches.append(watch)
                    break

    def _unwatch(self) -> None:
        for watch in self._watches:
            watch.remove()
        self._watches = []


def hold(parameters: Iterable[Parameter], holder: str) -> list[Parameter]:
    """Freeze parameters until the same holder releases them. Holding twice has no further effect.

    Args:
        parameters: What to freeze.
        holder: Who holds, in words for logs and errors.

    Returns:
        The parameters that trained until now.
    """
    pairs = [(parameter, record_of(parameter)) for parameter in parameters]
    pairs = [(parameter, record) for parameter, record in pairs if holder not in record.standing]
    for _, record in pairs:
        record.standing.add(holder)
    return _grip(pairs)


def release(parameters: Iterable[Parameter], holder: str) -> list[Parameter]:
    """Release what `hold` took under this name.

    Returns:
        The parameters that train from now on: they have no other holder and trained before.
    """
    pairs = [(parameter, record_of(parameter)) for parameter in parameters]
    pairs = [(parameter, record) for parameter, record in pairs if holder in record.standing]
    for _, record in pairs:
        record.standing.remove(holder)
    return _loosen(pairs)


def thaw(parameters: Iterable[Parameter], holder: str) -> list[Parameter]:
    """Make parameters trainable also where the user froze them, and release this holder's own hold.

    A parameter with another holder stays frozen until that holder releases it; its baseline is trainable from
    now on.

    Returns:
        The parameters that train from now on.
    """
    parameters = list(parameters)
    released = release(parameters, holder)
    switched_on = []
    for parameter in parameters:
        record = record_of(parameter)
        if not (parameter.is_floating_point() or parameter.is_complex()):
            continue
        record.baseline = True
        if not record.count and not parameter.requires_grad:
            record.is_left = False
            parameter.requires_grad = True
            switched_on.append(parameter)
    _flips.note(switched_on)
    return [*released, *switched_on]


def freeze(parameters: Sequence[Parameter], *, is_left: bool = False) -> list[Parameter]:
    """Freeze until `thaw`, also when every holder releases before: a freeze by the user.

    With `is_left` the caller will thaw them later: they do not count as frozen by the user.

    Returns:
        The parameters that trained until now.
    """
    frozen = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in parameters:
        record = record_of(parameter)
        record.baseline, record.is_left = False, is_left
        parameter.requires_grad, parameter.grad = False, None
    _flips.note(frozen)
    return frozen


def drop_gradients(parameters: Iterable[Parameter]) -> None:
    """Leave the optimizer no gradient of parameters that train."""
    for parameter in parameters:
        parameter.grad = None


def leave(parameters: Iterable[Parameter]) -> None:
    """Count parameters that are frozen and unknown so far as left frozen by a hold: they may thaw."""
    for parameter in parameters:
        if not parameter.requires_grad and known(parameter) is None:
            record = record_of(parameter)
            record.baseline = record.is_left = True


def reassert(parameters: Iterable[Parameter]) -> list[Parameter]:
    """Freeze again what other code switched on while it was held; that flag is its baseline from now on."""
    intruded = []
    for parameter in parameters:
        record = record_of(parameter)
        if not record.count:
            continue
        if parameter.requires_grad:
            record.baseline = True
            parameter.requires_grad = False
            intruded.append(parameter)
        if parameter.grad is not None:  # also when the flag was switched on and off again since
            parameter.grad = None
    return intruded


@contextmanager
def unobserved(parameter: Parameter) -> Iterator[None]:
    """Keep no weak reference to a parameter for a moment, since `torch.utils.swap_tensors` refuses those."""
    record = known(parameter)
    if record is None:
        yield
        return
    record.parameter = lambda: parameter
    try:
        yield
    finally:
        record.parameter = observed(parameter)


def succeed(old: Parameter, new: Parameter) -> None:
    """Transfer the baseline and the holders of a parameter to its successor.

    Args:
        old: Not to be used any more.
        new: Its successor, with the same `requires_grad`.
    """
    record = known(old)
    if record is None:
        return
    del records[id(old)]
    _flips.succeed(old, new)
    record.parameter = observed(new)
    records[id(new)] = record
    for reference in list(record.holds.values()):
        if (hold := reference()) is not None:
            hold.replace(old, new)
