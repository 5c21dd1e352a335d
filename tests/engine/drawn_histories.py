"""Draws histories: Freezers of all arguments, gradual unfreezing and operations, in any order."""

from typing import Any

from hypothesis import strategies as st

from tests.engine.oracle import NAMES, History

steps, epochs = st.integers(1, 8), st.integers(1, 3)
step_bounds = steps | st.sampled_from(["20%", "40%", "75%"])
epoch_bounds = epochs | st.just("60%")
monitors = st.sampled_from(["val/score", "train/score"])
plateaus = st.fixed_dictionaries(
    {"patience": st.integers(1, 2)}, optional={"mode": st.just("max"), "min_delta": st.just(0.5)}
)
conditions = st.one_of(
    st.fixed_dictionaries({"monitor": monitors, "below": st.integers(1, 4)}),
    st.fixed_dictionaries({"monitor": monitors, "above": st.integers(1, 4)}),
    st.fixed_dictionaries({"monitor": monitors, "plateau": plateaus}),
)
windows = st.lists(st.integers(0, 9), min_size=2, max_size=4, unique=True).map(
    lambda bounds: [sorted(bounds)[i : i + 2] for i in range(0, len(bounds) // 2 * 2, 2)]
)
whats = st.one_of(
    st.fixed_dictionaries(
        {"name_starts_with": st.sampled_from(["layer1.", "norm.", "layer2.", ["layer1.", "norm."], "layer"])}
    ),
    st.fixed_dictionaries(
        {"names": st.lists(st.sampled_from(NAMES[:-2]), min_size=1, max_size=3, unique=True)}
    ),
    st.fixed_dictionaries(
        {"patterns": st.sampled_from(["layer*.bias", "class:BatchNorm1d", "layer?.weight", r"re:r\d\.w"])}
    ),
    st.just({"name_starts_with": "layer1.", "patterns": "*.bias", "except_names": "layer1.bias"}),
    st.just({"patterns": "*", "except_name_starts_with": ["head."], "except_patterns": "re:2.*ht$"}),
    st.fixed_dictionaries(
        {"train": st.sampled_from([["head"], ["head", "*.bias"], ["head.weight", "norm"]])}
    ),
    st.just({"names": ["layer2.bias", "no.such"], "on_missing": "warn"}),
)
whens = st.one_of(
    st.just({}),
    st.fixed_dictionaries(
        {"until_step": step_bounds}, optional={"until_epoch": epoch_bounds, "until_metric": conditions}
    ),
    st.fixed_dictionaries({"until_epoch": epoch_bounds}, optional={"until_metric": conditions}),
    st.fixed_dictionaries({"from_step": step_bounds}),
    st.fixed_dictionaries({"from_epoch": epochs}),
    st.integers(1, 5).map(lambda begin: {"from_step": begin, "until_step": begin + 3}),
    st.integers(1, 2).map(lambda begin: {"from_epoch": begin, "until_epoch": begin + 1}),
    st.fixed_dictionaries({"windows": windows}),
    st.fixed_dictionaries({"until_metric": conditions}),
    st.fixed_dictionaries({"from_step": st.integers(1, 3), "until_metric": conditions}),
)
rates = st.one_of(
    st.just({}),
    st.just({"unfreeze_lr": 0.005}),
    st.fixed_dictionaries(
        {"unfreeze_lr_factor": st.sampled_from([0.1, 0.5])}, optional={"warmup_steps": steps}
    ),
    st.fixed_dictionaries({"warmup_steps": steps}),
)
terms = {
    "optimizer_state": st.sampled_from(["reset", "free"]),
    "cut_gradient": st.just("never"),
    "frozen_mode": st.just("eval"),
}
others = st.fixed_dictionaries(
    {},
    optional={
        **terms,
        "frozen_norms": st.sampled_from(["stats", "train"]),
        "restore_on_end": st.booleans(),
        "on_overlap": st.just("compose"),
    },
)


def freezer_of(what: Any, when: Any, rate: Any, other: Any) -> tuple[str, dict[str, Any]]:
    """Rates belong to Freezers that release; others are refused."""
    releases = {"until_step", "until_epoch", "until_metric", "windows"} & when.keys()
    return "Freezer", {**what, **when, **(rate if releases else {}), **other}


freezers = st.builds(freezer_of, whats, whens, rates, others)

BLOCKS = {"blocks": ["layer1", "norm", "layer2"], "head": ["head"]}
paces = st.one_of(
    st.fixed_dictionaries({"every_n_steps": st.integers(1, 3) | st.just("20%")}),
    st.just({"every_n_epochs": 1}),
    st.fixed_dictionaries(
        {
            "plateau": st.fixed_dictionaries(
                {"monitor": monitors, "patience": st.just(1)},
                optional={"mode": st.just("max"), "min_delta": st.just(0.5)},
            )
        }
    ),
)
depths = st.fixed_dictionaries(
    {},
    optional={
        **terms,
        "direction": st.just("bottom-up"),
        "layers_per_stage": st.just(2),
        "lr_decay": st.just(2.0),
        "warmup_steps": steps,
    },
)
gradual = st.builds(lambda pace, depth: ("GradualUnfreezing", {**pace, **depth, **BLOCKS}), paces, depths)
ends = st.one_of(
    st.fixed_dictionaries({"until_step": step_bounds}),
    st.fixed_dictionaries({"until_epoch": epoch_bounds}),
    st.fixed_dictionaries({"until_metric": conditions}),
    st.fixed_dictionaries({"until_step": steps, "until_metric": conditions}),
)
norms = st.fixed_dictionaries({}, optional={"frozen_norms": st.sampled_from(["stats", "train"])})


def stages_of(first: Any, second: Any, third: Any, rate: Any, norm: Any, other: Any) -> Any:
    stages = [
        {"thaw": ["head", "layer2.bias"], **first, **norm},
        {**second[0], **second[1], **rate},
        {**third, **norm},
    ]
    return "GradualUnfreezing", {"stages": stages, **other}


stages = st.builds(
    stages_of,
    ends,
    st.tuples(st.sampled_from([{"thaw": "layer2"}, {"thaw": ["norm", "layer1"]}]), ends),
    st.sampled_from(
        [{"thaw": "*"}, {"thaw": "norm", "freeze": "layer2"}, {"freeze": ["layer*.bias", "norm"]}]
    ),
    rates,
    norms,
    st.fixed_dictionaries({}, optional={**terms, "best": st.just("reset")}),
)

triggers = st.one_of(
    st.fixed_dictionaries({"max_wait_iters": st.integers(0, 4)}, optional={"trigger_loss": st.just(2.5)}),
    st.fixed_dictionaries({"trigger_loss": st.sampled_from([float("inf"), 2.5, 1.5, 0.2, 0.1])}),
)
effects = st.one_of(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(["freeze_layer", "unfreeze_layer"]),
            "value": st.sampled_from(["layer1", "norm", "layer2"]),
        }
    ),
    st.sampled_from([{"name": "set_lr", "value": 0.0625}, {"name": "scale_lr", "value": 0.5}]),
)
entries = st.builds(
    lambda effect, trigger, other: {**effect, **trigger, **other},
    effects,
    triggers,
    st.fixed_dictionaries({}, optional={"reevaluate": st.just(True)}),
)
operations = st.builds(
    lambda entries, monitor: (
        "LayerOperations",
        {"operations": entries, "monitor": monitor, "average_over": 2},
    ),
    st.lists(entries, min_size=1, max_size=4),
    st.sampled_from(["val/score", "train/score", "training_loss"]),
)

