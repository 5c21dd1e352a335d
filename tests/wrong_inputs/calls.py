"""Valid arguments for every public callable, to which one wrong value is added."""

from typing import Any

import torch
from torch import nn

from lighter_freezers import GPT, GPTConfig
from tests.lab import TinyNet, batches, regression, trainer

# Made by the package, not by users, or with Lightning's arguments: nothing checks them.
VALUES_OF_THE_PACKAGE = (
    *("EvaluationResult", "TaskScores", "Window"),
    *("ModelMode", "ResultsSummary", "TensorBoardLogger"),
)
MISSING = "/proc/nowhere/model"  # what comes to load this has accepted everything else


class Blocks(nn.Module):
    """Three blocks between an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3))
        self.head = nn.Linear(8, 7)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def tiny_gpt(**options: Any) -> GPT:
    return GPT(GPTConfig(block_size=8, vocab_size=16, n_layer=1, n_head=2, n_embd=8, **options))


def adapted() -> Any:
    from lighter_freezers import apply_lora

    return apply_lora(Blocks(), {"r": 2, "target_modules": ["blocks.0.0"]})


def lora_layer() -> Any:
    return next(m for m in adapted().modules() if hasattr(m, "lora_A"))


def sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD(TinyNet().parameters(), lr=0.1)


_RANKS = [{"step": 5, "rank_pattern": {"block.0": 2}}]
_EVALUATION = {"model_path": MISSING}
_MODEL = {"model": Blocks}
_ADAPTED = {"model": adapted}

# callable -> its arguments; a function here is called for each row
CALLS: dict[str, dict[str, Any]] = {
    "AdaptiveScheduler": {"optimizer": sgd, "initial_lr": 0.1},
    "FreezeOut": {"num_steps": 10},
    "CausalLMModule": {"network": TinyNet},
    "Freezer": {"names": "layer1.weight", "until_step": 5},
    "GPT": {"config": lambda: GPTConfig(block_size=8, vocab_size=16, n_layer=1, n_head=2, n_embd=8)},
    "GPTConfig": {"n_embd": 8, "n_head": 2},
    "GPTModule": {"network": tiny_gpt},
    "GradualUnfreezer": {"model": Blocks, "total_epochs": 3, "verbose": False},
    "GradualUnfreezing": {"every_n_epochs": 1},
    "LayerOperations": {"operations": [{"name": "freeze_layer", "value": "block.0", "max_wait_iters": 1}]},
    "LayerPolicy": {"every_n_steps": 10},
    "LoraPhases": {"strategy": "both->mlp->attn", "phase1_end": 10, "phase2_end": 20},
    "LoraRankScheduler": {"schedule": _RANKS},
    "SequenceScoreDataModule": {"train_file": MISSING, "val_file": MISSING},
    "TokenLabelDataModule": {"train_file": MISSING, "val_file": MISSING, "class_names": ["a", "b"]},
    "WarmupOnlyScheduler": {"optimizer": sgd, "learning_rate": 0.1, "warmup_iters": 5},
    "anatomy_of": _MODEL,
    "apply_lora": {"network": Blocks, "config": {"r": 2, "target_modules": ["blocks.0.0"]}},
    "compile_blocks": _MODEL,
    "config_from_checkpoint": {"source": MISSING},
    "create_loss_modifier_pipeline": {"config": {"loss_modifiers": {}}},
    "evaluate": {"task": "e2e_nlg", **_EVALUATION},
    "evaluate_e2e": _EVALUATION,
    "evaluate_multi_nli": _EVALUATION,
    "evaluate_samsum": _EVALUATION,
    "evaluate_wikisql": _EVALUATION,
    "freeze_by_name": {"model": Blocks, "patterns": "head"},
    "unfreeze_by_name": {"model": Blocks, "patterns": "head"},
    "load_pretrained": {"model": tiny_gpt, "source": MISSING},
    "measure_gradient_norms": _MODEL,
    "plan": {
        "trainer": lambda: trainer("pytorch_lightning", max_steps=2),
        "model": lambda: regression("pytorch_lightning"),
        "train_dataloaders": batches,
    },
    "resize_lora_layer": {"layer": lora_layer, "r": 1},
    "save_adapter": {"model": adapted, "path": MISSING},
    "set_layer_lora_rank": {"model": adapted, "layer": "block.0", "rank": 1},
    "trunk_and_head_groups": {"model": lambda: tiny_gpt(tie_weights=False)},
    **{
        name: {"model": Blocks, "n": 1}
        for name in (
            "freeze_except_last_n",
            "freeze_first_n_layers",
            "freeze_last_n_layers",
            "unfreeze_first_n_layers",
            "unfreeze_last_n_layers",
        )
    },
}

_N_LAYERS = """freeze_except_last_n freeze_first_n_layers freeze_last_n_layers
unfreeze_first_n_layers unfreeze_last_n_layers"""
_ONLY_MODEL = """freeze_embeddings freeze_lm_head freeze_model get_frozen_params get_frozen_percentage
get_layer_status get_memory_savings_estimate get_num_layers get_total_params get_trainable_params
print_layer_status setup_lp_lora_style unfreeze_embeddings unfreeze_lm_head unfreeze_model"""
CALLS |= {name: {"model": Blocks, "n": 1} for name in _N_LAYERS.split()}
CALLS |= dict.fromkeys(_ONLY_MODEL.split(), _MODEL)


def arguments_for(name: str) -> dict[str, Any]:
    """Valid arguments, new ones where they are models."""
    given = CALLS.get(name, {})
    return {
        key: value() if callable(value) and not isinstance(value, nn.Module) else value
        for key, value in given.items()
    }
