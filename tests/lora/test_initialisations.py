"""Initialisations of PEFT that take a part of the base weight: rank changes, rank 0, checkpoints, export."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from torch import nn

from lighter_freezers import (
    LoraRankScheduler,
    apply_lora,
    resize_lora_layer,
    save_adapter,
    set_layer_lora_rank,
)
from lighter_freezers.lora.restore import install_rank_restore
from tests.lab import trainer
from tests.lora.stock_peft import X, base, stock_outputs, train

pytestmark = [
    pytest.mark.wide,
    pytest.mark.filterwarnings(
        "ignore:Full backward hook:UserWarning", "ignore:PiSSA changes:UserWarning", "ignore:.*eva_config"
    ),
]

MOVING = ("pissa", "pissa_niter_4", "olora", "corda", "lora_ga")
ROUNDING = 2e-6  # of outputs of size 1; PEFT's own conversion has 3.6e-7


def prepared(init: str, **options: Any) -> tuple[nn.Module, LoraConfig]:
    """The base and a config, after what PEFT wants to see before."""
    network = base()
    if init == "corda":
        options["corda_config"] = CordaConfig()
    if init == "lora_ga":
        lora_ga = pytest.importorskip("peft.tuners.lora.loraga", reason="PEFT 0.18 has no LoRA-GA")
        options["lora_ga_config"] = peft.LoraGAConfig()
    options = {"r": 4, "lora_alpha": 6, "target_modules": ["q", "k"], **options}
    config = LoraConfig(init_lora_weights=init, **options)
    if init == "corda":
        preprocess_corda(network, config, lambda: network(X[:1]))
    if init == "lora_ga":
        lora_ga.preprocess_loraga(network, config, lambda: network(X).square().mean().backward())
        network.zero_grad(set_to_none=True)
    return network, config


def adapted(init: str, **options: Any) -> Any:
    return apply_lora(*prepared(init, **options))


def update(layer: Any, weight: torch.Tensor) -> torch.Tensor:
    """What the layer computes beyond its pretrained weight."""
    return (layer.base_layer.weight + layer.get_delta_weight("default") - weight).detach()


EXTRAS: dict[str, dict[str, Any]] = {"plain": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}
RANKS = ((4, 4), (8, 3), (0, 5), (1, 0), (0, 0))


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[float]]:
    """How far stock PEFT is from each model: as it was, grown, shrunk to an odd rank, dropped."""
    root, expected = tmp_path_factory.mktemp("adapters"), {}
    for init in (*MOVING, "eva", "orthogonal"):
        for name, extra in EXTRAS.items():
            if (init, name) == ("lora_ga", "dora"):  # PEFT refuses it
                continue
            for number, ranks in enumerate(RANKS):
                model = adapted(init, **extra)
                train(model)
                resize_lora_layer(model.q, ranks[0])
                resize_lora_layer(model.k, ranks[1])
                if any(ranks):
                    train(model)
                folder = root / f"{init}-{name}-{number}"
                save_adapter(model, folder)
                expected[folder] = (init, name, model(X).detach())
    found: dict[tuple[str, str], list[float]] = {}
    for (init, name, y), stock in zip(expected.values(), stock_outputs([*expected]), strict=True):
        found.setdefault((init, name), []).append((y - stock).abs().max().item())
    return found


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("init", [*MOVING, "eva", "orthogonal"])
def test_stock_peft_computes_the_same(
    init: str, extra: str, errors: dict[tuple[str, str], list[float]]
) -> None:
    """Trained before and after a change of rank; bit for bit where no base moved."""
    if (init, extra) != ("lora_ga", "dora"):
        assert len(errors[init, extra]) == len(RANKS)
        assert max(errors[init, extra]) <= (ROUNDING if init in MOVING else 0)


@pytest.mark.parametrize("init", MOVING)
def test_drop_gives_the_pretrained_weight_back(init: str) -> None:
    """What is dropped is what was learnt. To merge or to grow changes nothing, here as ever."""
    pretrained = base()
    model = adapted(init)
    assert torch.allclose(model(X), pretrained(X), atol=1e-5)
    train(model)
    before = model(X)
    resize_lora_layer(model.q, 9)
    assert torch.allclose(model(X), before, atol=1e-6)
    change = resize_lora_layer(model.q, 0)

    assert torch.allclose(model.q.base_layer.weight, pretrained.q.weight, atol=1e-6)
    assert change.discarded > 0.01
    before = model(X)
    resize_lora_layer(model.k, 0, on_zero="merge", model=model)
    assert torch.allclose(model(X), before, atol=1e-5)


@pytest.mark.parametrize("init", MOVING)
def test_a_lower_rank_keeps_the_most_of_what_was_learnt(init: str) -> None:
    """The optimum of Eckart and Young for the update, not for the pretrained weight; no stale state."""
    weight = base().q.weight.detach()
    model = adapted(init)
    train(model)
    learnt = update(model.q, weight)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    model(X).sum().backward()
    optimizer.step()
    learnt = update(model.q, weight)
    change = resize_lora_layer(model.q, 2, optimizers=[optimizer])

    U, S, Vh = torch.linalg.svd(learnt.double())
    assert torch.allclose(update(model.q, weight).double(), U[:, :2] * S[:2] @ Vh[:2], atol=1e-6)
    assert change.discarded == pytest.approx(S[2:].norm().item(), rel=1e-3, abs=1e-5)
    assert model.q.lora_A.default.weight not in optimizer.state


def test_rank_pattern_zero_leaves_the_weight_alone() -> None:
    """To the last bit."""
    model = adapted("pissa", rank_pattern={"q": 0})

    assert torch.equal(model.q.base_layer.weight, base().q.weight)
    assert model.q.r == {"default": 0}
    assert not torch.equal(model.k.base_layer.weight, base().k.weight)


@pytest.mark.parametrize("init", ["pissa_niter_1", "corda"])
@pytest.mark.parametrize("ranks", [(4, 4), (6, 2), (0, 3)])
def test_a_checkpoint_knows_what_the_base_lacks(init: str, ranks: tuple[int, int], tmp_path: Path) -> None:
    """Though the model is built anew, with other random factors."""
    model = adapted(init)
    train(model)
    for name, rank in zip("qk", ranks, strict=True):
        resize_lora_layer(getattr(model, name), rank)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    torch.manual_seed(5)
    twin = adapted(init)
    twin.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))

    assert torch.equal(twin(X), model(X))
    save_adapter(twin, tmp_path / "adapter")
    assert (PeftModel.from_pretrained(base(), tmp_path / "adapter")(X) - model(X)).abs().max() < ROUNDING
    for name in "qk":
        resize_lora_layer(getattr(twin, name), 0)
    assert torch.allclose(twin(X), base()(X), atol=1e-5)


def test_an_adapter_that_is_loaded_alone_leaves_the_base_as_it_is() -> None:
    model = adapted("pissa")
    train(model)
    factors = {name: p.clone() for name, p in model.state_dict().items() if "lora_" in name}
    twin = adapted("pissa")
    twin.load_state_dict(factors, strict=False)
    resize_lora_layer(twin.q, 0)

    assert torch.allclose(twin.q.base_layer.weight, base().q.weight, atol=1e-6)


def test_it_is_as_close_as_the_conversion_of_peft(tmp_path: Path) -> None:
    """`path_initial_model_for_weight_conversion`, on the same factors."""
    model = get_peft_model(*prepared("pissa"))
    install_rank_restore(model)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "initial")
    model.peft_config["default"].init_lora_weights = "pissa"
    train(model)
    expected = model(X).detach()
    save_adapter(model, tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs", path_initial_model_for_weight_conversion=tmp_path / "initial")
    ours, theirs = stock_outputs([tmp_path / "ours", tmp_path / "theirs"])

    assert torch.equal(ours, theirs)
    assert (ours - expected).abs().max() < ROUNDING


def regression(model: nn.Module) -> Any:
    import pytorch_lightning as pl

    class Regression(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = model

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.network(X).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.01)

    return Regression()


def loader() -> Iterator[int]:
    return torch.utils.data.DataLoader(range(8))  # type: ignore[return-value]


def test_a_model_that_peft_adapted_is_noted_before_it_trains(tmp_path: Path) -> None:
    """And one that has trained since is refused before the first step, until its base is saved too."""
    model = get_peft_model(*prepared("pissa"))
    schedule = [{"step": 2, "rank_pattern": {"q": 0}}, {"step": 4, "rank_pattern": {"q": 2, "k": 7}}]
    fit = trainer("pytorch_lightning", max_steps=6, callbacks=[LoraRankScheduler(schedule)])
    fit.fit(regression(model), loader())
    save_adapter(model, tmp_path / "adapter")
    assert (stock_outputs([tmp_path / "adapter"])[0] - model(X)).abs().max() < ROUNDING

    trained = get_peft_model(*prepared("pissa"))
    train(trained, 1, lr=1e-4)
    fit = trainer("pytorch_lightning", max_steps=6, callbacks=[LoraRankScheduler(schedule)])
    before = copy.deepcopy(trained.state_dict())
    with pytest.raises(ValueError, match="initialisation changed the base.*install_rank_restore"):
        fit.fit(regression(trained), loader())
    with pytest.raises(ValueError, match="initialisation changed the base"):
        set_layer_lora_rank(trained, "q", 2)
    with pytest.raises(RuntimeError, match="changed by the initialisation.*base_is_saved"):
        save_adapter(trained, tmp_path / "refused")
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())


def test_a_saved_base_gets_the_factors_as_they_are(tmp_path: Path) -> None:
    """They are loaded onto a base that lacks their part already."""
    model = adapted("pissa")
    state = {k.replace(".base_layer", ""): v for k, v in model.state_dict().items()}
    state = {name: value for name, value in state.items() if name in base().state_dict()}
    train(model)
    save_adapter(model, tmp_path, base_is_saved=True)
    network = base()
    network.load_state_dict(state)
    assert torch.equal(PeftModel.from_pretrained(network, tmp_path)(X), model(X))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_lora_weights": "loftq"}, "loftq.*quantised"),
        ({"init_lora_weights": "olora", "fan_in_fan_out": True}, "olora.*Conv1D"),
    ],
)
def test_what_cannot_be_taken_back_is_refused(options: dict[str, Any], message: str) -> None:
    network = base()
    with pytest.raises(ValueError, match=message):
        apply_lora(network, {"r": 4, "target_modules": ["q"], **options})
    assert not any("lora_" in name for name, _ in network.named_modules())


def test_loftq_of_peft_is_refused(tmp_path: Path) -> None:
    """Its config says so; to make one takes scipy, which is not here."""
    model: Any = base()
    inject_adapter_in_model(LoraConfig(r=4, target_modules=["q"], init_lora_weights=False), model)
    model.peft_config["default"].init_lora_weights = "loftq"
    with pytest.raises(ValueError, match="LoftQ quantises"):
        set_layer_lora_rank(model, "q", 0, on_zero="drop")
    with pytest.raises(RuntimeError, match="changed by the initialisation"):
        save_adapter(model, tmp_path)


def test_one_adapter_at_most_takes_a_part() -> None:
    """Of a base that others use, and of a weight that others use."""
    config = {"r": 4, "target_modules": ["q"]}
    pissa = {**config, "init_lora_weights": "pissa"}
    for first, second in ((config, pissa), (pissa, config)):
        with pytest.raises(ValueError, match="works with one adapter only"):
            apply_lora(apply_lora(base(), first), second, "second")

    tied: Any = base()
    tied.head = nn.Linear(16, 24)
    tied.head.weight = tied.q.weight
    with pytest.raises(ValueError, match="another layer uses the weight too"):
        apply_lora(tied, pissa)


def test_kfac_does_not_know_them() -> None:
    with pytest.raises(ValueError, match="kfac.*PiSSA"):
        resize_lora_layer(adapted("pissa").q, 2, shrink="kfac")
