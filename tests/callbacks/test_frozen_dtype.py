"""`frozen_dtype: bf16` lets a frozen prefix compute in bfloat16; its weights stay what they are."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from lighter_freezers import Freezer
from tests.lab import trainer
from tests.prefix.cached_fits import Fitted, fit, prefix_of

HALF = {"frozen_dtype": "bf16"}


def losses(module: Fitted) -> torch.Tensor:
    return torch.stack(module.losses)


@pytest.mark.parametrize("name", ["ours", "gpt2"])
def test_the_loss_changes_a_little_and_frozen_weights_do_not(name: str) -> None:
    """Also in a checkpoint, and what thaws goes on from the float32 weights."""
    before = {key: value.clone() for key, value in Fitted(name).state_dict().items()}
    plain, half = fit(name, None), fit(name, None, freezer=HALF)

    assert not torch.equal(losses(plain), losses(half))
    assert torch.allclose(losses(plain), losses(half), rtol=1e-2)
    frozen = prefix_of(half, 2)
    assert all(torch.equal(half.state_dict()[key], before[key]) for key in frozen)
    assert all(
        value.dtype == torch.float32 for value in half.state_dict().values() if value.is_floating_point()
    )


def test_thawed_blocks_compute_in_float32_again() -> None:
    """From the step of the thaw on, and after the run."""
    kinds: list[set[torch.dtype]] = []

    def watch(module: Fitted) -> None:
        linear = module.network.transformer.h[0].mlp.c_fc
        linear.register_forward_hook(lambda layer, given, made: kinds.append({made.dtype}))

    module = fit("ours", None, freezer={**HALF, "until_epoch": 2}, change=watch)
    assert kinds == [{torch.bfloat16}] * 6 + [{torch.float32}] * 3
    assert module.network(module.rows())[0].dtype == torch.float32


def test_it_has_no_effect_where_something_below_learns(caplog: pytest.LogCaptureFixture) -> None:
    """One warning, and not one step in bfloat16."""

    def run(**half: Any) -> Fitted:
        held = ["network.transformer.wte", *(f"network.transformer.h.{number}." for number in range(2))]
        module = Fitted("gpt2")
        callbacks = [Freezer(name_starts_with=held, **half)]
        options: dict[str, Any] = {"max_epochs": 2, "limit_val_batches": 0}
        trainer("pytorch_lightning", callbacks=callbacks, **options).fit(module, *[module.loader()] * 2)
        return module

    assert torch.equal(losses(run()), losses(run(**HALF)))  # the position embeddings train
    assert caplog.text.count("frozen_dtype has no effect") == 1


def test_under_mixed_precision_it_changes_nothing() -> None:
    """The blocks compute in bfloat16 anyway."""
    plain = fit("gpt2", None, precision="bf16-mixed")
    assert torch.equal(losses(plain), losses(fit("gpt2", None, freezer=HALF, precision="bf16-mixed")))


def test_a_cache_knows_in_what_its_rows_were_computed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows that an earlier run has kept in float32 are not served."""
    caplog.set_level(logging.INFO)
    fit("ours", tmp_path, cache={"keep": True})
    caplog.clear()
    cached = fit("ours", tmp_path, cache={"keep": True}, freezer=HALF)

    assert torch.equal(losses(cached), losses(fit("ours", None, freezer=HALF)))
    assert "epoch 0: PrefixCache served 0 %" in caplog.text
    assert "epoch 1: PrefixCache served 100 %" in caplog.text


def test_a_cache_knows_which_blocks_computed_its_rows_in_bfloat16(tmp_path: Path) -> None:
    """Rows whose first two of three blocks did are not served where all three do."""
    keep = {"keep": True}
    fit(
        "ours",
        tmp_path,
        cache=keep,
        freezer=HALF,
        callbacks=[Freezer(name_starts_with="network.transformer.h.2.")],
    )
    cached = fit("ours", tmp_path, cache=keep, freezer=HALF, num_blocks=None)

    assert torch.equal(losses(cached), losses(fit("ours", None, freezer=HALF, num_blocks=None)))


@pytest.mark.wide
@pytest.mark.parametrize("name", ["ours", "resnet"])  # a residual stream in float32; all in bfloat16
def test_a_cache_goes_on_when_blocks_that_are_held_begin_to_compute_in_bfloat16(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing freezes or thaws then: the rows are computed again, and served for all of its blocks."""
    caplog.set_level(logging.INFO)

    def run(folder: Path | None) -> Fitted:
        half = Freezer(prefix_of(Fitted(name), 2), from_epoch=1, **HALF)
        return fit(name, folder, epochs=4, callbacks=[half])

    assert torch.equal(losses(run(tmp_path)), losses(run(None)))
    shares = [100 if f"epoch {epoch}: PrefixCache served 100 %" in caplog.text else 0 for epoch in range(4)]
    assert shares == [0, 0, 100, 100]
    assert "one after another" not in caplog.text


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="frozen_dtype"):
        Freezer(names="a", frozen_dtype="float16")  # type: ignore[arg-type]
