"""Training a GPT in any mode, without a Lightning base class; used by both namespaces."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from lighter_freezers.arguments import checked, positive
from lighter_freezers.engine.trainer_like import OfLightning
from lighter_freezers.experiments.evaluation.mode_figures import Figures, TensorBatch, figures_of
from lighter_freezers.experiments.training.data_check import check_data_fits
from lighter_freezers.experiments.training.optimization import adamw, given_optimizer, not_negative
from lighter_freezers.experiments.training.predictions import Continuation, predictor_of
from lighter_freezers.experiments.training.trunk_thaw import TrunkThaw
from lighter_freezers.gpt.losses.factory import create_loss_modifier_pipeline
from lighter_freezers.gpt.losses.pipeline import LossModifierPipeline
from lighter_freezers.gpt.model import GPT

__all__ = ["GPTTraining"]

# What the weights alone do not show, or not clearly; all values are integers or booleans.
ARCHITECTURE = (
    *("n_layer", "n_head", "n_embd", "vocab_size", "block_size"),
    *("bias", "use_rotary_embeddings", "exact_gelu", "tie_weights"),
)


class GPTTraining:
    """A GPTModule without its base class; see `GPTModule` for the arguments."""

    trainer: OfLightning
    log: OfLightning
    log_dict: OfLightning

    @checked
    def __init__(
        self,
        network: GPT,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: LRScheduler | Mapping[str, object] | None = None,
        *,
        loss_modifiers: LossModifierPipeline | Mapping[str, object] | None = None,
        learning_rate: float = 1.0e-3,
        head_learning_rate: float | None = None,
        weight_decay: float = 0.1,
        scheduler_interval: str = "step",
        scheduler_monitor: str | None = None,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        eos_token_id: int | None = None,
    ) -> None:
        super().__init__()
        self._given = given_optimizer(optimizer, scheduler, scheduler_interval, scheduler_monitor)
        self.network = network
        self.optimizer = optimizer
        self.learning_rate = positive("learning_rate", learning_rate)
        self.head_learning_rate = _head_learning_rate(head_learning_rate, optimizer)
        self.weight_decay = not_negative("weight_decay", weight_decay)
        if isinstance(loss_modifiers, Mapping):
            loss_modifiers = create_loss_modifier_pipeline(loss_modifiers)
        self.loss_modifiers = loss_modifiers
        continuation = Continuation(max_new_tokens, temperature, top_k, top_p, eos_token_id)
        self._predict = predictor_of(network.config.mode, continuation)
        self._trunk_thaw = TrunkThaw(network)
        self.val_figures = figures_of(network.config)
        self.test_figures = figures_of(network.config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The predictions of the mode: logits of tokens, of classes, or scores."""
        predictions: Tensor = self.network(input_ids, attention_mask=attention_mask)[0]
        return predictions

    def configure_callbacks(self) -> OfLightning:
        """The callback that holds the trunk, if the GPT's config sets when it thaws."""
        return self._trunk_thaw.callbacks()

    def setup(self, stage: str) -> None:
        """Check that model and data match, and transfer the hold on the trunk to the callback.

        Raises:
            ValueError: They do not; the message says what to change.
        """
        datamodule = self._datamodule()
        check_data_fits(self.network.config, datamodule)
        self.val_figures.learn_from(datamodule)
        self.test_figures.learn_from(datamodule)
        if stage == "fit":
            self._trunk_thaw.hand_over()

    def training_step(self, batch: TensorBatch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        loss = self.network.loss(
            batch["input_ids"],
            batch["targets"],
            loss_modifiers=self.loss_modifiers,
            attention_mask=batch.get("attention_mask"),
        )
        self.log("train/loss", loss, prog_bar=True)
        if self.loss_modifiers is not None:
            figures = self.loss_modifiers.get_all_metrics()
            self.log_dict({f"train/modifier/{name}": value for name, value in figures.items()})
            self.loss_modifiers.reset_all_metrics()
        return loss

    def validation_step(self, batch: TensorBatch, batch_idx: int) -> None:
        """Add one batch to the validation figures."""
        self._add(self.val_figures, batch)

    def test_step(self, batch: TensorBatch, batch_idx: int) -> None:
        """Add one batch to the test figures."""
        self._add(self.test_figures, batch)

    def on_validation_epoch_end(self) -> None:
        """Log the validation figures."""
        self._log_figures("val", self.val_figures)

    def on_test_epoch_end(self) -> None:
        """Log the test figures."""
        self._log_figures("test", self.test_figures)

    def predict_step(self, batch: TensorBatch, batch_idx: int) -> object:
        """The output of the mode for a batch: continued text, tokens with classes, or scores."""
        return self._predict(self.network, batch, self._datamodule())

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Save the model's config, so that `init_from_checkpoint` can name what does not fit."""
        checkpoint["model_args"] = {name: getattr(self.network.config, name) for name in ARCHITECTURE}

    def configure_optimizers(self) -> OfLightning:
        """The given optimizer and scheduler, or AdamW over all parameters, frozen ones too."""
        if self._given is not None:
            return self._given
        return adamw(self.network, self.learning_rate, self.head_learning_rate, self.weight_decay)

    def _datamodule(self) -> object:
        return getattr(self.trainer, "datamodule", None)

    def _add(self, figures: Figures, batch: TensorBatch) -> None:
        figures.update(self.forward(batch["input_ids"], batch.get("attention_mask")), batch)

    def _log_figures(self, stage: str, figures: Figures) -> None:
        for index, (name, value) in enumerate(figures.compute().items()):
            self.log(f"{stage}/{name}", value, sync_dist=True, prog_bar=not index)  # one fits beside a bar
        figures.reset()


def _head_learning_rate(given: float | None, optimizer: torch.optim.Optimizer | None) -> float | None:
    if given is not None and optimizer is not None:
        raise ValueError(
            "head_learning_rate is for the AdamW that is made if no optimizer is given. Give the rates in "
            "the optimizer's parameter groups, or leave the optimizer out."
        )
    return None if given is None else positive("head_learning_rate", given)
