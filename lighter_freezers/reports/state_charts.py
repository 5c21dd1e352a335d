"""What loggers show of the state of a model: numbers, charts of them, and a headline."""

import re
from collections.abc import Callable, Iterable, Mapping

from torch.nn import Parameter
from torch.optim import Optimizer

from lighter_freezers.engine.effects.optimizer_groups import learning_rates
from lighter_freezers.engine.transition import Transition
from lighter_freezers.reports.state_tables import ComponentState
from lighter_freezers.selection.element_counts import frozen_share_text

__all__ = ["LayerRates", "headline", "share_charts", "share_metrics"]

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


class LayerRates:
    """The learning rates of optimizer groups, named after their layers.

    Args:
        row_of: The row of each parameter in the table.
    """

    def __init__(self, row_of: Mapping[Parameter, str]) -> None:
        self._row_of = row_of
        self._order = {row: place for place, row in enumerate(dict.fromkeys(row_of.values()))}
        self._names: dict[tuple[int, int], str] = {}  # by the number of a group and its size
        self._training: dict[str, Callable[[], float]] = {}
        self._frozen: dict[str, Callable[[], float]] = {}

    def look(self, optimizers: Iterable[Optimizer]) -> None:
        """Find out of which groups something trains."""
        self._training, self._frozen = {}, {}
        for number, (parameters, rate) in enumerate(learning_rates(optimizers)):
            if not parameters:
                continue
            size = len(parameters)
            if (number, size) not in self._names:
                self._names[number, size] = self._name(parameters)
            name = self._names[number, size]
            key = f"{name} - {number}" if name in {*self._training, *self._frozen} else name
            trains = any(each.requires_grad for each in parameters)
            (self._training if trains else self._frozen)[key] = rate

    def read(self) -> dict[str, float]:
        """The rates of what trains."""
        return {f"freeze/trainable_rate/{name}": rate() for name, rate in self._training.items()}

    def frozen(self) -> dict[str, float]:
        """The rates of the others."""
        return {f"freeze/trainable_rate/{name}": rate() for name, rate in self._frozen.items()}

    def _name(self, parameters: Iterable[Parameter]) -> str:
        """Its only row, or its first and last."""
        found = {self._row_of[each] for each in parameters if each in self._row_of}
        rows = sorted(found, key=self._order.__getitem__)
        if len(rows) in (0, len(self._order)):
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
