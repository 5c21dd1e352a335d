"""Named groups of layers to put LoRA on, found in the structure of a model, whatever it calls its parts."""

import re
from collections.abc import Container, Iterable, Mapping

from torch import nn

from lighter_freezers._log import log
from lighter_freezers.selection.anatomy.tree import leading
from lighter_freezers.selection.layer_names import part_of
from lighter_freezers.selection.names import canonical_parameters, closest_names, walk

__all__ = ["TARGET_GROUPS", "target_modules_of", "with_target_modules"]

TARGET_GROUPS = ("attention_only", "mlp_only", "both", "all")

# What makes queries and values: apart, or together with the keys.
_QUERY_VALUE = frozenset(
    [
        *("query_proj", "value_proj", "q_b_proj", "kv_b_proj", "receptance"),  # DeBERTa, DeepSeek, RWKV
        *("q_proj", "v_proj", "query", "value", "q", "v", "q_lin", "v_lin"),
        *("c_attn", "qkv", "qkv_proj", "query_key_value", "Wqkv", "in_proj", "att_proj"),
        *("linear_q", "linear_v", "Wq", "Wv"),  # conformers, CTRL
    ]
)
# What a part of a block is, cross-attention included, by how its name begins or by what is in it.
_PARTS = (
    ("attn", re.compile(r"attn|attention|(^|_)att$", re.IGNORECASE)),
    ("mlp", re.compile(r"^(mlp|ffn?|feed_?forward|intermediate|output|DenseReluDense)")),
)


def target_modules_of(network: nn.Module, group: str) -> list[str]:
    """The layers of a group, as PEFT's `target_modules` wants them: the shortest ends of their names.

    | group | in a Llama | in a GPT-2 |
    |---|---|---|
    | `attention_only` | `q_proj`, `v_proj` | `c_attn`, which is queries, keys and values in one |
    | `mlp_only` | `gate_proj`, `up_proj`, `down_proj` | `c_fc`, `mlp.c_proj` |
    | `both`, `all` | these, `k_proj` and `o_proj` | these, `attn.c_proj` |

    Of a model with several stacks of blocks, such as an encoder and a decoder, or a vision tower and a
    language model, a group is in all of them, cross-attention included.

    Args:
        network: A transformer.
        group: One of the four; `all` is the same as `both`.

    Raises:
        ValueError: There is no such group, or no such layer in the network.
    """
    if group not in TARGET_GROUPS:
        close = closest_names(str(group), TARGET_GROUPS, 1)[0]
        raise ValueError(
            f"Unknown LoRA target {group!r}. Closest: '{close}'. All: {', '.join(TARGET_GROUPS)}."
        )
    homes = _homes(network)
    linear = _linear_layers(network, homes)
    inside = {part: [path for path, home in linear.items() if home == part] for part in ("attn", "mlp")}
    attention, mlp = inside["attn"], inside["mlp"]
    if group == "attention_only":
        attention = [path for path in attention if path.rpartition(".")[2] in _QUERY_VALUE]
    chosen = {"attention_only": attention, "mlp_only": mlp}.get(group, [*attention, *mlp])
    if not chosen or (group in ("both", "all") and not (attention and mlp)):
        raise ValueError(_nothing(network, group, linear))
    experts = [] if group == "attention_only" else _experts(network, homes, ("mlp",))
    if experts:
        log.warning(
            "target: %s leaves %d tensors of experts without LoRA, such as '%s': they are no linear layers. "
            "Name them in target_parameters.",
            *(group, len(experts), experts[0]),
        )
    return _shortest_ends(chosen, [path for path, _ in walk(network) if path])


