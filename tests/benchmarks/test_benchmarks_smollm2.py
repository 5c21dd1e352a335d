"""The study of static LoRA, phases and ranks: its parts, on a tiny Llama instead of SmolLM2."""

import json
from pathlib import Path

import pytest

from benchmarks import smollm2_study as study
from tests.experiments.training import causal_lms

pytestmark = pytest.mark.wide  # a benchmark from its command to its page

ROOT = Path(__file__).parents[2]


def tiny(folder: Path) -> list[str]:
    """Overrides with which a run takes a second."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {**causal_lms.LLAMA, "hidden_size": 32, "max_position_embeddings": 1024}
    special = {"bos_token_id": causal_lms.EOS, "eos_token_id": causal_lms.EOS}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=causal_lms.VOCAB, **sizes, **special))
    model.save_pretrained(folder / "llama")
    causal_lms.tokenizer().save_pretrained(folder / "llama")
    few = ["trainer::max_steps=2", "trainer::val_check_interval=2", "data::num_val_sequences=2"]
    few += ["data::num_test_sequences=2", "data::max_length=512", "data::max_new_tokens=3"]
    return [f"model::model={folder / 'llama'}", f"data::cache_dir={folder / 'cache'}", *few]


def test_a_study_is_run_once_and_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All ways; a finished run is not repeated, and one that was stopped gets another folder."""
    runs, overrides = tmp_path / "runs", tiny(tmp_path)
    (runs / "phases/seed_0").mkdir(parents=True)  # stopped before it was tested
    options = ["--seeds", "1", "--runs", str(runs), "--json", str(tmp_path / "study.json")]
    result = study.main([*options, *overrides])

    assert {name: len(found) for name, found in result["runs"].items()} == {
        "untrained": 1,
        "static": 1,
        "phases": 1,
        "ranks": 1,
    }
    for name in ("static", "phases", "ranks"):
        assert result["runs"][name][0].keys() == study.COLUMNS.keys()
    assert sorted(path.name for path in (runs / "phases").iterdir()) == ["seed_0", "seed_0_1"]
    assert json.loads((tmp_path / "study.json").read_text())["runs"] == result["runs"]
    first = capsys.readouterr().out
    assert "static, seed 0:" in first
    assert "2 steps of 4 rows of at most 512 tokens, tested on 2 questions" in first

    again = study.main([*options, *overrides])
    assert again["runs"] == result["runs"]
    assert "seed 0:" not in capsys.readouterr().out


def test_tables_and_differences() -> None:
    """Mean and spread over the seeds; each way minus static LoRA of the same seed."""
    static = [{"perplexity": 10.0, "rouge_l": 20.0}, {"perplexity": 12.0, "rouge_l": 22.0}]
    phases = [{"perplexity": 11.0, "rouge_l": 19.0}, {"perplexity": 11.0, "rouge_l": 25.0}]
    for run in (*static, *phases):
        run |= dict.fromkeys(study.COLUMNS.keys() - run.keys(), 2_442_240.0)
    runs = {"untrained": [{"perplexity": 40.0}], "static": static, "phases": phases, "ranks": []}

    rows = study.table(runs).splitlines()
    assert rows[2].startswith("| as downloaded | 40 |  |")
    assert rows[3].startswith("| static: rank 8 on all layers | 11 (10 to 12) | 21 (20 to 22) | 2,442,240 |")
    minus = study.differences(runs).splitlines()
    assert minus[2].startswith("| phases: both->mlp->attn | +1, -1 | -1, +3 |")


def test_the_page_has_a_place_for_the_tables() -> None:
    """Those of the last time are replaced."""
    text = (ROOT / "docs/smollm2_study.md").read_text()
    result = {"command": "python", "method": "method", "versions": {}, "runs": {"static": []}}
    for way in study.WAYS:
        result["runs"].setdefault(way.name, [])  # type: ignore[attr-defined]

    once = study.fill(text, result)
    assert study.fill(once, result) == once
    assert "`python`: method." in once
    with pytest.raises(ValueError, match="no <!-- results: smollm2 -->"):
        study.fill("", result)
