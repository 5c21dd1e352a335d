"""Fine-tuning a causal language model, without a Lightning base class; used by both namespaces."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from lighter_freezers._log import log
from lighter_freezers.arguments import checked, count
from lighter_freezers.engine.trainer_like import OfLightning, SavedState
from lighter_freezers.experiments.causal_models import Tokenizer, base_of
from lighter_freezers.experiments.data.batches import Batch
from lighter_freezers.experiments.evaluation.answer_loss import answer_nats
from lighter_freezers.experiments.evaluation.perplexity import AnswerLikelihood
from lighter_freezers.experiments.training.answer_evaluation import AnswerEvaluation, dealt_rows, labels_of
from lighter_freezers.experiments.training.causal_lm_network import adapted, check_tokens_fit, network_from
from lighter_freezers.experiments.training.fine_tuning import FineTuning
from lighter_freezers.experiments.training.optimization import given_optimizer
from lighter_freezers.experiments.training.trained_weights import drop_frozen, fill_frozen, save_final_model
from lighter_freezers.reports.results_file import write_results
from lighter_freezers.reports.whole_files import unused_path
from lighter_freezers.selection.element_counts import num_elements, num_trainable
from lighter_freezers.selection.names import canonical_parameters

__all__ = ["CausalLMTraining"]


class CausalLMTraining:
    """A CausalLMModule without its base class; see `CausalLMModule` for the arguments."""

    trainer: OfLightning
    log: OfLightning
    log_dict: OfLightning

    @checked
    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        network: nn.Module | None = None,
        *,
        lora: Mapping[str, object] | None = None,
        dtype: str = "float32",
        load_options: Mapping[str, object] | None = None,
        gradient_checkpointing: bool = False,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: LRScheduler | Mapping[str, object] | None = None,
        learning_rate: float = 2.0e-4,
        weight_decay: float = 0.01,
        lr_schedule: Literal["cosine", "linear", "constant"] = "cosine",
        warmup_steps: int = 10,
        scheduler_interval: str = "step",
        scheduler_monitor: str | None = None,
        metrics: Sequence[str] | None = None,
        tokenizer: Tokenizer | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float | None = None,
        generation_seed: int = 0,
        save_frozen_weights: bool = True,
        save_final_model: bool = False,
    ) -> None:
        super().__init__()
        self._given = given_optimizer(optimizer, scheduler, scheduler_interval, scheduler_monitor)
        self._fine_tuning = FineTuning(learning_rate, weight_decay, lr_schedule, warmup_steps)
        model = None if model is None else os.fspath(model)
        self._model_path = model
        count("generation_seed", generation_seed)
        drawn = {"temperature": temperature, "top_p": top_p, "seed": generation_seed}
        generation = {"max_new_tokens": max_new_tokens, **drawn}
        self._answers = AnswerEvaluation(generation, metrics, model if tokenizer is None else tokenizer)
        self._saves_frozen = save_frozen_weights
        self._saves_final_model = save_final_model
        loaded = network_from(model, network, dtype, load_options)
        self.network = adapted(loaded, lora, model, gradient_checkpointing=gradient_checkpointing)
        self._said = {
            "model": type(base_of(loaded)).__name__ if model is None else model,
            "dtype": str(next(loaded.parameters()).dtype).removeprefix("torch."),
            "lora": None if lora is None else dict(lora),
        }
        self.val_likelihood, self.test_likelihood = AnswerLikelihood(), AnswerLikelihood()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits of the next token, (B, T, V)."""
        logits: Tensor = self.network(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits

    def setup(self, stage: str) -> None:
        """Check that the data are for this model.

        Raises:
            ValueError: They are not; the message says what to change.
        """
        check_tokens_fit(self.network, self._model_path, self._datamodule())
        if stage == "test":
            self._answers.check(self._datamodule())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The mean loss of the answer tokens of one batch."""
        nats, num_tokens = answer_nats(self.network, batch)
        loss = nats / num_tokens.clamp(min=1)
        self.log("train/loss", loss, batch_size=len(batch["labels"]), prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add one batch to the validation figures."""
        self.val_likelihood.update(*answer_nats(self.network, batch))

    def on_validation_epoch_end(self) -> None:
        """Log `val/loss` and `val/perplexity`."""
        for index, (name, value) in enumerate(self.val_likelihood.compute().items()):
            self.log(f"val/{name}", value, sync_dist=True, prog_bar=not index)  # one fits beside a bar
        self.val_likelihood.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Answer the prompts of one batch."""
        self._answers.figures.add(batch, self._answers.texts(self.network, batch, self._datamodule()))
        if "answers" in batch:
            self.test_likelihood.update(*answer_nats(self.network, batch["answers"]))

    def on_test_epoch_end(self) -> None:
        """Score all answers, log the figures, and write them to `evaluation_results.json`."""
        figures, datamodule = self._answers.figures, self._datamodule()
        figures.gather(*dealt_rows(self.trainer.test_dataloaders))
        scores = figures.scores(self._answers.metrics_for(datamodule), labels_of(datamodule))
        if self.test_likelihood.update_called:
            scores["perplexity"] = float(self.test_likelihood.compute()["perplexity"])
            self.test_likelihood.reset()
        self.log_dict({f"test/{name}": value for name, value in scores.items()}, sync_dist=True)
        folder, said = self._run_folder(), {**self._said, "checkpoint": self.trainer.ckpt_path}
        if self.trainer.is_global_zero:
            path = write_results(folder, {**said, "scores": scores, **self._answers.report(datamodule)})
            log.info("scored %d answers: %s", len(figures.answers), path)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, list[str]]:
        """The prompts of a batch, where it has their text, and the model's answers."""
        texts = self._answers.texts(self.network, batch, self._datamodule())
        return {**({"prompts": list(batch["prompts"])} if "prompts" in batch else {}), "predictions": texts}

    def on_train_start(self) -> None:
        """Log how much of the model trains, in the log and to the loggers."""
        from lighter_freezers.reports.loggers import write_metrics

        if not self.trainer.is_global_zero:
            return
        parameters = canonical_parameters(self.network).values()
        total = num_elements(parameters)
        trainable = num_trainable(parameters)
        share = 100 * trainable / max(1, total)
        log.info("%s of %s parameters train, %.3g %%", f"{trainable:,}", f"{total:,}", share)
        figures = {"model/trainable_parameters": float(trainable), "model/parameters": float(total)}
        write_metrics(self.trainer.loggers, figures, 0)

    def on_train_end(self) -> None:
        """Write the final model, if requested."""
        folder = self._run_folder() if self._saves_final_model else None
        if folder is not None and self.trainer.is_global_zero:
            tokenizer = self._answers.tokenizer_for(self._datamodule())
            save_final_model(self.network, unused_path(folder / "final_model"), tokenizer)

    def on_save_checkpoint(self, checkpoint: SavedState) -> None:
        """Remove the frozen base from the checkpoint, if requested."""
        if not self._saves_frozen:
            drop_frozen(self, checkpoint["state_dict"])  # type: ignore[arg-type]

    def on_load_checkpoint(self, checkpoint: SavedState) -> None:
        """Take the frozen base from the loaded model, if the checkpoint has none."""
        if not self._saves_frozen:
            fill_frozen(self, checkpoint["state_dict"])  # type: ignore[arg-type]

    def configure_optimizers(self) -> OfLightning:
        """The given optimizer and scheduler, or AdamW over what trains, with warm-up and decay."""
        if self._given is not None:
            return self._given
        return self._fine_tuning.optimizers(self.network, self.trainer.estimated_stepping_batches)

    def _datamodule(self) -> object:
        return getattr(self.trainer, "datamodule", None)

    def _run_folder(self) -> Path:
        """The output folder of this run, the same on every rank; a collective call."""
        return Path(self.trainer.log_dir or self.trainer.default_root_dir)
