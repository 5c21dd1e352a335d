"""Each policy is exact: resumed at any step, on two ranks, composed, with any optimizer, over any units."""

import os
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lighter_freezers import Freezer, GradualUnfreezing, PrefixCache, apply_lora
from lighter_freezers.engine.checkpoint_identity import STATE_KEY
from tests.distributed.run_ranks import run_ranks
from tests.lab import adamw, batches, first_now, regression
from tests.policies.policy_lab import NUM_STEPS, POLICIES, Run, Tower, parts

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")
STEPS = (
    1,
    3,
    4,
    5,
    8,
)  # inside a window, at its edge, with one and two steps measured, at the end of an epoch


@pytest.mark.parametrize("name", POLICIES)
def test_a_resumed_run_is_the_whole_run(name: str, tmp_path: Path) -> None:
    """From each of some steps: what trains, at which rate, weights and optimizer state, to the bit."""
    saved = [(step, tmp_path / f"{step}.ckpt") for step in STEPS]
    whole = Run([POLICIES[name]()], save=saved)
    assert len(whole.seen) == NUM_STEPS
    for step, path in saved:
        assert Run([POLICIES[name]()], ckpt_path=path).equals(whole, step), step


@pytest.mark.parametrize("name", ["Lisa", "AutoRgn"])
def test_a_checkpoint_without_what_is_saved_since(name: str, tmp_path: Path) -> None:
    """One from before windows had `held`, and `AutoRgn` a memory, is as good."""
    path = tmp_path / "5.ckpt"
    whole = Run([POLICIES[name]()], save=[(5, path)])
    checkpoint = torch.load(path, weights_only=False)
    (state,) = [each for key, each in checkpoint["callbacks"][STATE_KEY]["actions"].items() if name in key]
    del state["window"]["held"]
    state["window"]["memory"] = {}
    torch.save(checkpoint, path)
    assert Run([POLICIES[name]()], ckpt_path=path).equals(whole, 5)


@pytest.mark.parametrize("name", POLICIES)
def test_equal_arguments_give_equal_runs_and_accumulation_counts_steps(name: str, tmp_path: Path) -> None:
    """Windows are of optimizer steps: with twice the batches in each, half the steps, resumed exactly."""
    torch.manual_seed(7)
    one = Run([POLICIES[name]()])
    torch.manual_seed(8)
    assert one.equals(Run([POLICIES[name]()]))
    half = Run([POLICIES[name]()], accumulate_grad_batches=2, save=[(4, tmp_path / "4.ckpt")])
    assert [names for names, _ in half.seen[:3]] == [names for names, _ in one.seen[:3]]
    assert len(half.seen) == NUM_STEPS // 2
    resumed = Run([POLICIES[name]()], accumulate_grad_batches=2, ckpt_path=tmp_path / "4.ckpt")
    assert resumed.equals(half, 4)


def trainable_only(parameters: Any) -> torch.optim.Optimizer:
    return adamw([each for each in parameters if each.requires_grad])


@pytest.mark.parametrize("name", first_now(POLICIES))
def test_an_optimizer_of_what_trains_is_as_good(name: str, tmp_path: Path) -> None:
    """Built from `requires_grad` parameters, also where the last fit left layers frozen."""
    policy = POLICIES[name]()
    assert Run([policy], optimizer=trainable_only).equals(Run([POLICIES[name]()]))


@pytest.mark.parametrize("name", first_now(POLICIES))
def test_a_freezer_beside_it_holds_too(name: str) -> None:
    """What the Freezer holds does not train; the choice of a policy that draws nothing is as without it."""
    alone, both = (
        Run([POLICIES[name]()]),
        Run([Freezer(name_starts_with="blocks.1.", until_step=6), POLICIES[name]()]),
    )
    for step, (before, now) in enumerate(zip(alone.training, both.training, strict=True)):
        held = {n for n in before if n.split(".")[:2] == ["blocks", "1"]} if step < 6 else set()
        if name in ("FreezeOut", "Spectrum", "AutoRgn"):  # the others choose among what trains
            assert set(now) == set(before) - held
        assert not set(now) & {n for n in before if n.split(".")[:2] == ["blocks", "1"]} or step >= 6


