"""The configs of operations and phases run, and their logs say what was done, line by line."""

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lighter.engine.runner import ConfigLoader
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parents[2]
CONFIGS = {path.stem: path for path in sorted(ROOT.glob("configs/operations/*.yaml"))}
PHASES = {path.stem: path for path in sorted(ROOT.glob("configs/lora/phases*.yaml"))}
SHRINK = 10  # all waits and steps, so that a run takes a second
STEPS = {"max_steps", "val_check_interval", "max_wait_iters", "start_step", "phase1_end", "phase2_end"}
# The operations log, with waits and steps a tenth of those in the file.
OPERATIONS: dict[str, list[str]] = {
    "complete_example": [
        "step 0: operation 1 of 9, freeze_layer wte: at once: froze 16,384 parameters",
        "step 0: operation 2 of 9, freeze_layer lm_head: at once: "
        "no effect, it was frozen already (tied to wte)",
        "step 2: operation 3 of 9, set_layer_lora_rank attn.0 8: waited 2 steps: "
        "LoRA rank 8 for attn.0 (was 0)",
        "step 4: operation 4 of 9, set_layer_lora_rank attn.5 16: waited 2 steps: "
        "LoRA rank 16 for attn.5 (was 0)",
        "step 6: operation 5 of 9, set_layer_lora_rank attn.11 8: waited 2 steps: "
        "LoRA rank 8 for attn.11 (was 0)",
        "step 9: operation 6 of 9, unfreeze_layer ln_f: waited 3 steps: no effect, it trained already",
        "step 12: operation 7 of 9, set_layer_lora_rank wte 12: waited 3 steps: LoRA rank 12 for wte (was 0)",
        "step 16: operation 8 of 9, unfreeze_layer attn.2: waited 4 steps: no effect, it trained already",
        "step 20: operation 9 of 9, freeze_layer mlp.0: waited 4 steps: froze 2,048 parameters",
    ],
    "progressive_rank_scaling": [
        "step 2: operation 1 of 3, set_layer_lora_rank attn.6 4: waited 2 steps: "
        "LoRA rank 4 for attn.6 (was 0)",
        "step 5: operation 2 of 3, set_layer_lora_rank attn.6 8: waited 3 steps: "
        "LoRA rank 8 for attn.6 (was 4)",
        "step 9: operation 3 of 3, set_layer_lora_rank attn.6 16: waited 4 steps: "
        "LoRA rank 16 for attn.6 (was 8)",
    ],
    "layerwise_unfreezing": [
        "step 0: operation 1 of 13, freeze_layer attn.*: at once: froze 12,288 parameters",
        *(
            f"step {n}: operation {n + 1} of 13, unfreeze_layer attn.{12 - n}: waited 1 step: "
            "thawed 1,024 parameters"
            for n in range(1, 13)
        ),
    ],
    "component_wise": [
        "step 0: operation 1 of 3, freeze_layer mlp.*: at once: froze 24,576 parameters (attention first)",
        "step 3: operation 2 of 3, unfreeze_layer mlp.*: waited 3 steps: thawed 24,576 parameters",
        "step 6: operation 3 of 3, scale_lr 0.5: waited 3 steps: "
        "learning rate 0.001 -> 0.0005 (calmer from now on)",
    ],
}
# The lines of the phases, likewise.
LINES_OF_PHASES: dict[str, list[str]] = {
    "phases": [
        "step 0: LoRA phase 1 of 3 trains attention and mlp, 4096 parameters",
        "step 3: LoRA phase 2 of 3 trains mlp, 2560 parameters",
        "step 6: LoRA phase 3 of 3 trains attention, 1536 parameters",
    ],
    "phases_early_late": [
        "step 0: LoRA phase 1 of 2 trains attention and mlp of blocks 0-1, 2048 parameters",
        "step 4: LoRA phase 2 of 2 trains attention and mlp of blocks 2-3, 2048 parameters",
    ],
    "phases_free": [
        "step 0: LoRA phase 1 of 3 trains wte, 4160 parameters",
        "step 2: LoRA phase 2 of 3 trains attention of blocks 1-2, 768 parameters",
        "step 5: LoRA phase 3 of 3 trains attention and mlp, 4096 parameters",
    ],
}


def test_all_configs_are_known_here() -> None:
    """A config that is never run is worth nothing."""
    assert CONFIGS.keys() == OPERATIONS.keys()
    assert PHASES.keys() == LINES_OF_PHASES.keys()


def shrunk(path: Path, folder: Path, cache: Path) -> str:
    """A copy of a config with a small model, little data, and a tenth of all waits and steps."""
    config = yaml.safe_load(path.read_text())
    network, trainer = config["model"]["network"], config["trainer"]
    network.get("network", network)["config"]["n_embd"] = 16
    config["data"].update(num_train_sequences=4, num_val_sequences=2, batch_size=2, cache_dir=str(cache))
    trainer["limit_val_batches"] = 1
    variables = config.get("vars", {})
    for entry in _mappings(trainer):
        for key in STEPS & entry.keys():
            entry[key] = variables.get(str(entry[key]).removeprefix("@vars::"), entry[key]) // SHRINK
    copy = folder / path.name
    copy.write_text(yaml.safe_dump(config))
    return str(copy)


def _mappings(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _mappings(child)


@pytest.mark.wide
@pytest.mark.parametrize("name", [*OPERATIONS, *LINES_OF_PHASES])
def test_the_log_says_what_was_done(
    name: str, tmp_path: Path, cache: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Built by lighter from the file, trained by a real Trainer."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger("lighter_freezers"), "propagate", True)
    caplog.set_level(logging.INFO, "lighter_freezers")
    path = {**CONFIGS, **PHASES}[name]
    config = ConfigLoader.load([shrunk(path, tmp_path, cache)])
    config.resolve("trainer").fit(config.resolve("model"), datamodule=config.resolve("data"))
    said = [record.getMessage() for record in caplog.records]
    assert said.pop().startswith("The run: ")

    wanted = {**OPERATIONS, **LINES_OF_PHASES}[name]
    assert [line for line in said if re.search("operation [0-9]|LoRA phase", line)] == wanted


@pytest.mark.wide
def test_the_complete_example_by_its_own_command(tmp_path: Path, cache: Path) -> None:
    """`lighter fit` in a fresh process: the log, and the record in TensorBoard."""
    lighter = str(Path(sys.executable).parent / "lighter")
    command = [lighter, "fit", shrunk(CONFIGS["complete_example"], tmp_path, cache)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    events = EventAccumulator(str(next(tmp_path.glob("outputs/complete_example/version_0"))))
    events.Reload()
    table = events.Tensors("operations/log/text_summary")[-1].tensor_proto.string_val[0].decode()
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()[2:]]

    expected = [line.split(": ", 3) for line in OPERATIONS["complete_example"]]
    assert [(row[0], row[1], row[2], row[4]) for row in rows] == [
        (step.removeprefix("step "), f"`{what.partition(', ')[2]}`", reason, effect)
        for step, what, reason, effect in expected
    ]
    assert sorted({event.value for event in events.Scalars("operations/done")}) == [2, 3, 4, 5, 6, 7, 8, 9]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tokenizer for all runs."""
    return tmp_path_factory.mktemp("cache")
