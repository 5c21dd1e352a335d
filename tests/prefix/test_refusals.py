"""Where stored rows would be wrong, `PrefixCache` says why and training runs as without it."""

import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from transformers import DynamicCache

from lighter_freezers import Freezer, PrefixCache
from tests.lab import WIDTH, batches, recorder, regression, trainer
from tests.prefix.block_nets import Blocks
from tests.prefix.cached_fits import Fitted, fit


class Skipping(Blocks):
    """The output of the third block is used again at the end."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second, third, fourth = self.blocks
        middle = third(second(first(self.stem(x))))
        return self.head(middle + fourth(middle))


class Scaling(Blocks):
    """A number from the first block goes to the end, without a gradient."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states = [self.stem(x)]
        for block in self.blocks:
            states.append(block(states[-1]))
        return self.head(states[-1]) * states[1].detach().mean()


class Keeping(Blocks):
    """All outputs are kept, and from some call on one of them is used."""

    def __init__(self, first_use: int) -> None:
        super().__init__()
        self.num_left = first_use

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states = [self.stem(x)]
        for block in self.blocks:
            states.append(block(states[-1]))
        self.num_left -= 1
        return self.head(states[-1] + states[2] if self.num_left < 0 else states[-1])


class Looking(Blocks):
    """The first block is called once more, for its output alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = self.blocks[0](self.stem(x))
        return super().forward(x) * float(seen.mean())


class Between(Blocks):
    """Something runs between the second block and the third."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for number, block in enumerate(self.blocks):
            x = block(x if number != 2 else x * 2)
        return self.head(x)


class Shared(Blocks):
    """The same block four times."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([self.blocks[0]] * 4)


class Skipped(nn.Module):
    """Stochastic depth that draws as `draw` does."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 0 if self.training and self.draw() < 0.5 else x


def reads_inside(*_: object) -> None:
    """A hook that the cache would not run."""


def hooked() -> nn.Module:
    network = Blocks()
    network.blocks[1][0].register_forward_hook(reads_inside)
    return network


def batch_norm() -> nn.Module:
    return nn.BatchNorm1d(WIDTH)


def losses_of(network: Callable[[], nn.Module], cache: list[PrefixCache], **freezer: Any) -> list[float]:
    """The losses of three epochs in which the stem and three blocks are frozen."""
    module = regression("pytorch_lightning", network)
    names = {"name_starts_with": ["stem", *(f"blocks.{number}." for number in range(3))], **freezer}
    seen = recorder(
        "pytorch_lightning", lambda _, module: float(module.trainer.callback_metrics["train/batch_loss"])
    )
    options: dict[str, Any] = {"max_epochs": 3, "limit_val_batches": 0}
    callbacks = [Freezer(**names), *cache, seen]
    trainer("pytorch_lightning", callbacks=callbacks, **options).fit(module, batches(), batches())
    return list(seen.seen)


