"""Colours of timelines and plots for eyes that lack a kind of cone, and in print."""

from itertools import combinations

import numpy as np
import pytest

from lighter_freezers.reports.plots.canvas import GROUP_COLOURS
from lighter_freezers.reports.timeline_picture import COLOURS

# Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency"
# (2009), severity 1.0, for linear RGB.
VISION = {
    "all cones": np.eye(3),
    "no long": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no medium": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.01182, 0.04294, 0.968881],
    ],
    "no short": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.3039],
    ],
    "grey": [[0.2126, 0.7152, 0.0722]] * 3,
}
XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]  # of sRGB


def lab(colour: str, vision: str) -> np.ndarray:
    """A colour as CIE Lab, as such eyes see it."""
    values = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(VISION[vision]) @ linear, 0, 1)
    x, y, z = np.cbrt(np.maximum(np.array(XYZ) @ seen / [0.9505, 1.0, 1.089], 0.008856))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def least(colours: list[str], vision: str) -> float:
    """The smallest distance of two colours."""
    return min(
        float(np.linalg.norm(lab(one, vision) - lab(other, vision)))
        for one, other in combinations(colours, 2)
    )


@pytest.mark.parametrize("vision", [name for name in VISION if name != "grey"])
def test_colours_stay_apart_for_all_eyes(vision: str) -> None:
    """A distance of 2.3 is just noticeable; these are several times that."""
    assert least(list(COLOURS.values()), vision) > 15
    assert least(list(GROUP_COLOURS.values()), vision) > 12


def test_states_stay_apart_in_print() -> None:
    """In grey too, but for the LoRA-only state, which differs from the others by at least 8."""
    assert least([COLOURS["frozen"], COLOURS["trainable"], COLOURS["user-frozen"]], "grey") > 8
    assert least(list(COLOURS.values()), "grey") > 8
