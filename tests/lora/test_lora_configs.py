"""The configs of rank schedules run, built by lighter from their files, and change the ranks they say."""

from pathlib import Path
from typing import Any

import pytest

from lighter_freezers.lora.sites import find_lora_sites
from tests.lab import recorder
from tests.texts import write_texts

ROOT = Path(__file__).parents[2]
SMALL = ["data::batch_size=2", "data::num_val_sequences=2", "data::block_size=16", "data::vocab_size=300"]
SMALL += [
    "trainer::logger=false",
    "model::network::network::config::n_embd=16",
    "model::network::network::config::block_size=16",
]


def run(name: str, folder: Path, *options: str, trigger_loss: float = 0.0) -> dict[int, dict[str, int]]:
    """Optimizer step -> what ranks changed before it, after the ranks of the first step."""
    ConfigLoader = pytest.importorskip("lighter.engine.runner").ConfigLoader

    texts = [f"data::text={write_texts(folder / 'texts')}", f"data::cache_dir={folder}"]
    here = [f"trainer::default_root_dir={folder}"]
    config = ConfigLoader.load([str(ROOT / f"configs/lora/{name}.yaml"), *SMALL, *texts, *here, *options])
    for entry in config.get("trainer::callbacks")[0]["schedule"]:
        if "trigger_loss" in entry:
            entry["trigger_loss"] = trigger_loss
    model, trainer = config.resolve("model"), config.resolve("trainer")
    seen = recorder(
        "pytorch_lightning",
        lambda t, m: {site.title: site.factors.rank for site in find_lora_sites(m).values()},
        "on_before_optimizer_step",
    )
    trainer.callbacks.append(seen)
    trainer.fit(model, datamodule=config.resolve("data"))
    found: dict[int, dict[str, int]] = {}
    before: dict[str, int] = {}
    for step, now in enumerate(seen.seen):
        if now != before:
            found[step] = {title: rank for title, rank in now.items() if before.get(title) != rank}
        before = now
    return found


@pytest.mark.wide
def test_rank_schedule(tmp_path: Path) -> None:
    """Growth, rank 0, shrinking at an epoch, and back from 0."""
    every = [f"{part}.{n}" for n in range(4) for part in ("attn", "mlp")]
    changes = run("rank_schedule", tmp_path, "data::num_train_sequences=160")

    assert changes == {
        0: dict.fromkeys(["wte", *every, "lm_head"], 4),
        60: {"attn.2": 16, "attn.3": 16, "wte": 8},
        120: {"mlp.0": 0},
        160: {name: 2 for name in ["wte", *every] if name != "mlp.0"},
        200: {"mlp.0": 2},
    }


@pytest.mark.wide
@pytest.mark.parametrize(("bound", "steps"), [(float("inf"), []), (0.0, [40, 100, 140])])
def test_rank_by_loss(bound: float, steps: list[int], tmp_path: Path) -> None:
    """In their order: at once if any loss will do, and after the wait if none comes."""
    changes = run("rank_by_loss", tmp_path, "data::num_train_sequences=40", trigger_loss=bound)
    attention, upper = [f"attn.{n}" for n in range(4)], ["mlp.2", "mlp.3"]
    last = dict.fromkeys(["mlp.0", "mlp.1", *upper], 16)

    if not steps:
        assert list(changes) == [0]
        assert changes[0] == dict.fromkeys(attention, 8) | last | {"wte": 2, "lm_head": 2}
    else:
        assert list(changes) == [0, *steps]
        assert changes[0] == dict.fromkeys([*attention, "wte", "lm_head"], 2) | dict.fromkeys(last, 0)
        assert changes[steps[0]] == dict.fromkeys(attention, 8)
        assert changes[steps[1]] == dict.fromkeys(upper, 8)
        assert changes[steps[2]] == last


def test_lora_plus(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The rates in force: from the first step on, those of B are 16 times those of A; nothing is held."""
    ConfigLoader = pytest.importorskip("lighter.engine.runner").ConfigLoader

    texts = [f"data::text={write_texts(tmp_path / 'texts')}", f"data::cache_dir={tmp_path}"]
    options = [f"trainer::default_root_dir={tmp_path}", "data::num_train_sequences=8"]
    config = ConfigLoader.load([str(ROOT / "configs/lora/lora_plus.yaml"), *SMALL, *texts, *options])
    model, trainer = config.resolve("model"), config.resolve("trainer")

    def rates(t: Any, m: Any) -> dict[str, set[float]]:
        names = {id(p): name for name, p in m.named_parameters()}
        found: dict[str, set[float]] = {"A": set(), "B": set()}
        for group in t.optimizers[0].param_groups:
            for p in group["params"]:
                if p.requires_grad:
                    found["B" if "lora_B" in names[id(p)] else "A"].add(group["lr"])
        return found

    seen = recorder("pytorch_lightning", rates, "on_before_optimizer_step")
    trainer.callbacks.append(seen)
    trainer.fit(model, datamodule=config.resolve("data"))
    assert "never holds" not in caplog.text
    assert len(seen.seen) == 8
    assert all(each == {"A": {0.001}, "B": {0.016}} for each in seen.seen)
