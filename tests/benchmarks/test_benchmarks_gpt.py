"""B9 runs, its yardstick computes what it says, and what it counts does not depend on the machine."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpt, gpt_steps, measure
from benchmarks.counts import flops, peak_bytes
from benchmarks.gpt_steps import Size
from benchmarks.plain_gpt import PlainGPT
from lighter_freezers import GPT

pytestmark = pytest.mark.wide  # a benchmark from its command to its page

SIZE = Size(layers=2, width=16, heads=2, time=128, batch=4, vocab=65)
TINY = ["--layers", "2", "--width", "16", "--heads", "2", "--time", "128", "--batch", "4"]
NAMES = {
    "wte": "tokens",
    "wpe": "positions",
    "h": "blocks",
    "ln_f": "norm",
    "ln_1": "norm_1",
    "ln_2": "norm_2",
    "c_attn": "qkv",
    "c_fc": "up",
    "lm_head": "head",
}


def test_it_runs_and_its_exact_figures_meet_their_targets(tmp_path: Path) -> None:
    """In all four cases, tiny; the large vocabulary is just large enough for the fused loss."""
    path = tmp_path / "gpt.json"
    arguments = [*TINY, "--vocab", "4096", "--rounds", "2", "--json", str(path)]
    measure.main(gpt.run, gpt.parser(), arguments)
    written = json.loads(path.read_text())
    rows = {row["what"]: row for row in written["rows"]}
    exact = [row for row in written["rows"] if row["is_exact"] and row["target"] is not None]

    assert written["benchmark"] == "B9"
    assert {row["what"] for row in exact} == {
        "4,096 tokens: peak, ours / plain",
        "scorer: operations, ours / all positions",
    }
    assert all(row["is_met"] for row in exact)
    assert all(rows[f"{case}: ours"]["value"] > 0 for case in ("fp32", "bf16"))


def test_a_peer_that_is_missing_is_skipped_visibly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, however many cases ask for it."""
    monkeypatch.setattr(gpt, "PEERS", {"litgpt": lambda size, is_bf16: None})
    options = gpt.parser().parse_args([*TINY, "--vocab", "128", "--rounds", "1", "--cases", "fp32", "large"])

    assert gpt.run(options).skipped == ["litgpt: not installed"]


def test_the_yardstick_is_the_same_network() -> None:
    """With our weights it has our loss, but for the exact GELU."""
    ours = GPT({"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 128, "vocab_size": 65})
    theirs = PlainGPT(65, 2, 16, 2, 128)
    weights = {}
    for name, weight in ours.state_dict().items():
        name = name.removeprefix("transformer.").replace("attn.c_proj", "out").replace("mlp.c_proj", "down")
        parts = [NAMES.get(part, part) for part in name.split(".") if part not in ("attn", "mlp")]
        weights[".".join(parts)] = weight
    theirs.load_state_dict(weights)
    input_ids, targets = SIZE.batch_of_tokens()

    assert torch.allclose(ours.loss(input_ids, targets), theirs(input_ids, targets), atol=1e-4)


def test_both_scorers_have_one_loss() -> None:
    """The full one is what ours leaves out."""
    losses = []
    for make in (gpt_steps.scorer, gpt_steps.full_scorer):
        torch.manual_seed(0)
        losses.append(make(SIZE)._loss())

    assert torch.allclose(*losses)


def test_counts_by_hand() -> None:
    """A product of 2 x 3 x 5 has 60 operations; a peak forgets what was given back."""
    a, b = torch.zeros(2, 3), torch.zeros(3, 5)

    def allocate() -> None:
        first = torch.empty(1000)
        del first
        second = torch.empty(3000)
        third = torch.empty(500)
        del second, third

    assert flops(lambda: a @ b) == 60
    assert peak_bytes(allocate) == 4 * 3500


def test_few_targets_are_about_as_many_as_asked() -> None:
    """The others are ignored."""
    targets = SIZE.few_targets(0.15)

    assert 0.1 < (targets >= 0).float().mean() < 0.2
