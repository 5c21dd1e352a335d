"""Operations of a step against arithmetic, kept bytes against a count of all live tensors."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lighter_freezers.planning.costs.step_cost import SavedBytes, StepMeter, leaves_no_trace, measure_step
from tests.planning.costs.live_bytes import LiveBytes

B, C = 16, 8


def blocks(count: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(C, C), nn.GELU()) for _ in range(count)))


@pytest.mark.parametrize("num_frozen", [0, 1, 3])
def test_operations_are_those_of_the_matrix_products(num_frozen: int) -> None:
    """2 B C C for each: one forward, one for the weight, one for the input where something below trains."""
    net, x = blocks(), torch.randn(B, C)
    for block in net[:num_frozen]:
        block.requires_grad_(False)
    cost = measure_step(lambda: net(x).sum().backward(), net, x)
    num_trained = 4 - num_frozen

    assert cost.forward_flops == 4 * 2 * B * C * C
    assert cost.flops == cost.forward_flops + (2 * num_trained - 1) * 2 * B * C * C


def test_kept_bytes_are_what_is_alive_between_forward_and_backward() -> None:
    """Each linear layer keeps its input, the batch in the first; each GELU keeps its own."""
    net, x = blocks(), torch.randn(B, C)
    with LiveBytes() as live:
        loss = net(x).sum()
        alive = live.current - loss.element_size()
        loss.backward()

    assert measure_step(lambda: net(x).sum().backward(), net, x).saved_bytes == alive == 4 * 7 * B * C


def test_kept_bytes_of_checkpointing_are_the_inputs_of_blocks() -> None:
    """Of all but the first, whose input is the batch."""
    net, x = blocks(), torch.randn(B, C)

    def step() -> None:
        hidden = x
        for block in net:
            hidden = checkpoint(block, hidden, use_reentrant=False)
        hidden.sum().backward()

    assert measure_step(step, net, x).saved_bytes == 4 * B * C * 3


def test_nothing_is_kept_when_the_graph_is_gone() -> None:
    """The count goes back to zero, so it follows a training loop."""
    net, saved = blocks(), SavedBytes([])
    with saved.counting():
        for _ in range(2):
            loss = net(torch.randn(B, C)).sum()
            first = saved.current
            loss.backward()
            del loss

    assert first > 0
    assert saved.current == 0


def test_a_meter_spans_hooks_and_an_optimizer_step() -> None:
    """Entered here and left there; the optimizer's work has no matrix products."""
    net, x = blocks(), torch.randn(B, C)
    optimizer = torch.optim.AdamW(net.parameters())
    meter = StepMeter(net, x)
    meter.__enter__()
    net(x).sum().backward()
    optimizer.step()
    meter.__exit__(None, None, None)

    assert meter.cost() == measure_step(lambda: net(x).sum().backward(), net, x)


def test_a_step_leaves_no_trace() -> None:
    """Running statistics and the next random number are what they were."""
    net = nn.Sequential(nn.Linear(C, C), nn.BatchNorm1d(C), nn.Dropout())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    with leaves_no_trace(net):
        net(torch.randn(B, C))

    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
