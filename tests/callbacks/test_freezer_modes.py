"""`train:` holds everything else; `frozen_mode: eval` puts what is held as a whole into inference mode."""

from typing import Any

import pytest
import torch
from torch import nn

from lighter_freezers import Freezer, GradualUnfreezing
from tests.callbacks.block_net import EVERYTHING, moves
from tests.lab import NAMESPACES, WIDTH, batches, frozen_at_each_step, recorder, regression, trainer

LONE = "pytorch_lightning"
ALL = set(EVERYTHING)


class Depth(nn.Module):
    """Stochastic depth: skips the block at random, but only in training."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x) if self.training else x


class DropNet(nn.Module):
    """Two blocks with dropout and stochastic depth in them, and dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(0.9), Depth())
            for _ in range(2)
        )
        self.between = nn.Dropout(0.5)
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = self.between(x + block(x))
        return self.head(x)


def modes(callback: Any, network: type[nn.Module] = DropNet, **options: Any) -> tuple[list[list[bool]], Any]:
    """Whether the parts of each block, what is between, and the head were in training mode, at each step."""
    seen = recorder(LONE, lambda _, m: [each.training for each in m.network.modules()], "on_after_backward")
    module = regression(LONE, network)
    trainer(LONE, callbacks=[callback, seen], **options).fit(module, batches(), batches())
    return seen.seen, module


def of_blocks(*training: bool) -> list[bool]:
    """Root, list, each block with four parts, dropout, head."""
    return [True, any(training), *([training[0]] * 5), *([training[1]] * 5), True, True]


def test_held_blocks_are_in_inference_mode_as_a_whole() -> None:
    """Until they thaw, validation in between included, and as they were after the run."""
    callback = Freezer(name_starts_with="blocks.0.", until_step=6, frozen_mode="eval")
    seen, module = modes(callback, max_epochs=2)

    assert seen == [of_blocks(False, True)] * 6 + [of_blocks(True, True)] * 2
    assert not any(hooks for each in module.modules() for hooks in each._forward_pre_hooks.values())


def test_by_default_they_stay_in_training_mode() -> None:
    """But for norms, which `frozen_norms` decides about."""
    seen, _ = modes(Freezer(name_starts_with="blocks.0.", frozen_norms="train"))

    assert seen == [of_blocks(True, True)] * 4


def test_what_is_held_in_part_goes_on() -> None:
    """Of a block of which a bias trains, only the norm that is held as a whole is in inference mode."""
    seen, _ = modes(
        Freezer(names=["blocks.0.0.weight", "blocks.0.1.weight", "blocks.0.1.bias"], frozen_mode="eval")
    )

    whole = of_blocks(True, True)
    whole[4] = False
    assert seen == [whole] * 4


def test_layers_that_have_not_thawed_yet() -> None:
    """Block by block."""
    seen, _ = modes(GradualUnfreezing(every_n_epochs=1, frozen_mode="eval"), max_epochs=3)

    steps = [of_blocks(False, False), of_blocks(False, True), of_blocks(True, True)]
    assert seen == [modes for modes in steps for _ in range(4)]


def test_the_output_of_a_held_block_is_that_of_inference() -> None:
    """Called on its own, too, and not only through its container."""

    class Reaching(DropNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            block = self.blocks[0]
            self.out = block[3](block[2](block[1](block[0](x))))
            self.x = x
            return self.head(self.out + self.blocks[1](x))

    same = []

    def compare(_: Any, module: Any) -> None:
        network = module.network
        block = network.blocks[0]
        was = [each.training for each in block.modules()]
        block.eval()
        with torch.no_grad():
            same.append(torch.equal(network.out, block(network.x)))
        for each, mode in zip(block.modules(), was, strict=True):
            each.training = mode

    watcher = recorder(LONE, compare, "on_after_backward")
    callbacks = [Freezer(name_starts_with="blocks.0.", frozen_mode="eval"), watcher]
    trainer(LONE, callbacks=callbacks, max_epochs=2).fit(regression(LONE, Reaching), batches(), batches())

    assert same == [True] * 8


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_train_holds_everything_else(namespace: str) -> None:
    found = moves(
        namespace, [Freezer(train=["head", "blocks.3", "norm.bias", "re:blocks\\.2.*bias"], until_step=3)], 1
    )

    assert found == [{"norm", "head", "block 2", "block 3"}] * 3 + [ALL]


def test_train_is_exact() -> None:
    """A path ends at a dot: `layer1` is not `layer10`; a name is one parameter."""
    frozen = frozen_at_each_step(LONE, [Freezer(train="layer1")])
    assert frozen == [["head", "layer10", "layer2"]] * 4

    (rule,) = Freezer(train="layer1.bias").rules_for(regression(LONE))
    assert "network.layer1.bias" not in rule.selector.names
    assert "network.layer1.weight" in rule.selector.names


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"train": "head", "names": "layer1.bias"}, "names would say what to hold, too"),
        ({"train": []}, "a name, a pattern or a list"),
        ({"train": [3]}, "a name, a pattern or a list"),
        ({"train": "haed"}, "(?s)train: .*head"),
        ({"train": "*"}, "names every parameter"),
    ],
    ids=str,
)
def test_errors(arguments: dict[str, Any], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        Freezer(**arguments).rules_for(regression(LONE))


def test_the_title_says_what_trains() -> None:
    assert repr(Freezer(train="head", until_step=3)) == "Freezer[all but 'head' until step 3]"


@pytest.mark.filterwarnings("ignore:Found 2 module.* in eval mode")
def test_what_was_in_inference_mode_before_stays_in_it() -> None:
    """The user's own `eval()` is no part of the hold: here of a dropout and a norm."""
    module = regression(LONE, DropNet)
    block = module.network.blocks[0]
    block[1:3].eval()
    freezer = Freezer(name_starts_with="blocks.", until_step=2, frozen_mode="eval")
    seen = recorder(LONE, lambda _, m: [each.training for each in block[:3]])
    trainer(LONE, callbacks=[freezer, seen]).fit(module, batches(), batches())

    assert seen.seen == [[False] * 3] * 2 + [[True, False, False]] * 2
