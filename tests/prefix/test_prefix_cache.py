"""`PrefixCache` on real models: the same losses bit for bit, and the blocks do not run again."""

import copy
import gc
import logging
import os
import pickle
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lighter_freezers import Freezer, PrefixCache, apply_lora, compile_blocks
from lighter_freezers.engine.effects.compiled_graphs import is_compiled
from lighter_freezers.prefix.handed import Handed
from tests.lab import recorder
from tests.prefix.cached_fits import MODELS, REFUSED, Fitted, fit


def served(caplog: pytest.LogCaptureFixture) -> list[int]:
    """The percentages that the log tells, epoch by epoch."""
    texts = [record.getMessage() for record in caplog.records if "PrefixCache served" in record.getMessage()]
    return [int(text.partition("served ")[2].partition(" %")[0]) for text in texts]


WIDE = [
    pytest.param(name, marks=pytest.mark.wide) for name in MODELS if name not in ("ours", "gpt2", *REFUSED)
]


@pytest.mark.parametrize("num_blocks", [2, None], ids=["part", "all"])
@pytest.mark.parametrize("name", ["ours", "gpt2", *WIDE])
def test_losses_are_bitwise_those_of_plain_training(
    name: str, num_blocks: int | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    plain = fit(name, None, num_blocks=num_blocks)
    cached = fit(name, tmp_path / "rows", num_blocks=num_blocks)

    assert equal(plain, cached)
    # what runs between two stages ends the prefix in the first batch, whose rows come again in another one
    assert served(caplog) in ([0, 100, 100], [0, 33, 100])


@pytest.mark.wide
@pytest.mark.parametrize("name", REFUSED)
def test_models_that_are_refused(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain, cached = fit(name, None), fit(name, tmp_path / "rows")

    assert equal(plain, cached)
    assert caplog.text.count("PrefixCache is off") == 1
    assert REFUSED[name] in caplog.text


def equal(one: Fitted, other: Fitted) -> bool:
    """Whether two fits had the same losses, in training and evaluation, and ended with the same weights."""
    noted = zip([*one.losses, *one.evaluated], [*other.losses, *other.evaluated], strict=True)
    weights = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in [*noted, *weights])


def counting(calls: list[int]) -> Callable[[Fitted], None]:
    """Count how often the first block computes, in a way that the cache does not see."""

    def change(module: Fitted) -> None:
        block = module.network.transformer.h[0]
        linear = block.mlp.c_fc
        own = linear.forward
        linear.forward = lambda x: (calls.append(1), own(x))[1]  # type: ignore[method-assign]

    return change


def at_epoch_end(edit: Callable[[nn.Module], None]) -> Any:
    def once(trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 1:
            edit(module.network.transformer.h[0])

    return recorder("pytorch_lightning", once, "on_train_epoch_end")


def add(block: nn.Module) -> None:
    block.mlp.c_fc.weight.data += 0.1  # type: ignore[union-attr, operator]


def replace(block: nn.Module) -> None:
    block.mlp.c_fc.weight.data = block.mlp.c_fc.weight.data * 1.1  # type: ignore[union-attr, operator]


def double(block: nn.Module) -> None:
    block.mlp.c_fc.weight.data *= 2  # type: ignore[union-attr, operator]


def copy_into(block: nn.Module) -> None:
    with torch.no_grad():
        block.mlp.c_fc.weight.mul_(1.1)  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("edit", [add, replace, copy_into])
def test_an_edit_of_the_weights_drops_the_store(
    edit: Callable[[nn.Module], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`p.data += x` moves no version counter, as PEFT's `merge_adapter`."""
    caplog.set_level(logging.INFO)
    plain = fit("ours", None, epochs=4, callbacks=[at_epoch_end(edit)])
    cached = fit("ours", tmp_path / "rows", epochs=4, callbacks=[at_epoch_end(edit)])

    assert equal(plain, cached)
    assert served(caplog) == [0, 100, 0, 100]
    assert "PrefixCache drops 10 rows: the weights of h.0-1 changed" in caplog.text


def set_scale(block: nn.Module) -> None:
    block.scale = 2.0  # type: ignore[assignment]


def set_mode(block: nn.Module) -> None:
    block.mlp.eval()  # type: ignore[union-attr, operator]


def double_loose(block: nn.Module) -> None:
    block.loose.mul_(2)  # type: ignore[operator]


@pytest.mark.parametrize("edit", [set_scale, set_mode, double_loose])
def test_attributes_of_modules_count(
    edit: Callable[[nn.Module], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A number, the mode of an inner module, and a tensor that is no buffer."""
    caplog.set_level(logging.INFO)

    def change(module: Fitted) -> None:
        block = module.network.transformer.h[0]
        block.loose, own = torch.ones(()), block.forward
        block.forward = lambda x, *rest: (
            own(x, *rest) * getattr(block, "scale", 1.0) * block.loose * (1 + block.mlp.training)
        )

    def once(trainer: Any, module: Any) -> None:
        if trainer.global_step == 4:
            edit(module.network.transformer.h[0])

    def run(folder: Path | None) -> Fitted:
        edits = [recorder("pytorch_lightning", once, "on_train_batch_start")]
        return fit("ours", folder, epochs=4, callbacks=edits, change=change)

    assert equal(run(None), run(tmp_path))
    assert served(caplog)[0:2] == [0, 33]


@pytest.mark.parametrize("factor", [0.0, float("nan")])
def test_rows_that_are_not_finite_or_zero_are_equal_to_themselves(
    factor: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def change(module: Fitted) -> None:
        block = module.network.transformer.h[1]
        own = block.forward
        block.forward = lambda x, *rest: own(x, *rest) * factor

    fit("ours", tmp_path, change=change, cache={"check_every_n_batches": 1})
    assert "PrefixCache is off" not in caplog.text
    assert served(caplog) == [0, 100, 100]


def merge(block: nn.Module) -> None:
    """PEFT's own merge adds to `weight.data`."""
    block.mlp.c_fc.merge()  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("edit", [replace, copy_into, merge])
def test_an_edit_that_leaves_a_mark_is_seen_at_the_next_batch(
    edit: Callable[[nn.Module], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Counters, pointers and merged adapters are compared at each batch, so no row of before is served."""
    caplog.set_level(logging.INFO)

    def adapt(module: Fitted) -> None:
        torch.manual_seed(1)
        parts = {"target_modules": ["c_fc"], "layers_to_transform": [0], "init_lora_weights": False}
        module.network = apply_lora(module.network, {"r": 2, **parts})
        module.network.transformer.h[2].requires_grad_(True)

    def once(trainer: Any, module: Any) -> None:
        if trainer.global_step == 4:
            edit(module.network.transformer.h[0])

    def run(folder: Path | None) -> Fitted:
        edits = [recorder("pytorch_lightning", once, "on_train_batch_start")]
        return fit("ours", folder, epochs=4, callbacks=edits, change=adapt)

    assert equal(run(None), run(tmp_path))
    assert served(caplog) == [0, 33, 33, 100]


def test_an_edit_in_mid_epoch_is_found_by_computing_rows_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def edit(trainer: Any, module: Any) -> None:
        if trainer.global_step == 4:
            double(module.network.transformer.h[0])

    cached = fit(
        "ours", tmp_path, callbacks=[recorder("pytorch_lightning", edit)], cache={"check_every_n_batches": 1}
    )

    assert "differ from the stored ones" in caplog.text
    assert "p.data" in caplog.text
    assert cached.losses


def test_a_top_down_thaw_fills_a_store_for_its_new_prefix(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    second = {"name_starts_with": "transformer.h.1.", "until_epoch": 2}
    plain = fit("ours", None, num_blocks=1, epochs=4, callbacks=[Freezer(**second)])
    cached = fit(
        "ours",
        tmp_path / "rows",
        num_blocks=1,
        epochs=4,
        callbacks=[Freezer(**second)],
    )
    assert equal(plain, cached)
    assert served(caplog) == [0, 100, 0, 100]
    assert not list((tmp_path / "rows").iterdir())  # the run ended, so nothing continues with a store


def test_evaluation_uses_the_same_rows(tmp_path: Path) -> None:
    calls: list[int] = []
    plain = fit("ours", None, validates=True)
    cached = fit("ours", tmp_path, validates=True, change=counting(calls))

    assert equal(plain, cached)
    assert len(calls) == 6  # one epoch of training, one of validation; its mode is another one


def test_lora_above_the_prefix(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    def adapt(module: Fitted) -> None:
        torch.manual_seed(1)
        module.network = apply_lora(
            module.network, {"r": 2, "target_modules": ["c_fc"], "layers_to_transform": [2]}
        )

    plain = fit("ours", None, change=adapt)
    cached = fit("ours", tmp_path, change=adapt)
    assert equal(plain, cached)
    assert served(caplog) == [0, 100, 100]


def test_rows_that_training_step_changes_run_as_usual(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The key sees what the first block gets, not what the loader gave."""
    caplog.set_level(logging.INFO)

    def mask(module: Fitted) -> None:
        loss, generator = module.loss_of, torch.Generator().manual_seed(3)

        def masked(network: nn.Module, ids: torch.Tensor) -> torch.Tensor:
            return loss(network, torch.where(torch.rand(ids.shape, generator=generator) < 0.2, 2, ids))

        module.loss_of = masked

    assert equal(fit("ours", None, change=mask), fit("ours", tmp_path, change=mask))
    assert served(caplog) == [0, 0, 0]


def test_rows_padded_to_the_longest_of_a_batch(tmp_path: Path) -> None:
    def pad(module: Fitted) -> None:
        loss = module.loss_of

        def padded(network: nn.Module, ids: torch.Tensor) -> torch.Tensor:
            longest = int(8 + ids[:, 0].max() % 8)
            return loss(network, ids[:, :longest])

        module.loss_of = padded

    calls: list[int] = []

    def change(module: Fitted) -> None:
        pad(module)
        counting(calls)(module)

    assert equal(fit("ours", None, epochs=6, change=pad), fit("ours", tmp_path, epochs=6, change=change))
    assert 3 < len(calls) < 18


def test_bfloat16_rows_cost_half_and_change_the_loss_little(tmp_path: Path) -> None:
    plain = fit("ours", None)
    fit("ours", tmp_path / "whole", cache={"keep": True})
    half = fit("ours", tmp_path / "half", cache={"keep": True, "dtype": "bfloat16"})

    assert torch.allclose(torch.stack(plain.losses), torch.stack(half.losses), rtol=1e-2)
    sizes = [
        sum(file.stat().st_size for file in (tmp_path / name).rglob("*.rows")) for name in ("whole", "half")
    ]
    assert sizes == [10 * 16 * 8 * 4, 10 * 16 * 8 * 2]


def test_a_resumed_run_continues_with_the_store(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    def stop(trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 1:
            raise ValueError("power cut")

    with pytest.raises(ValueError, match="power cut"):
        fit("ours", tmp_path, callbacks=[recorder("pytorch_lightning", stop, "on_train_epoch_start")])
    again = fit("ours", tmp_path)

    assert served(caplog) == [0, 100, 100, 100]
    assert equal(fit("ours", None), again)


def test_a_full_disk_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import resource

    plain, limits = fit("ours", None), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))  # with room for a batch of 2048 bytes
    try:
        cached = fit("ours", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert equal(plain, cached)
    assert caplog.text.count("stores no further row: writing to") == 1


def test_a_store_has_its_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = fit("ours", None)
    assert equal(plain, fit("ours", tmp_path, cache={"max_gb": 5e-6, "keep": True}))
    assert caplog.text.count("stores no further row: max_gb is reached with 8 rows") == 1
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.rows")) <= 5000


def test_stored_rows_keep_the_umask_of_the_user(tmp_path: Path) -> None:
    """A group that shares the folder may write them, and the others may not read them."""
    before = os.umask(0o007)
    try:
        fit("ours", tmp_path, cache={"keep": True})
    finally:
        os.umask(before)

    stored = [file for file in tmp_path.rglob("*") if file.suffix in (".rows", ".index")]
    assert {stat.S_IMODE(file.stat().st_mode) for file in stored} == {0o660}


@pytest.mark.wide
def test_precision_and_compiled_blocks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    def compile_all(module: Fitted) -> None:
        compile_blocks(module.network, backend="eager")

    options: dict[str, Any] = {"precision": "bf16-mixed", "change": compile_all}
    assert equal(fit("ours", None, **options), fit("ours", tmp_path, **options))
    assert served(caplog) == [0, 100, 100]


def test_copies_of_the_module_run_their_own_blocks(tmp_path: Path) -> None:
    copies: list[Any] = []

    def copied(trainer: Any, module: Any) -> None:
        copies.extend([copy.deepcopy(module.network), pickle.loads(pickle.dumps(module.network))])

    module = fit("ours", tmp_path, callbacks=[recorder("pytorch_lightning", copied, "on_train_epoch_end")])
    assert not any(map(is_compiled, module.network.transformer.h))
    assert all(block._compiled_call_impl is None for each in copies for block in each.transformer.h)
    assert all(block._compiled_call_impl is None for block in module.network.transformer.h)
    pickle.dumps(PrefixCache())


def test_no_hidden_states_outlive_their_batch(tmp_path: Path) -> None:
    """Without the garbage collector, too: it may run late, and knows nothing of the memory of a GPU."""
    alive = recorder(
        "pytorch_lightning",
        lambda *_: sum(type(each) is Handed for each in gc.get_objects()),
        when="on_train_batch_end",
    )
    gc.collect()
    gc.disable()
    try:
        fit("gpt2", tmp_path, callbacks=[alive])
    finally:
        gc.enable()
    assert alive.seen == [0] * 9
