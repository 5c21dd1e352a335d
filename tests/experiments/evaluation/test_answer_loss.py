"""The loss of answers: transformers' own numbers, for less work."""

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lighter_freezers.experiments.evaluation.answer_loss import answer_nats, lean_batch
from lighter_freezers.experiments.evaluation.perplexity import AnswerLikelihood, perplexity
from tests.experiments.training.causal_lms import (
    ARCHITECTURES,
    causal_lm,
    rows,
    training_batch,
    training_loader,
)

every = pytest.mark.parametrize("architecture", ARCHITECTURES)


@torch.no_grad()
def nats_by_hand(network: Any, num_rows: int, seed: int = 0) -> tuple[float, int]:
    """Row after row without padding, token after token."""
    network.eval()
    nats, num_tokens = 0.0, 0
    for prompt, answer in rows(num_rows, seed):
        logits = network(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].double()
        chances = logits.log_softmax(-1)
        nats -= sum(float(chances[len(prompt) - 1 + place, token]) for place, token in enumerate(answer))
        num_tokens += len(answer)
    return nats, num_tokens


@every
@pytest.mark.parametrize("make_lean", [False, True])
def test_it_is_the_loss_of_the_answers(architecture: str, make_lean: bool) -> None:
    """Neither prompts nor padding count; lean or not."""
    network, batch = causal_lm(architecture).eval(), training_batch(rows(6))
    nats, num_tokens = answer_nats(network, lean_batch(batch) if make_lean else batch)

    assert (nats.item(), num_tokens.item()) == pytest.approx(nats_by_hand(network, 6), rel=1e-5)


@every
def test_it_is_the_loss_of_transformers(architecture: str) -> None:
    """Which takes the mean; gradients too."""
    network, other = causal_lm(architecture).train(), causal_lm(architecture).train()
    batch = training_batch(rows(6))
    theirs = other(**batch).loss
    theirs.backward()
    nats, num_tokens = answer_nats(network, lean_batch(batch))
    (nats / num_tokens).backward()

    assert (nats / num_tokens).item() == pytest.approx(theirs.item(), rel=1e-5)
    for ours, parameter in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.allclose(ours.grad, parameter.grad, atol=1e-6)


@every
def test_prompts_get_no_logits(architecture: str) -> None:
    """Those that all rows have in common: the head sees the rest only."""
    network = causal_lm(architecture)
    seen: list[Any] = []
    network.get_output_embeddings().register_forward_hook(lambda _, args, out: seen.append(out.shape))
    prompt, answer = [5] * 20, [6, 7, 0]
    answer_nats(network, lean_batch(training_batch([(prompt, answer), (prompt[:-2], answer)])))

    assert seen == [(2, 6, 96)]  # five labelled columns, and the position before the first


def test_a_mask_that_changes_nothing_goes() -> None:
    """Padding on the right is seen by no token; padding on the left is."""
    right = training_batch(rows(4))
    left = {name: values.flip(1) for name, values in right.items()}

    assert "attention_mask" not in lean_batch(right)
    assert torch.equal(lean_batch(left)["attention_mask"], left["attention_mask"])
    assert set(right) == {"input_ids", "attention_mask", "labels"}  # what was given stays


class HostReads(TorchDispatchMode):
    """Counts what makes the host wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if any(word in name for word in ("_local_scalar_dense", "is_nonzero", "aten.nonzero", "aten.equal")):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@every
def test_a_step_on_a_lean_batch_reads_no_more_than_the_model(architecture: str) -> None:
    """All that has to be known was found out before; transformers itself looks once for packed sequences."""
    network, batch = causal_lm(architecture), training_batch(rows(6))
    with HostReads() as making:
        lean = lean_batch(batch)
    with HostReads() as alone:
        network(input_ids=batch["input_ids"], use_cache=False)
    with HostReads() as training:
        nats, num_tokens = answer_nats(network, lean)
        (nats / num_tokens.clamp(min=1)).backward()

    assert training.seen == alone.seen
    assert making.seen != []  # the counter counts


def test_batches_of_other_kinds_come_back_as_they_are() -> None:
    """Prompts alone; prompts with their answers have these made lean."""
    prompts, answers = {"input_ids": torch.ones(1, 2)}, training_batch(rows(2))

    assert lean_batch(prompts) == prompts
    assert lean_batch({**prompts, "answers": answers})["answers"].keys() == lean_batch(answers).keys()


def test_a_batch_without_answers_costs_nothing() -> None:
    """All of it was cut, perhaps: no loss, and none that is not a number."""
    batch = training_batch([([4, 5, 6], []), ([4, 5], [])])
    nats, num_tokens = answer_nats(causal_lm(), lean_batch(batch))

    assert (nats.item(), num_tokens.item()) == (0.0, 0)
    nats.backward()


@every
def test_perplexity_is_over_all_answer_tokens(architecture: str) -> None:
    """Batches of four and two rows; a mean of batches would be another number."""
    network = causal_lm(architecture).train()
    nats, num_tokens = nats_by_hand(network, 10)
    network.train()
    loader = training_loader(10, 4)

    assert perplexity(network, loader) == pytest.approx(math.exp(nats / num_tokens), rel=1e-5)
    assert network.training  # as before
    per_batch = [answer_nats(network, batch) for batch in loader]
    mean_of_means = sum((nats / count).item() for nats, count in per_batch) / len(per_batch)
    assert math.exp(mean_of_means) != pytest.approx(math.exp(nats / num_tokens), rel=1e-4)


def test_perplexity_of_a_uniform_model_is_its_vocabulary() -> None:
    """And without any answer it is not a number."""
    network = causal_lm()
    network.lm_head.weight.data.zero_()

    assert perplexity(network, training_loader(4)) == pytest.approx(96, rel=1e-5)
    assert math.isnan(perplexity(network, []))


def test_likelihoods_add_up() -> None:
    """Loss and its exponential, and a reset."""
    likelihood = AnswerLikelihood()
    likelihood.update(torch.tensor(3.0), torch.tensor(2))
    likelihood.update(torch.tensor(1.0), torch.tensor(6))
    assert {name: float(value) for name, value in likelihood.compute().items()} == {
        "loss": 0.5,
        "perplexity": pytest.approx(math.exp(0.5)),
    }
    likelihood.reset()
    likelihood.update(torch.tensor(3.0), torch.tensor(2))
    assert float(likelihood.compute()["loss"]) == 1.5
