"""Every list and every mapping may be one of a config library: the result is that of plain lists and dicts.

What takes a list or a mapping is read from the public signatures; a new argument needs an example in `PLAIN`.
"""

import inspect
import re
from collections import UserDict, UserList
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from types import FunctionType, MappingProxyType, MethodType
from typing import Any

import pytest
import torch

import lighter_freezers
from tests.experiments.training.causal_lms import causal_lm
from tests.wrong_inputs.calls import VALUES_OF_THE_PACKAGE, arguments_for, sgd
from tests.wrong_inputs.generator import arguments_of

_METRIC = {"monitor": "val/loss", "plateau": {"patience": 2}}
_PHASES = [
    {"start_step": 0, "active_modules": ["attention"], "layer_range": [0, 1]},
    {"start_step": 5, "active_modules": ["mlp"]},
]
_STAGES = [
    {"thaw": ["head"], "until_metric": _METRIC, "unfreeze_lr_factor": {"head": 0.5}},
    {"thaw": ["blocks.*"], "freeze": ["head"]},
]
_LORA = {"r": 2, "target_modules": ["blocks.0.0", "head"], "rank_pattern": {"head": 3}}
_OPERATIONS = [
    {"name": "set_layer_lora_rank", "value": ["block.0", 0, "drop"], "max_wait_iters": 1},
    {"name": "freeze_layer", "value": "block.0", "trigger_loss": 2.0, "max_wait_iters": 1},
]
_MODIFIERS = {
    "loss_modifiers_enabled": True,
    "target_smoothing_enabled": True,
    "target_smoothing_special_tokens": [1, 2],
}
_WHERE = ("blocks", "head", "embeddings")
_SGD = sgd()
_SCHEDULER = {"scheduler": torch.optim.lr_scheduler.StepLR(_SGD, 5), "interval": "epoch"}
_GENERATION = {"max_new_tokens": 3, "temperature": 0.5}

# (callable, argument) -> what it is given, and beside it what the example needs; `*` stands for any callable
PLAIN: dict[tuple[str, str], tuple[Any, dict[str, Any]]] = {
    ("*", "blocks"): (["blocks.0", "blocks.1"], {}),
    ("*", "head"): (["head"], {}),
    ("*", "embeddings"): (["embed"], {}),
    ("*", "patterns"): (["blocks.*"], {}),
    **{("Freezer", word): (["head"], {"patterns": "layers:block.0", "names": None}) for word in _WHERE},
    ("*", "generation"): (_GENERATION, {}),
    ("BlockCycling", "order"): (["block.1", "block.0"], {}),
    ("CausalLMModule", "lora"): ({"r": 2, "target_modules": ["q_proj", "v_proj"]}, {"network": causal_lm}),
    ("CausalLMModule", "load_options"): ({}, {"network": causal_lm}),
    ("CausalLMModule", "scheduler"): (_SCHEDULER, {"network": causal_lm, "optimizer": lambda: _SGD}),
    ("CausalLMModule", "metrics"): (["bleu", "rouge"], {"network": causal_lm}),
    ("Freezer", "names"): (["head.weight", "embed.weight"], {}),
    ("Freezer", "name_starts_with"): (["head"], {}),
    ("Freezer", "except_names"): (["head.bias"], {"name_starts_with": "head"}),
    ("Freezer", "except_name_starts_with"): (["head"], {"patterns": "*"}),
    ("Freezer", "except_patterns"): (["head.*"], {"patterns": "*"}),
    ("Freezer", "patterns"): (["head.*", "layers:block.:2"], {}),
    ("Freezer", "windows"): ([[0, 5], [10, "30%"]], {"until_step": None}),
    ("Freezer", "until_metric"): (_METRIC, {}),
    ("Freezer", "train"): (["head"], {"names": None}),
    ("Freezer", "rows"): ([1, "3:5"], {}),
    ("GPT", "config"): ({"n_embd": 8, "n_head": 2, "n_layer": 1, "vocab_size": 7, "block_size": 4}, {}),
    ("GPTConfig", "class_weights"): ([0.5, 1.0], {"mode": "token_classifier", "num_token_classes": 2}),
    ("GPTModule", "loss_modifiers"): (_MODIFIERS, {}),
    ("GPTModule", "scheduler"): (_SCHEDULER, {"optimizer": lambda: _SGD}),
    ("GradualUnfreezing", "plateau"): ({"monitor": "val/loss", "patience": 2}, {"every_n_epochs": None}),
    ("GradualUnfreezing", "stages"): (_STAGES, {"every_n_epochs": None}),
    ("GradualUnfreezing", "restore_best"): (
        {"monitor": "val/loss", "mode": "min"},
        {"every_n_epochs": None, "stages": _STAGES},
    ),
    ("LayerOperations", "operations"): (_OPERATIONS, {}),
    ("LoraPhases", "phases"): (_PHASES, {"strategy": None, "phase1_end": None, "phase2_end": None}),
    ("LoraPhases", "strategy"): (_PHASES, {"phase1_end": None, "phase2_end": None}),
    ("LoraRankScheduler", "schedule"): ([{"step": 5, "rank_pattern": {"block.0": 2}}], {}),
    ("LossModifierPipeline", "modifiers"): ([lighter_freezers.EntropyModifier()], {}),
    ("TargetSmoothingModifier", "special_tokens"): ([1, 2], {}),
    ("TokenLabelDataModule", "class_names"): (["a", "b"], {}),
    ("apply_lora", "config"): (_LORA, {}),
    ("create_loss_modifier_pipeline", "config"): (_MODIFIERS, {}),
    ("create_layerwise_lora_config", "modules"): (["mlp"], {}),
    ("setup_lp_lora_style", "lora"): (_LORA, {}),
    **{("create_layerwise_lora_config", f"phase{n}_steps"): ([0, None], {}) for n in (1, 2)},
    **{("create_phased_lora_config", f"phase{n}_steps"): ([0, None], {}) for n in (1, 2, 3)},
    **{("create_phased_lora_config", f"phase{n}_modules"): (["mlp"], {}) for n in (1, 2, 3)},
}
# Objects of torch, which no config file holds.
OF_OBJECTS = {"optimizers", "optimizer", "statistics"}

