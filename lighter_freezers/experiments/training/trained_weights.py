"""What of a fine-tuned model goes to disk: checkpoints without the frozen base, and the model at the end."""

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lighter_freezers._log import log
from lighter_freezers.engine import ledger
from lighter_freezers.experiments.causal_models import base_of
from lighter_freezers.lora.export import save_adapter

__all__ = ["drop_frozen", "fill_frozen", "has_adapter", "save_final_model"]


def drop_frozen(model: nn.Module, state: MutableMapping[str, Tensor]) -> None:
    """Take out of a state dict what nobody trains, so that it can be had from the base model again.

    What a LoRA update was merged into stays, or what PiSSA and its like took a part of; so do buffers.

    Args:
        model: A module that was loaded from a base model.
        state: Its state dict.
    """
    merged = {
        id(parameter)
        for module in model.modules()
        if getattr(module, "base_is_changed", False) or getattr(module, "base_is_moved", False)
        for parameter in module.parameters()
    }
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if ledger.is_user_frozen(parameter) and id(parameter) not in merged:
            state.pop(name, None)


def fill_frozen(model: nn.Module, state: MutableMapping[str, Tensor]) -> None:
    """Put in again what `drop_frozen` took out, so that loading stays strict about everything else."""
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if ledger.is_user_frozen(parameter):
            state.setdefault(name, parameter.detach())


def has_adapter(network: nn.Module) -> bool:
    """Whether PEFT has put an adapter on a network."""
    return bool(getattr(network, "peft_config", None))


def save_final_model(network: nn.Module, folder: Path, tokenizer: Any | None) -> None:
    """Write the adapter if there is one, else the whole model; and the tokenizer.

    Args:
        network: A causal language model of transformers.
        folder: Where to.
        tokenizer: Of transformers. None: not known here, so it is not written.
    """
    if has_adapter(network):
        try:
            save_adapter(network, folder)
        except RuntimeError as error:  # the run is over and its checkpoints are there: no reason to fail it
            log.warning("the adapter was not saved to %s. %s", folder, error)
            return
    else:
        base_of(network).save_pretrained(str(folder))
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))
    log.info("saved the final model to %s", folder)
