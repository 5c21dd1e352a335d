"""Edges of PEFT: experts, biases, tokens, modules to save, adapters of any name, other tuners, merges."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from lighter_freezers import (
    LoraPhases,
    LoraRankScheduler,
    apply_lora,
    resize_lora_layer,
    save_adapter,
    set_layer_lora_rank,
)
from lighter_freezers.lora.relora import merge_lora_weights
from lighter_freezers.lora.restore import install_rank_restore
from lighter_freezers.lora.set_rank import resize_sites
from lighter_freezers.lora.sites import find_lora_sites
from tests.lab import trainer
from tests.lora.stock_peft import X, base, stock_outputs, stock_parameters, train

pytestmark = [
    pytest.mark.wide,
    pytest.mark.filterwarnings(
        "ignore:Already found:UserWarning",
        "ignore:.*no bias",
        "ignore:.*AdaLora",
        "ignore:.*did not match any targeted:RuntimeWarning",
    ),
]

EXPERTS = {"r": 4, "target_modules": ["q"], "target_parameters": ["experts.up", "experts.down"]}
TOKENS = {"r": 4, "target_modules": ["q", "k"], "trainable_token_indices": {"emb": [1, 2]}}
SAVED: dict[str, dict[str, Any]] = {
    "experts": {**EXPERTS, "alpha_pattern": {"experts.down": 32}},
    "experts of two ranks": {**EXPERTS, "rank_pattern": {"experts.up": 2, "q": 3}},
    "experts alone": {"r": 4, "target_parameters": ["experts.down"], "alpha_pattern": {"down": 3}},
    "tokens": TOKENS,
    "modules to save": {"r": 4, "target_modules": ["q", "k"], "modules_to_save": ["head"]},
    "lora_only": {"r": 4, "target_modules": ["q", "k"], "bias": "lora_only"},
    "all biases": {"r": 4, "target_modules": ["q", "k"], "bias": "all"},
    "lora_bias": {"r": 4, "target_modules": ["q", "k"], "lora_bias": True},
    "mica": {"r": 4, "target_modules": ["q", "k"], "init_lora_weights": "mica"},
}
if hasattr(peft, "VeloraConfig"):  # not in PEFT 0.18
    SAVED["velora"] = {"r": 4, "target_modules": ["q", "k"], "velora_config": peft.VeloraConfig()}
NO_RANKS = ("mica", "velora", "experts alone")


def adapted(options: dict[str, Any]) -> Any:
    kind = "Moe" if "target_parameters" in options else "Plain"
    return get_peft_model(base(kind), LoraConfig(**copy.deepcopy(options)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], tuple[Path, Any, torch.Tensor]]:
    """Models, what they compute, and folders with their adapters: as they were, and with q and k changed."""
    root, results = tmp_path_factory.mktemp("adapters"), {}
    for name, options in SAVED.items():
        for number, ranks in enumerate([{}, {"q": 6, "k": 2}, {"q": 0, "k": 3}]):
            if ranks and name in NO_RANKS:
                continue
            model = adapted(options)
            train(model)
            sites = {site.name: site for site in find_lora_sites(model).values()}
            chosen = {path: ranks[end] for path in sites if (end := path[-1]) in ranks}
            resize_sites(model, chosen, sites)
            folder = root / f"{name.replace(' ', '-')}-{number}"
            save_adapter(model, folder)
            results[name, number] = folder, model, model(X).detach()
    for kind in ("Plain", "Moe"):
        folders = [
            folder for (name, _), (folder, *_) in results.items() if ("experts" in name) == (kind == "Moe")
        ]
        stock_outputs(folders, kind)
    return results


@pytest.mark.parametrize("number", range(3), ids=["as it was", "grown and shrunk", "rank 0"])
@pytest.mark.parametrize("name", SAVED)
def test_stock_peft_computes_the_same(name: str, number: int, saved: Any) -> None:
    """Bit for bit: no base moved."""
    if number and name in NO_RANKS:
        assert (name, number) not in saved
        return
    folder, _, expected = saved[name, number]
    assert torch.equal(torch.load(folder / "y.pt"), expected)


@pytest.mark.parametrize("name", ["tokens", "modules to save"])
def test_what_peft_saves_beside_the_factors(name: str, saved: Any, tmp_path: Path) -> None:
    """The same keys and values as stock PEFT's."""
    from safetensors.torch import load_file

    folder, model, _ = saved[name, 0]
    model.save_pretrained(tmp_path)
    theirs, ours = (load_file(f / "adapter_model.safetensors") for f in (tmp_path, folder))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_bias_is_where_it_was_trained(saved: Any) -> None:
    """Rank 0 keeps it in the layer, and in the file."""
    folder, model, _ = saved["lora_only", 2]
    bias = model.base_model.model.q.base_layer.bias
    assert not torch.equal(bias, base().q.bias)  # type: ignore[union-attr]
    assert torch.equal(stock_parameters(folder)["base_model.model.q.base_layer.bias"], bias)


