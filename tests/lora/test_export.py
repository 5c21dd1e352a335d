"""`save_adapter`: stock PEFT, in a process that never imports this package, has the same logits."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lighter_freezers import GPT, apply_lora, resize_lora_layer, save_adapter, set_layer_lora_rank
from lighter_freezers.lora.sites import find_lora_sites
from tests.lab import first_now
from tests.lora.lora_lab import VARIANTS

RANKS = (0, 1, 3, 4, 7, 12)
SIZES = {"vocab_size": 64, "block_size": 16, "n_layer": 3, "n_head": 2, "n_embd": 16}

# Written into a script that stock PEFT runs alone.
PLAIN = """
import torch
from torch import nn

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(32, 16)
        self.proj = nn.Linear(16, 16)
        self.enc = nn.ModuleDict({"proj": nn.Linear(16, 16), "conv": nn.Conv2d(1, 4, 3, padding=1)})
        self.out = nn.Linear(64, 8)

    def forward(self, x):
        x = self.enc["proj"](torch.tanh(self.proj(self.emb(x))))
        return self.out(self.enc["conv"](x[:, None]).mean(2).flatten(1))

def base():
    torch.manual_seed(0)
    return Plain()
"""
GPT2 = """
import torch
from transformers import GPT2Config, GPT2LMHeadModel

def base():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=32, n_positions=16, n_layer=2, n_head=2, n_embd=16,
                        bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).eval()
"""
LOAD = """
import sys, warnings
warnings.simplefilter("ignore")
from peft import PeftModel
for folder in sys.argv[1:]:
    model = PeftModel.from_pretrained(base(), folder).eval()
    x = torch.load(folder + "/x.pt")
    y = model(x)
    torch.save(getattr(y, "logits", y), folder + "/y.pt")
