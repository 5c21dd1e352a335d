"""Freeze, thaw and count the layers of any `nn.Module`; no Trainer is needed."""

from lighter_freezers.layers.counts import (
    get_frozen_params,
    get_frozen_percentage,
    get_num_layers,
    get_total_params,
    get_trainable_params,
)
from lighter_freezers.layers.first_and_last import (
    freeze_except_last_n,
    freeze_first_n_layers,
    freeze_last_n_layers,
    unfreeze_first_n_layers,
    unfreeze_last_n_layers,
)
from lighter_freezers.layers.gradual_unfreezer import GradualUnfreezer
from lighter_freezers.layers.layer_status import LayerStatus, get_layer_status, print_layer_status
from lighter_freezers.layers.lp_lora import setup_lp_lora_style
from lighter_freezers.layers.parts import (
    freeze_by_name,
    freeze_embeddings,
    freeze_lm_head,
    freeze_model,
    unfreeze_by_name,
    unfreeze_embeddings,
    unfreeze_lm_head,
    unfreeze_model,
)

__all__ = [
    "GradualUnfreezer",
    "LayerStatus",
    "freeze_by_name",
    "freeze_embeddings",
    "freeze_except_last_n",
    "freeze_first_n_layers",
    "freeze_last_n_layers",
    "freeze_lm_head",
    "freeze_model",
    "get_frozen_params",
    "get_frozen_percentage",
    "get_layer_status",
    "get_num_layers",
    "get_total_params",
    "get_trainable_params",
    "print_layer_status",
    "setup_lp_lora_style",
    "unfreeze_by_name",
    "unfreeze_embeddings",
    "unfreeze_first_n_layers",
    "unfreeze_last_n_layers",
    "unfreeze_lm_head",
    "unfreeze_model",
]
