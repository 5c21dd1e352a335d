"""Numbers of parameters and layers."""

import pytest
from torch import nn

from lighter_freezers.layers import (
    freeze_first_n_layers,
    get_frozen_params,
    get_frozen_percentage,
    get_num_layers,
    get_total_params,
    get_trainable_params,
)
from tests.architectures import ARCHITECTURES

NUM_LAYERS = {
    **dict.fromkeys(ARCHITECTURES, 3),
    **dict.fromkeys(("t5", "bart", "bart-classifier", "whisper", "convnext", "resnet"), 5),
    **dict.fromkeys(("albert", "shared"), 1),
    "sequential": 2,
    "resnet18": 8,
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_number_of_layers(name: str) -> None:
    """As the config says, both sides of an encoder-decoder; shared layers are one."""
    assert get_num_layers(ARCHITECTURES[name]()) == NUM_LAYERS[name]


def test_a_model_without_blocks_has_no_layers() -> None:
    """Zero, and no error."""
    assert get_num_layers(nn.Linear(2, 2)) == 0


def test_counts_and_percentage() -> None:
    """As many as torch says, a tied weight once."""
    model = ARCHITECTURES["gpt2"]()
    total = sum(parameter.numel() for parameter in model.parameters())
    assert (get_total_params(model), get_trainable_params(model), get_frozen_params(model)) == (
        total,
        total,
        0,
    )
    frozen = freeze_first_n_layers(model, 2)

    assert get_total_params(model) == total
    assert get_trainable_params(model) == total - frozen
    assert get_frozen_params(model) == frozen
    assert get_frozen_percentage(model) == pytest.approx(100 * frozen / total)
    assert get_frozen_percentage(nn.ReLU()) == 0.0