def adapted() -> nn.Module:
    torch.manual_seed(3)
    tower = apply_lora(Tower(), {"r": 2, "target_modules": ["up", "down"]})
    for name, parameter in tower.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return tower


@pytest.mark.parametrize("name", first_now(POLICIES))
def test_lora_layers_are_units(name: str, tmp_path: Path) -> None:
    """What PEFT froze stays frozen; of a block its factors train; a resumed run is the whole one."""
    options = {"network": adapted, "optimizer": trainable_only}
    run = Run([POLICIES[name]()], save=[(4, tmp_path / "4.ckpt")], **options)
    assert {each.split(".")[-3][:5] for names in run.training for each in names} == {"lora_"}
    if name not in ("AutoRgn",):
        assert len({tuple(names) for names in run.training}) > 1 or name == "Spectrum"
        assert min(map(len, run.training)) < 16
    assert Run([POLICIES[name]()], ckpt_path=tmp_path / "4.ckpt", **options).equals(run, 4)


def all_policies_on_ranks() -> dict[str, Any]:
    from pytorch_lightning.strategies import DDPStrategy

    results = {}
    for name, policy in POLICIES.items():
        rank = int(os.environ["RANK"])
        strategy = DDPStrategy(process_group_backend="gloo")
        run = Run([policy()], loader=batches(32, rank, 2), devices=2, strategy=strategy)
        results[name] = {"training": run.training, "weights": run.weights, "state": run.state}
    return results


@pytest.mark.wide
def test_two_ranks_are_bit_equal_and_draw_as_one_process(tmp_path: Path) -> None:
    first, second = run_ranks(all_policies_on_ranks, tmp_path, 2)
    for name, policy in POLICIES.items():
        one = Run([policy()], loader=batches())
        assert first[name]["training"] == second[name]["training"] == one.training, name
        assert first[name]["state"] == second[name]["state"], name
        for key, weight in first[name]["weights"].items():
            assert torch.equal(weight, second[name]["weights"][key]), (name, key)
            # the first steps of Adam turn the rounding of a gradient near 0 into a step
            assert torch.allclose(weight, one.weights[key], atol=1e-4), (name, key)


def shard(module: Any) -> None:
    from torch.distributed.fsdp import fully_shard

    def configure_model(self: Any) -> None:
        for layer in (*self.network.blocks, self.network):
            fully_shard(layer, mesh=self.device_mesh["data_parallel"])

    type(module).configure_model = configure_model


def all_policies_sharded() -> dict[str, Any]:
    from pytorch_lightning.strategies import ModelParallelStrategy

    results = {}
    for name, policy in POLICIES.items():
        strategy = ModelParallelStrategy(
            data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo"
        )
        loader = batches(32, int(os.environ["RANK"]), 2)
        run = Run([policy()], loader=loader, devices=2, strategy=strategy, prepare=shard)
        results[name] = {"training": run.training, "weights": run.weights}
    return results


@pytest.mark.wide
def test_sharded_ranks_choose_as_one_process(tmp_path: Path) -> None:
    """FSDP2: norms and singular values are those of the whole tensors."""
    first, second = run_ranks(all_policies_sharded, tmp_path, 2)
    for name, policy in POLICIES.items():
        one = Run([policy()], loader=batches())
        assert first[name]["training"] == second[name]["training"] == one.training, name
        for key, weight in first[name]["weights"].items():
            assert torch.equal(weight, second[name]["weights"][key]), (name, key)
            # the first steps of Adam turn the rounding of a gradient near 0 into a step
            assert torch.allclose(weight, one.weights[key], atol=1e-4), (name, key)


