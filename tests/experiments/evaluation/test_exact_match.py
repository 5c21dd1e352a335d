"""Exact match: what is forgiven, and what is not."""

import pytest

from lighter_freezers.experiments.evaluation.exact_match import exact_match


@pytest.mark.parametrize(
    ("prediction", "is_match"),
    [
        ('SELECT  "a"\tFROM table ', True),
        ("select 'a' from table", True),
        ("select a from\ntable", True),
        ("select \u201ca\u201d from table", True),
        ("select a from table.", False),
        ("select a from table ### more", False),
        ("selecta from table", False),
        ("", False),
    ],
)
def test_case_quotes_and_white_space_are_forgiven(prediction: str, is_match: bool) -> None:
    """Nothing else is."""
    assert exact_match([prediction], [["SELECT a FROM table"]]) == {"exact_match": float(is_match)}


def test_any_reference_will_do() -> None:
    """And the figure is a share of the rows."""
    assert exact_match(["b", "b", "b"], [["a", "B"], ["a"], ["'b'"]])["exact_match"] == pytest.approx(2 / 3)
