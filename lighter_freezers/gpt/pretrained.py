"""Loads pretrained weights into a GPT: the whole trunk or an error, and of the heads what fits.

`checkpoint_files.py` reads files, `checkpoint_names.py` converts names.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lighter_freezers._log import log
from lighter_freezers.arguments import at_least, checked
from lighter_freezers.gpt.checkpoint_config import INVISIBLE, needed_config, needs_in_words, unmet_needs
from lighter_freezers.gpt.checkpoint_files import read_checkpoint
from lighter_freezers.gpt.checkpoint_names import HEAD, POSITIONS, TOKENS, is_of_trunk, with_gpt_names
from lighter_freezers.gpt.config import GPTConfig
from lighter_freezers.selection.name_summary import NameSummary, first_few
from lighter_freezers.selection.names import named_aliases, unwrapped

__all__ = ["LoadReport", "config_from_checkpoint", "load_pretrained"]

OTHER_HEADS = ("classifier_head.weight", "sequence_head.weight")  # with one of these, no lm_head


@dataclass(frozen=True)
class LoadReport:
    """What was loaded from a checkpoint, and what was not.

    Attributes:
        source: The checkpoint, as requested.
        loaded: Parameters of the model that now have values from the checkpoint.
        missing: Parameters of heads that it lacks; they keep their initial values.
        left_over: Tensors of the checkpoint that the model does not have.
        mismatched: Parameters of heads with another shape in it; they keep their initial values.
        grown: New rows, which keep their initial values: `transformer.wte.weight[1024:1025]`.
        cropped: The part that was used where the checkpoint has more: `transformer.wpe.weight[:128]`.
    """

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    left_over: tuple[str, ...]
    mismatched: tuple[str, ...]
    grown: tuple[str, ...]
    cropped: tuple[str, ...]

    def __str__(self) -> str:
        titles = {
            "missing": "not in it, so at initial values",
            "mismatched": "of another shape there, so at initial values",
            "grown": "new rows at initial values",
            "cropped": "cropped to",
            "left_over": "not used",
        }
        details = [
            f"; {title}: {first_few(getattr(self, key), 4)}"
            for key, title in titles.items()
            if getattr(self, key)
        ]
        return f"loaded {len(self.loaded)} parameters from {self.source}{''.join(details)}"


@checked
def load_pretrained(model: nn.Module, source: str | os.PathLike[str]) -> LoadReport:
    """Copy the weights of a checkpoint into a GPT: the whole trunk, and the heads that fit.

    Parameters keep their identity, dtype, device and flags. After an error nothing has been copied.

    | in the checkpoint | |
    |---|---|
    | fewer tokens | its rows are copied, the new rows keep their initial values |
    | more positions | the first `block_size` are copied |
    | no `lm_head` and no other head | an untied `lm_head` gets the token embedding, as in GPT-2 |
    | a head that the model has, in another shape | the model's keeps its initial values |
    | a head that the model does not have | left over |

    Args:
        model: The GPT, also compiled or wrapped in DDP.
        source: nanoGPT's `ckpt.pt`, a Lightning `.ckpt`, a state dict (`.pt`, `.pth`, `.bin` or
            `.safetensors`), the folder of a transformers GPT-2, or such a model's id on the Hugging Face hub.

    Returns:
        What was loaded and what was not; the same is logged in one line.

    Raises:
        TypeError: The model is not a GPT, or the source not a path.
        FileNotFoundError: The source is not on this machine and could not be fetched.
        ValueError: The source holds no weights, is damaged, is a pickle that would have to run code, or the
            weights are of another architecture; the message lists what is missing, left over and mismatched,
            and the `GPTConfig` values that would fit.
        RuntimeError: The model is on the meta device.

    Example:
        ```python
        import torch
        from lighter_freezers import GPT, GPTConfig
        from lighter_freezers.gpt.pretrained import load_pretrained

        small, large = (GPT(GPTConfig(vocab_size=size, n_layer=1)) for size in (100, 101))
        torch.save(small.state_dict(), "weights.pt")
        assert load_pretrained(large, "weights.pt").grown == ("transformer.wte.weight[100:101]",)
        ```
    """
    gpt = unwrapped(model, at_root=True)
    config = getattr(gpt, "config", None)
    if not isinstance(config, GPTConfig):
        raise TypeError(f"load_pretrained fills a lighter_freezers.GPT. Got {type(model).__name__}.")
    parameters = dict(named_aliases(gpt))
    if any(parameter.is_meta for parameter in parameters.values()):
        raise RuntimeError(
            "The model is on the meta device, with no memory to load into: materialise it first."
        )
    tensors, needed, origin = _read(source)
    if HEAD in parameters and TOKENS in tensors and not tensors.keys() & {HEAD, *OTHER_HEADS}:
        tensors[HEAD] = tensors[TOKENS]
    report = _compare(parameters, tensors, origin)
    unmet = unmet_needs(needed, config, HEAD in parameters)
    _refuse_a_misfit(report, parameters, tensors, unmet, needs_in_words(needed, unmet, config))
    with torch.no_grad():
        for name in report.loaded:
            rows = min(len(parameters[name]), len(tensors[name]))
            parameters[name][:rows].copy_(tensors[name][:rows])
    if _is_first_process():
        trusted = [f"{name}={getattr(config, name)}" for name in INVISIBLE if name not in needed]
        log.info("%s%s", report, f"; taken on trust: {', '.join(trusted)}" if trusted else "")
    return report


@checked
def config_from_checkpoint(source: str | os.PathLike[str], *, n_head: int | None = None) -> dict[str, object]:
    """The sizes of a checkpoint's model: `GPTConfig(**config_from_checkpoint(path))`.

    Args:
        source: As for `load_pretrained`.
        n_head: The number of heads, which shapes do not show; required if the file does not state it.
            nanoGPT's files and transformers' folders do.

    Returns:
        `n_layer`, `n_head`, `n_embd`, `vocab_size`, `bias`, `use_rotary_embeddings`, `tie_weights`, and where
        they are known `block_size` and `exact_gelu`.

    Raises:
        FileNotFoundError: As for `load_pretrained`.
        ValueError: The same, or `n_head` is unknown, or differs from the file's.
    """
    if n_head is not None:
        at_least("n_head", n_head, 1)
    tensors, needed, origin = _read(source)
    if TOKENS not in tensors:
        raise ValueError(f"'{origin}' has no {TOKENS}, which shows the sizes of a GPT.")
    stated = needed.get("n_head")
    if stated is None and n_head is None:
        raise ValueError(
            f"'{origin}' does not say its number of heads, and shapes do not show it. Give the one it "
            "was trained with: config_from_checkpoint(source, n_head=...)."
        )
    if stated is not None and n_head not in (None, stated):
        raise ValueError(f"'{origin}' has n_head={stated}, not {n_head}. Leave n_head out.")
    return {**needed, "n_head": n_head if stated is None else stated}


def _read(source: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, int | bool], str]:
    """Tensors under our names, the GPTConfig values they need, and their source."""
    checkpoint = read_checkpoint(source)
    tensors = with_gpt_names(checkpoint.tensors)
    if not any(map(is_of_trunk, tensors)):
        names = list(checkpoint.tensors)
        raise ValueError(
            f"'{checkpoint.source}' has nothing of a GPT, so nothing was loaded. It has tensors "
            f"called {first_few(names, 4)}; those of a GPT are called {TOKENS}, "
            "transformer.h.0.attn.c_attn.weight and so on, also after _orig_mod., module., model. or network."
        )
    return tensors, needed_config(tensors, checkpoint.stated), checkpoint.source


def _compare(
    parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor], source: str
) -> LoadReport:
    """Match tensors with parameters; a tied parameter has several names."""
    common = [name for name in parameters if name in tensors]
    loaded = [name for name in common if _fits(name, parameters[name], tensors)]
    filled = {id(parameters[name]): name for name in reversed(loaded)}  # under its first name
    rows = {name: (len(parameters[name]), len(tensors[name])) for name in reversed(filled.values())}
    return LoadReport(
        source=source,
        loaded=tuple(loaded),
        missing=tuple(n for n, p in parameters.items() if n not in tensors and id(p) not in filled),
        left_over=tuple(name for name in tensors if name not in parameters),
        mismatched=tuple(name for name in common if name not in loaded),
        grown=tuple(f"{name}[{there}:{here}]" for name, (here, there) in rows.items() if there < here),
        cropped=tuple(f"{name}[:{here}]" for name, (here, there) in rows.items() if there > here),
    )


def _fits(name: str, parameter: nn.Parameter, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a tensor can be copied: tokens may be fewer than in the model, and positions more."""
    tensor = tensors[name]
    if tensor.ndim != parameter.ndim or tensor.shape[1:] != parameter.shape[1:]:
        return False
    if not tensor.is_floating_point():
        return False
    if name == POSITIONS:
        return len(tensor) >= len(parameter)
    if name == TOKENS or (name == HEAD and tensor.shape == tensors[TOKENS].shape):
        return len(tensor) <= len(parameter)
    return len(tensor) == len(parameter)


