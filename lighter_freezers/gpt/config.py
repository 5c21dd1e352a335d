"""The config of a GPT: its size, its mode and where its weights come from. Every value is checked here."""

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from lighter_freezers.arguments import at_least, choice, count, flag, number, positive

__all__ = ["GPTConfig", "ModelMode"]

ATTENTION_TYPES = ("causal", "bidirectional")


class ModelMode(str, Enum):
    """What a GPT predicts; the value is what YAML has."""

    LANGUAGE_MODEL = "language_model"
    TOKEN_CLASSIFIER = "token_classifier"
    SEQUENCE_SCORER = "sequence_scorer"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class GPTConfig:
    """The size of a GPT, what it predicts, and its initial weights.

    | `mode` | predicts | needs | attention |
    |---|---|---|---|
    | `language_model` | the next token at every position | | `causal` |
    | `token_classifier` | a class for every token | `num_token_classes` | `bidirectional` |
    | `sequence_scorer` | one score in (0, 1) for the sequence | `cls_token_id` | `bidirectional` |

    Values are resolved at construction: `mode` is then a `ModelMode`, `attention_type` one of the two words.

    Raises:
        TypeError: A size is not a whole number, a switch not a truth value, a rate not a number.
        ValueError: A value is out of range, does not fit the mode, or does not fit another.

    Example:
        ```python
        from lighter_freezers import GPTConfig

        config = GPTConfig(mode="token_classifier", num_token_classes=3)
        assert config.attention_type == "bidirectional"
        ```
    """

    block_size: int = 256  # the longest sequence, in tokens; a [CLS] is one of them
    vocab_size: int = 1024
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    dropout: float = 0.0  # probability, in [0, 1)
    bias: bool = False  # in linear layers and layer norms of the trunk; GPT-2 has them
    use_rotary_embeddings: bool = False  # rotate queries and keys instead of a `wpe`
    exact_gelu: bool = False  # by the error function, as in nanoGPT; else by tanh, as in GPT-2
    tie_weights: bool = True  # lm_head.weight and transformer.wte.weight are one parameter
    mode: ModelMode | str = ModelMode.LANGUAGE_MODEL
    num_token_classes: int | None = None  # of a token classifier
    class_weights: str | Sequence[float] | None = None  # of a token classifier: "balanced", or one per class
    cls_token_id: int | None = None  # of a sequence scorer: the token that every sequence begins with
    attention_type: str | None = None  # None: by mode
    force_attention_type: bool = False  # keep "causal" in modes that default to "bidirectional"
    ignore_index: int = -100  # the target of positions without a loss
    head_on_supervised_only: bool | None = None  # see GPT.loss; None: where it needs no read of the device
    init_from_checkpoint: str | None = None  # see gpt.pretrained.load_pretrained
    freeze_transformer: bool = False  # all but the head, and the [CLS] embedding
    unfreeze_at_iteration: int | None = None  # optimizer steps of a GPTModule's run; None: never
    unfreeze_lr_multiplier: float = 0.1  # of the trunk's learning rate, from then on

    def __post_init__(self) -> None:
        self._check_sizes()
        for name in ("bias", "use_rotary_embeddings", "exact_gelu", "tie_weights", "force_attention_type"):
            flag(f"GPTConfig.{name}", getattr(self, name))
        self._settle(
            "mode", ModelMode(choice("GPTConfig.mode", self.mode, [mode.value for mode in ModelMode]))
        )
        self._settle("attention_type", self._settled_attention_type())
        self._check_classes()
        self._check_cls_token_id()
        self._check_loss()
        self._check_transfer()

    @classmethod
    def from_mapping(
        cls,
        values: Mapping[str, Any],  # each is checked
    ) -> "GPTConfig":
        """Make a config from a mapping, as in YAML.

        Raises:
            ValueError: A key is unknown.
        """
        known = [field.name for field in fields(cls)]
        unknown = [key for key in values if key not in known]
        if unknown:
            raise ValueError(
                f"GPTConfig has no field {', '.join(map(str, unknown))}. Fields: {', '.join(known)}."
            )
        return cls(**values)

    def _settle(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_sizes(self) -> None:
        for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd"):
            at_least(f"GPTConfig.{name}", getattr(self, name), 1)
        if not 0.0 <= number("GPTConfig.dropout", self.dropout) < 1.0:
            raise ValueError(f"GPTConfig.dropout must be a number in [0, 1). Got {self.dropout!r}.")
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd={self.n_embd} is not a multiple of n_head={self.n_head}: change one of them."
            )
        if self.use_rotary_embeddings and self.n_embd // self.n_head % 2:
            raise ValueError(
                f"Rotary embeddings rotate pairs of channels, but a head has {self.n_embd // self.n_head}. "
                "Choose n_embd and n_head so that n_embd / n_head is even."
            )

    def _settled_attention_type(self) -> str:
        is_language_model = self.mode == ModelMode.LANGUAGE_MODEL
        if self.attention_type is None:
            if self.force_attention_type:
                raise ValueError("force_attention_type keeps an attention_type: give that too.")
            return "causal" if is_language_model else "bidirectional"
        attention_type = choice("GPTConfig.attention_type", self.attention_type, ATTENTION_TYPES)
        if is_language_model or attention_type == "bidirectional":
            return attention_type
        if not self.force_attention_type:
            warnings.warn(
                f"A {self.mode} attends both ways: attention_type is bidirectional now, not causal. "
                "To keep it causal, set force_attention_type: true.",
                stacklevel=4,
            )
            return "bidirectional"
        if self.mode == ModelMode.SEQUENCE_SCORER:
            warnings.warn(
                "With causal attention the [CLS] token at the beginning sees only itself, so every sequence "
                "gets the same score.",
                stacklevel=4,
            )
        return attention_type

    def _check_classes(self) -> None:
        for name in ("num_token_classes", "class_weights"):
            self._belongs_to(ModelMode.TOKEN_CLASSIFIER, name)
        if self.mode != ModelMode.TOKEN_CLASSIFIER:
            return
        num_classes = count("GPTConfig.num_token_classes", self.num_token_classes)
        if num_classes is None or num_classes < 2:
            raise ValueError(
                f"A token_classifier needs num_token_classes, at least 2. Got {self.num_token_classes}."
            )
        if self.class_weights is None or self.class_weights == "balanced":
            return
        self._settle("class_weights", _checked_weights(self.class_weights, num_classes))

    def _check_cls_token_id(self) -> None:
        self._belongs_to(ModelMode.SEQUENCE_SCORER, "cls_token_id")
        if self.mode != ModelMode.SEQUENCE_SCORER:
            return
        cls_token_id = count("GPTConfig.cls_token_id", self.cls_token_id)
        if cls_token_id is None:
            raise ValueError(
                "A sequence_scorer needs cls_token_id, the token that every sequence begins with. "
                "It may be a new one, vocab_size - 1, after those of the tokenizer."
            )
        if cls_token_id >= self.vocab_size:
            raise ValueError(
                f"cls_token_id={cls_token_id} is not a token of vocab_size={self.vocab_size}: "
                f"set vocab_size to {cls_token_id + 1} or more."
            )

    def _belongs_to(self, mode: ModelMode, name: str) -> None:
        if getattr(self, name) is not None and self.mode != mode:
            raise ValueError(f"{name} is for mode: {mode}. Here the mode is {self.mode}: leave {name} out.")

    def _check_loss(self) -> None:
        if isinstance(self.ignore_index, bool) or not isinstance(self.ignore_index, int):
            raise TypeError(f"GPTConfig.ignore_index must be a whole number. Got {self.ignore_index!r}.")
        if self.head_on_supervised_only is not None:
            flag("GPTConfig.head_on_supervised_only", self.head_on_supervised_only)

    def _check_transfer(self) -> None:
        flag("GPTConfig.freeze_transformer", self.freeze_transformer)
        count("GPTConfig.unfreeze_at_iteration", self.unfreeze_at_iteration)
        positive("GPTConfig.unfreeze_lr_multiplier", self.unfreeze_lr_multiplier)
        if self.init_from_checkpoint is not None:
            if not isinstance(self.init_from_checkpoint, (str, os.PathLike)):
                raise TypeError(
                    f"GPTConfig.init_from_checkpoint must be a path. Got {self.init_from_checkpoint!r}."
                )
            self._settle("init_from_checkpoint", os.fspath(self.init_from_checkpoint))
        if self.unfreeze_at_iteration is not None and not self.freeze_transformer:
            warnings.warn(
                f"unfreeze_at_iteration={self.unfreeze_at_iteration} has no effect: the trunk is not frozen. "
                "Set freeze_transformer: true, or leave it out.",
                stacklevel=4,
            )


def _checked_weights(class_weights: object, num_classes: int) -> tuple[float, ...]:
    if isinstance(class_weights, str) or not isinstance(class_weights, Sequence):
        raise TypeError(
            f"GPTConfig.class_weights must be 'balanced', or a list of {num_classes} numbers. "
            f"Got {class_weights!r}."
        )
    weights = tuple(number(f"GPTConfig.class_weights[{i}]", weight) for i, weight in enumerate(class_weights))
    if len(weights) != num_classes:
        raise ValueError(f"{len(weights)} class_weights do not fit num_token_classes={num_classes}.")
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise ValueError(
            f"class_weights must be finite, at least 0, and one of them above 0. Got {list(weights)}."
        )
    return weights
