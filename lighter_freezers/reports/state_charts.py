"""What loggers show of the state of a model: numbers, charts of them, and a headline."""

import re
from collections.abc import Iterable

from lighter_freezers.engine.transition import Transition
from lighter_freezers.reports.state_tables import ComponentState

__all__ = ["headline", "share_charts", "share_metrics"]

_CHARTS = (
    ("attention", re.compile(r"attn|attention")),
    ("norms", re.compile(r"(^|[._])ln|norm")),
    ("mlp", re.compile(r"mlp|ffn|feed_forward")),
    ("embeddings & head", re.compile(r"wte|wpe|emb|head|classifier")),
    ("components", re.compile("")),
)


def share_metrics(total: ComponentState, components: Iterable[ComponentState]) -> dict[str, float]:
    """The logged numbers: of the whole model, and of each component the share that trains."""
    totals = {"freeze/trainable_parameters": total.num_trainable, "freeze/frozen_share": total.frozen_share}
    return totals | {f"freeze/components/{state.name}": state.trainable_share for state in components}


def share_charts(components: Iterable[str]) -> dict[str, list[str]]:
    """Title of a chart -> the logged keys in it."""
    charts: dict[str, list[str]] = {title: [] for title, _ in _CHARTS}
    for name in components:
        title = next(title for title, pattern in _CHARTS if pattern.search(name))
        charts[title].append(f"freeze/components/{name}")
    return {"frozen share": ["freeze/frozen_share"]} | {title: keys for title, keys in charts.items() if keys}


def headline(total: ComponentState, transition: Transition) -> str:
    """The state in one line: step, share that is frozen, and who holds it."""
    held_by = f", held by {', '.join(transition.holders)}" if transition.holders else ""
    return f"Optimizer step {transition.optimizer_step}: {total.frozen_share:.1%} frozen{held_by}"
