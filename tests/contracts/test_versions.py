"""The lowest versions of all that the package needs, in an environment made from nothing."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("engine", "layers", "lora", "prefix")  # what depends most on torch, Lightning, PEFT and transformers
CANNOT_INSTALL = 69  # of `.ci/versions`


@pytest.mark.wide
def test_the_lowest_versions() -> None:
    """The newest are those of an environment that is made today, as `.ci/run` makes it."""
    of_this_run = ("PYTEST_", "PYTHONPATH", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(of_this_run)}
    environment["PYTEST_ADDOPTS"] = "-n=1 -q --color=no"
    command = [ROOT / ".ci" / "versions", "lowest", *ROOMS]

    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    said = "\n".join([*done.stdout.splitlines()[-40:], *done.stderr.splitlines()[-10:]])
    if done.returncode == CANNOT_INSTALL and "ResolutionImpossible" not in said:
        pytest.skip(f"the lowest versions cannot be installed here: {said}")
    assert done.returncode == 0, said


def test_no_end_of_pytest_looks_like_versions_that_are_absent() -> None:
    """It ends with 3 itself on an error of its own, which is no reason to skip."""
    assert CANNOT_INSTALL not in list(pytest.ExitCode)
    script = (ROOT / ".ci" / "versions").read_text()
    assert script.count(f"exit {CANNOT_INSTALL}\n") + script.count(f"exit {CANNOT_INSTALL};") == 2
