"""Re-entrant segments that the end of the backward pass must not starve: inside blocks, in eval, thawed."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lighter_freezers.engine.effects.backward_cut import GradientBoundary
from tests.engine.effects.test_backward_cut import C, N, V, X, heard, hold, prefix, step
from tests.engine.effects.test_backward_cut_models import make_inputs_require_grad, reentrant_gpt2

__all__ = ["heard"]  # a fixture


class Residual(nn.Module):
    """A block that adds a re-entrant segment to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(C, C), nn.GELU())

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + checkpoint(self.inner, hidden, use_reentrant=True)


class InPlace(nn.Module):
    """A block that changes its input."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(C, C)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.inner(hidden.mul_(2))


class Stacked(nn.Module):
    """Blocks between a marked embedding and a head, which sees what goes into the blocks too."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(V, C)
        self.blocks = nn.ModuleList(kind() for _ in range(N))
        self.head = nn.Linear(C, V)
        self.table.register_forward_hook(make_inputs_require_grad)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = given = self.table(ids) * 1
        for block in self.blocks:
            hidden = block(hidden)
        return F.cross_entropy(self.head(hidden + given.detach()).flatten(0, 1), X.flatten())


def assert_alike(model: nn.Module, plain: nn.Module, *, but: str = "none") -> None:
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert one.grad is other.grad is None or but in name or torch.equal(one.grad, other.grad), name


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    ours = [record for record in caplog.records if record.name.startswith("lighter_freezers")]
    return [record.message for record in ours if record.levelname == "WARNING"]


def test_a_segment_inside_a_residual_block_learns(caplog: pytest.LogCaptureFixture) -> None:
    """The same gradients as without a boundary in each step, and one warning that nothing is gained."""
    model, plain = Stacked(Residual), Stacked(Residual)
    for each in (model, plain):
        hold(each, "table", "blocks.0", "blocks.1")
    GradientBoundary(model).follow()
    for _ in range(4):
        for each in (model, plain):
            each.zero_grad()
            each(X).backward()
        assert_alike(model, plain)
        assert model.blocks[2].inner[0].weight.grad.any()

    (warning,) = warnings(caplog)
    assert "gradient checkpointing is re-entrant" in warning


@pytest.mark.parametrize("trains", ["nothing below", "wpe"])
def test_frozen_blocks_in_eval_do_not_lose_the_gain_in_silence(
    trains: str, caplog: pytest.LogCaptureFixture
) -> None:
    """They are not checkpointed then; one warning says what stands in the way."""
    model, plain = reentrant_gpt2("transformers"), reentrant_gpt2("transformers")
    for each in (model, plain):
        hold(each, *prefix(2), *([] if trains == "wpe" else ["wpe"]))
        for block in each.transformer.h[:2]:
            block.eval()
    GradientBoundary(model).follow()
    for _ in range(3):
        for each in (model, plain):
            each.zero_grad()
            step(each)()
        assert_alike(model, plain)

    (warning,) = warnings(caplog)
    assert ("Freeze wpe too" if trains == "wpe" else "use_reentrant=False") in warning


@pytest.mark.parametrize("how", ["transformers", "by hand", "wrapper"])
def test_what_other_code_thaws_in_a_segment_learns(how: str, caplog: pytest.LogCaptureFixture) -> None:
    """Without a transition of ours, and as soon as it is frozen again the gain is back."""
    model, plain = reentrant_gpt2(how), reentrant_gpt2(how)
    for each in (model, plain):
        hold(each, "wpe", *prefix(2))
    GradientBoundary(model).follow()
    learned = []
    for number in range(9):
        for each in (model, plain):
            each.zero_grad()
            (thawed,) = [p for name, p in each.named_parameters() if "h.1." in name and "c_fc.bias" in name]
            thawed.requires_grad_(3 <= number < 6)
            step(each)()
        assert_alike(model, plain, but="wte")
        learned.append(thawed.grad is not None and bool(thawed.grad.any()))

    assert learned == [False] * 3 + [True] * 3 + [False] * 3
    assert not warnings(caplog)


def test_a_first_block_may_work_in_place() -> None:
    """In the step that looks into it too, and who gave the input sees the change as without a boundary."""
    model, plain = Stacked(InPlace), Stacked(InPlace)
    for each in (model, plain):
        hold(each, "table", "blocks.0", "blocks.1")
    GradientBoundary(model).follow()
    for _ in range(3):
        for each in (model, plain):
            each.zero_grad()
            each(X).backward()
        assert_alike(model, plain)
