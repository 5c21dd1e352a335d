"""CausalLMModule in two gloo processes: figures over all rows, answers in order, and none twice."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from lighter_freezers import GenerationDataModule
from lighter_freezers.experiments.evaluation.perplexity import perplexity
from tests.distributed.run_ranks import run_ranks
from tests.experiments.training.causal_lms import causal_lm, question_batch, tokenizer, training_loader
from tests.experiments.training.test_causal_lm_answers import QUESTIONS, asked
from tests.lab import trainer

CASES = ("dealt", "each has all", "our data")


class Rows(torch.utils.data.Dataset[Any]):
    """Questions one by one, for a sampler that deals them out."""

    def __len__(self) -> int:
        return len(QUESTIONS)

    def __getitem__(self, index: int) -> Any:
        return QUESTIONS[index]


def options(num_ranks: int) -> dict[str, Any]:
    """For a Trainer of one process, or one of two."""
    from pytorch_lightning.strategies import DDPStrategy

    torch.set_num_threads(1)
    return {} if num_ranks == 1 else {"strategy": DDPStrategy(process_group_backend="gloo"), "devices": 2}


def tested(case: str, num_ranks: int, folder: Path) -> dict[str, Any]:
    """Figures and answers of a test."""
    run = trainer(
        "pytorch_lightning",
        default_root_dir=folder / case,
        use_distributed_sampler=case == "dealt",
        **options(num_ranks),
    )
    if case == "our data":
        model = asked(network=causal_lm(num_positions=1100), metrics=None, max_new_tokens=4)
        data: Any = GenerationDataModule(
            "multi_nli", "fixture", tokenizer=tokenizer(), max_length=1000, batch_size=2, num_test_sequences=6
        )
    else:
        model, data = asked(), DataLoader(Rows(), batch_size=2, collate_fn=question_batch)
    (logged,) = run.test(model, data, verbose=False)
    texts = [one.prediction for one in model._answers.figures.answers]
    return {"logged": {name: float(value) for name, value in logged.items()}, "texts": texts}


tested.__test__ = False  # type: ignore[attr-defined]


def validated(num_ranks: int) -> float:
    """The perplexity that validation logs, where the ranks have three batches and two."""
    rank = int(os.environ["RANK"]) if num_ranks > 1 else 0
    loader = DataLoader(list(training_loader(10, 2, 1))[rank::num_ranks], batch_size=None)
    (logged,) = trainer("pytorch_lightning", **options(num_ranks)).validate(asked(), loader, verbose=False)
    return float(logged["val/perplexity"])


def work(folder: Path) -> dict[str, Any]:
    """What each rank does."""
    return {"perplexity": validated(2), **{case: tested(case, 2, folder) for case in CASES}}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    return folder, run_ranks(work, folder, 2, folder)


@pytest.mark.wide
@pytest.mark.parametrize("case", CASES)
def test_two_processes_answer_each_prompt_once(two_ranks: Any, case: str, tmp_path: Path) -> None:
    """Torch's sampler gives one of five rows twice. In order, the same figures on both ranks, one file."""
    folder, ranks = two_ranks
    alone = tested(case, 1, tmp_path)
    scores = dict(alone["logged"])
    if case == "dealt":
        del scores["test/perplexity"]  # the row that comes twice counts twice

    for rank in ranks:
        assert rank[case]["texts"] == alone["texts"]
        logged = {name: rank[case]["logged"][name] for name in scores}
        assert logged == pytest.approx(scores, rel=1e-5)
    (file,) = (folder / case).rglob("evaluation_results*.json")
    assert math.isfinite(json.loads(file.read_text())["scores"]["perplexity"])


@pytest.mark.wide
def test_validation_is_over_the_tokens_of_all_ranks(two_ranks: Any) -> None:
    """Not a mean of two means."""
    expected = perplexity(causal_lm(), training_loader(10, 2, 1))

    assert [rank["perplexity"] for rank in two_ranks[1]] == [pytest.approx(expected, rel=1e-5)] * 2
