"""Maps the state of a checkpoint to rules, operations and rank schedules, also after arguments changed.

One policy for all of them:

- State is keyed by *what* and *when*: the selection, the schedule and the condition of a rule; the list of
  operations; the entries of a rank schedule. Nothing else counts, no name of a class, no other argument.
- The schedule is that of the new arguments.
- State survives every change of arguments that changes neither. An operation or entry that was done stays
  done as long as *what* it did is in the list.
- What has no state in the checkpoint starts without it, and state without an owner is dropped: one warning
  each, if something is lost.

A key is a readable prefix and a hash of plain data. Anything that changes a
key or the layout of the state has to raise `FORMAT`.
"""

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from lighter_freezers.engine.trainer_like import SavedState
from lighter_freezers.engine.triggers import LossOrWait, MetricBelow, MetricTrigger, Schedule
from lighter_freezers.selection.name_summary import first_few
from lighter_freezers.selection.select import ParameterSelector

__all__ = [
    "FORMAT",
    "STATE_KEY",
    "changed_entries",
    "entry_key",
    "find_states",
    "has_condition",
    "list_key",
    "match_done",
    "numbered",
    "refuse_other_format",
    "refuse_state_of_old_key",
    "rule_key",
    "warn_of_changes",
]

STATE_KEY = "lighter_freezers.engine"  # among the callbacks of a checkpoint
FORMAT = 1
_OLD_KEY = "Conductor"  # the state key before the format was versioned
_NUM_LETTERS = 32


def rule_key(
    selector: ParameterSelector,
    schedule: Schedule,
    trigger: MetricTrigger | None,
    stages: Sequence[int] | None = None,
) -> str:
    """The key of a freezing rule: what it selects, and when it holds."""
    selected = (selector.names, selector.prefixes, selector.patterns)
    excepted = (selector.except_names, selector.except_prefixes, selector.except_patterns)
    what = [sorted(set(texts)) for texts in (*selected, *excepted)]
    said = (selector.blocks, selector.head, selector.embeddings)
    what += [list(paths) for paths in said] if any(said) else []
    begins = (schedule.from_step, schedule.from_epoch)
    when = [
        *((None, None) if 0 in begins else begins),  # from 0 on is from the beginning
        schedule.until_step,
        schedule.until_epoch,
        schedule.windows,
        None if trigger is None else _metric_condition(trigger),
        *(() if stages is None else (["stages", *stages],)),
    ]
    return _key(next(text for texts in what for text in texts), [what, when])


def entry_key(text: str, what: object, condition: LossOrWait | None) -> str:
    """The key of an operation or of an entry of a rank schedule.

    Args:
        text: What it does, in words.
        what: The same as plain data; with its step or epoch where it has one.
        condition: What it waits for in its turn; None for a step or an epoch.
    """
    return _key(text, what) if condition is None else f"{_key(text, what)}@{_digest(_facts_of(condition))}"


def has_condition(entry: str) -> bool:
    """Whether the key is that of a queued entry, whose progress does not follow from the step."""
    return bool(_what(entry))


def list_key(kind: str, entries: Iterable[str]) -> str:
    """The key of a list of operations or entries, given their keys."""
    return _key(kind, list(entries))


def numbered(keys: Iterable[str]) -> list[str]:
    """Distinct keys for items with equal what and when, in their order."""
    counts: Counter[str] = Counter()
    found = []
    for key in keys:
        counts[key] += 1
        found.append(f"{key}#{counts[key]}")
    return found


def match_done(done: Iterable[str], entries: Sequence[str]) -> dict[str, str]:
    """Match the entries of a list with those that were done: by what and when, then by what alone.

    Returns:
        Key of what was done -> key of the entry, for all that are still in the list.
    """
    done = list(done)
    found = {key: key for key in done if key in entries}
    for key in filter(has_condition, done):
        free = (e for e in entries if e not in found.values() and _what(e) == _what(key))
        if key not in found and (entry := next(free, None)) is not None:
            found[key] = entry
    return found


