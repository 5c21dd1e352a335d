"""The units of policies on the GPT, and that policies use what any third party can."""

import ast
from pathlib import Path

import pytest

import lighter_freezers
import lighter_freezers.engine
from lighter_freezers import GPT, apply_lora
from lighter_freezers.policies.forward_units import forward_units, matrix_units

SIZES = {"n_layer": 2, "n_embd": 8, "n_head": 2, "block_size": 8, "vocab_size": 16}
SOURCES = sorted((Path(lighter_freezers.__file__).parent / "policies").glob("*.py"))


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_table_that_the_head_shares_is_with_the_head(is_tied: bool) -> None:
    model = GPT({**SIZES, "tie_weights": is_tied})
    units = forward_units(model)
    assert list(units) == ["embeddings", "0", "1", "head"]
    table = model.transformer.wte.weight
    assert any(each is table for each in units["head" if is_tied else "embeddings"])
    assert sum(map(len, units.values())) == len(list(model.parameters()))


def test_matrices_in_the_blocks_and_their_adapters() -> None:
    layers = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    paths = [f"transformer.h.{block}.{layer}" for block in range(2) for layer in layers]
    assert list(matrix_units(GPT(SIZES))) == paths
    adapted = apply_lora(GPT(SIZES), {"r": 2, "target_modules": ["c_attn"]})
    units = matrix_units(adapted)
    assert [path.partition("transformer")[2] for path in units] == [
        path.partition("transformer")[2] for path in paths
    ]
    assert len(next(unit for path, unit in units.items() if path.rpartition(".")[2] == "c_attn")) == 3


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_policies_stand_on_public_names_of_the_engine(path: Path) -> None:
    """Nothing else of it, as in a module outside the package; and each policy is short."""
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    from_engine = [node for node in imports if "engine" in str(node.module).split(".")]
    assert {node.module for node in from_engine} <= {"lighter_freezers.engine"}
    names = {alias.name for node in from_engine for alias in node.names}
    assert names <= set(lighter_freezers.engine.__all__)