assert not any(name.split(".")[0] == "lighter_freezers" for name in sys.modules)
"""
TARGETS = {
    "Plain": (PLAIN, ["emb", "proj", "conv"], {}),
    "GPT2": (GPT2, ["wte", "c_attn", "c_fc"], {"fan_in_fan_out": True}),
}


def base(source: str) -> nn.Module:
    """What the script builds."""
    scope: dict[str, Any] = {}
    exec(source, scope)
    return scope["base"]()


def spread(model: nn.Module, ranks: tuple[int, ...]) -> None:
    """Give every layer with LoRA a rank of its own, and weights that are not zero."""
    for number, site in enumerate(find_lora_sites(model).values()):
        resize_lora_layer(site.factors.layer, min(ranks[number % len(ranks)], *site.factors.shape))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and parameter.any():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
            elif "lora_" in name and not _is_empty_convolution(model, name):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def _is_empty_convolution(model: nn.Module, name: str) -> bool:
    layer = model.get_submodule(name.split(".lora_")[0])
    return layer.r["default"] == 0


def output(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    result = model.eval()(x)
    return getattr(result, "logits", result).detach()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("kind", first_now(TARGETS))
def test_stock_peft_has_the_same_logits(kind: str, tmp_path: Path) -> None:
    """Plain, rsLoRA and DoRA; every rank, 0 included; one way to wrap and the other; other defaults."""
    from peft import LoraConfig, get_peft_model

    source, targets, options = TARGETS[kind]
    x = torch.randint(32, (4, 16), generator=torch.Generator().manual_seed(2))
    expected = {}
    for variant, extra in VARIANTS.items():
        for start in range(0, len(RANKS), 2):
            config = {"r": 4, "lora_alpha": 6, "target_modules": targets, **options, **extra}
            if start == 2:
                config["rank_pattern"] = {"proj": 5, "h.1.attn.c_attn": 5}
                config["alpha_pattern"] = {"proj": 3, "h.1.attn.c_attn": 7}
                config["rank_pattern"].pop("proj" if kind == "GPT2" else "h.1.attn.c_attn")
                config["alpha_pattern"].pop("proj" if kind == "GPT2" else "h.1.attn.c_attn")
            network = base(source)
            model = (
                get_peft_model(network, LoraConfig(**config)) if start == 4 else apply_lora(network, config)
            )
            spread(model, RANKS[start:] + RANKS[:start])
            folder = tmp_path / f"{variant}{start}"
            save_adapter(model, folder)
            torch.save(x, folder / "x.pt")
            expected[folder] = output(model, x)
    script = tmp_path / "load.py"
    script.write_text(source + LOAD)
    command = [sys.executable, str(script), *map(str, expected)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    assert done.returncode == 0, done.stderr[-3000:]
    for folder, logits in expected.items():
        assert torch.equal(torch.load(folder / "y.pt"), logits), folder.name
    assert len({tuple(y.flatten()[:5].tolist()) for y in expected.values()}) == len(expected)


def reloaded(model: GPT, state: dict[str, torch.Tensor], folder: Path, **options: Any) -> Any:
    """The adapter of a GPT on a twin of its base."""
    from peft import PeftModel

    save_adapter(model, folder, **options)
    twin = GPT(SIZES)
    twin.load_state_dict(state)
    return PeftModel.from_pretrained(twin, folder)


def tokens() -> torch.Tensor:
    return torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(3))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_a_gpt_with_a_tied_head(tmp_path: Path) -> None:
    """LoRA on the embedding adapts the input side; the head keeps the base weight, here and there."""
    model = GPT(SIZES)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    apply_lora(model, {"r": 4, "target_modules": ["wte", "c_attn"]})
    spread(model, (3, 8, 0, 5))

    loaded = reloaded(model, state, tmp_path)
    assert torch.equal(loaded(tokens())[0], model(tokens())[0])
    assert torch.equal(loaded.get_base_model().lm_head.weight, state["lm_head.weight"])


@pytest.mark.parametrize("ranks", [(0,), (0, 0, 4)])
def test_layers_without_lora(ranks: tuple[int, ...], tmp_path: Path) -> None:
    """Left out of the file; where there is no other, one of zeros stands for them all."""
    model = GPT(SIZES)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    apply_lora(model, {"r": 4, "target_modules": ["c_attn"]})
    spread(model, ranks)

    loaded = reloaded(model, state, tmp_path)
    assert torch.equal(loaded(tokens())[0], model(tokens())[0])
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["r"] == 4
    assert bool(config["exclude_modules"]) == (len(ranks) == 3)


def test_one_of_several_adapters(tmp_path: Path) -> None:
    """The ranks and weights of the one that is named."""
    model = GPT(SIZES)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    apply_lora(model, {"r": 4, "target_modules": ["c_attn"]})
    apply_lora(model, {"r": 2, "target_modules": ["c_attn", "c_fc"]}, adapter_name="other")
    for number, site in enumerate(find_lora_sites(model, "other").values()):
        resize_lora_layer(site.factors.layer, number, "other")
        with torch.no_grad():
            site.factors.parameters[1].fill_(0.1)

    loaded = reloaded(model, state, tmp_path, adapter_name="other")
    assert torch.equal(loaded(tokens())[0], model(tokens())[0])


def test_adapters_put_there_layer_by_layer(tmp_path: Path) -> None:
    """Their names are in the config; the base trains, so it has to be saved too."""
    model = GPT(SIZES)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    set_layer_lora_rank(model, "attn.1", 4)
    set_layer_lora_rank(model, "mlp.0", 2)
    with torch.no_grad():
        for site in find_lora_sites(model).values():
            site.factors.parameters[1].fill_(0.1)
    with pytest.raises(RuntimeError, match="train or trained.*base_is_saved=True"):
        save_adapter(model, tmp_path)

    loaded = reloaded(model, state, tmp_path, base_is_saved=True)
    assert torch.equal(loaded(tokens())[0], model(tokens())[0])


def test_a_merged_base_is_not_forgotten(tmp_path: Path) -> None:
    """Not even by a model that was loaded from its weights alone."""
    model = GPT(SIZES)
    apply_lora(model, {"r": 4, "target_modules": ["c_attn"]})
    spread(model, (4,))
    resize_lora_layer(model.transformer.h[0].attn.c_attn, 0, on_zero="merge", model=model)
    twin = apply_lora(GPT(SIZES), {"r": 4, "target_modules": ["c_attn"]})
    twin.load_state_dict(model.state_dict())

    for each in (model, twin):
        with pytest.raises(RuntimeError, match=r"merged into them: transformer\.h\.0\.attn\.c_attn"):
            save_adapter(each, tmp_path)
    save_adapter(model, tmp_path, base_is_saved=True)


def test_an_unknown_adapter_is_named(tmp_path: Path) -> None:
    model = apply_lora(GPT(SIZES), {"r": 4, "target_modules": ["c_attn"]})
    with pytest.raises(ValueError, match="no adapter 'othr'.*'default'"):
        save_adapter(model, tmp_path, "othr")
    with pytest.raises(ValueError, match="It has: none"):
        save_adapter(GPT(SIZES), tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """With the argument, whether a file has its name or is in the way to it."""
    model = apply_lora(GPT(SIZES), {"r": 4, "target_modules": ["c_attn"]})
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "adapter"):
        with pytest.raises(OSError, match=f"path: no folder can be made there.*{path}"):
            save_adapter(model, path)
