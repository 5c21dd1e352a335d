"""Saves fine-tuned models: checkpoints without the frozen base, and the final model."""

from collections.abc import MutableMapping
from pathlib import Path

from torch import Tensor, nn

from lighter_freezers._log import log
from lighter_freezers.engine import ledger
from lighter_freezers.experiments.causal_models import Tokenizer, base_of
from lighter_freezers.lora.export import save_adapter

__all__ = ["drop_frozen", "fill_frozen", "has_adapter", "save_final_model"]


def drop_frozen(model: nn.Module, state: MutableMapping[str, Tensor]) -> None:
    """Remove permanently frozen weights from a state dict, since the base model has it.

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
    """Restore what `drop_frozen` removed, so that loading stays strict about everything else."""
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if ledger.is_user_frozen(parameter):
            state.setdefault(name, parameter.detach())


def has_adapter(network: nn.Module) -> bool:
    """Whether a network has a PEFT adapter."""
    return bool(getattr(network, "peft_config", None))


def save_final_model(network: nn.Module, folder: Path, tokenizer: Tokenizer | None) -> None:
    """Write the adapter if there is one, else the whole model; and the tokenizer.

    Args:
        network: A causal language model of transformers.
        folder: The output folder.
        tokenizer: A tokenizer of transformers. None: it is unknown and not written.
    """
    if has_adapter(network):
        try:
            save_adapter(network, folder)
        except RuntimeError as error:  # the run has ended and has its checkpoints, so this must not fail it
            log.warning("the adapter was not saved to %s. %s", folder, error)
            return
    else:
        base_of(network).save_pretrained(str(folder))
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))
    log.info("saved the final model to %s", folder)