def changed_entries(entries: Mapping[str, str], done: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The changes in a list of operations or entries.

    Args:
        entries: Key -> title of the list as it is now.
        done: Key -> title of what was done of the list as it was.

    Returns:
        Titles of entries that now precede finished ones but were not done, and of finished ones that were
        removed.
    """
    matches = match_done(done, list(entries))
    queue, past = [[*filter(has_condition, keys)] for keys in (entries, done)]
    ends = [place + 1 for place, key in enumerate(queue) if key in matches.values()]
    begun = queue[: max([len(past), *ends])]
    return [entries[k] for k in begun if k not in matches.values()], [
        done[k] for k in past if k not in matches
    ]


def find_states(
    owners: Mapping[str, tuple[str, Mapping[str, str]]], states: Mapping[str, SavedState]
) -> dict[str, str]:
    """Match states with lists of operations or of ranks.

    Args:
        owners: Key of a list -> its kind, and its entries.
        states: Key of a list as it was -> its state, with `kind` and `done`.

    Returns:
        Key of an owner -> key of its state: the same, or that of the same kind with the most done in common.
    """
    found = {key: key for key in owners if key in states}
    for key, (kind, entries) in owners.items():
        free = [
            each
            for each, state in states.items()
            if state["kind"] == kind and each not in found.values() and each not in owners
        ]
        if key not in found and free:
            found[key] = max(free, key=lambda each: len(match_done(states[each]["done"], list(entries))))
    return found


def refuse_state_of_old_key(states: Mapping[str, SavedState]) -> None:
    """Refuse a checkpoint whose callbacks have state from before the format was versioned.

    Raises:
        RuntimeError: They have such state.
    """
    if _OLD_KEY in states and STATE_KEY not in states:
        raise RuntimeError(
            "The checkpoint was saved by an older lighter_freezers, whose state of rules, operations and "
            "ranks this version does not read: resume it with the version that saved it, or go on without "
            f"that state after `del checkpoint['callbacks']['{_OLD_KEY}']`."
        )


def refuse_other_format(state: SavedState) -> None:
    """Refuse state in another format than this version reads.

    Raises:
        RuntimeError: It has another format.
    """
    if state.get("format") != FORMAT:
        raise RuntimeError(
            f"The state of lighter_freezers in the checkpoint has the format {state.get('format')}, and "
            f"this version reads {FORMAT}: resume with the version that saved it, or go on without that "
            f"state after `del checkpoint['callbacks']['{STATE_KEY}']`."
        )


def warn_of_changes(
    without_state: Sequence[str], without_owner: Sequence[str], untrained: Sequence[str] = ()
) -> None:
    """Warn what starts without state in a resumed run, and which state has no owner.

    Args:
        without_state: Titles of what has no state and loses something by it.
        without_owner: Titles of what has saved state and no longer exists.
        untrained: Names of parameters with saved optimizer state that their optimizer no longer has.
    """
    if untrained:
        warnings.warn(
            f"The checkpoint has optimizer state of {first_few(untrained)}, which that optimizer does not "
            "train in this run: it is dropped.",
            stacklevel=3,
        )
    if without_state:
        warnings.warn(
            f"The checkpoint has no state for {_listed(without_state)}: they start without it. State is "
            "kept by what is selected or done, and when; put that back to go on with it.",
            stacklevel=3,
        )
    if without_owner:
        warnings.warn(
            f"The checkpoint has state of {_listed(without_owner)}, which this run does not have: it is "
            "dropped. State is kept by what is selected or done, and when; put that back to go on with it.",
            stacklevel=3,
        )


def _metric_condition(trigger: MetricTrigger) -> list[object]:
    if isinstance(trigger, MetricBelow):
        return ["threshold", trigger.monitor, trigger.below, trigger.above]
    return ["plateau", trigger.monitor, trigger.patience, trigger.min_delta, trigger.mode, trigger.number]


def _facts_of(condition: LossOrWait) -> list[object]:
    if condition.is_immediate:
        return ["at once"]
    loss = [condition.monitor, condition.trigger_loss] if condition.looks_at_loss else None
    return ["loss or wait", loss, condition.max_wait]


def _key(text: str, facts: object) -> str:
    return f"{text[:_NUM_LETTERS]}~{_digest(facts)}"


def _digest(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _what(entry: str) -> str:
    return entry.rpartition("@")[0]


def _listed(titles: Sequence[str]) -> str:
    return first_few(list(dict.fromkeys(titles)), 4)