@pytest.mark.parametrize("name", NO_RANKS)
def test_a_layer_of_fixed_rank_is_refused_by_name(name: str) -> None:
    """In one sentence, wherever a rank is asked for."""
    model = adapted(SAVED[name])
    layer = "experts" if "experts" in name else "q"
    with pytest.raises(ValueError, match=f"The rank of '.*{layer}.*' cannot change: "):
        set_layer_lora_rank(model, layer, 2)
    schedule = LoraRankScheduler([{"step": 1, "rank_pattern": {layer: 2}}])
    with pytest.raises(ValueError, match=f"The rank of '.*{layer}.*' cannot change: "):
        trainer("pytorch_lightning", max_steps=2, callbacks=[schedule]).fit(regression(model), loader())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_alora_is_refused_by_name() -> None:
    options = {"r": 4, "target_modules": ["c_fc"], "alora_invocation_tokens": [1], "fan_in_fan_out": True}
    model = get_peft_model(gpt2(), LoraConfig(**options, task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="ALoraLinearVariant"):
        set_layer_lora_rank(model, "c_fc", 2)


def test_experts_beside_layers_can_be_scheduled(tmp_path: Path) -> None:
    """The layers change, a name of experts is refused, and all of it is exported."""
    model = adapted(SAVED["experts"])
    schedule = LoraRankScheduler([{"step": 1, "rank_pattern": {"q": 7}}])
    trainer("pytorch_lightning", max_steps=3, callbacks=[schedule]).fit(regression(model), loader())
    assert [site.factors.rank for site in find_lora_sites(model).values()] == [7]
    save_adapter(model, tmp_path / "a")
    assert torch.equal(stock_outputs([tmp_path / "a"], "Moe")[0], model(X))
    with pytest.raises(ValueError, match="The rank of '.*experts' cannot change: .*ParamWrapper"):
        set_layer_lora_rank(model, "experts", 2)


def test_the_patterns_of_experts() -> None:
    """PEFT's keys for parameters are known; rank 0 is refused, as PEFT has none for them."""
    options = {**EXPERTS, "rank_pattern": {"experts.up": 2}, "alpha_pattern": {"down": 8, "q": 2}}
    model: Any = apply_lora(base("Moe"), options)
    up, down = sorted(
        (m for m in model.modules() if type(m).__name__ == "ParamWrapper"),
        key=lambda m: -len(m.parameter_name),
    )[::-1]
    assert (up.parameter_name, up.r["default"], down.r["default"]) == ("up", 2, 4)
    assert (up.scaling["default"], down.scaling["default"], model.q.scaling["default"]) == (4.0, 2.0, 0.5)
    with pytest.raises(ValueError, match="'experts.up' is a parameter.*target_parameters"):
        apply_lora(base("Moe"), {**EXPERTS, "rank_pattern": {"up": 0}})


def regression(model: nn.Module) -> Any:
    import pytorch_lightning as pl

    class Regression(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = model

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.network(X).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.01)

    return Regression()


def loader() -> Any:
    return torch.utils.data.DataLoader(range(8))  # type: ignore[arg-type]


def test_an_adapter_of_another_name(tmp_path: Path) -> None:
    """The only one there is, is meant where no name is given."""
    model = apply_lora(base(), {"r": 4, "target_modules": ["q", "k"]}, "mine")
    train(model)
    set_layer_lora_rank(model, "q", 7)
    set_layer_lora_rank(model, "k", 0, on_zero="drop")
    assert [site.factors.rank for site in find_lora_sites(model).values()] == [7, 0]
    assert list(model.q.r) == ["mine"]
    save_adapter(model, tmp_path / "a")
    assert torch.equal(stock_outputs([tmp_path / "a"])[0], model(X))
    assert merge_lora_weights(model) == ["q"]

    schedule = LoraRankScheduler([{"step": 1, "rank_pattern": {"q": 2}}])
    with pytest.raises(ValueError, match="no LoRA adapter 'default'. Write adapter_name: mine"):
        trainer("pytorch_lightning", max_steps=2, callbacks=[schedule]).fit(regression(model), loader())
    with pytest.raises(ValueError, match=r"attn.q' has LoRA with another adapter \('mine'\)"):
        set_layer_lora_rank(named(model), "attn.0", 2, adapter_name="default")


def named(model: Any) -> nn.Module:
    """The layer q as the attention of a block."""
    blocks = [
        nn.ModuleDict({"attn": nn.ModuleDict({"q": q}), "mlp": nn.Linear(2, 2)})
        for q in (model.q, nn.Linear(2, 2))
    ]
    return nn.ModuleDict({"h": nn.ModuleList(blocks)})


def test_of_several_adapters_each_has_its_ranks(tmp_path: Path) -> None:
    """And its file; the one that is not active is left alone."""
    model: Any = get_peft_model(base(), LoraConfig(r=4, target_modules=["q", "k"], init_lora_weights=False))
    model.add_adapter("other", LoraConfig(r=2, target_modules=["k"], init_lora_weights=False))
    set_layer_lora_rank(model, "q", 0, on_zero="drop")
    set_layer_lora_rank(model, "k", 5, adapter_name="other")
    folders = []
    for name in ("default", "other"):
        model.set_adapter(name)
        folders.append(tmp_path / name)
        save_adapter(model, folders[-1], name)
        torch.save(model(X).detach(), folders[-1] / "expected.pt")
    for folder, stock in zip(folders, stock_outputs(folders), strict=True):
        assert torch.equal(stock, torch.load(folder / "expected.pt"))
    assert model.peft_config["default"].exclude_modules == "q"
    assert model.peft_config["other"].rank_pattern == {"k": 5}
    with pytest.raises(ValueError, match="the adapter 'default' is not active"):
        set_layer_lora_rank(model, "k", 0)


OTHERS: dict[str, Any] = {
    "AdaLoraConfig": peft.AdaLoraConfig(
        init_r=4, target_r=2, total_step=9, tinit=1, tfinal=2, target_modules=["q"]
    ),
    "IA3Config": peft.IA3Config(target_modules=["q"], feedforward_modules=[]),
    "LoHaConfig": peft.LoHaConfig(target_modules=["q"]),
    "LoKrConfig": peft.LoKrConfig(target_modules=["q"]),
    "VeraConfig": peft.VeraConfig(target_modules=["k"], r=2),
    "OFTConfig": peft.OFTConfig(target_modules=["q"], oft_block_size=4),
    "BOFTConfig": peft.FourierFTConfig(target_modules=["q"], n_frequency=4),
}
CALLS: dict[str, Callable[[Any], Any]] = {
    "set_layer_lora_rank": lambda model: set_layer_lora_rank(model, "q", 2),
    "apply_lora": lambda model: apply_lora(model, {"r": 2, "target_modules": ["head"]}),
    "save_adapter": lambda model: save_adapter(model, "/nowhere"),
    "merge_lora_weights": lambda model: merge_lora_weights(model),
    "install_rank_restore": lambda model: install_rank_restore(model),
    "LoraRankScheduler": lambda model: fit(model, LoraRankScheduler([{"step": 1, "rank_pattern": {"q": 2}}])),
    "LoraPhases": lambda model: fit(
        model, LoraPhases(phases=[{"start_step": 0, "active_modules": ["attention"]}])
    ),
}


def fit(model: nn.Module, callback: Any) -> None:
    trainer("pytorch_lightning", max_steps=2, callbacks=[callback]).fit(regression(model), loader())


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", OTHERS)
def test_another_tuner_is_refused_in_one_sentence(kind: str, call: str) -> None:
    """By every public function, with the model as it was."""
    model = get_peft_model(base(), copy.deepcopy(OTHERS[kind]))
    names = list(model.state_dict())
    with pytest.raises(ValueError, match=f"adapters of PEFT that are no LoRA.*{type(OTHERS[kind]).__name__}"):
        CALLS[call](model)
    assert list(model.state_dict()) == names


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=16, n_layer=1, n_head=2, n_embd=16))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_prompt_tuning_is_refused_in_one_sentence() -> None:
    model = get_peft_model(gpt2(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    for call in ("set_layer_lora_rank", "save_adapter", "apply_lora", "merge_lora_weights"):
        with pytest.raises(ValueError, match="no LoRA.*PromptTuningConfig"):
            CALLS[call](model)


@pytest.mark.parametrize("kind", OTHERS)
def test_the_config_of_another_tuner_is_refused(kind: str) -> None:
    with pytest.raises((TypeError, ValueError), match="a mapping or a LoraConfig|get_peft_model"):
        apply_lora(base(), OTHERS[kind])


def test_a_layer_of_adalora_is_refused() -> None:
    model: Any = get_peft_model(base(), copy.deepcopy(OTHERS["AdaLoraConfig"]))
    with pytest.raises(RuntimeError, match="AdaLoRA, another tuner"):
        resize_lora_layer(model.base_model.model.q, 2)


def llama(tied: bool) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, tie_word_embeddings=tied, **sizes))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("call", ["set_layer_lora_rank", "save_adapter", "install_rank_restore"])
def test_factors_of_two_layers_are_refused(call: str) -> None:
    """PEFT's #2864: where it ties them, they would train and merge twice."""
    config = peft.LoraConfig(r=2, target_modules=["embed_tokens"], ensure_weight_tying=True)
    model = get_peft_model(llama(tied=True), config)
    with pytest.raises(ValueError, match="two layers of this model the same factors"):
        CALLS[call](model)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_nothing_is_shared_where_nothing_is_tied() -> None:
    """PEFT warns that there is nothing to tie, and the ranks can change."""
    config = peft.LoraConfig(r=2, target_modules=["embed_tokens"], ensure_weight_tying=True)
    with pytest.warns(UserWarning, match="tie"):
        model = get_peft_model(llama(tied=False), config)
    [(_, change)] = set_layer_lora_rank(model, "embed_tokens", 4)

    assert change.rank_after == 4