beside = st.tuples(
    st.none() | gradual | stages, st.none() | operations, st.lists(freezers, min_size=0, max_size=3)
).map(lambda drawn: tuple([each for each in drawn[:2] if each] + drawn[2]))
callbacks = st.one_of(st.lists(freezers, min_size=1, max_size=4).map(tuple), beside.filter(bool))
user_frozen = st.sampled_from([(), (), ("layer2.bias",), ("norm.weight",), ("norm.weight", "norm.bias")])
histories = st.builds(
    History,
    callbacks=callbacks,
    num_epochs=st.integers(2, 3),
    num_batches=st.integers(2, 4),
    accumulate=st.sampled_from([1, 1, 2, 3]),
    optimizer=st.sampled_from(["SGD", "AdamW"]),
    has_scheduler=st.booleans(),
    is_filtered=st.booleans(),
    user_frozen=user_frozen,
    scores=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    order=st.integers(0, 5),
)


def _has_no_share(history: History) -> bool:
    """Under manual optimization the length of a run is unknown, and shares of it are refused."""
    return "%'" not in repr(history.callbacks)


manual = st.builds(
    History,
    callbacks=callbacks,
    has_two_optimizers=st.just(True),
    optimizer=st.sampled_from(["SGD", "AdamW"]),
    user_frozen=user_frozen,
    order=st.integers(0, 5),
).filter(_has_no_share)
cuts = st.tuples(st.sampled_from(["batch", "batch", "validation", "epoch"]), st.integers(1, 8))
