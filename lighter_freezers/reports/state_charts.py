"""What loggers show of the state of a model: numbers, charts of them, and a headline."""

import re
from collections.abc import Iterable, Mapping, Sequence

from torch.nn import Parameter
from torch.optim import Optimizer

from lighter_freezers.engine.effects.optimizer_groups import learning_rates
from lighter_freezers.engine.transition import Transition
from lighter_freezers.reports.state_tables import ComponentState
from lighter_freezers.selection.element_counts import frozen_share_text

__all__ = ["headline", "rate_metrics", "share_charts", "share_metrics"]

_CHARTS = (
    ("attention", re.compile(r"attn|attention")),
    ("norms", re.compile(r"(^|[._])ln|norm|(^|[._])bn")),
    ("mlp", re.compile(r"mlp|ffn|feed_forward")),
    ("embeddings & head", re.compile(r"wte|wpe|emb|head|classifier|^fc$")),
    ("layers", re.compile("")),
)


def share_metrics(total: ComponentState, rows: Iterable[ComponentState]) -> dict[str, float]:
    """The logged numbers: of the whole model, and of each row of the table the share that trains."""
    totals = {"freeze/frozen_share": total.frozen_share, "freeze/trainable_parameters": total.num_trainable}
    return totals | {f"trainable_share/{state.name}": state.trainable_share for state in rows}


def rate_metrics(
    optimizers: Iterable[Optimizer], row_of: Mapping[Parameter, str], *, is_frozen: bool = False
) -> dict[str, float]:
    """The learning rate of each optimizer group, by the rows it has parts of.

    Args:
        optimizers: Those of the Trainer.
        row_of: The row of each parameter.
        is_frozen: Of the groups that are frozen, not of those of which something trains.
    """
    order = {row: place for place, row in enumerate(dict.fromkeys(row_of.values()))}
    metrics: dict[str, float] = {}
    names: set[str] = set()
    for parameters, rate in learning_rates(optimizers):
        rows = {row_of[each] for each in parameters if each in row_of}
        name = _first_to_last(sorted(rows, key=order.__getitem__), len(order))
        number = next(n for n in range(1, len(names) + 2) if _numbered(name, n) not in names)
        names.add(_numbered(name, number))
        if rate is not None and any(each.requires_grad for each in parameters) != is_frozen:
            metrics[f"freeze/trainable_rate/{_numbered(name, number)}"] = rate
    return metrics


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name} - {number}"


def _first_to_last(rows: Sequence[str], num_rows: int) -> str:
    if len(rows) in (0, num_rows):
        return "all layers"
    return rows[0] if len(rows) == 1 else f"{rows[0]} to {rows[-1]}"


def share_charts(rows: Iterable[str]) -> dict[str, list[str]]:
    """Title of a chart -> the logged keys in it."""
    charts: dict[str, list[str]] = {title: [] for title, _ in _CHARTS}
    for name in rows:
        title = next(title for title, pattern in _CHARTS if pattern.search(name))
        charts[title].append(f"trainable_share/{name}")
    return {"frozen share": ["freeze/frozen_share"]} | {title: keys for title, keys in charts.items() if keys}


def headline(total: ComponentState, transition: Transition) -> str:
    """The state in one line: step, share that is frozen, and who holds it."""
    held_by = f", held by {', '.join(transition.holders)}" if transition.holders else ""
    share = frozen_share_text(total.num_trainable, total.num_parameters)
    return f"Optimizer step {transition.optimizer_step}: {share}{held_by}"
