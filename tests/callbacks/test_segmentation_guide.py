"""The guide about segmentation: its files, as they stand there, under `lighter fit` with MONAI's U-Net."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "docs/guides/segmentation.md"


@pytest.mark.wide
def test_the_guide_runs_as_it_stands(tmp_path: Path) -> None:
    """Head, decoder, bottleneck, encoder; each line that the guide shows is logged."""
    pytest.importorskip("monai")
    pytest.importorskip("lighter")
    code, config, lines = re.findall(r"```(?:python|text)\n(.*?)```", GUIDE.read_text(), re.S)
    (tmp_path / "__lighter__.py").touch()
    (tmp_path / "__init__.py").touch()
    (tmp_path / "segmentation.py").write_text(code)
    (tmp_path / "config.yaml").write_text(config)
    command = [str(Path(sys.executable).parent / "lighter"), "fit", "config.yaml"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    said = " ".join(re.sub(r"\S+\.py:\d+", "", f"{run.stdout} {run.stderr}").split())

    assert run.returncode == 0, run.stderr[-3000:]
    for line in lines.splitlines():
        assert line in said, (line, said[-3000:])
