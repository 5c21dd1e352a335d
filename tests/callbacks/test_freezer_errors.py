"""What a Freezer refuses, before training, with the way out."""

from typing import Any

import pytest

from lighter_freezers import Freezer
from tests.lab import batches, regression, trainer

LONE = "pytorch_lightning"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "Say what to freeze: names, name_starts_with or patterns"),
        ({"names": 5}, TypeError, "names"),
        ({"names": ""}, ValueError, "names"),
        ({"names": "a", "until_step": "10"}, TypeError, "until_step must be a whole number. Got '10'"),
        ({"names": "a", "until_epoch": -1}, ValueError, "until_epoch counts from 0"),
        ({"names": "a", "unfreeze_lr": "5e-5"}, TypeError, r"write 5\.0e-5"),
        ({"names": "a", "unfreeze_lr": 0.0}, ValueError, "unfreeze_lr must be above 0"),
        ({"names": "a", "unfreeze_lr": 0.1, "unfreeze_lr_factor": 0.1}, ValueError, "Give one"),
        ({"names": "a", "warmup_steps": 1.5}, TypeError, "warmup_steps must be a whole number"),
        ({"names": "a", "from_step": 5, "until_step": 5}, ValueError, "would never hold"),
        ({"names": "a", "windows": [[0, 5]], "until_step": 9}, ValueError, "Give one or the other"),
        ({"names": "a", "windows": [[5, 0]]}, ValueError, "must begin before it ends"),
        ({"names": "a", "frozen_norms": "evl"}, ValueError, "frozen_norms must be one of eval, stats, train"),
        ({"names": "a", "on_missing": "ignore"}, ValueError, "on_missing must be one of error, warn"),
        ({"names": "a", "restore_on_end": "yes"}, TypeError, "restore_on_end must be true or false"),
        ({"patterns": "re:("}, ValueError, "patterns"),
        ({"names": "a", "unfreeze_lr": 0.1}, ValueError, "unfreeze_lr concerns what thaws"),
        (
            {"names": "a", "from_step": 2, "unfreeze_lr_factor": 0.1},
            ValueError,
            "unfreeze_lr_factor concerns",
        ),
        ({"names": "a", "warmup_steps": 5}, ValueError, "warmup_steps concerns what thaws"),
    ],
)
def test_bad_arguments_are_refused_when_the_config_is_read(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    """No model and no Trainer is needed to find them."""
    with pytest.raises(error, match=message):
        Freezer(**arguments)


def refused(*freezers: Freezer, **options: Any) -> Any:
    """Fit and expect an error before the first batch; returns the Trainer."""
    fit = trainer(LONE, callbacks=list(freezers), **options)
    fit.fit(regression(LONE), batches(), batches())
    return fit


def test_a_name_that_matches_nothing() -> None:
    """The error names the closest."""
    with pytest.raises(ValueError, match="'layer3'.*layer2"):
        refused(Freezer(name_starts_with="layer3"))


def test_a_name_that_matches_nothing_may_be_a_warning() -> None:
    """`on_missing: warn` goes on with what does match."""
    with pytest.warns(UserWarning, match="layer3"):
        refused(Freezer(name_starts_with=["layer3", "layer2"], on_missing="warn"))


def test_everything_frozen_at_the_first_step() -> None:
    """Said at once, with who holds it; not by autograd in the middle of a backward pass."""
    with pytest.raises(
        RuntimeError, match=r"every parameter is frozen.*held by Freezer\['\*'\].*exclude something"
    ):
        refused(Freezer(patterns="*"))


def test_everything_frozen_later() -> None:
    """Two Freezers that together hold everything from step 3 on: known before the first batch."""
    freezers = [
        Freezer(name_starts_with="head", from_step=3),
        Freezer(name_starts_with="layer1"),
        Freezer(name_starts_with="layer2"),
    ]
    with pytest.warns(UserWarning, match="layer10"), pytest.raises(RuntimeError, match="From step 3 on"):
        refused(*freezers)


def test_everything_frozen_at_a_moment_that_only_the_run_knows() -> None:
    """Steps and epochs mixed: found at the transition."""
    freezers = [Freezer(name_starts_with="head", from_epoch=1), Freezer(patterns="*layer*", from_step=2)]
    with pytest.raises(RuntimeError, match="At step 4 every parameter is frozen"):
        refused(*freezers, max_epochs=2)


def test_an_overlap_may_be_refused() -> None:
    """`on_overlap: error`, on either of the two."""
    with pytest.raises(ValueError, match="both select 'network.layer2.weight'.*on_overlap='compose'"):
        refused(Freezer(name_starts_with="layer2", on_overlap="error"), Freezer(names="layer2.weight"))


def test_a_prefix_that_takes_layer10_for_layer1_warns() -> None:
    """Lighter's literal prefix is kept."""
    with pytest.warns(UserWarning, match=r"layer1.*layer10.*layer1\."):
        refused(Freezer(name_starts_with="layer1"))


@pytest.mark.parametrize(
    ("name", "base"), [("DeepSpeedStrategy", "DDPStrategy"), ("XLAStrategy", "Strategy")]
)
def test_a_strategy_that_cannot_follow_is_refused_by_name(name: str, base: str) -> None:
    """DeepSpeed derives from DDP in Lightning; holding for the whole run is still possible."""
    from lighter_freezers.engine.trainer_strategies import refuse_unsupported_strategy

    strategy = type(name, (type(base, (), {}),), {})()
    refuse_unsupported_strategy(strategy, is_static=True)
    with pytest.raises(RuntimeError, match=f"{name} cannot freeze or thaw .* 'ddp', ModelParallelStrategy"):
        refuse_unsupported_strategy(strategy, is_static=False)


def test_flat_fsdp_is_refused() -> None:
    """The real strategy class, built with flat parameters."""
    from pytorch_lightning.strategies import FSDPStrategy

    from lighter_freezers.engine.trainer_strategies import refuse_unsupported_strategy

    refuse_unsupported_strategy(FSDPStrategy(use_orig_params=True), is_static=False)
    with pytest.raises(RuntimeError, match=r"FSDPStrategy\(use_orig_params=False\) flattens"):
        refuse_unsupported_strategy(FSDPStrategy(use_orig_params=False), is_static=True)
