"""Named groups of layers to put LoRA on, found in the structure of a model, whatever it calls its parts."""

from collections.abc import Iterable, Mapping

from torch import nn

from lighter_freezers._log import log
from lighter_freezers.selection.layer_names import component_of
from lighter_freezers.selection.names import canonical_parameters, closest_names, walk

__all__ = ["TARGET_GROUPS", "target_modules_of", "with_target_modules"]

TARGET_GROUPS = ("attention_only", "mlp_only", "both", "all")

# What makes queries and values: apart, or together with the keys.
_QUERY_VALUE = frozenset(
    [
        *("query_proj", "value_proj", "q_b_proj", "kv_b_proj", "receptance"),  # DeBERTa, DeepSeek, RWKV
        *("q_proj", "v_proj", "query", "value", "q", "v", "q_lin", "v_lin"),
        *("c_attn", "qkv", "qkv_proj", "query_key_value", "Wqkv", "in_proj"),
    ]
)


def target_modules_of(network: nn.Module, group: str) -> list[str]:
    """The layers of a group, as PEFT's `target_modules` wants them: the shortest ends of their names.

    | group | in a Llama | in a GPT-2 |
    |---|---|---|
    | `attention_only` | `q_proj`, `v_proj` | `c_attn`, which is queries, keys and values in one |
    | `mlp_only` | `gate_proj`, `up_proj`, `down_proj` | `c_fc`, `mlp.c_proj` |
    | `both`, `all` | these, `k_proj` and `o_proj` | these, `attn.c_proj` |

    Args:
        network: A transformer with one stack of blocks.
        group: One of the four; `all` is the same as `both`.

    Raises:
        ValueError: There is no such group, or no such layer in the network.
    """
    if group not in TARGET_GROUPS:
        close = closest_names(str(group), TARGET_GROUPS, 1)[0]
        raise ValueError(
            f"Unknown LoRA target {group!r}. Closest: '{close}'. All: {', '.join(TARGET_GROUPS)}."
        )
    linear = _linear_layers(network)
    inside = {part: [path for path, home in linear.items() if home == part] for part in ("attn", "mlp")}
    attention, mlp = inside["attn"], inside["mlp"]
    if group == "attention_only":
        attention = [path for path in attention if path.rpartition(".")[2] in _QUERY_VALUE]
    chosen = {"attention_only": attention, "mlp_only": mlp}.get(group, [*attention, *mlp])
    if not chosen or (group in ("both", "all") and not (attention and mlp)):
        raise ValueError(_nothing(network, group, [*inside["attn"], *inside["mlp"]]))
    experts = [] if group == "attention_only" else _experts(network)
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


def _linear_layers(network: nn.Module) -> dict[str, str]:
    """Path of each layer with a matrix of weights -> `attn`, `mlp` or what else it is part of.

    Not of a router, which stands beside the experts that it chooses among.
    """
    homes, modules = component_of(network), dict(walk(network))
    return {
        path: homes.get(f"{path}.weight", "").partition(".")[0]
        for path, module in modules.items()
        if (isinstance(module, nn.Linear) or _is_transposed(module))
        and f"{path.rpartition('.')[0]}.experts" not in modules
    }


def _experts(network: nn.Module) -> list[str]:
    """Names of the MLPs' weights that hold a matrix for each expert."""
    homes = component_of(network)
    return [
        name
        for name, parameter in canonical_parameters(network).items()
        if parameter.ndim == 3 and min(parameter.shape) > 1 and homes[name].partition(".")[0] == "mlp"
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


def _nothing(network: nn.Module, group: str, there: list[str]) -> str:
    shown = ", ".join(dict.fromkeys(path.rpartition(".")[2] for path in there)) or "none"
    homes = set(_linear_layers(network).values())
    missing = [name for name, part in (("attention", "attn"), ("MLPs", "mlp")) if part not in homes]
    found = f"no {' and no '.join(missing)} with linear layers" if there and missing else "nothing"
    return (
        f"target: {group} finds {found} in {type(network).__name__}. Linear layers in its attention and MLPs "
        f"are: {shown}. Name those you want in target_modules."
    )
