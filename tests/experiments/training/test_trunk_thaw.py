"""The trunk that a GPT's config freezes and thaws, under real Trainers of both namespaces."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from lighter_freezers import GPT, Freezer
from lighter_freezers.engine import ledger
from tests.distributed.run_ranks import run_ranks
from tests.experiments.training.gpts import batch_of, loader_of, module, network
from tests.lab import NAMESPACES, frozen_components, recorder, trainer

PL = "pytorch_lightning"
NEW_MODES = ("token_classifier", "sequence_scorer")
THAW = 3  # in the first epoch of four steps
both = pytest.mark.parametrize("namespace", NAMESPACES)
each_new_mode = pytest.mark.parametrize("mode", NEW_MODES)
torch.set_num_threads(1)


def frozen(mode: str = "token_classifier", at: int | None = THAW, **changes: Any) -> GPT:
    """A GPT with a frozen trunk."""
    changes = {"unfreeze_lr_multiplier": 0.5, **changes}
    return network(mode, freeze_transformer=True, unfreeze_at_iteration=at, **changes)


def is_frozen(_: Any, model: Any) -> bool:
    return bool(model.network.get_frozen_status())


def trunk_of(gpt: GPT) -> torch.Tensor:
    return nn.utils.parameters_to_vector(gpt.transformer.parameters()).detach().clone()


def fit(
    model: Any, namespace: str = PL, *, ckpt_path: Path | None = None, run: Any = None, **options: Any
) -> list[bool]:
    """Train for six steps, or as the options say; whether the trunk was frozen in each."""
    seen = recorder(namespace, is_frozen)
    callbacks = [*options.pop("callbacks", []), seen]
    run = run or trainer(namespace, callbacks=callbacks, **{"max_epochs": -1, "max_steps": 6, **options})
    loader = loader_of(str(model.network.config.mode))
    run.fit(model, loader, loader, ckpt_path=ckpt_path)
    return list(seen.seen)


@both
@each_new_mode
def test_the_trunk_thaws_at_the_step_that_the_config_says(namespace: str, mode: str) -> None:
    """It stands still to the last bit before, and moves from then on; the head moves all along."""
    gpt = frozen(mode)
    begin = trunk_of(gpt)
    stood_still = recorder(namespace, lambda _, m: torch.equal(trunk_of(m.network), begin))
    heads = recorder(namespace, lambda _, m: m.network.head.weight.detach().clone())
    steps = fit(module(namespace, gpt), namespace, callbacks=[stood_still, heads])

    assert steps == [True] * THAW + [False] * 3
    assert stood_still.seen == [True] * THAW + [False] * 3
    assert all(not torch.equal(a, b) for a, b in zip(heads.seen, heads.seen[1:], strict=False))


@both
def test_batches_of_one_optimizer_step_count_once(namespace: str) -> None:
    """Two batches a step: step 3 begins with the seventh batch."""
    steps = fit(module(namespace, frozen()), namespace, accumulate_grad_batches=2, max_steps=5)

    assert steps == [True] * 6 + [False] * 4


@both
def test_its_rate_stays_multiplied_under_any_scheduler(namespace: str) -> None:
    """Half of what the scheduler gives to the rest, at every step from the thaw on."""
    gpt = frozen()
    optimizer = torch.optim.SGD(gpt.parameters(), lr=1.0)
    scheduler = LambdaLR(optimizer, lambda step: 0.9**step)

    def rates(_: Any, model: Any) -> tuple[float, float]:
        of = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
        return of[id(gpt.transformer.wte.weight)], of[id(gpt.classifier_head.weight)]

    seen = recorder(namespace, rates, "on_before_zero_grad")  # right after the step
    fit(module(namespace, gpt, optimizer=optimizer, scheduler=scheduler), namespace, callbacks=[seen])
    trunk, head = zip(*seen.seen, strict=True)

    assert head == pytest.approx([0.9**step for step in range(6)])
    assert trunk[THAW:] == pytest.approx([0.5 * 0.9**step for step in range(THAW, 6)])


@both
@pytest.mark.parametrize("num_first_steps", [2, 3, 4, 5])
def test_a_resumed_run_equals_an_uninterrupted_one(
    namespace: str, num_first_steps: int, tmp_path: Path
) -> None:
    """Cut before, at and after the thaw: thawed at the same step, with the same weights to the last bit."""
    weights, steps = [], []
    for stops in ([8], [num_first_steps, 8]):
        for index, stop in enumerate(stops):
            model, seen = module(namespace, frozen(), learning_rate=0.01), recorder(namespace, is_frozen)
            run = trainer(namespace, max_epochs=-1, max_steps=stop, callbacks=[seen])
            data = ResumableData(namespace)
            run.fit(model, datamodule=data.module, ckpt_path=tmp_path / "cut.ckpt" if index else None)
            run.save_checkpoint(tmp_path / "cut.ckpt")
        weights.append(nn.utils.parameters_to_vector(model.network.parameters()))
        steps.append(seen.seen)

    assert steps[0][num_first_steps:] == steps[1]
    assert steps[1][-1] is False
    assert torch.equal(*weights)


class ResumableData:
    """A data module whose loader goes on with the batch after the last one that it gave."""

    def __init__(self, namespace: str) -> None:
        class Data(import_module(namespace).LightningDataModule):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.num_given = 0

            def train_dataloader(self) -> Any:
                return self

            def val_dataloader(self) -> Any:
                return loader_of("token_classifier", 1)

            def __len__(self) -> int:
                return 4

            def __iter__(self) -> Any:
                for _ in range(4):
                    self.num_given += 1
                    yield batch_of("token_classifier", seed=self.num_given)

            def state_dict(self) -> dict[str, Any]:
                return {"num_given": self.num_given}

            def load_state_dict(self, state_dict: dict[str, Any]) -> None:
                self.num_given = state_dict["num_given"]

        self.module = Data()


@both
def test_the_same_module_can_be_resumed_past_the_thaw(namespace: str, tmp_path: Path) -> None:
    """As in a notebook; the optimizer's groups are those of the checkpoint."""
    model = module(namespace, frozen())
    run = trainer(namespace, max_epochs=-1, max_steps=4)
    fit(model, namespace, run=run)
    run.save_checkpoint(tmp_path / "cut.ckpt")

    assert fit(model, namespace, max_steps=6, ckpt_path=tmp_path / "cut.ckpt") == [False] * 2