MERGES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "max_norm": (lambda: nn.Embedding(32, 8, max_norm=1.0), {}, "max_norm"),
    "padding_mode": (
        lambda: nn.Conv1d(8, 8, 3, padding=1, padding_mode="circular"),
        {},
        "padding_mode='circular'",
    ),
    "no base bias": (lambda: nn.Linear(8, 8, bias=False), {"lora_bias": True}, "LoRA bias"),
}


@pytest.mark.parametrize("kind", MERGES)
def test_a_merge_that_would_change_the_function_is_refused(kind: str) -> None:
    """All or none: the layer beside it stays as it was, at set-up and in one call."""
    make, options, reason = MERGES[kind]
    network = nn.ModuleDict({"fine": nn.Linear(8, 8), "wrong": make()})
    fine = {} if "lora_bias" not in options else options
    model: Any = apply_lora(network, {"r": 2, "target_modules": ["fine", "wrong"], **fine})
    before = copy.deepcopy(model.state_dict())
    sites = find_lora_sites(model)
    with pytest.raises(ValueError, match=f"would change what it computes: .*{reason}"):
        resize_sites(model, dict.fromkeys(sites, 0), sites, on_zero="merge")
    with pytest.raises(ValueError, match=reason):
        merge_lora_weights(model)
    schedule = LoraRankScheduler([{"step": 1, "rank_pattern": {".*": 0}}], on_zero="merge")
    with pytest.raises(ValueError, match=f"wrong'.*{reason}"):
        trainer("pytorch_lightning", max_steps=2, callbacks=[schedule]).fit(regression(model), loader())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_merge_of_broken_factors_is_refused() -> None:
    """Before the first of them is merged."""
    model: Any = apply_lora(base(), {"r": 4, "target_modules": ["q", "k"], "init_lora_weights": False})
    with torch.no_grad():
        model.k.lora_B["default"].weight[0, 0] = float("nan")
    weight = model.q.base_layer.weight.clone()
    sites = find_lora_sites(model)
    with pytest.raises(ValueError, match="not finite"):
        resize_sites(model, dict.fromkeys(sites, 0), sites, on_zero="merge")
    assert torch.equal(model.q.base_layer.weight, weight)
