"""Which code each published figure was measured with, and what of it has changed since.

`python -m benchmarks.code_versions` prints it. With `--mark` it writes what has changed into the results, and
the page says so below their tables; a test fails while a change is neither measured anew nor marked. What is
compared are the files that a benchmark measures, without comments and docstrings.
"""

import argparse
import ast
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["MEASURES", "PAGE", "RESULTS", "changed", "current", "main", "version"]

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"

_RULES = ("engine/engine.py", "engine/rules.py", "engine/transition.py", "engine/ledger.py")
_GROUPS = ("engine/effects/optimizer_groups.py", "engine/effects/learning_rates.py")
_CUT = ("engine/effects/backward_cut.py", "engine/effects/checkpointed_prefix.py")
_LORA = ("lora/resize.py", "lora/rank_change.py", "lora/rank_zero.py", "lora/set_rank.py")
_LOGGED = ("callbacks/freeze_state_logger.py", "reports/state_charts.py", "reports/step_curves.py")
_GPT = ("gpt/model.py", "gpt/attention.py", "gpt/trunk.py", "gpt/heads.py")
MEASURES: Mapping[str, tuple[str, ...]] = {  # benchmark -> files and folders of the package
    "hooks": ("engine/engine.py", "engine/effects/learning_rates.py"),
    "loop": ("engine/engine.py", "engine/effects/learning_rates.py"),
    "switch": (*_RULES, *_GROUPS, "engine/log_lines.py", "selection/select.py", "selection/tied_weights.py"),
    "freeze_gain": _CUT,
    "prefix_cache": ("prefix",),
    "freeze_memory": ("engine/effects/lean_groups.py", "planning/costs"),
    "compile": ("layers/compile_blocks.py", "engine/effects/compiled_graphs.py"),
    "grad_norms": ("reports/gradients",),
    "gpt": (*_GPT, "gpt/fused_loss.py", "gpt/cross_entropy.py"),
    "lora": (*_LORA, "lora/statistics.py"),
    "host_reads": ("engine/training_loss.py",),
    "imports": ("__init__.py", "_lightning.py"),
    "logging_cost": _LOGGED,
    "policy_costs": ("policies",),
    "stages": ("engine/stages.py", "engine/transition.py", "engine/effects/stage_optimizers.py"),
    "frozen_dtype": ("engine/effects/frozen_dtype.py",),
    "growth": (*_RULES, *_GROUPS, *_LORA, *_LOGGED, "policies/layer_policy.py", "reports/timeline.py"),
}


def version(*paths: Path) -> str:
    """A name for code: the same where only comments, docstrings or blank lines differ."""
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(path.parent)}\n{_code(file.read_text())}\n".encode())
    return digest.hexdigest()[:12]


def _code(text: str) -> str:
    said: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        has_docstring = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
            node
        )
        if has_docstring:
            said.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = (line.rstrip() for number, line in enumerate(text.splitlines(), 1) if number not in said)
    return "\n".join(line for line in lines if line.lstrip()[:1] not in ("", "#"))


def current(name: str) -> dict[str, str]:
    """What a benchmark measures, with its version today; its own file included."""
    own = {f"benchmarks/{name}.py": version(ROOT / "benchmarks" / f"{name}.py")}
    return own | {part: version(ROOT / "lighter_freezers" / part) for part in MEASURES[name]}


def changed(name: str, result: Mapping[str, Any]) -> list[str]:
    """What has changed since a result was measured; all of it where the result does not record it."""
    then = result.get("code", {})
    return [part for part, today in current(name).items() if then.get(part) != today]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what has changed, or mark it."""
    from benchmarks import render

    parser = argparse.ArgumentParser("benchmarks.code_versions", description=__doc__)
    parser.add_argument("--mark", action="store_true", help="write it into the results and their page")
    options = parser.parse_args(arguments)
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())
        since = changed(path.stem, result)
        print(f"{path.stem}: {', '.join(since) or 'measured with the code of today'}")
        if options.mark and result.get("changed", []) != since:
            path.write_text(json.dumps(result | {"changed": since}, indent=1) + "\n")
    if options.mark:
        PAGE.write_text(render.fill(PAGE.read_text(), render.results(RESULTS)))


if __name__ == "__main__":
    main()
