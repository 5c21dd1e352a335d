"""Named groups of LoRA targets, in architectures that call their parts differently."""

import re
from typing import Any

import pytest
import torch
from torch import nn

from lighter_freezers import GPT, apply_lora
from lighter_freezers.lora.sites import find_lora_sites
from lighter_freezers.lora.target_groups import target_modules_of, with_target_modules
from lighter_freezers.selection.anatomy import anatomy_of
from tests.experiments.training.causal_lms import causal_lm
from tests.zoo.transformers_models import MODELS

SIZE = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
MLP = ["gate_proj", "up_proj", "down_proj"]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def neox() -> nn.Module:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZE, num_attention_heads=2, bos_token_id=0, eos_token_id=0))


def phi3() -> nn.Module:
    from transformers import Phi3Config, Phi3ForCausalLM

    special = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    return Phi3ForCausalLM(Phi3Config(**SIZE, num_attention_heads=2, **special))


def opt() -> nn.Module:
    from transformers import OPTConfig, OPTForCausalLM

    sizes = {
        "vocab_size": 32,
        "hidden_size": 16,
        "ffn_dim": 32,
        "num_hidden_layers": 2,
        "word_embed_proj_dim": 16,
    }
    return OPTForCausalLM(OPTConfig(**sizes, num_attention_heads=2))


def bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(**SIZE, num_attention_heads=2))


def gpt() -> nn.Module:
    return GPT({"vocab_size": 32, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16})


# model -> the last names of its layers in attention_only, mlp_only, and both
GROUPS: dict[Any, tuple[list[str], list[str], list[str]]] = {
    causal_lm: (["q_proj", "v_proj"], MLP, [*ATTENTION, *MLP]),
    gpt: (["c_attn"], ["c_fc", "mlp.c_proj"], ["c_attn", "c_proj", "c_fc"]),
    neox: (
        ["query_key_value"],
        ["dense_h_to_4h", "dense_4h_to_h"],
        ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    ),
    phi3: (["qkv_proj"], ["gate_up_proj", "down_proj"], ["o_proj", "qkv_proj", "gate_up_proj", "down_proj"]),
    opt: (["v_proj", "q_proj"], ["fc1", "fc2"], ["k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2"]),
    bert: (
        ["query", "value"],
        ["intermediate.dense", "0.output.dense", "1.output.dense"],
        ["query", "key", "value", "output.dense", "intermediate.dense"],
    ),
}


@pytest.mark.parametrize("make", GROUPS, ids=lambda make: make.__name__)
def test_a_group_is_the_same_part_in_every_architecture(make: Any) -> None:
    """The document's layers in a Llama; their counterparts elsewhere."""
    model = make()
    groups = [target_modules_of(model, group) for group in ("attention_only", "mlp_only", "both", "all")]

    assert groups == [*GROUPS[make], GROUPS[make][2]]


