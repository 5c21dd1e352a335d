"""How text is continued: greedy, drawn, cut to the most likely, ended."""

from typing import Any

import pytest
import torch

from lighter_freezers.gpt.generation import Sampling
from tests.gpt.networks import classifier, small, tokens

PROBABILITIES = torch.tensor([[0.5, 0.3, 0.15, 0.05]])


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(**options: Any) -> set[int]:
    """Which of four tokens can be drawn."""
    logits = PROBABILITIES.log().expand(500, -1)
    return set(Sampling(**options).draw(logits, seeded()).flatten().tolist())


def test_greedy_generation_takes_the_most_likely_token() -> None:
    """And draws from the k most likely with `top_k`; 1 is greedy too. Longer than block_size works."""
    model = small().eval()
    greedy = model.generate(tokens(1, 12), 8, temperature=0)

    assert greedy.shape == (1, 20)
    assert torch.equal(greedy[:, 12], model(tokens(1, 12))[0][:, -1].argmax(-1))
    assert torch.equal(greedy, model.generate(tokens(1, 12), 8, temperature=0.7, top_k=1))
    assert torch.equal(greedy, model.generate(tokens(1, 12), 8, top_p=1.0e-6))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {0, 1, 2, 3}),
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 9}, {0, 1, 2, 3}),
        ({"top_p": 0.49}, {0}),
        ({"top_p": 0.51}, {0, 1}),
        ({"top_p": 0.9}, {0, 1, 2}),
        ({"top_p": 1}, {0, 1, 2, 3}),
        ({"top_k": 2, "top_p": 0.6}, {0}),  # of the two, the first has 0.5 / 0.8
        ({"temperature": 0}, {0}),
        ({"temperature": 0.01}, {0}),
    ],
)
def test_the_tail_is_cut(options: dict[str, float], expected: set[int]) -> None:
    """After the k most likely, or where the most likely have reached p together."""
    assert drawn(**options) == expected


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    """With a temperature of 1, and more evenly with 2."""
    logits = PROBABILITIES.log().expand(20_000, -1)
    for temperature in (1.0, 2.0):
        shares = Sampling(temperature).draw(logits, seeded()).flatten().bincount(minlength=4) / 20_000
        expected = PROBABILITIES[0] ** (1 / temperature)
        assert torch.allclose(shares, expected / expected.sum(), atol=0.015)


def test_a_generator_makes_it_repeatable() -> None:
    """And leaves torch's own randomness alone."""
    model = small()
    state = torch.random.get_rng_state()
    once, again = (model.generate(tokens(), 20, generator=seeded()) for _ in range(2))

    assert torch.equal(once, again)
    assert not torch.equal(once, model.generate(tokens(), 20, generator=seeded(4)))
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_sequence_ends_with_its_eos() -> None:
    """What follows is filled with it, row by row; the shape stays, and one that was given does not count."""
    model = small().eval()
    free = model.generate(tokens(), 12, temperature=0)
    eos = int(free[0, 18])
    ended = model.generate(tokens(), 12, temperature=0, eos_token_id=eos)

    assert ended.shape == free.shape
    for row in range(3):
        new = free[row, 16:].tolist()
        end = new.index(eos) if eos in new else len(new)
        assert ended[row, 16:].tolist() == new[:end] + [eos] * (12 - end)


def test_nothing_is_computed_once_all_have_ended() -> None:
    """The rest is filled up."""
    model = small()
    calls = []
    model.transformer.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()  # so that all logits are 0, and the first token is taken
    sequences = model.generate(tokens(), 12, temperature=0, eos_token_id=0)

    assert sequences[:, 16:].eq(0).all()
    assert len(calls) == 1


def test_generation_is_without_dropout_and_leaves_the_model_as_it_was() -> None:
    """Also a part that was not training."""
    model = small(dropout=0.5).train()
    model.transformer.ln_f.eval()
    once, again = (model.generate(tokens(), 8, temperature=0) for _ in range(2))

    assert torch.equal(once, again)
    assert model.training
    assert not model.transformer.ln_f.training
    assert not once.requires_grad


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": -1}, ValueError, "temperature must be at least 0"),
        ({"temperature": "1e-1"}, TypeError, "temperature must be a number"),
        ({"top_k": 0}, ValueError, "top_k must be at least 1"),
        ({"top_k": 1.5}, TypeError, "top_k must be a whole number"),
        ({"top_p": 0.0}, ValueError, "top_p must be above 0"),
        ({"top_p": 1.5}, ValueError, "top_p must be between 0 and 1"),
        ({"max_new_tokens": -1}, ValueError, "max_new_tokens counts from 0"),
    ],
)
def test_impossible_options_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """Before anything is computed."""
    with pytest.raises(error, match=message):
        small().generate(tokens(), **{"max_new_tokens": 1, **options})


def test_only_causal_language_models_continue_text() -> None:
    """A classifier has no next token, and one that looks both ways never learnt to go on."""
    for model in (classifier(), small(attention_type="bidirectional")):
        with pytest.raises(ValueError, match="needs mode: language_model with causal attention"):
            model.generate(tokens(), 1)
    with pytest.raises(ValueError, match="at least one token"):
        small().generate(tokens()[:, :0], 1)
