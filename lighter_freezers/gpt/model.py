"""A GPT to read in one sitting: pre-norm blocks, causal attention, and the parameter names of nanoGPT.

Shapes: B batch, T time, V vocabulary, C channels (`n_embd`), H heads, D = C / H channels of a head.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["GPT", "GPTConfig"]


@dataclass(frozen=True)
class GPTConfig:
    """The size of a GPT.

    Raises:
        TypeError: A size is not a whole number, or a switch not a truth value.
        ValueError: A size is out of range, or `n_embd` is not a multiple of `n_head`.
    """

    block_size: int = 256  # the longest sequence, in tokens
    vocab_size: int = 1024
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    dropout: float = 0.0  # probability, in [0, 1)
    bias: bool = False  # in linear layers and layer norms; GPT-2 has them
    use_rotary_embeddings: bool = False  # positions by rotation of queries and keys, so there is no `wpe`
    tie_weights: bool = True  # lm_head.weight and transformer.wte.weight are one parameter

    def __post_init__(self) -> None:
        for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd"):
            size = getattr(self, name)
            if isinstance(size, bool) or not isinstance(size, int):
                raise TypeError(f"GPTConfig.{name} must be a whole number. Got {size!r}.")
            if size < 1:
                raise ValueError(f"GPTConfig.{name} must be at least 1. Got {size}.")
        for name in ("bias", "use_rotary_embeddings", "tie_weights"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"GPTConfig.{name} must be true or false. Got {getattr(self, name)!r}.")
        if isinstance(self.dropout, str) or not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"GPTConfig.dropout must be a number in [0, 1). Got {self.dropout!r}.")
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd={self.n_embd} is not a multiple of n_head={self.n_head}: change one of them."
            )
        if self.use_rotary_embeddings and self.n_embd // self.n_head % 2:
            raise ValueError(
                f"Rotary embeddings turn pairs of channels, but a head has {self.n_embd // self.n_head}. "
                "Choose n_embd and n_head so that n_embd / n_head is even."
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "GPTConfig":
        """The same from a dictionary, as YAML has it.

        Raises:
            ValueError: A key is unknown.
        """
        known = [field.name for field in fields(cls)]
        unknown = [key for key in values if key not in known]
        if unknown:
            raise ValueError(f"GPTConfig does not know {', '.join(unknown)}. It knows {', '.join(known)}.")
        return cls(**values)


class CausalSelfAttention(nn.Module):
    """Every position looks at itself and what came before."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.use_rotary_embeddings = config.use_rotary_embeddings
        self.c_attn = nn.Linear(
            config.n_embd, 3 * config.n_embd, bias=config.bias
        )  # query, key, value in one
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        parts = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, T, D) each
        if self.use_rotary_embeddings:
            q, k = rotated(q), rotated(k)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, C)
        return F.dropout(self.c_proj(y), self.dropout, self.training)


def rotated(x: Tensor) -> Tensor:
    """Turn pairs of channels by an angle that grows with the position (RoPE, arXiv 2104.09864).

    The product of a rotated query and a rotated key depends on the distance between their positions only.

    Args:
        x: Queries or keys, (B, H, T, D) with an even D; channel i is paired with channel i + D / 2.
    """
    T, D = x.shape[-2:]
    frequency = 10_000.0 ** (-torch.arange(0, D, 2, device=x.device, dtype=torch.float32) / D)  # (D / 2)
    angle = torch.arange(T, device=x.device, dtype=torch.float32)[:, None] * frequency  # (T, D / 2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    left, right = x.chunk(2, dim=-1)  # (B, H, T, D / 2)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


class MLP(nn.Module):
    """Two linear layers with a GELU between, four times as wide inside."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.c_fc(x), approximate="tanh")  # (B, T, 4C)
        return F.dropout(self.c_proj(x), self.dropout, self.training)


class Block(nn.Module):
    """Attention, then MLP, each behind a norm and around a residual path."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))  # (B, T, C)
        mixed: Tensor = x + self.mlp(self.ln_2(x))  # (B, T, C)
        return mixed


