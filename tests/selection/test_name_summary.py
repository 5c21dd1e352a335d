"""Many names in one short phrase."""

import pytest

from lighter_freezers.selection.name_summary import NameSummary

PARTS = ("ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight")
NAMES = [
    "transformer.wte.weight",
    "transformer.wpe.weight",
    *(f"transformer.h.{block}.{part}" for block in range(5) for part in PARTS),
    "transformer.ln_f.weight",
]


@pytest.mark.parametrize("wrapper", ["", "network.", "model."])
@pytest.mark.parametrize(
    ("prefixes", "expected"),
    [
        (("transformer.h.0.", "transformer.h.1.", "transformer.h.2.", "transformer.h.4."), "h.0-2, h.4"),
        (("transformer.wte", "transformer.wpe", "transformer.h"), "wte, wpe, h"),
        (tuple(f"transformer.h.{block}.attn" for block in range(5)), "h.0-4.attn"),
        (tuple(f"transformer.h.{block}.ln_1.bias" for block in range(4)), "h.0-3.ln_1.bias"),
        (("transformer",), "all parameters"),
        (("nothing",), "no parameters"),
    ],
)
def test_whole_modules_stand_for_their_parameters(
    prefixes: tuple[str, ...], expected: str, wrapper: str
) -> None:
    """Neighbours are joined, and a wrapper in front does not show."""
    summary = NameSummary([wrapper + name for name in NAMES])

    assert summary.compress([wrapper + name for name in NAMES if name.startswith(prefixes)]) == expected


def test_the_order_of_the_names_does_not_matter() -> None:
    """Model order it is, and a name twice counts once."""
    names = [name for name in NAMES if ".h.1." in name or "wte" in name]

    assert NameSummary(NAMES).compress([*reversed(names), names[0]]) == "wte, h.1"


def test_a_long_list_ends_in_a_count() -> None:
    every = [f"part_{letter}.weight" for letter in "abcdefghijk"]

    assert NameSummary(every).compress(every[:-1], num_items=2) == "part_a, part_b and 8 more"


def test_a_model_without_parameters_has_none_to_name() -> None:
    assert NameSummary([]).compress([]) == "no parameters"
