"""Parameters of another shape: identity, flags, holders and optimizers."""

import torch
from torch import nn
from torch.nn import Parameter

from lighter_freezers.engine import ledger
from lighter_freezers.engine.effects.parameter_swap import groups_by_id, reshape_parameter
from lighter_freezers.engine.ledger import Hold


def linear() -> nn.Linear:
    """A layer with a gradient."""
    layer = nn.Linear(3, 2)
    layer(torch.ones(1, 3)).sum().backward()
    return layer


def test_a_parameter_stays_the_same_object() -> None:
    """All references to it, also in optimizer and ledger, see the new value; the gradient is dropped."""
    layer = linear()
    weight = layer.weight
    weight.mark = "of somebody"
    optimizer = torch.optim.AdamW(layer.parameters())
    hold = Hold([weight], "Freezer")
    hold.take()

    assert reshape_parameter(layer, "weight", torch.ones(5, 3), groups_by_id([optimizer])) is None
    assert layer.weight is weight is optimizer.param_groups[0]["params"][0]
    assert weight.shape == (5, 3)
    assert weight.grad is None
    assert weight.mark == "of somebody"
    assert not weight.requires_grad
    assert ledger.holders(weight) == ("Freezer",)
    assert hold.let_go() == [weight]
    assert weight.requires_grad


def test_a_successor_takes_the_place_where_torch_refuses() -> None:
    """A weak reference is enough to refuse. Group position, state, baseline and holders pass on."""
    import weakref

    layer = linear()
    old = layer.weight
    observer = weakref.ref(old)
    optimizer = torch.optim.SGD([layer.bias, old], lr=0.1, momentum=0.9)
    optimizer.step()
    hold = Hold([old], "Freezer")
    hold.take()
    ledger.hold([old], "freeze_layer")
    pair = reshape_parameter(layer, "weight", torch.ones(5, 3), groups_by_id([optimizer]))

    assert pair is not None
    assert pair[0] is old is observer()
    assert pair[1] is layer.weight is optimizer.param_groups[0]["params"][1]
    assert layer.weight in optimizer.state
    assert old not in optimizer.state
    assert ledger.holders(layer.weight) == ("Freezer", "freeze_layer")
    assert ledger.holders(old) == ()
    assert hold.let_go() == []
    assert ledger.release([layer.weight], "freeze_layer") == [layer.weight]
    assert layer.weight.requires_grad


def test_a_live_graph_keeps_its_old_parameter() -> None:
    """Torch refuses or poisons the old graph; the layer works with the new shape either way."""
    layer = nn.Linear(3, 2, bias=False)
    output = layer(torch.ones(1, 3))
    reshape_parameter(layer, "weight", torch.ones(5, 3))
    layer(torch.ones(1, 3)).sum().backward()

    assert layer.weight.grad is not None
    assert layer.weight.grad.shape == (5, 3)
    assert output.shape == (1, 2)


def test_a_parameter_dict_keeps_its_keys() -> None:
    """PEFT keeps the factors of an embedding in one."""
    factors = nn.ParameterDict({"default": Parameter(torch.zeros(2, 4, dtype=torch.bfloat16))})
    keeper = [factors["default"]]
    reshape_parameter(factors, "default", torch.ones(0, 4))

    assert list(factors.keys()) == ["default"]
    assert factors["default"] is keeper[0]
    assert factors["default"].shape == (0, 4)
    assert factors["default"].dtype == torch.bfloat16


def test_groups_of_parameters() -> None:
    """Each optimizer has its own; a successor is found where the old parameter was."""
    import weakref

    layer, other = nn.Linear(3, 2), nn.Linear(2, 2)
    first = torch.optim.SGD([{"params": [layer.bias], "lr": 0.5}, {"params": [layer.weight]}], lr=0.1)
    second = torch.optim.Adam(other.parameters())
    groups = groups_by_id([first, second])

    assert groups[first][id(layer.bias)]["lr"] == 0.5
    assert groups[first].keys() == {id(layer.bias), id(layer.weight)}
    assert groups[second].keys() == {id(other.weight), id(other.bias)}
    observer = weakref.ref(layer.weight)
    reshape_parameter(layer, "weight", torch.ones(5, 3), groups)
    assert layer.weight is not observer()
    assert groups[first][id(layer.weight)] is first.param_groups[1]
    assert first.param_groups[1]["params"] == [layer.weight]


def test_a_flip_passes_to_the_successor() -> None:
    """What froze and was then replaced at the same moment is known by the tensor that the model has."""
    old, new = Parameter(torch.ones(1)), Parameter(torch.ones(2))
    with ledger.flips() as flips:
        ledger.hold([old], "holder")
        ledger.succeed(old, new)

    assert [id(each) for each in flips.net[0]] == [id(new)]
    assert flips.net[1] == []
    ledger.release([new], "holder")


def test_what_has_no_record_needs_none() -> None:
    """A parameter that was never held has no record in the ledger afterwards either."""
    old, new = Parameter(torch.ones(1)), Parameter(torch.ones(2))
    ledger.succeed(old, new)
    with ledger.unobserved(old):
        pass

    assert ledger.holders(new) == ()
    assert not ledger.is_held(new)
