"""Small networks, modules and recorders that the tests share. Real Trainers run them; nothing is mocked."""

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from inspect import signature
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

NAMESPACES = ("pytorch_lightning", "lightning.pytorch")
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # on Windows, either ends a process at once
NUM_SAMPLES, BATCH_SIZE, WIDTH = 32, 8, 8  # four batches an epoch


def first_now(cases: Iterable[Any]) -> list[Any]:
    """Parameters of a test: the first stays with the core tests, the others are wide."""
    first, *others = cases
    return [first, *(pytest.param(case, marks=pytest.mark.wide) for case in others)]


class TinyNet(nn.Module):
    """Four linear layers, among them a `layer1` and a `layer10`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Linear(WIDTH, WIDTH)
        self.layer2 = nn.Linear(WIDTH, WIDTH)
        self.layer10 = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.layer1, self.layer2, self.layer10):
            x = torch.tanh(layer(x))
        return self.head(x)


class NormNet(nn.Module):
    """A backbone with batch norm, with and without parameters, below a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.BatchNorm1d(WIDTH, affine=False)
        )
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x))


def batches(num_samples: int = NUM_SAMPLES, rank: int = 0, num_ranks: int = 1) -> DataLoader[Any]:
    """The same regression batches every time, in the same order; several ranks share each batch."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_samples, WIDTH, generator=generator)
    y = torch.randn(num_samples, 1, generator=generator)
    dataset = TensorDataset(x[rank::num_ranks], y[rank::num_ranks])
    return DataLoader(dataset, batch_size=BATCH_SIZE // num_ranks)


class Stream(IterableDataset[Any]):
    """The batches of `batches()`, as data of unknown length."""

    def __iter__(self) -> Iterator[Any]:
        return iter(batches())


class ResumableLoader(DataLoader[Any]):
    """A loader that goes on with the batch after the last one it gave, as Lightning asks a loader to do."""

    def __init__(self, dataset: Any) -> None:
        super().__init__(dataset, batch_size=BATCH_SIZE)
        self._num_given = 0

    def __iter__(self) -> Any:
        first, self._num_given = self._num_given, 0
        for index, batch in enumerate(super().__iter__()):
            if index >= first:
                self._num_given = (index + 1) % len(self)
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"num_given": self._num_given}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._num_given = state_dict["num_given"]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """Momentum and weight decay: what moves a parameter that is not really frozen."""
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.01)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01)


def regression(
    namespace: str,
    network: Callable[[], nn.Module] = TinyNet,
    optimizer: Callable[[Any], torch.optim.Optimizer] = sgd,
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
    wrapper: str = "network",
) -> Any:
    """A LightningModule of either namespace around a network with seeded weights."""
    base = import_module(namespace).LightningModule

    class Regression(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            setattr(self, wrapper, network())

        def loss(self, batch: Any) -> torch.Tensor:
            return nn.functional.mse_loss(getattr(self, wrapper)(batch[0]), batch[1])

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = self.loss(batch)
            self.log("train/loss", loss, on_step=False, on_epoch=True)
            self.log("train/batch_loss", loss)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val/loss", self.loss(batch), sync_dist=True)

        def configure_optimizers(self) -> Any:
            built = optimizer(self.parameters())
            return built if scheduler is None else {"optimizer": built, "lr_scheduler": scheduler(built)}

    return Regression()


def trainer(namespace: str, **options: Any) -> Any:
    """A quiet Trainer on the CPU."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
    }
    return import_module(namespace).Trainer(**{**defaults, **options})


def resuming(fit: Any, path: Any) -> dict[str, Any]:
    """What resumes a fit from a checkpoint, read as plain data where Lightning offers that: from 2.6 on."""
    safely = {"weights_only": True} if "weights_only" in signature(fit.fit).parameters else {}
    return {"ckpt_path": path, **safely}


def frozen_layers(model: nn.Module) -> list[str]:
    """The first name segments, below the wrapper, of what is frozen."""
    names = [name.split(".") for name, parameter in model.named_parameters() if not parameter.requires_grad]
    return sorted({parts[1] if parts[0] in ("network", "model") else parts[0] for parts in names})


def recorder(namespace: str, read: Callable[[Any, Any], Any], when: str = "on_train_batch_end") -> Any:
    """A callback that notes `read(trainer, module)` for each batch in its list `seen`."""

    class Recorder(import_module(namespace).Callback):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.seen: list[Any] = []

    def hook(self: Any, trainer: Any, module: Any, *_: Any) -> None:
        self.seen.append(read(trainer, module))

    setattr(Recorder, when, hook)
    return Recorder()


def frozen_at_each_step(namespace: str, callbacks: Sequence[Any], **options: Any) -> list[list[str]]:
    """Fit `TinyNet` and return what was frozen in each batch, whichever way round the callbacks stand."""
    seen = recorder(namespace, lambda _, module: frozen_layers(module))
    trainer(namespace, callbacks=[*callbacks, seen], **options).fit(
        regression(namespace), batches(), batches()
    )
    return list(seen.seen)


def frozen_components(model: nn.Module) -> list[str]:
    """The components, `attn.0` and the like, of which nothing trains."""
    from lighter_freezers.selection.layer_names import components

    parameters = dict(model.named_parameters())
    return [
        component
        for component, names in components(model).items()
        if not any(parameters[name].requires_grad for name in names)
    ]
