"""The names that an error proposes for a misspelt one."""

import difflib
import time

from lighter_freezers.selection.names import closest_names

NAMES = [
    f"encoder.layers.{block}.{part}.{leaf}"
    for block in range(200)
    for part in ("attention.query", "attention.key", "attention.output", "mlp.up", "mlp.down", "norm1")
    for leaf in ("weight", "bias")
]


def test_the_closest_names_are_found_in_a_large_model() -> None:
    """As difflib finds them, several times faster."""
    for asked in ("encodr.layers.12.attention.qury.weight", "encoder.layers.140.mpl.up", "encoder.layer.3"):
        started = time.process_time()
        expected = difflib.get_close_matches(asked, NAMES, n=1, cutoff=0.0)
        between = time.process_time()
        assert closest_names(asked, NAMES, 1) == expected
        assert time.process_time() - between < (between - started) / 2
