"""What the layer utilities cost to import, in a fresh interpreter."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = """
import sys, torch
before = set(sys.modules)
from lighter_freezers.layers import freeze_first_n_layers, print_layer_status, setup_lp_lora_style
print(*{name.partition(".")[0] for name in set(sys.modules) - before - set(sys.stdlib_module_names)})
"""


def test_they_add_nothing_to_torch() -> None:
    """No Lightning, peft, transformers or rich: only rooms of this package."""
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, cwd=ROOT, check=True)

    assert set(run.stdout.split()) == {"lighter_freezers"}
