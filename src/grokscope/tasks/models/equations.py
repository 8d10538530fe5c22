"""The same transformer for equations ``a op b = c``: answers only, nothing computed twice.

Three observations, each exact:

* Only the last positions are asked for (``=`` predicts c, c predicts ``<eos>``), so the last
  block needs their queries alone.
* A row that enters the first block depends on one token and its position. There are far fewer
  such rows than examples, so they are projected once, then gathered.
* Under the causal mask the hidden states at ``a`` and ``op`` depend on a alone: this *prefix* is
  computed once per operand, not once per example.

Axes as in `transformer`; ``p`` operands, ``s`` positions from b on (the *suffix*). Between blocks
all rows are one matrix: ``p`` rows for a, ``p`` for op after each a, then ``n * s`` of the suffix.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from grokscope.tasks.models.rows import take_rows
from grokscope.tasks.models.transformer import DecoderBlock, Transformer

PREFIX = 2  # the positions of a and op; the suffix is b, =, and, where it is an input, c


class EquationTransformer(Transformer):
    """`Transformer` restricted to the answers of equations.

    Operands are the tokens below ``operands``, the operator is token ``operands`` and ``=`` is
    token ``operands + 1``, in every example. ``forward`` maps ``[n, 3 + answers]`` tokens to
    ``[n, answers, vocabulary]`` logits: the last positions of `Transformer.forward`, up to
    rounding.

    Args:
        operands: Number of operand tokens.
        answers: 1 (the result) or 2 (the result and the end of sequence).
        vocabulary: Number of all tokens.
        width: Width of the model.
        heads: Attention heads; must divide ``width``.
        layers: Decoder blocks.

    Cost: per example ``answers + 1`` rows of feed-forward in each block but the last and
    ``answers`` in the last, where the plain form takes ``answers + 3`` in each.
    """

    def __init__(
        self,
        operands: int,
        answers: int,
        vocabulary: int,
        width: int = 128,
        *,
        heads: int = 4,
        layers: int = 2,
    ) -> None:
        super().__init__(vocabulary, 3 + answers, width, heads=heads, layers=layers)
        self.operands = operands
        self.answers = answers

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the answers, ``[n, answers, vocabulary]``."""
        a, prefix = tokens[:, 0], PREFIX * self.operands
        distinct, index = self._distinct_rows(tokens)
        hidden, projected = take_rows(distinct, index), None
        last = len(self.blocks) - 1
        for depth, block in enumerate(self.blocks):
            assert isinstance(block, DecoderBlock)
            if projected is None:
                projected = take_rows(block.queries_keys_values(distinct), index)
            else:
                projected = block.queries_keys_values(hidden)
            before, after = projected.split([prefix, len(projected) - prefix])
            before = before.unflatten(0, (PREFIX, -1)).transpose(0, 1)  # [p, 2, 3 d]
            after = after.unflatten(0, (len(tokens), -1))  # [n, s, 3 d]
            if depth < last:
                attended = self._attend(before, after, a, after.shape[1])
                attended = torch.cat([self._attend_prefix(before), attended])
            else:
                attended = self._attend(before, after, a, self.answers)
                _, rows = hidden.split([prefix, len(hidden) - prefix])
                hidden = rows.unflatten(0, after.shape[:2])[:, -self.answers :].flatten(0, 1)
            hidden = block.after_attention(hidden, attended)
        return self.head(hidden.unflatten(0, (-1, self.answers)))

    def forward_everywhere(self, tokens: Tensor) -> Tensor:
        """The plain form: logits at every position, ``[n, t, vocabulary]``."""
        return super().forward(tokens)

    def _distinct_rows(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """All rows that can enter the first block, and which of them each row there is."""
        p, weight, at = self.operands, self.embedding.weight, self.positions
        operands, operator, equals = weight[:p], weight[p : p + 1], weight[p + 1 : p + 2]
        rows = [operands + at[0], operator + at[1], operands + at[2], equals + at[3]]
        suffix = [tokens[:, 2] + (p + 1), torch.full_like(tokens[:, 3], 2 * p + 1)]
        if self.answers == 2:
            rows.append(operands + at[4])
            suffix.append(tokens[:, 4] + (2 * p + 2))
        prefix = torch.arange(p, device=tokens.device)
        index = [prefix, torch.full_like(prefix, p), torch.stack(suffix, 1).flatten()]
        return torch.cat(rows), torch.cat(index)

    def _attend_prefix(self, projected: Tensor) -> Tensor:
        """Attention within the prefix: a sees itself, op sees a and itself; ``[2 p, d]``."""
        queries, keys, values = projected.chunk(3, -1)
        return torch.cat([values[:, 0], attend(queries[:, 1], keys, values, self.heads)])

    def _attend(self, before: Tensor, after: Tensor, a: Tensor, asked: int) -> Tensor:
        """Attention of the last ``asked`` positions, ``[n * asked, d]``."""
        width = after.shape[-1] // 3
        queries, of_suffix = after.split([width, 2 * width], -1)
        _, of_prefix = before.split([width, 2 * width], -1)
        keys, values = torch.cat([take_rows(of_prefix, a), of_suffix], 1).chunk(2, -1)
        asking = queries.unbind(1)[-asked:]
        attended = [
            attend(query, keys, values, self.heads, unseen=asked - 1 - i)
            for i, query in enumerate(asking)
        ]
        return torch.stack(attended, 1).flatten(0, 1)


def attend(queries: Tensor, keys: Tensor, values: Tensor, heads: int, *, unseen: int = 0) -> Tensor:
    """One query per example over few keys: ``[n, d], [n, j, d], [n, j, d] -> [n, d]``.

    The last ``unseen`` keys are masked. With five keys, products and sums over whole rows beat
    thousands of tiny matrix products, and a mask beats a slice, whose gradient fills with zeros.
    """
    width = queries.shape[-1] // heads
    products = (queries.unsqueeze(1) * keys).unflatten(-1, (heads, width))
    scores = products.sum(-1) / math.sqrt(width)  # [n, j, h]
    if unseen:
        later = torch.arange(keys.shape[1], device=keys.device) >= keys.shape[1] - unseen
        scores = scores.masked_fill(later[:, None], -math.inf)
    weights = scores.softmax(1).unsqueeze(-1)
    return (weights * values.unflatten(-1, (heads, width))).sum(1).flatten(1)