def with_target_modules(network: nn.Module, config: Mapping[str, object]) -> dict[str, object]:
    """A LoRA config in which `target`, the name of a group, is written out as `target_modules`.

    Args:
        network: What the LoRA layers are for.
        config: As for `apply_lora`; without `target` it comes back as it is.

    Raises:
        ValueError: Both are given, or the group is unknown or empty.
    """
    written_out = dict(config)
    group = written_out.pop("target", None)
    if group is None:
        return written_out
    if written_out.get("target_modules") is not None:
        raise ValueError(
            f"target: {group} and target_modules both say where LoRA goes. Leave one of them out."
        )
    ends = target_modules_of(network, str(group))
    chosen = [m for path, m in walk(network) if any(f".{path}".endswith(f".{end}") for end in ends)]
    if all(_is_transposed(module) for module in chosen):
        written_out.setdefault("fan_in_fan_out", True)  # else PEFT warns, and does so anyway
    return {**written_out, "target_modules": ends}


def _linear_layers(network: nn.Module, homes: Mapping[str, str]) -> dict[str, str]:
    """Path of each layer with a matrix of weights, in a block -> `attn`, `mlp` or what else it is part of.

    Not of a router, which chooses among the experts beside it.
    """
    modules, named = dict(walk(network)), canonical_parameters(network)
    stacked = _experts(network, homes, ("attn", "mlp"))
    num_experts = {name.rsplit(".", 2)[0]: len(named[name]) for name in stacked}
    for path, module in modules.items():
        around, _, name = path.rpartition(".")
        if name == "experts" and not list(module.parameters(recurse=False)):
            num_experts[around] = len(module._modules)
    linear = {}
    for path, module in modules.items():
        if not (isinstance(module, nn.Linear) or _is_transposed(module)):
            continue
        chooses = getattr(module, "out_features", None)
        is_router = any(num_experts.get(around, 0) == chooses for around in leading(path))
        is_beside = f"{path.rpartition('.')[0]}.experts" in modules
        if f"{path}.weight" in homes and not is_beside and not is_router:
            linear[path] = homes[f"{path}.weight"]
    return linear


def _homes(network: nn.Module) -> dict[str, str]:
    """The name of each parameter in a block -> `attn`, `mlp` or what else it is part of."""
    return {name: _attention_or_mlp(part) for name, part in part_of(network).items()}


def _attention_or_mlp(part: str) -> str:
    segments = part.split(".")
    return next((home for home, pattern in _PARTS if any(map(pattern.search, segments))), part)


def _experts(network: nn.Module, homes: Mapping[str, str], within: Container[str]) -> list[str]:
    """Names of the weights in these parts that hold a matrix for each expert; no kernels of convolutions."""
    kernels = {id(each.weight) for each in network.modules() if isinstance(each, nn.Conv1d)}
    return [
        name
        for name, parameter in canonical_parameters(network).items()
        if parameter.ndim == 3 and min(parameter.shape) > 1 and homes.get(name) in within
        if id(parameter) not in kernels
    ]


def _is_transposed(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"  # of transformers: the weight is (inputs, outputs)


def _shortest_ends(chosen: list[str], every: Iterable[str]) -> list[str]:
    """Ends of names that mean what is chosen, and nothing else."""
    others = set(every) - set(chosen)
    return list(dict.fromkeys(_shortest_end(path, others) for path in chosen))


def _shortest_end(path: str, others: Iterable[str]) -> str:
    segments = path.split(".")
    ends = [".".join(segments[-length:]) for length in range(1, len(segments) + 1)]
    return next(end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others))


def _nothing(network: nn.Module, group: str, linear: Mapping[str, str]) -> str:
    there = [path for part in ("attn", "mlp") for path, home in linear.items() if home == part]
    shown = ", ".join(dict.fromkeys(path.rpartition(".")[2] for path in there)) or "none"
    homes = {*linear.values(), *(("mlp",) if group == "attention_only" else ())}
    missing = [name for name, part in (("attention", "attn"), ("MLPs", "mlp")) if part not in homes]
    found = f"no {' and no '.join(missing)} with linear layers" if there and missing else "nothing"
    return (
        f"target: {group} finds {found} in {type(network).__name__}. Linear layers in its attention and MLPs "
        f"are: {shown}. Name those you want in target_modules."
    )