Convert = Callable[[Any], Any]


def _as(value: Any, a_list: Convert, a_mapping: Convert) -> Any:
    """The same with every list and mapping in it, at all depths, as another kind."""
    if isinstance(value, Mapping):
        return a_mapping({key: _as(each, a_list, a_mapping) for key, each in value.items()})
    return a_list([_as(each, a_list, a_mapping) for each in value]) if isinstance(value, list) else value


def _omegaconf(value: Any) -> Any:
    return pytest.importorskip("omegaconf").OmegaConf.create(value, flags={"allow_objects": True})


KINDS: dict[str, Convert] = {
    "tuple and read-only dict": lambda value: _as(value, tuple, MappingProxyType),
    "UserList and UserDict": lambda value: _as(value, UserList, UserDict),
    "UserList in tuples": lambda value: (
        tuple(_as(each, UserList, UserDict) for each in value) if isinstance(value, list) else value
    ),
    "ListConfig and DictConfig": _omegaconf,
}


def state_of(value: Any, seen: dict[int, int] | None = None) -> Any:
    """What an object consists of, to compare it with another; a tuple counts as a list."""
    seen = {} if seen is None else seen
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.requires_grad, value.detach().flatten().tolist()
    if type(value) in (list, tuple):
        return [state_of(each, seen) for each in value]
    if type(value) is dict:
        return {str(key): state_of(each, seen) for key, each in value.items()}
    if isinstance(value, (str, int, float, type, FunctionType, torch.dtype, type(None))):
        return value if not isinstance(value, FunctionType) else value.__qualname__
    if id(value) in seen:
        return seen[id(value)]
    seen[id(value)] = len(seen)
    if isinstance(value, MethodType):
        return value.__func__.__qualname__
    if is_dataclass(value):
        inside = {field.name: getattr(value, field.name) for field in fields(value)}
    else:
        inside = getattr(value, "__dict__", {})
    return type(value).__qualname__, state_of(dict(inside), seen)


def outcome(name: str, argument: str, value: Any, beside: dict[str, Any]) -> Any:
    """The state of what a call makes, and of the model that it changes; or what it refuses."""
    torch.manual_seed(0)
    given = {**arguments_for(name), **beside, argument: value}
    given = {
        key: each() if isinstance(each, FunctionType) else each
        for key, each in given.items()
        if each is not None
    }
    try:
        made = getattr(lighter_freezers, name)(**given)
    except (TypeError, ValueError, OSError) as error:
        return type(error), str(error)
    return state_of([made, given.get("model"), given.get("network")])


def pairs() -> list[tuple[str, str]]:
    """Every public argument that takes a list or a mapping."""
    names = [name for name in lighter_freezers.__all__ if name not in VALUES_OF_THE_PACKAGE]
    return [
        (name, argument)
        for name in names
        for argument, parameter in arguments_of(name).items()
        if re.search(r"\b(Sequence|Mapping|Iterable|list|dict)\b", str(parameter.annotation))
        and argument not in OF_OBJECTS
        and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]


@pytest.mark.parametrize("name_and_argument", pairs(), ids="-".join)
def test_it_counts_as_a_plain_one(name_and_argument: tuple[str, str]) -> None:
    """Nested ones too: state, model and message are the same, and none of the library's objects stays."""
    name, argument = name_and_argument
    plain, beside = PLAIN.get((name, argument)) or PLAIN[("*", argument)]
    wanted = outcome(name, argument, plain, beside)
    assert isinstance(wanted, list) or name.startswith("evaluate"), wanted  # those need a model on disk
    for kind, converted in KINDS.items():
        assert outcome(name, argument, converted(plain), beside) == wanted, kind