@both
def test_freezers_of_the_trainer_stay_and_compose(namespace: str) -> None:
    """Lightning would drop them for a Freezer from the module; a layer held for longer thaws later."""
    callbacks = [Freezer(patterns="layers:attn.0", until_step=5), Freezer(patterns="layers:wpe")]
    seen = recorder(namespace, lambda _, m: frozen_components(m.network))
    fit(module(namespace, frozen()), namespace, callbacks=[*callbacks, seen])

    assert seen.seen[THAW - 1] == frozen_components(frozen())
    assert seen.seen[THAW:] == [["wpe", "attn.0"]] * 2 + [["wpe"]]


def test_layers_that_the_user_froze_or_thawed_before_stay_so() -> None:
    """The thaw is of what `freeze_transformer` holds; the layer's own hold goes on."""
    gpt = frozen()
    gpt.freeze_layer("attn.0")
    gpt.unfreeze_layer("mlp.1")
    seen = recorder(PL, lambda _, m: frozen_components(m.network))
    fit(module(PL, gpt), callbacks=[seen])

    assert "mlp.1" not in seen.seen[0]
    assert "attn.1" in seen.seen[THAW - 1]
    assert seen.seen[THAW] == ["attn.0"]


def test_what_is_frozen_by_hand_in_a_run_stays_frozen() -> None:
    """Until it is thawed by hand, past the step of the config."""
    model = module(PL, frozen())

    def by_hand(_: Any, module: Any) -> None:
        step = len(acting.seen)
        if step == 1:
            module.network.freeze_transformer_weights()
        if step == 5:
            module.network.unfreeze_transformer_weights()

    acting = recorder(PL, by_hand, "on_train_batch_start")
    assert fit(model, callbacks=[acting]) == [True] * 5 + [False]


def test_without_an_iteration_it_stays_frozen() -> None:
    """No callback is needed for that, and thawing by hand works at any time."""
    model = module(PL, frozen(at=None))
    run = trainer(PL, max_steps=6, max_epochs=-1)

    assert model.configure_callbacks() == []
    assert fit(model, run=run) == []
    assert model.network.get_frozen_status()
    model.network.unfreeze_transformer_weights()
    assert fit(model) == [False] * 6


def test_frozen_by_hand_without_the_config_it_stays_frozen() -> None:
    """For the whole run."""
    gpt = network("token_classifier")
    gpt.freeze_transformer_weights()

    assert fit(module(PL, gpt)) == [True] * 6


@both
def test_thawed_by_hand_between_two_runs_it_stays_thawed(namespace: str) -> None:
    """The first run ends before the thaw; the second is for the whole model, in an old or a new Trainer."""
    model = module(namespace, frozen(at=100))
    assert fit(model, namespace) == [True] * 6
    assert model.network.get_frozen_status()
    model.network.unfreeze_transformer_weights()

    assert fit(model, namespace) == [False] * 6


def test_thawed_by_hand_before_the_first_run_it_stays_thawed() -> None:
    """The config said how the model begins, and the user said something else since."""
    gpt = frozen(at=100)
    gpt.unfreeze_transformer_weights()

    assert fit(module(PL, gpt)) == [False] * 6


def test_a_trainer_that_goes_on_does_not_freeze_again_what_was_thawed_by_hand() -> None:
    """What the first run has left in its list of callbacks is replaced."""
    model, seen = module(PL, frozen(at=100)), recorder(PL, is_frozen)
    run = trainer(PL, max_steps=2, max_epochs=-1, callbacks=[seen])
    fit(model, run=run)
    model.network.unfreeze_transformer_weights()
    run.fit_loop.epoch_loop.max_steps = 4
    fit(model, run=run)

    assert seen.seen == [True] * 2 + [False] * 2