def _refuse_a_misfit(
    report: LoadReport,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
    unmet: Sequence[str],
    needs: str,
) -> None:
    """Raise if the trunk would not be loaded as a whole, or if it would compute something else."""
    missing, left_over, mismatched = (
        [name for name in names if is_of_trunk(name)]
        for names in (report.missing, report.left_over, report.mismatched)
    )
    if not (missing or left_over or mismatched or unmet):
        return
    shapes = [f"{name} {_form(tensors[name])} there, {_form(parameters[name])} here" for name in mismatched]
    raise ValueError(
        f"'{report.source}' does not fit this GPT, so nothing was loaded. "
        + (f"Missing in it: {NameSummary(list(parameters)).compress(missing)}. " if missing else "")
        + (f"Left over: {NameSummary(list(tensors)).compress(left_over)}. " if left_over else "")
        + (f"Mismatched: {first_few(shapes, 3)}. " if mismatched else "")
        + f"It needs a GPTConfig with {needs}."
    )


def _form(tensor: Tensor) -> str:
    return str(tuple(tensor.shape)) + ("" if tensor.is_floating_point() else f" {tensor.dtype}")


def _is_first_process() -> bool:
    """Whether this is the first process; by the launcher's variables, as torch.distributed starts later."""
    ranks = (os.environ.get(key) for key in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return next(filter(None, ranks), "0") == "0"