@pytest.mark.parametrize("name", ["Lisa", "AutoFreeze", "FreezeOut", "Spectrum", "AutoRgn"])
def test_gradual_unfreezing_beside_it_composes(name: str, tmp_path: Path) -> None:
    """What waits for its stage does not train, whatever the policy chooses; and a resume is exact."""

    def both() -> list[Any]:
        return [GradualUnfreezing(every_n_epochs=1), POLICIES[name]()]

    run = Run(both(), save=[(5, tmp_path / "5.ckpt")])
    waiting = [{"0", "1", "2", "3"}] * 4 + [{"0", "1", "2"}] * 4 + [{"0", "1"}] * 4
    assert not [names for names, held in zip(run.training, waiting, strict=True) if held & {*parts(names)}]
    assert {"3"} & {part for names in run.training for part in parts(names)}
    assert Run(both(), ckpt_path=tmp_path / "5.ckpt").equals(run, 5)


def resumed_in_a_new_process(folder: str) -> dict[str, Any]:
    results = {}
    for name, policy in POLICIES.items():
        for step in STEPS:
            run = Run([policy()], ckpt_path=Path(folder, f"{name} {step}.ckpt"))
            results[f"{name} {step}"] = {"weights": run.weights, "state": run.state, "seen": repr(run.seen)}
    return results


@pytest.mark.wide
def test_a_new_process_goes_on_where_another_was_killed(tmp_path: Path) -> None:
    """From checkpoints of a process that ended by SIGKILL, and with other hashes of strings."""
    [killed] = [tmp_path / "killed"]
    killed.mkdir()
    context = torch.multiprocessing.get_context("spawn")
    process = context.Process(target=run_until_killed, args=(str(killed),))
    process.start()
    process.join()
    assert process.exitcode == -9
    [rest] = run_ranks(resumed_in_a_new_process, tmp_path, 1, str(killed))
    for name, policy in POLICIES.items():
        whole = Run([policy()])
        for step in STEPS:
            found = rest[f"{name} {step}"]
            assert found["state"] == whole.state, (name, step)
            assert found["seen"] == repr(whole.seen[step:]), (name, step)
            assert all(torch.equal(w, whole.weights[k]) for k, w in found["weights"].items()), (name, step)


def run_until_killed(folder: str) -> None:
    import signal

    for name, policy in POLICIES.items():
        Run([policy()], save=[(step, Path(folder, f"{name} {step}.ckpt")) for step in STEPS])
    os.kill(os.getpid(), signal.SIGKILL)


def falling(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)  # steps once an epoch