def test_a_run_that_broke_off_can_be_begun_again() -> None:
    """The trunk is as frozen as it was, and thaws in the next run."""
    model = module(PL, frozen())

    def stop(*_: Any) -> None:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fit(model, callbacks=[recorder(PL, stop)])
    assert model.network.get_frozen_status()
    assert fit(model) == [True] * THAW + [False] * 3


def test_a_run_that_broke_off_after_the_thaw_can_be_resumed(tmp_path: Path) -> None:
    """By the same module, from its last checkpoint."""
    model = module(PL, frozen())

    def stop(trainer: Any, _: Any) -> None:
        if len(stopping.seen) == 4:
            trainer.save_checkpoint(tmp_path / "cut.ckpt")
            raise ArithmeticError

    stopping = recorder(PL, stop, "on_train_batch_start")
    with pytest.raises(ArithmeticError):
        fit(model, callbacks=[stopping])

    assert fit(model, ckpt_path=tmp_path / "cut.ckpt") == [False] * 2


@both
@pytest.mark.parametrize("run_name", ["validate", "test", "predict"])
def test_other_runs_leave_the_trunk_as_it_is(namespace: str, run_name: str) -> None:
    """Nor do they keep it from thawing later."""
    model = module(namespace, frozen())
    getattr(trainer(namespace), run_name)(model, loader_of("token_classifier"))

    assert model.network.get_frozen_status()
    assert fit(model, namespace) == [True] * THAW + [False] * 3


@both
def test_an_optimizer_of_what_trains_gets_the_trunk_too(namespace: str) -> None:
    """Built from YAML by what is trainable then, it would never move the trunk."""
    gpt = frozen()
    optimizer = torch.optim.SGD([p for p in gpt.parameters() if p.requires_grad], lr=0.1)
    begin = trunk_of(gpt)
    fit(module(namespace, gpt, optimizer=optimizer), namespace)

    assert not torch.equal(trunk_of(gpt), begin)


def test_the_ledger_knows_who_holds() -> None:
    """The model before a run, the Freezer in it, no holder after the thaw."""
    gpt = frozen()
    weight = gpt.transformer.wte.weight
    seen = recorder(PL, lambda *_: ledger.holders(weight))
    before = ledger.holders(weight)
    fit(module(PL, gpt), callbacks=[seen])

    assert before == ("freeze_transformer",)
    assert seen.seen == [("Freezer['network.transformer.' until step 3]",)] * THAW + [()] * 3


def test_a_tied_head_under_a_frozen_trunk_is_refused() -> None:
    """Nothing would train until the thaw; the error names who holds."""
    with pytest.warns(UserWarning, match="lm_head is tied"):
        gpt = frozen("language_model")

    with pytest.raises(RuntimeError, match="every parameter is frozen.*network.transformer.*until step 3"):
        fit(module(PL, gpt))


@pytest.mark.parametrize("at", [None, THAW])
def test_an_untied_language_model_trains_its_head_alone(at: int | None) -> None:
    """And its trunk later, if set in the config."""
    gpt = frozen("language_model", at=at, tie_weights=False)

    assert fit(module(PL, gpt)) == [True] * THAW + [at is None] * 3


def rank(folder: Path) -> dict[str, Any]:
    """Six steps of two ranks that see the same batches."""
    gpt = frozen()
    model = module(PL, gpt, optimizer=torch.optim.SGD(gpt.parameters(), lr=0.1))
    steps = fit(model, strategy="ddp", devices=2)
    return {"steps": steps, "weights": nn.utils.parameters_to_vector(gpt.parameters()).detach()}


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    """Thawed at the same step, and with the same weights to the last bit on both."""
    gpt = frozen()
    alone = fit(module(PL, gpt, optimizer=torch.optim.SGD(gpt.parameters(), lr=0.1)))
    first, second = run_ranks(rank, tmp_path, 2, tmp_path)

    assert first["steps"] == second["steps"] == alone == [True] * THAW + [False] * 3
    assert torch.equal(first["weights"], second["weights"])
    weights = nn.utils.parameters_to_vector(gpt.parameters())
    assert torch.allclose(first["weights"], weights, atol=1e-6)


def test_a_spawned_process_thaws_too(tmp_path: Path) -> None:
    """Its ledger knows nothing of the hold that the process before it took; only the flags came along."""
    gpt = torch.load(_pickled(frozen(), tmp_path), weights_only=False)
    assert ledger.holders(gpt.transformer.wte.weight) == ()

    assert fit(module(PL, gpt)) == [True] * THAW + [False] * 3


def _pickled(gpt: GPT, folder: Path) -> Path:
    torch.save(gpt, folder / "gpt.pt")
    return folder / "gpt.pt"


@pytest.mark.wide
def test_a_thaw_is_what_imports_the_callbacks() -> None:
    """A module without one stays in its own namespace."""
    code = (
        "from lighter_freezers.lightning import GPTModule\n"
        "from lighter_freezers.gpt import GPT\n"
        "import sys\n"
        "assert GPTModule(GPT({'n_layer': 1})).configure_callbacks() == []\n"
        "sys.exit('pytorch_lightning' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False)

    assert run.returncode == 0