class Trunk(nn.Module):
    """Everything but the head: embeddings, blocks and the final norm."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = None if config.use_rotary_embeddings else nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)

    def forward(self, input_ids: Tensor) -> Tensor:
        x: Tensor = self.wte(input_ids)  # (B, T, C)
        if self.wpe is not None:
            x = x + self.wpe.weight[: input_ids.shape[1]]  # (B, T, C) + (T, C)
        x = F.dropout(x, self.dropout, self.training)
        for block in self.h:
            x = block(x)
        hidden: Tensor = self.ln_f(x)  # (B, T, C)
        return hidden


class GPT(nn.Module):
    """A decoder-only transformer language model.

    Parameters are called as in nanoGPT: `transformer.wte`, `transformer.wpe` (unless rotary),
    `transformer.h.N.{ln_1, attn.{c_attn, c_proj}, ln_2, mlp.{c_fc, c_proj}}`, `transformer.ln_f`, `lm_head`.

    | initial value | of |
    |---|---|
    | normal, deviation 0.02 | embeddings and linear layers |
    | normal, deviation 0.02 / sqrt(2 n_layer) | `c_proj`, whose outputs add up along the residual path |
    | 1 and 0 | weights and biases of norms; biases of linear layers are 0 |

    Args:
        config: Its size: a `GPTConfig`, or a mapping with the same keys.

    Example:
        ```python
        import torch
        from lighter_freezers import GPT, GPTConfig

        model = GPT(GPTConfig(vocab_size=65, block_size=32, n_layer=2, n_embd=64))
        model.freeze_layer("attn.0")
        logits, loss = model(torch.zeros(1, 32, dtype=torch.long))
        ```
    """

    def __init__(self, config: GPTConfig | Mapping[str, Any]) -> None:
        super().__init__()
        self.config = config if isinstance(config, GPTConfig) else GPTConfig.from_mapping(config)
        config = self.config
        self.transformer = Trunk(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self._initialise()
        if config.tie_weights:
            self.lm_head.weight = self.transformer.wte.weight

    def _initialise(self) -> None:
        residual = 0.02 / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1:
                nn.init.normal_(parameter, std=residual if name.endswith("c_proj.weight") else 0.02)

    def forward(self, input_ids: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Predict the next token at every position.

        Args:
            input_ids: Token numbers, (B, T), T at most `block_size`.
            targets: The tokens that follow, (B, T); torch's default `ignore_index` marks those without a
                loss. None to get no loss.

        Returns:
            Logits (B, T, V), and the mean cross-entropy in nats per token, or None.

        Raises:
            ValueError: The sequence is longer than `block_size`.
        """
        T = input_ids.shape[1]
        if self.config.block_size < T:
            raise ValueError(
                f"A sequence of {T} tokens is longer than block_size={self.config.block_size}. "
                "Cut it, or build the model with a larger block_size."
            )
        logits = self.lm_head(self.transformer(input_ids))  # (B, T, V)
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, max_new_tokens: int, temperature: float = 1.0, top_k: int | None = None
    ) -> Tensor:
        """Continue sequences, one token at a time.

        Args:
            input_ids: How they begin, (B, T) with T at least 1; only the last `block_size` tokens are seen.
            max_new_tokens: How many tokens to add.
            temperature: Divides the logits: below 1 is bolder, 0 always takes the most likely token.
            top_k: Draw among the k most likely tokens only. None draws among all.

        Returns:
            The sequences with their continuations, (B, T + max_new_tokens).

        Raises:
            ValueError: `temperature` is negative or `top_k` is below 1.
        """
        if temperature < 0:
            raise ValueError(f"temperature must be at least 0 (0 is greedy). Got {temperature}.")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1, or None. Got {top_k}.")
        for _ in range(max_new_tokens):
            logits, _loss = self(input_ids[:, -self.config.block_size :])
            input_ids = torch.cat((input_ids, _choose(logits[:, -1], temperature, top_k)), dim=1)
        return input_ids

    def freeze_layer(self, layer: str) -> int:
        """Hold a layer frozen until `unfreeze_layer`: it composes with every Freezer.

        Args:
            layer: `attn.N`, `mlp.N`, `ln_1.N`, `ln_2.N`, `wte`, `wpe`, `ln_f` or `lm_head`, N from 0.
                With tied weights `wte` and `lm_head` are one parameter.

        Returns:
            How many elements trained until now.

        Raises:
            ValueError: There is no such layer; the message says what there is.
        """
        from lighter_freezers import layer_names, ledger

        parameters = layer_names.parameters_of_layer(self, layer)
        return sum(parameter.numel() for parameter in ledger.hold(parameters.values(), "freeze_layer"))

    def unfreeze_layer(self, layer: str) -> int:
        """Let a layer train, also one that the user froze; what a Freezer holds has to wait for that.

        Args:
            layer: As for `freeze_layer`.

        Returns:
            How many elements train from now on.

        Raises:
            ValueError: There is no such layer; the message says what there is.
        """
        from lighter_freezers import layer_names, ledger

        parameters = layer_names.parameters_of_layer(self, layer)
        return sum(parameter.numel() for parameter in ledger.thaw(parameters.values(), "freeze_layer"))

    def get_detailed_param_count(self) -> dict[str, dict[str, int]]:
        """Count elements by component.

        Returns:
            Component (`wte`, `attn.0`, ..., in model order, then `total`) -> `total`, `trainable` and
            `frozen` elements. A tied `lm_head` is counted once, under `wte`.
        """
        from lighter_freezers import layer_names

        parameters = dict(self.named_parameters())
        counts = {}
        for component, names in layer_names.components(self).items():
            members = [parameters[name] for name in names]
            counts[component] = _count(members)
        return {**counts, "total": _count(list(self.parameters()))}


def _choose(logits: Tensor, temperature: float, top_k: int | None) -> Tensor:
    """The next token of each sequence: (B, V) -> (B, 1)."""
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        threshold = logits.topk(top_k, dim=-1).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < threshold, -math.inf)
    return torch.multinomial(logits.softmax(dim=-1), num_samples=1)


def _count(parameters: list[nn.Parameter]) -> dict[str, int]:
    total = sum(parameter.numel() for parameter in parameters)
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return {"total": total, "trainable": trainable, "frozen": total - trainable}