@pytest.mark.parametrize("name", ["FreezeOut", "AutoRgn"])
def test_rates_multiply_what_the_scheduler_and_a_freezer_set(name: str, tmp_path: Path) -> None:
    """A Freezer asks for a tenth after its release, the scheduler halves each epoch; a resume is exact."""

    def both() -> list[Any]:
        return [Freezer(name_starts_with="blocks.3.", until_step=2, unfreeze_lr_factor=0.1), POLICIES[name]()]

    run = Run(both(), scheduler=falling, save=[(5, tmp_path / "5.ckpt")])
    assert Run(both(), scheduler=falling, ckpt_path=tmp_path / "5.ckpt").equals(run, 5)
    plain = Run([POLICIES[name]()])
    for step, ((names, rates), (others, before)) in enumerate(zip(run.seen, plain.seen, strict=True)):
        asked, given = dict(zip(names, rates, strict=True)), dict(zip(others, before, strict=True))
        if name == "AutoRgn" and step >= 3:
            continue  # its rates follow the gradients, which differ from here on
        for each in asked:
            is_released = each.split(".")[:2] == ["blocks", "3"]
            assert asked[each] == pytest.approx(
                given[each] * 0.5 ** (step // 4) * (0.1 if is_released else 1)
            )


@pytest.mark.parametrize("name", ["Lisa", "Misa"])
def test_a_second_fit_goes_on(name: str) -> None:
    """Of the same Trainer and module, in the middle of a window."""
    runner = Run([POLICIES[name]()], max_epochs=1)
    first = list(runner.seen)
    runner.trainer.fit_loop.max_epochs = 3
    runner.trainer.fit(runner.module, batches(), batches())
    alone = Run([POLICIES[name]()])
    assert len(first) == 4
    if name == "Lisa":
        assert [names for names, _ in runner.seen] == alone.training
    assert runner.seen[4][0] == alone.training[4] == alone.training[3]


def test_auto_freeze_beside_a_prefix_cache_is_auto_freeze_alone() -> None:
    """What has frozen is computed once and served, in this process; the weights are the same to the bit."""
    cache = PrefixCache()
    alone = Run([POLICIES["AutoFreeze"]()], max_epochs=6)
    both = Run([POLICIES["AutoFreeze"](), cache], max_epochs=6)
    assert both.equals(alone)
    assert "stem" not in parts(both.training[-1])


@pytest.mark.parametrize("name", ["FreezeOut", "AutoRgn"])
def test_policies_of_rates_refuse_an_optimizer_without_one(name: str) -> None:
    """Its groups have the rate None, as those of an Adafactor that computes its own."""

    def without_rate(parameters: Any) -> torch.optim.Optimizer:
        built = adamw(parameters)
        built.param_groups[0]["lr"] = None
        return built

    with pytest.raises(ValueError, match=f"{name} .* sets a learning rate, and AdamW has no learning rate"):
        Run([POLICIES[name]()], optimizer=without_rate)


def test_flat_gradients_are_refused_where_they_are_measured() -> None:
    from pytorch_lightning.strategies import SingleDeviceStrategy

    class FSDPStrategy(SingleDeviceStrategy):
        kwargs = {"use_orig_params": True}  # as Lightning's has it

    with pytest.raises(RuntimeError, match=r"AutoFreeze cannot measure under FSDPStrategy"):
        Run([POLICIES["AutoFreeze"]()], strategy=FSDPStrategy("cpu"))
    Run([POLICIES["Lisa"]()], strategy=FSDPStrategy("cpu"), max_epochs=1)


class TwoOptimizers(pl.LightningModule):
    """Manual optimization: two optimizers, of the lower blocks with all outside, and of the upper blocks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network, self.automatic_optimization = Tower(), False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            loss = nn.functional.mse_loss(self.network(batch[0]), batch[1])
            self.manual_backward(loss)
            optimizer.step()
            self.zero_grad()  # of both, for a checkpoint has no gradients

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """The lab gives every run a loader for it."""

    def configure_optimizers(self) -> Any:
        upper = list(self.network.blocks[2:].parameters())
        ids = {id(each) for each in upper}
        return [adamw([each for each in self.network.parameters() if id(each) not in ids]), adamw(upper)]


@pytest.mark.parametrize("name", first_now(POLICIES))
def test_several_optimizers_take_turns(name: str, tmp_path: Path) -> None:
    """The Trainer counts the steps of both; each measures what it trains; a resumed run is the whole one."""
    options = {"max_epochs": 2, "module": TwoOptimizers}
    whole = Run([POLICIES[name]()], save=[(10, tmp_path / "10.ckpt")], **options)
    assert len(whole.seen) == 16
    assert Run([POLICIES[name]()], **options).equals(whole)
    assert Run([POLICIES[name]()], ckpt_path=tmp_path / "10.ckpt", **options).equals(whole, 10)


def test_the_runs_train_something() -> None:
    """The comparisons above are about runs that move."""
    start = dict(regression("pytorch_lightning", Tower, adamw).named_parameters())
    for name, policy in POLICIES.items():
        run = Run([policy()])
        assert any(not torch.equal(w, start[k]) for k, w in run.weights.items()), name
