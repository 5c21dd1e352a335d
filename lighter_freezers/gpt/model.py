"""The GPT: one trunk, and the head of its mode.

Shapes: B batch, T time, V vocabulary, C channels (`n_embd`), K classes.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lighter_freezers.arguments import checked, count
from lighter_freezers.gpt.config import GPTConfig, ModelMode
from lighter_freezers.gpt.generation import Sampling, continued, evaluating
from lighter_freezers.gpt.heads import objective_of
from lighter_freezers.gpt.layer_methods import LayerMethods
from lighter_freezers.gpt.losses.pipeline import LossModifierPipeline
from lighter_freezers.gpt.padding import checked_attention_mask, mask_of_padding, require
from lighter_freezers.gpt.trunk import Trunk

__all__ = ["GPT"]


class GPT(LayerMethods):
    """A transformer with one trunk and the head of its mode.

    Parameters are called as in nanoGPT: `transformer.wte`, `transformer.wpe` (unless rotary),
    `transformer.h.N.{ln_1, attn.{c_attn, c_proj}, ln_2, mlp.{c_fc, c_proj}}`, `transformer.ln_f` and
    the head.

    | mode | head | predicts | targets | loss |
    |---|---|---|---|---|
    | `language_model` | `lm_head` | logits (B, T, V) | tokens (B, T) | cross-entropy |
    | `token_classifier` | `classifier_head` | logits (B, T, K) | classes (B, T), soft (B, T, K) | the same |
    | `sequence_scorer` | `sequence_head` | scores (B) in (0, 1) | scores (B) in [0, 1] | squared error |

    A scorer also has a `cls_embedding`, which replaces the token embedding at the first position.

    | initial value | of |
    |---|---|
    | normal, deviation 0.02 | embeddings and linear layers |
    | normal, deviation 0.02 / sqrt(2 n_layer) | `c_proj`, whose outputs add up along the residual path |
    | 1 and 0 | weights and biases of norms; biases of linear layers are 0 |

    A model does not count optimizer steps: `unfreeze_at_iteration` works in a `GPTModule`. In a training loop
    of your own, call `unfreeze_transformer_weights` at that step.

    Args:
        config: A `GPTConfig`, or a mapping with the same keys.

    Example:
        ```python
        import torch
        from lighter_freezers import GPT, GPTConfig

        model = GPT(GPTConfig(vocab_size=65, block_size=32, n_layer=2, n_embd=64))
        model.freeze_layer("attn.0")
        logits, loss = model(torch.zeros(1, 32, dtype=torch.long))
        ```
    """

    lm_head: nn.Linear
    classifier_head: nn.Linear
    sequence_head: nn.Linear

    @checked
    def __init__(self, config: GPTConfig | Mapping[str, object]) -> None:
        super().__init__()
        self.config = config if isinstance(config, GPTConfig) else GPTConfig.from_mapping(config)
        config = self.config
        self.transformer = Trunk(config)
        self.objective = objective_of(config)
        self.add_module(self.objective.head_name, self.objective.new_head())
        is_scorer = config.mode == ModelMode.SEQUENCE_SCORER
        self.cls_embedding = nn.Parameter(torch.empty(config.n_embd)) if is_scorer else None
        self._initialise()
        if config.tie_weights and config.mode == ModelMode.LANGUAGE_MODEL:
            self.lm_head.weight = self.transformer.wte.weight
        if config.init_from_checkpoint is not None:
            from lighter_freezers.gpt.pretrained import load_pretrained

            load_pretrained(self, config.init_from_checkpoint)
        if config.freeze_transformer:
            self.freeze_transformer_weights()

    def _initialise(self) -> None:
        residual = 0.02 / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1 or name == "cls_embedding":
                nn.init.normal_(parameter, std=residual if name.endswith("c_proj.weight") else 0.02)

    @property
    def head(self) -> nn.Module:
        """The head of the mode: `lm_head`, `classifier_head` or `sequence_head`."""
        return self.get_submodule(self.objective.head_name)

    def forward(
        self,
        input_ids: Tensor,
        targets: Tensor | None = None,
        *,
        loss_modifiers: LossModifierPipeline | None = None,
        attention_mask: Tensor | None = None,
        with_logits: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Predict, and compute the loss if targets are given.

        Args:
            input_ids: Token numbers, (B, T), T at most `block_size`. Those of a sequence scorer begin with
                [CLS].
            targets: As in the table of the class; positions whose target is `ignore_index`, or whose soft
                target sums to 0, have no loss. None to get no loss.
            loss_modifiers: A `LossModifierPipeline`. None for the plain loss.
            attention_mask: True for real tokens, (B, T); padding comes after them, has no loss and is not
                attended to. None: no row is padded. Causal attention needs it for the loss only.
            with_logits: False to get an empty tensor in place of the predictions; see `loss`.

        Returns:
            The predictions, and the loss or None: nats per token, or the squared error. It is 0 where no
            position has a target.

        Raises:
            ValueError: The sequence is longer than `block_size`, a shape or a dtype does not fit, padding
                comes first, or a sequence scorer's input does not begin with [CLS].
        """
        self._check(input_ids)
        if self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._count_pass()
        is_real = None if attention_mask is None else checked_attention_mask(attention_mask, input_ids)
        if targets is not None:
            targets = self.objective.checked_targets(targets, input_ids, is_real)
        mask = mask_of_padding(is_real, self.config.attention_type == "causal")
        hidden = self.transformer(input_ids, mask, cls_embedding=self.cls_embedding)  # (B, T or 1, C)
        if targets is not None and not with_logits:
            loss = self.objective.loss_of_hidden(self.head, hidden, targets, loss_modifiers)
            return hidden.new_empty(0), loss
        predictions = self.objective.predictions(self.head, hidden)
        if targets is None:
            return predictions, None
        return predictions, self.objective.loss(predictions, targets, loss_modifiers)

    def loss(
        self,
        input_ids: Tensor,
        targets: Tensor,
        *,
        loss_modifiers: LossModifierPipeline | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """The loss without the predictions, which is cheaper.

        A language model skips logits that the loss does not need:

        - Positions without a target do not go through the head: on a CPU always, on a GPU if
          `head_on_supervised_only` is true, because the host then waits once per step for the number of
          targets.
        - From 2**21 logits on, head and cross-entropy are fused, a few positions at a time, where that is
          faster for the dtype; such a loss has no second derivatives.

        Active loss modifiers need all logits.

        Args:
            input_ids: As for `forward`, like the other arguments.
            targets: Not None.
            loss_modifiers: None for the plain loss.
            attention_mask: None where no row is padded.

        Returns:
            The loss that `forward` returns, a scalar; summed in another order where something was skipped.
        """
        _, loss = self(
            input_ids,
            targets,
            loss_modifiers=loss_modifiers,
            attention_mask=attention_mask,
            with_logits=False,
        )
        assert isinstance(loss, Tensor)
        return loss

    def _check(self, input_ids: Tensor) -> None:
        _check_ids(input_ids)
        T = input_ids.shape[1]
        if self.config.block_size < T:
            raise ValueError(
                f"A sequence of {T} tokens is longer than block_size={self.config.block_size}. "
                "Cut it, or build the model with a larger block_size."
            )
        if self.config.cls_token_id is not None:
            require(
                input_ids[:, 0].eq(self.config.cls_token_id).all(),
                f"Every sequence of a sequence_scorer begins with cls_token_id={self.config.cls_token_id}: "
                "put it before the first token.",
            )

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        *,
        top_p: float | None = None,
        eos_token_id: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continue sequences, one token at a time, without dropout.

        Args:
            input_ids: Their beginnings, (B, T) with T at least 1; only the last `block_size` tokens are used.
            max_new_tokens: How many tokens to add.
            temperature: Divides the logits: below 1 the distribution is sharper, 0 always takes the most
                likely token.
            top_k: Draw among the k most likely tokens only. None draws among all.
            top_p: Draw among the most likely tokens that together reach this probability. None draws among
                all. With `top_k`, among those of the k.
            eos_token_id: The token that ends a sequence, which is then filled up with it. None: no end.
            generator: The random-number generator, on the device of the model. None is torch's own.

        Returns:
            The sequences with their continuations, (B, T + max_new_tokens).

        Raises:
            TypeError: A value is not a number.
            ValueError: A value is out of range, the beginning is empty, or this model cannot continue text.
        """
        if self.config.mode != ModelMode.LANGUAGE_MODEL or self.config.attention_type != "causal":
            raise ValueError(
                "generate() needs mode: language_model with causal attention. "
                f"Here mode is {self.config.mode} and attention_type {self.config.attention_type}."
            )
        count("max_new_tokens", max_new_tokens)
        count("eos_token_id", eos_token_id)
        _check_ids(input_ids)
        if not input_ids.shape[1]:
            raise ValueError("generate() continues a beginning: give at least one token.")
        sampling = Sampling(temperature, top_k, top_p)
        with evaluating(self):
            return continued(
                self._next_logits,
                input_ids,
                max_new_tokens,
                sampling,
                eos_token_id=eos_token_id,
                generator=generator,
            )

    def _next_logits(self, input_ids: Tensor) -> Tensor:
        hidden = self.transformer(input_ids[:, -self.config.block_size :])  # (B, T, C)
        logits: Tensor = self.head(hidden[:, -1])  # (B, V)
        return logits


def _check_ids(input_ids: object) -> None:
    if not isinstance(input_ids, Tensor):
        raise TypeError(
            f"input_ids must be a tensor of token ids, (batch, time). Got {type(input_ids).__name__}."
        )
    if input_ids.ndim != 2 or input_ids.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            "input_ids must be whole numbers (torch.long), one row per sequence: (batch, time). "
            f"Got {tuple(input_ids.shape)} of {input_ids.dtype}."
        )
