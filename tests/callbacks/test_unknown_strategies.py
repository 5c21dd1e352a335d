"""Strategies that this package does not know: refused, tried on request, or followed because they say so."""

import logging
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from lighter_freezers import Freezer, GradualUnfreezing
from lighter_freezers.engine.trainer_strategies import refuse_unsupported_strategy
from tests.callbacks import block_net
from tests.callbacks.block_net import EVERYTHING, BlockNet, moved
from tests.lab import NAMESPACES, batches, recorder, regression, trainer

LATE = {"name_starts_with": "stem", "until_step": 2}


def own_strategy(namespace: str, **attributes: Any) -> Any:
    """A strategy on one CPU that derives from no known one."""
    base = import_module(f"{namespace}.strategies").Strategy

    class Own(base):  # type: ignore[misc, valid-type]
        root_device = torch.device("cpu")
        is_global_zero = True
        global_rank = local_rank = node_rank = 0
        world_size = 1

        def reduce(self, tensor: Any, *_: Any, **__: Any) -> Any:
            return tensor

        def all_gather(self, tensor: Any, *_: Any, **__: Any) -> Any:
            return tensor

        def broadcast(self, obj: Any, src: int = 0) -> Any:
            return obj

        def barrier(self, name: str | None = None) -> None:
            pass

        def model_to_device(self) -> None:
            pass

    return type("Own", (Own,), attributes)(
        accelerator=import_module(f"{namespace}.accelerators").CPUAccelerator()
    )


def moves(
    namespace: str, callback: Any, default_root_dir: Path | None = None, **attributes: Any
) -> list[set[str]]:
    """What moved in each of four steps."""
    states = recorder(
        namespace, lambda _, m: {k: v.clone() for k, v in m.state_dict().items()}, "on_train_batch_start"
    )
    module = regression(namespace, BlockNet)
    options = {"accelerator": "auto", "devices": "auto", "strategy": own_strategy(namespace, **attributes)}
    run = trainer(namespace, callbacks=[callback, states], default_root_dir=default_root_dir, **options)
    run.fit(module, batches(), batches())
    values = [*states.seen, dict(module.state_dict())]
    return [moved(one, other) for one, other in zip(values, values[1:], strict=False)]


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_one_that_says_so_is_followed(namespace: str) -> None:
    found = moves(namespace, Freezer(**LATE), follows_flag_changes=True)

    assert found == [set(EVERYTHING) - {"stem"}] * 2 + [set(EVERYTHING)] * 2


def test_any_other_is_refused_with_both_ways_out() -> None:
    with pytest.raises(
        RuntimeError, match="Own cannot freeze.*follows_flag_changes = True.*allow_untested: true"
    ):
        moves(NAMESPACES[0], Freezer(**LATE))


@pytest.mark.parametrize(
    "callback",
    [Freezer(**LATE, allow_untested=True), GradualUnfreezing(every_n_steps=1, allow_untested=True)],
    ids=["Freezer", "GradualUnfreezing"],
)
def test_one_that_is_not_known_is_tried_on_request(callback: Any, caplog: pytest.LogCaptureFixture) -> None:
    """With a warning."""
    with caplog.at_level(logging.WARNING, logger="lighter_freezers"):
        found = moves(NAMESPACES[0], callback)

    assert "Own is not tested with layers that freeze or thaw" in caplog.text
    assert "stem" not in found[0]
    assert found[0] < found[3]


NEW_OPTIMIZER = {"thaw": "*", "optimizer": partial(torch.optim.SGD, lr=0.1)}
WHOLE: dict[str, Callable[..., Any]] = {
    "best weights": partial(GradualUnfreezing, restore_best={"monitor": "train/batch_loss"}),
    "an optimizer": GradualUnfreezing,
    "rows": partial(Freezer, names="stem.weight", rows=[0]),
}


@pytest.mark.parametrize("what", WHOLE)
def test_what_needs_whole_parameters(what: str, tmp_path: Path) -> None:
    """Works where the strategy, or its user, says so, as it does under a known one."""
    stages = [{"thaw": ["norm", "head"], "until_step": 2}, {"thaw": "*"}]
    given: Any = {"stages": [stages[0], NEW_OPTIMIZER] if what == "an optimizer" else stages}
    given = {} if what == "rows" else given
    expected = block_net.moves(NAMESPACES[0], [WHOLE[what](**given)], 1, default_root_dir=tmp_path)

    assert len({frozenset(each) for each in expected}) == (1 if what == "rows" else 2)
    said = moves(NAMESPACES[0], WHOLE[what](**given), follows_flag_changes=True, default_root_dir=tmp_path)
    tried = moves(NAMESPACES[0], WHOLE[what](**given, allow_untested=True), default_root_dir=tmp_path)
    assert said == tried == expected


def test_what_is_known_not_to_work_stays_refused() -> None:
    deepspeed = type("DeepSpeedStrategy", (type("DDPStrategy", (), {}),), {})
    with pytest.raises(RuntimeError, match="DeepSpeedStrategy cannot freeze"):
        refuse_unsupported_strategy(deepspeed(), is_static=False, allow_untested=True)