@pytest.mark.parametrize("make", GROUPS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("group", ["attention_only", "mlp_only", "both"])
def test_peft_puts_lora_there_and_nowhere_else(make: Any, group: str) -> None:
    """Names that end alike in other parts, as `c_proj` and `output.dense`, are told apart."""
    network = apply_lora(make(), {"r": 2, "target": group})
    parts = {re.split(r"\.\d", site.layer)[0] for site in find_lora_sites(network).values()}
    num_in_block = len({name.split(".")[-1] for name in find_lora_sites(network)})

    assert parts == {"attention_only": {"attn"}, "mlp_only": {"mlp"}, "both": {"attn", "mlp"}}[group]
    assert num_in_block > 0


def test_all_targets_of_a_llama_are_the_number_in_the_document() -> None:
    """Blocks times seven modules times two factors; the base is frozen."""
    network = apply_lora(causal_lm(), {"r": 4, "target": "both"})
    trainable = [name for name, parameter in network.named_parameters() if parameter.requires_grad]

    assert len(trainable) == 3 * 7 * 2
    assert all(".lora_" in name for name in trainable)


def test_a_gpt2_needs_no_word_about_its_transposed_weights() -> None:
    """PEFT would warn, and warnings are errors here."""
    network = apply_lora(causal_lm("gpt2"), {"r": 2, "target": "all"})

    assert network.peft_config["default"].fan_in_fan_out
    assert len(find_lora_sites(network)) == 3 * 4
    assert with_target_modules(causal_lm(), {"r": 2, "target": "all"}).keys() == {"r", "target_modules"}


def test_a_config_without_a_group_stays_as_it_is() -> None:
    """Groups are an addition."""
    config = {"r": 8, "target_modules": ["q_proj"]}

    assert with_target_modules(causal_lm(), config) == config


def test_mistakes_are_told() -> None:
    """What was asked, and what there is."""
    network = causal_lm()
    with pytest.raises(ValueError, match="'attention'.*Closest: 'attention_only'.*mlp_only, both, all"):
        apply_lora(network, {"r": 2, "target": "attention"})
    with pytest.raises(ValueError, match="target: both and target_modules both say"):
        apply_lora(network, {"r": 2, "target": "both", "target_modules": ["q_proj"]})
    with pytest.raises(ValueError, match=r"mlp_only finds nothing in Sequential.*are: none"):
        target_modules_of(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "mlp_only")


@pytest.mark.parametrize(
    ("name", "mlp"),
    [
        ("lfm2", ["w1", "w3", "w2"]),  # a hybrid of convolutions and attention
        ("jamba", ["gate_proj", "up_proj", "down_proj"]),  # a hybrid with experts
        ("rwkv", ["feed_forward.key", "feed_forward.receptance", "feed_forward.value"]),
        ("deepseek_v2", ["gate_proj", "up_proj", "down_proj"]),
        ("mixtral", None),
        ("nemotron_h", None),
    ],
)
def test_hybrids_and_experts_are_right_or_refused(name: str, mlp: list[str] | None, caplog) -> None:
    """Experts that are no linear layers are named in a warning; where nothing is left, in an error."""
    try:
        network = MODELS[name][0]()
    except AttributeError as error:
        if "module transformers has no attribute" in str(error):
            pytest.skip(str(error))
        raise
    linear = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    has_linear_experts = any(".experts." in path for path in linear)  # in transformers 4
    if name == "mixtral" and has_linear_experts:
        assert set(target_modules_of(network, "mlp_only")) == {"w1", "w2", "w3"}
        return
    if mlp is None:
        with pytest.raises(ValueError, match="target: both finds (no MLPs with linear layers|nothing) in"):
            target_modules_of(network, "both")
        return
    assert target_modules_of(network, "mlp_only") == mlp
    warned = [record.getMessage() for record in caplog.records if "of experts without LoRA" in record.message]
    assert bool(warned) == (name in ("jamba", "deepseek_v2") and not has_linear_experts)


@pytest.mark.parametrize(
    ("name", "attention", "mlp"),
    [
        ("mbart", {"q_proj", "v_proj"}, {"fc1", "fc2"}),
        ("mt5", {"q", "v"}, {"wi_0", "wi_1", "wo"}),
        ("clip", {"q_proj", "v_proj"}, {"fc1", "fc2"}),
        ("swinv2_hf", {"query", "value"}, {"dense"}),
        ("lxmert", {"query", "value"}, {"dense"}),
        ("wav2vec2_conformer", {"linear_q", "linear_v"}, {"intermediate_dense", "output_dense"}),
        pytest.param("blip2", {"qkv", "q_proj", "query", "v_proj", "value"}, None, marks=pytest.mark.wide),
        pytest.param("mllama", {"q_proj", "v_proj"}, None, marks=pytest.mark.wide),
        pytest.param("switch", {"q", "v"}, {"wi", "wo"}, marks=pytest.mark.wide),
    ],
)
def test_a_group_is_in_every_stack(name: str, attention: set[str], mlp: set[str] | None) -> None:
    """Encoder and decoder, towers and stages: every layer that is called so in a block, and no other."""
    if name not in MODELS:
        pytest.skip(f"{name}: not in the installed transformers")
    network = MODELS[name][0]()
    stacks = anatomy_of(network).stacks
    with_lora = [path for path, _ in _layers_of(apply_lora(network, {"r": 2, "target": "attention_only"}))]

    assert {path.rpartition(".")[2] for path in with_lora} == attention
    for stack in stacks:
        for block in stack.block_paths:
            assert any(path.startswith(f"{block}.") for path in with_lora), block
    if mlp is not None:
        ends = target_modules_of(MODELS[name][0](), "mlp_only")
        assert {end.rpartition(".")[2] for end in ends} == mlp


def test_cross_attention_is_attention() -> None:
    """In a decoder's block both have LoRA."""
    sites = _layers_of(apply_lora(MODELS["mbart"][0](), {"r": 2, "target": "attention_only"}))
    decoder = {path.split(".")[-2] for path, _ in sites if ".decoder." in path}

    assert decoder == {"self_attn", "encoder_attn"}


def _layers_of(network: nn.Module) -> list[tuple[str, nn.Module]]:
    found = [(path, module) for path, module in network.named_modules() if hasattr(module, "lora_A")]
    return [(path.removeprefix("base_model.model."), module) for path, module in found]


def test_a_router_in_a_module_of_its_own_gets_no_lora() -> None:
    """It has as many outputs as there are experts beside it, whatever it is called."""

    class Router(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3, bias=False)

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = Router()
            self.up = nn.ParameterDict({"weight": nn.Parameter(torch.zeros(3, 8, 4))})
            self.shared = nn.Linear(4, 8)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn, self.mlp = nn.ModuleDict({"q_proj": nn.Linear(4, 4)}), Experts()

    network = nn.Sequential(nn.ModuleList(Block() for _ in range(2)))
    assert target_modules_of(network, "mlp_only") == ["shared"]


def test_a_convolution_holds_no_experts(caplog: pytest.LogCaptureFixture) -> None:
    """Its kernel has three dimensions too, and a layer with as many outputs is no router."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn, self.ffn = nn.ModuleDict({"q_proj": nn.Linear(4, 8)}), nn.Conv1d(4, 8, 3)
            self.mlp = nn.Linear(4, 8)

    network = nn.Sequential(nn.ModuleList(Block() for _ in range(2)))
    assert target_modules_of(network, "both") == ["q_proj", "mlp"]
    assert "experts" not in caplog.text


def test_a_router_gets_no_lora() -> None:
    """A linear layer beside the experts chooses among them; a `gate` that is part of an MLP is meant."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(4, 2)
            self.experts = nn.ModuleList(nn.ModuleDict({"gate": nn.Linear(4, 4)}) for _ in range(2))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.ModuleDict({"q_proj": nn.Linear(4, 4), "v_proj": nn.Linear(4, 4)})
            self.mlp = Experts()

    network = nn.Module()
    network.h = nn.ModuleList([Block(), Block()])
    ends = target_modules_of(network, "mlp_only")
    chosen = [path for path, _ in network.named_modules() if any(f".{path}".endswith(f".{e}") for e in ends)]
    assert chosen == [f"h.{block}.mlp.experts.{expert}.gate" for block in (0, 1) for expert in (0, 1)]


def test_queries_under_a_name_that_nobody_knows() -> None:
    """The layers of the attention are listed, to be named."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.ModuleDict({"asks": nn.Linear(2, 2), "says": nn.Linear(2, 2)})
            self.mlp = nn.Linear(2, 2)

    network = nn.Module()
    network.h = nn.ModuleList([Block(), Block()])
    with pytest.raises(ValueError, match="attention_only finds nothing.*asks, says, mlp"):
        target_modules_of(network, "attention_only")
    assert target_modules_of(network, "both") == ["asks", "says", "mlp"]
