"""Small GPTs, modules and data of each mode that the tests of the module share."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lighter_freezers import GPT, GPTConfig

HOMES = {"pytorch_lightning": "lighter_freezers", "lightning.pytorch": "lighter_freezers.lightning"}
SIZE = {"block_size": 16, "vocab_size": 300, "n_layer": 2, "n_head": 2, "n_embd": 16}
CLASSES = ("O", "PERSON", "PLACE")
CLS = 299
MODES: dict[str, dict[str, Any]] = {
    "language_model": {},
    "token_classifier": {"mode": "token_classifier", "num_token_classes": len(CLASSES)},
    "sequence_scorer": {"mode": "sequence_scorer", "cls_token_id": CLS},
}
DATA = {
    "language_model": "TextDataModule",
    "token_classifier": "TokenLabelDataModule",
    "sequence_scorer": "SequenceScoreDataModule",
}
WORDS = {"O": ("the", "ferry", "to", "sleeps"), "PERSON": ("Mara", "Yusuf"), "PLACE": ("Oslo", "Vigo")}


def network(mode: str = "language_model", **changes: Any) -> GPT:
    """The same small GPT every time."""
    torch.manual_seed(0)
    return GPT(GPTConfig(**{**SIZE, **MODES[mode], **changes}))


def module(namespace: str, gpt: GPT | None = None, **options: Any) -> Any:
    """A GPTModule of either namespace."""
    return import_module(HOMES[namespace]).GPTModule(gpt or network(), **options)


def write_rows(folder: Path) -> dict[str, str]:
    """Rows of 3 to 6 words that serve every mode: 32 to train, 12 to validate, 10 to test."""
    generator = torch.Generator().manual_seed(0)
    files = {}
    for split, num_rows in (("train", 32), ("val", 12), ("test", 10)):
        rows = []
        for index in range(num_rows):
            labels = [CLASSES[int(i)] for i in torch.randint(3, (3 + index % 4,), generator=generator)]
            words = [WORDS[label][position % 2] for position, label in enumerate(labels)]
            score = labels.count("O") / len(labels)
            rows.append({"text": " ".join(words), "tokens": words, "labels": labels, "score": score})
        file = folder / f"{split}.jsonl"
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        files[f"{split}_file"] = str(file)
    return files


def own_data(namespace: str, mode: str, folder: Path, **options: Any) -> Any:
    """Rows of one's own, padded in their batches: four to train on, two unequal ones to evaluate."""
    given: dict[str, Any] = {"block_size": 16, "batch_size": 8, "vocab_size": 290, **write_rows(folder)}
    extra: dict[str, dict[str, Any]] = {
        "token_classifier": {"class_names": CLASSES},
        "sequence_scorer": {"cls_token_id": CLS},
    }
    arguments = {**given, **extra.get(mode, {}), "cache_dir": str(folder / "cache"), **options}
    return getattr(import_module(HOMES[namespace]), DATA[mode])(**arguments)


def batch_of(mode: str, num_rows: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """A batch of random tokens and targets without padding."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(CLS, (num_rows, 8), generator=generator)
    if mode == "sequence_scorer":
        input_ids[:, 0] = CLS
        return {"input_ids": input_ids, "targets": torch.rand(num_rows, generator=generator)}
    targets = torch.randint(len(CLASSES), (num_rows, 8), generator=generator)
    return {"input_ids": input_ids, "targets": targets, "num_bytes": torch.full((num_rows,), 20)}


def loader_of(mode: str, num_batches: int = 4) -> DataLoader[Any]:
    """Batches, the same ones every time."""
    return DataLoader([batch_of(mode, seed=seed) for seed in range(num_batches)], batch_size=None)
