"""Generated text: greedy whatever shares the batch, drawn so that it can be had again, up to its end."""

from typing import Any

import pytest
import torch

from lighter_freezers import apply_lora
from lighter_freezers.experiments.data.batches import padded_inputs
from lighter_freezers.experiments.evaluation.answers import (
    GenerationSettings,
    answers_to,
    generate_texts,
    generate_tokens,
    until_end,
)
from tests.experiments.training.causal_lms import ARCHITECTURES, EOS, causal_lm, tokenizer

every = pytest.mark.parametrize("architecture", ARCHITECTURES)
PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5, 4, 3, 2], [11], [20, 21], [30, 31, 32, 33]]


def trained(architecture: str) -> Any:
    """A model with opinions, some of which are that a text ends."""
    network = causal_lm(architecture)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


@torch.no_grad()
def greedy_by_hand(network: Any, prompt: list[int], num_tokens: int, eos: int) -> list[int]:
    """The whole sequence again for each token: no cache, no padding, no batch."""
    ids = list(prompt)
    while len(ids) < len(prompt) + num_tokens:
        token = int(network(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token == eos:
            break
        ids.append(token)
    return ids[len(prompt) :]


def generated(
    network: Any, prompts: list[list[int]], settings: GenerationSettings, eos: int
) -> list[list[int]]:
    inputs = padded_inputs([torch.tensor(prompt) for prompt in prompts], EOS, side="left")
    return until_end(generate_tokens(network, *inputs.values(), settings, eos_token_id=eos), eos)


@every
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_greedy_is_the_most_likely_token_each_time(architecture: str, batch_size: int) -> None:
    """In any batch: neither padding nor the cache nor the neighbours change it; some texts end early."""
    network, settings = trained(architecture), GenerationSettings(max_new_tokens=12)
    free = [greedy_by_hand(network, prompt, 12, -1) for prompt in PROMPTS]
    eos = free[1][4]  # a token that comes
    expected = [greedy_by_hand(network, prompt, 12, eos) for prompt in PROMPTS]
    batches = [PROMPTS[first : first + batch_size] for first in range(0, len(PROMPTS), batch_size)]

    assert [row for batch in batches for row in generated(network, batch, settings, eos)] == expected
    assert min(map(len, expected)) < 12


@every
def test_what_the_model_says_of_generation_is_put_aside(architecture: str) -> None:
    """Many models on the hub come with sampling and penalties."""
    network, settings = trained(architecture), GenerationSettings(max_new_tokens=12)
    plain = generated(network, PROMPTS, settings, -1)
    config = network.generation_config
    config.do_sample, config.temperature, config.top_p = True, 0.7, 0.9
    config.repetition_penalty, config.no_repeat_ngram_size, config.num_beams = 5.0, 1, 3
    config.min_length, config.top_k = 30, 3

    assert generated(network, PROMPTS, settings, -1) == plain


def test_a_model_cannot_keep_an_answer_from_its_end() -> None:
    """However its own config says how many tokens there are at least."""
    network, settings = trained("llama"), GenerationSettings(max_new_tokens=12)
    eos = greedy_by_hand(network, PROMPTS[0], 1, -1)[0]
    network.generation_config.min_new_tokens, network.generation_config.min_length = 12, 30

    assert generated(network, [PROMPTS[0]], settings, eos) == [[]]


def test_drawn_text_can_be_had_again() -> None:
    """The same seed, the same text; the program's own random numbers go on as if nothing was."""
    network = trained("llama")
    drawn = GenerationSettings(max_new_tokens=12, temperature=1.0, seed=5)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = generated(network, PROMPTS, drawn, -1)
    assert torch.equal(torch.rand(3), expected)

    assert generated(network, PROMPTS, drawn, -1) == first
    others = [GenerationSettings(max_new_tokens=12, temperature=1.0, seed=seed) for seed in (6, 7)]
    assert all(generated(network, PROMPTS, other, -1) != first for other in others)
    assert first != generated(network, PROMPTS, GenerationSettings(max_new_tokens=12), -1)


@pytest.mark.parametrize("sharp", [{"top_p": 1.0e-6}, {"top_k": 1}, {"temperature": 1.0e-6}])
def test_the_bold_become_timid(sharp: dict[str, Any]) -> None:
    """Each of the three alone leaves the most likely token only."""
    network = trained("llama")
    greedy = generated(network, PROMPTS, GenerationSettings(max_new_tokens=12), -1)
    settings = GenerationSettings(max_new_tokens=12, **{"temperature": 1.0, **sharp})

    assert generated(network, PROMPTS, settings, -1) == greedy


def test_top_p_of_one_draws_among_all() -> None:
    """Not among the fifty that transformers would keep by itself."""
    network = causal_lm()
    network.lm_head.weight.data.mul_(1.0e-4)  # every token is about as likely
    drawn = generated(network, [PROMPTS[0]] * 60, GenerationSettings(max_new_tokens=1, temperature=1.0), -1)
    with torch.no_grad():
        order = network(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].argsort(descending=True).tolist()

    assert max(order.index(token) for (token,) in drawn) > 50


def test_texts_come_in_the_order_of_the_prompts() -> None:
    """New text only, without the end, whatever the batches; a LoRA model as well, left in train mode."""
    network = trained("llama")
    apply_lora(network, {"r": 2, "target": "both", "lora_dropout": 0.5}).train()
    prompts = ["Hello", "a longer prompt", "x", "12 + 3 ="]
    settings = GenerationSettings(max_new_tokens=10)
    texts = generate_texts(network, tokenizer(), prompts, settings, batch_size=3)

    assert network.training
    assert texts == generate_texts(network, tokenizer(), prompts, settings, batch_size=1)
    network.eval()
    encoded = [tokenizer()(prompt).input_ids for prompt in prompts]
    by_hand = [tokenizer().decode(greedy_by_hand(network, ids, 10, EOS)).strip() for ids in encoded]
    assert texts == by_hand
    assert len(set(texts)) == 4


def test_answers_to_a_batch_without_padding() -> None:
    """No mask is needed then."""

    class Numbers:
        eos_id = -1

        def decode(self, ids: Any) -> str:
            return f"  {list(ids)} "

    network = trained("gpt2")
    batch = {"input_ids": torch.tensor([PROMPTS[0]])}
    (answer,) = answers_to(network, batch, GenerationSettings(max_new_tokens=4), Numbers())

    assert answer == str(greedy_by_hand(network, PROMPTS[0], 4, -1))


def test_more_than_the_model_can_place_is_refused() -> None:
    """A GPT-2 would fail deep inside, a Llama would write nonsense."""
    with pytest.raises(
        ValueError, match="60 tokens and max_new_tokens=5 need 65 positions.*has 64.*max_length"
    ):
        generated(causal_lm(), [[1] * 60], GenerationSettings(max_new_tokens=5), EOS)
    generated(causal_lm(), [[1] * 60], GenerationSettings(max_new_tokens=4), EOS)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens must be at least 1"),
        ({"max_new_tokens": "8"}, TypeError, "max_new_tokens must be a whole number"),
        ({"temperature": -1.0}, ValueError, "temperature must be at least 0"),
        ({"temperature": "5e-1"}, TypeError, "temperature must be a number.*5.0e-5"),
        ({"top_p": 1.5}, ValueError, "top_p must be between 0 and 1"),
        ({"top_k": 0}, ValueError, "top_k must be at least 1"),
        ({"seed": None}, TypeError, "seed must be a whole number"),
    ],
)
def test_wrong_settings_are_told(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    """When they are made, not when the first batch comes."""
    with pytest.raises(error, match=message):
        GenerationSettings(**wrong)
