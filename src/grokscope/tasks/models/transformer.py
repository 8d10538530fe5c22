"""The small decoder transformer of the grokking literature.

Axes: ``n`` examples, ``t`` positions, ``h`` heads, ``k`` width of a head, ``d`` width of the
model. Architecture after Power et al. (2022) as the paper uses it: post-norm blocks, ReLU
feed-forward four times the width, sinusoidal positions, no biases outside the layer norms.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def sinusoidal_positions(length: int, width: int) -> Tensor:
    """Fixed position encoding of Vaswani et al. (2017), ``[length, width]``."""
    position = torch.arange(length, dtype=torch.float64).unsqueeze(1)
    even = torch.arange(width) // 2 * 2
    angle = position / 10_000 ** (even / width)
    return torch.where(torch.arange(width) % 2 == 0, angle.sin(), angle.cos()).float()


class DecoderBlock(nn.Module):
    """Causal self-attention and feed-forward, each followed by add and layer norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries_keys_values = nn.Linear(width, 3 * width, bias=False)
        self.mix = nn.Linear(width, width, bias=False)
        self.attention_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width, bias=False)
        self.contract = nn.Linear(4 * width, width, bias=False)
        self.feedforward_norm = nn.LayerNorm(width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map ``[n, t, d]`` to ``[n, t, d]``; position t sees positions up to t."""
        n, t, d = hidden.shape
        projected = self.queries_keys_values(hidden).view((n, t, 3, self.heads, d // self.heads))
        queries, keys, values = projected.permute((2, 0, 3, 1, 4))
        attended = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return self.after_attention(hidden, attended.transpose(1, 2).reshape(n, t, d))

    def after_attention(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """What follows the heads, row by row: mix, add, norm, feed-forward, add, norm."""
        hidden = self.attention_norm(hidden + self.mix(attended))
        expanded = functional.relu(self.expand(hidden), inplace=True)
        return self.feedforward_norm(hidden + self.contract(expanded))


class Transformer(nn.Module):
    """Decoder over token sequences: logits ``[n, t, vocabulary]`` for every position.

    Args:
        vocabulary: Number of tokens.
        length: Longest sequence.
        width: Width of the model.
        heads: Attention heads; must divide ``width``.
        layers: Decoder blocks.

    Raises:
        ValueError: If ``heads`` does not divide ``width``.
    """

    positions: Tensor

    def __init__(
        self, vocabulary: int, length: int = 5, width: int = 128, *, heads: int = 4, layers: int = 2
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads={heads} must divide width={width}")
        self.heads = heads
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(DecoderBlock(width, heads) for _ in range(layers))
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.register_buffer("positions", sinusoidal_positions(length, width), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token at every position, ``[n, t] -> [n, t, vocabulary]``."""
        hidden = self.embedding(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden)
