"""Parameters that leave their optimizer groups: places, state, and checkpoints that never see it."""

import io
from typing import Any

import pytest
import torch
from torch import nn

from lighter_freezers.engine.effects.lean_groups import LeanGroups
from tests.lab import TinyNet

CLASSES = ("Adafactor", "Adagrad", "AdamW", "NAdam", "RMSprop", "SGD")


def by_hand(net: nn.Module, optimizer: torch.optim.Optimizer, away: list[nn.Parameter]) -> None:
    """One step in which only what is not away has a gradient."""
    optimizer.zero_grad()
    net(torch.ones(2, 8)).sum().backward()
    for parameter in away:
        parameter.grad = None
    optimizer.step()


def groups_of(net: TinyNet, named: bool = False) -> list[dict[str, Any]]:
    one = [*net.layer1.named_parameters("layer1"), *net.layer2.named_parameters("layer2")]
    two = [*net.layer10.named_parameters("layer10"), *net.head.named_parameters("head")]
    return [
        {"params": each if named else [p for _, p in each], "lr": lr} for each, lr in ((one, 0.1), (two, 0.2))
    ]


def names(net: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    known = {id(p): name for name, p in net.named_parameters()}
    return [[known[id(p)] for p in group["params"]] for group in optimizer.param_groups]


@pytest.mark.parametrize("is_named", [False, True])
def test_they_leave_and_come_back_to_their_places(is_named: bool) -> None:
    """From the middle of groups, in any order, a whole group too; names of parameters go along."""
    net = TinyNet()
    optimizer = torch.optim.AdamW(groups_of(net, is_named))
    whole = names(net, optimizer)
    by_hand(net, optimizer, [])
    lean = LeanGroups([optimizer])
    lean.leave_out([net.layer2.weight, net.head.bias])
    first = names(net, optimizer)
    lean.leave_out([net.layer10.weight, net.layer10.bias, *net.head.parameters(), net.layer2.weight])

    assert first == [
        ["layer1.weight", "layer1.bias", "layer2.bias"],
        [n for n in whole[1] if n != "head.bias"],
    ]
    assert names(net, optimizer) == [first[0], []]
    assert len(optimizer.state) == 3
    if is_named:
        assert [group["param_names"] for group in optimizer.param_groups] == names(net, optimizer)
    lean.leave_out([])
    assert names(net, optimizer) == whole
    if is_named:
        assert [group["param_names"] for group in optimizer.param_groups] == whole
    assert net.layer2.weight not in optimizer.state


@pytest.mark.parametrize("name", CLASSES)
def test_the_others_train_as_ever(name: str) -> None:
    """Bit-equal to the same optimizer in which what is away has no gradient; an empty group does no harm."""
    results = []
    for is_lean in (True, False):
        torch.manual_seed(0)
        net = TinyNet()
        optimizer = getattr(torch.optim, name)(groups_of(net))
        lean = LeanGroups([optimizer])
        by_hand(net, optimizer, [])
        away = [*net.layer1.parameters(), net.layer2.weight, net.layer2.bias]
        lean.leave_out(away if is_lean else [])
        by_hand(net, optimizer, away)
        results.append([*net.parameters()])
        assert len(optimizer.param_groups[0]["params"]) == (0 if is_lean else 4)

    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_a_checkpoint_has_the_whole_layout() -> None:
    """It loads into a plain optimizer, and a plain one's loads while some are away."""
    net = TinyNet()
    optimizer, plain = (torch.optim.AdamW(groups_of(net, named=True)) for _ in range(2))
    by_hand(net, optimizer, [])
    lean = LeanGroups([optimizer])
    lean.leave_out([net.layer1.bias, net.layer10.weight])
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    plain.load_state_dict(torch.load(buffer, weights_only=True))

    assert names(net, plain) == [
        ["layer1.weight", "layer1.bias", *names(net, optimizer)[0][1:]],
        ["layer10.weight", *names(net, optimizer)[1]],
    ]
    assert [len(group["param_names"]) for group in plain.param_groups] == [4, 4]
    assert net.layer1.bias not in plain.state
    assert torch.equal(plain.state[net.head.weight]["exp_avg"], optimizer.state[net.head.weight]["exp_avg"])
    by_hand(net, plain, [])
    optimizer.load_state_dict(plain.state_dict())
    assert net.layer1.bias not in optimizer.state
    assert names(net, optimizer)[0][0:2] == ["layer1.weight", "layer2.weight"]
    assert optimizer.state[net.head.weight]["step"] == 2


def test_a_new_group_and_a_new_tensor_find_their_places() -> None:
    """A group that came while some were away stays, and a successor takes the place of its predecessor."""
    net, extra = TinyNet(), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW(groups_of(net))
    lean = LeanGroups([optimizer])
    old, new = net.layer1.bias, nn.Parameter(torch.ones(3))
    lean.leave_out([old])
    optimizer.add_param_group({"params": [extra]})
    lean.replace({id(old): new})
    lean.leave_out([new])
    assert [len(group["params"]) for group in optimizer.param_groups] == [3, 4, 1]
    lean.release()

    assert [len(group["params"]) for group in optimizer.param_groups] == [4, 4, 1]
    assert optimizer.param_groups[0]["params"][1] is new
    assert not optimizer._optimizer_state_dict_pre_hooks
