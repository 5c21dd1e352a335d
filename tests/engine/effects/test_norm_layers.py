"""Norm layers stop while all their parameters are held, and are restored after."""

import copy
import pickle
from itertools import permutations

import pytest
import torch
from torch import nn

from lighter_freezers.engine.effects.norm_layers import FrozenNorms
from lighter_freezers.engine.ledger import Hold
from lighter_freezers.engine.terms import NormMode, Terms
from tests.lab import WIDTH, NormNet


def frozen(model: nn.Module, mode: NormMode) -> tuple[Hold, FrozenNorms]:
    hold = Hold(model.parameters(), "freezer", Terms(frozen_norms=mode))
    norms = FrozenNorms(model, hold.parameters)
    hold.take()
    norms.follow()
    return hold, norms


def buffers(model: nn.Module) -> list[torch.Tensor]:
    return [buffer.clone() for buffer in model.buffers()]


def moved(model: nn.Module, before: list[torch.Tensor]) -> list[bool]:
    return [not torch.equal(old, new) for old, new in zip(before, model.buffers(), strict=True)]


@pytest.mark.parametrize("mode", ["eval", "stats"])
@pytest.mark.parametrize("norm", [nn.BatchNorm1d, lambda width: nn.InstanceNorm1d(width, True, True, True)])
def test_running_statistics_are_bit_equal(mode: NormMode, norm: type[nn.Module]) -> None:
    """Also `num_batches_tracked`, also after a call of `train()`."""
    model = nn.Sequential(norm(WIDTH))
    before = buffers(model)
    frozen(model, mode)
    model.train()
    model(torch.randn(16, WIDTH, 5) if isinstance(model[0], nn.InstanceNorm1d) else torch.randn(16, WIDTH))

    assert not any(moved(model, before))


@pytest.mark.parametrize("mode", ["eval", "stats"])
@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.InstanceNorm1d])
def test_running_statistics_move_after_a_release(mode: NormMode, norm: type[nn.Module]) -> None:
    """As those of a layer that was never held."""
    torch.manual_seed(0)
    options = {"affine": True, "track_running_stats": True, "momentum": 0.3}
    model, plain = (nn.Sequential(norm(WIDTH, **options)) for _ in range(2))
    hold, norms = frozen(model, mode)
    hold.let_go()
    norms.follow()
    x = torch.randn(16, WIDTH, 5)

    assert torch.equal(model.train()(x), plain.train()(x))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), plain.buffers(), strict=True))


def test_eval_uses_the_running_statistics_and_stats_those_of_the_batch() -> None:
    """The two modes against torch's own layer in eval and in train mode."""
    x, reference = torch.randn(16, WIDTH) * 3, nn.BatchNorm1d(WIDTH)
    in_eval, in_stats = nn.Sequential(nn.BatchNorm1d(WIDTH)), nn.Sequential(nn.BatchNorm1d(WIDTH))
    frozen(in_eval, "eval")
    frozen(in_stats, "stats")

    assert torch.equal(in_stats(x), reference.train()(x))
    assert torch.equal(in_eval(x), nn.BatchNorm1d(WIDTH).eval()(x))
    assert torch.equal(in_stats.eval()(x), nn.BatchNorm1d(WIDTH).eval()(x))


def test_mode_train_leaves_the_layer_alone() -> None:
    """The statistics move as ever."""
    model = NormNet()
    before = buffers(model)
    frozen(model, "train")
    model(torch.randn(16, WIDTH))

    assert any(moved(model, before))


def test_a_norm_without_parameters_goes_with_its_parent() -> None:
    """The second norm of the backbone has no weight, but buffers that would move."""
    model = NormNet()
    frozen(model.backbone, "eval")

    assert [module.training for module in model.backbone] == [True, False, True, False]


@pytest.mark.parametrize("mode", ["eval", "stats"])
@pytest.mark.parametrize("was_training", [True, False])
def test_a_released_norm_is_what_it_was(mode: NormMode, was_training: bool) -> None:
    """Statistics move again, if they did before."""
    model = NormNet().train(was_training)
    hold, norms = frozen(model, mode)
    hold.let_go()
    norms.follow()
    before = buffers(model)
    model(torch.randn(16, WIDTH))

    assert all(module.training == was_training for module in model.modules())
    assert any(moved(model, before)) == was_training


def test_a_norm_held_in_part_goes_on() -> None:
    """Its weight is held, its bias trains: so do its statistics."""
    model = nn.Sequential(nn.BatchNorm1d(WIDTH))
    hold = Hold([model[0].weight], "freezer")
    norms = FrozenNorms(model, hold.parameters)
    hold.take()
    norms.follow()

    assert model[0].training


@pytest.mark.parametrize("order", list(permutations(("eval", "stats", "train"))))
def test_the_strictest_of_those_who_hold_counts(order: tuple[NormMode, ...]) -> None:
    """In any order: `eval` before `stats` before `train`, and each only while it holds."""
    model = nn.Sequential(nn.BatchNorm1d(WIDTH))
    holds = {mode: Hold(model.parameters(), mode, Terms(frozen_norms=mode)) for mode in order}
    norms = FrozenNorms(model, model.parameters())

    def seen() -> tuple[bool, bool]:
        norms.follow()
        return model[0].training, model[0].track_running_stats

    for hold in holds.values():
        hold.take()
    assert seen() == (False, True)
    holds["eval"].let_go()
    assert seen() == (True, False)
    holds["stats"].let_go()
    assert seen() == (True, True)
    holds["stats"].take()
    assert seen() == (True, False)


def test_a_model_with_a_still_norm_copies_and_pickles() -> None:
    """The guard against `train()` is part of the module, so it must travel."""
    model = NormNet()
    frozen(model, "eval")
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        before = buffers(twin)
        twin.train()(torch.randn(16, WIDTH))
        assert not any(moved(twin, before))