EVERYTHING = {"name_starts_with": ["stem", "blocks"]}
REFUSALS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "dropout": (lambda: Blocks(nn.Dropout), {}, "it draws random numbers: dropout or stochastic depth"),
    "depth by Python": (
        lambda: Blocks(lambda: Skipped(random.random)),
        {},
        "it draws random numbers",
    ),
    "depth by NumPy": (lambda: Blocks(lambda: Skipped(np.random.random)), {}, "it draws random numbers"),
    "batch norm": (
        lambda: Blocks(batch_norm),
        {"frozen_norms": "train"},
        "its buffers change when it runs",
    ),
    "statistics": (lambda: Blocks(batch_norm), {"frozen_norms": "stats"}, "with the other rows of the batch"),
    "stem": (Blocks, {"name_starts_with": "blocks.0."}, "what is below it trains: stem"),
    "hook": (hooked, {}, "the hook reads_inside on its Linear would not run"),
    "skip connection": (Skipping, EVERYTHING, "a skip connection takes the output of its layer 2 past it"),
    "number": (Scaling, {}, "a skip connection takes the output of its layer 0 past it"),
    "shared": (Shared, EVERYTHING, "share their weights"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_would_be_wrong_is_refused_and_training_goes_on(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network, freezer, why = REFUSALS[case]
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        plain = losses_of(network, [], **freezer)
    random.setstate(states[0])
    np.random.set_state(states[1])
    cached = losses_of(network, [PrefixCache(str(tmp_path))], **freezer)

    assert plain == cached
    assert caplog.text.count("PrefixCache is off") == 1
    assert why in caplog.text
    assert not any(file.is_file() for file in tmp_path.rglob("*"))


@pytest.mark.parametrize("network", [lambda: Keeping(99), Looking], ids=["kept", "looked at"])
def test_outputs_inside_are_right_for_whoever_uses_them(
    network: Callable[[], nn.Module], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A block that was skipped runs when its output is needed."""
    caplog.set_level(logging.INFO)
    assert losses_of(network, []) == losses_of(network, [PrefixCache(str(tmp_path))])
    assert caplog.text.count("PrefixCache served 100 %") == 2


def test_a_skip_connection_that_opens_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the batch in which it is found, its output is what the layer returns."""
    plain = losses_of(lambda: Keeping(6), [])
    assert plain == losses_of(lambda: Keeping(6), [PrefixCache(str(tmp_path))])
    assert caplog.text.count("a skip connection takes the output of its layer 1 past it") == 1


def test_a_hook_on_all_modules(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    handle = register_module_forward_hook(reads_inside)
    try:
        losses_of(Blocks, [PrefixCache(str(tmp_path))])
    finally:
        handle.remove()
    assert "the hook reads_inside on its Sequential would not run" in caplog.text


def test_eval_mode_of_frozen_batch_norms_is_the_way_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    network = REFUSALS["batch norm"][0]
    assert losses_of(network, []) == losses_of(network, [PrefixCache(str(tmp_path))])
    assert caplog.text.count("PrefixCache served 100 %") == 2


def test_only_blocks_that_follow_directly_are_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert losses_of(Between, []) == losses_of(Between, [PrefixCache(str(tmp_path))])
    assert "of which the first 2 layers run one after another" in caplog.text
    assert "PrefixCache served 100 %" in caplog.text


def test_hidden_states_that_are_asked_for_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Transformers installs a hook for them at the first time."""

    def ask(module: Fitted) -> None:
        network = module.network

        def loss_of(_: nn.Module, ids: torch.Tensor) -> torch.Tensor:
            is_late = module.trainer.current_epoch > 0
            return network(ids, labels=ids, output_hidden_states=is_late).loss

        module.loss_of = loss_of

    plain, cached = fit("gpt2", None, change=ask), fit("gpt2", tmp_path, change=ask)
    assert torch.equal(torch.stack(plain.losses), torch.stack(cached.losses))
    assert "the hook output_capturing_hook on its GPT2Block would not run" in caplog.text


def test_a_hook_that_is_registered_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Inside a block, in the middle of an epoch in which rows are served."""
    seen: list[int] = []

    def run(folder: Path | None) -> Fitted:
        def register(trainer: Any, module: Any) -> None:
            if trainer.global_step == 4:
                module.network.transformer.h[1].mlp.register_forward_hook(lambda *_: seen.append(1))

        return fit("ours", folder, callbacks=[recorder("pytorch_lightning", register)])

    run(None)
    num_seen = len(seen)
    run(tmp_path)
    assert len(seen) == 2 * num_seen
    assert "on its MLP would not run" in caplog.text


def test_a_model_compiled_as_a_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def compiled() -> nn.Module:
        network = Blocks()
        network.compile(backend="eager")
        return network

    assert losses_of(compiled, [PrefixCache(str(tmp_path))])
    assert "compile_blocks(model)" in caplog.text


@pytest.fixture(params=["object", "tensors"])
def history(request: pytest.FixtureRequest) -> Iterator[str]:
    """A KV cache as torch sees it: one object, or tensors, as in transformers 4.52 and for `torch.export`."""
    nodes = torch.utils._pytree.SUPPORTED_NODES
    is_new = request.param == "tensors" and DynamicCache not in nodes
    if is_new:
        from transformers.integrations.executorch import register_dynamic_cache_export_support

        register_dynamic_cache_export_support()
    yield request.param
    if is_new:
        torch.utils._pytree._deregister_pytree_node(DynamicCache)


def test_generation_in_evaluation_gets_a_whole_history(tmp_path: Path, history: str) -> None:
    logits: dict[bool, list[object]] = {False: [], True: []}

    def generate(has_cache: bool) -> Callable[[Fitted], None]:
        def change(module: Fitted) -> None:
            def step(batch: Any, batch_idx: int) -> None:
                options = {"max_new_tokens": 4, "do_sample": False, "use_cache": True, "output_logits": True}
                made = module.network.generate(batch[0][:, :8], **options, return_dict_in_generate=True)
                logits[has_cache] += torch.stack(made.logits).tolist()

            module.validation_step = step  # type: ignore[method-assign]

        return change

    fit("gpt2", None, change=generate(False), validates=True)
    fit("gpt2", tmp_path, change=generate(True), validates=True)
    assert logits[False] == logits[True]


def test_it_is_said_once_however_often_layers_thaw(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And again in the next fit."""
    cache = PrefixCache(str(tmp_path))
    for fits in (1, 2):
        module = regression("pytorch_lightning", lambda: Blocks(nn.Dropout))
        freezers = [
            Freezer(name_starts_with="stem"),
            *(Freezer(name_starts_with=f"blocks.{3 - each}.", until_step=each) for each in (1, 2, 3)),
            Freezer(name_starts_with="blocks.0."),
        ]
        trainer("pytorch_lightning", callbacks=[*freezers, cache]).fit(module, batches(), batches())
        assert caplog.text.count("PrefixCache is off") == fits
