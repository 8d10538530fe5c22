"""The same transformer for equations ``a op b = c``: answers only, nothing computed twice.

Three observations, each exact:

* Only the last positions are asked for (``=`` predicts c, c predicts ``<eos>``), so the last
  block needs their queries alone.
* A row that enters the first block depends on one token and its position. There are far fewer
  such rows than examples, so they are projected once, then gathered.
* Under the causal mask the hidden states at ``a`` and ``op`` depend on a alone: this *prefix* is
  computed once per operand, not once per example.

Axes as in `transformer`; ``p`` operands, ``s`` positions from b on (the *suffix*).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

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
        heads: int = 4,
        layers: int = 2,
    ) -> None:
        super().__init__(vocabulary, 3 + answers, width, heads, layers)
        self.operands = operands
        self.answers = answers

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the answers, ``[n, answers, vocabulary]``."""
        a, p = tokens[:, 0], self.operands
        rows, index = self._distinct_rows(tokens)
        prefix = torch.cat([rows[:p], rows[p : p + 1].expand(p, -1)])  # [2 p, d]
        suffix = rows.index_select(0, index.flatten()).unflatten(0, index.shape)  # [n, s, d]
        for depth, block in enumerate(self.blocks):
            asked = self.answers if depth == len(self.blocks) - 1 else index.shape[1]
            if depth == 0:
                of_prefix, of_suffix = self._project_rows(block, rows, index)
            else:
                of_prefix, of_suffix = self._project(block, prefix, suffix)
            suffix = suffix[:, -asked:]
            attended = self._attend_suffix(of_prefix, of_suffix, a, asked)
            if depth == len(self.blocks) - 1:
                suffix = block.after_attention(suffix, attended)
            else:
                prefix, suffix = self._finish(
                    block, prefix, suffix, self._attend_prefix(of_prefix), attended
                )
        return self.head(suffix)

    def forward_everywhere(self, tokens: Tensor) -> Tensor:
        """The plain form: logits at every position, ``[n, t, vocabulary]``."""
        return super().forward(tokens)

    def _distinct_rows(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """All rows that can enter the first block, and which of them each suffix consists of."""
        p, weight, at = self.operands, self.embedding.weight, self.positions
        operands, operator, equals = weight[:p], weight[p : p + 1], weight[p + 1 : p + 2]
        rows = [operands + at[0], operator + at[1], operands + at[2], equals + at[3]]
        index = [tokens[:, 2] + (p + 1), torch.full_like(tokens[:, 3], 2 * p + 1)]
        if self.answers == 2:
            rows.append(operands + at[4])
            index.append(tokens[:, 4] + (2 * p + 2))
        return torch.cat(rows), torch.stack(index, 1)

    def _project_rows(
        self, block: DecoderBlock, rows: Tensor, index: Tensor
    ) -> tuple[Tensor, Tensor]:
        p = self.operands
        projected = block.queries_keys_values(rows)
        of_prefix = torch.cat([projected[:p], projected[p : p + 1].expand(p, -1)])
        of_suffix = projected.index_select(0, index.flatten()).unflatten(0, index.shape)
        return of_prefix, of_suffix

    def _project(
        self, block: DecoderBlock, prefix: Tensor, suffix: Tensor
    ) -> tuple[Tensor, Tensor]:
        projected = block.queries_keys_values(torch.cat([prefix, suffix.flatten(0, 1)]))
        of_prefix, of_suffix = projected.split([len(prefix), suffix[..., 0].numel()])
        return of_prefix, of_suffix.unflatten(0, suffix.shape[:2])

    def _attend_prefix(self, of_prefix: Tensor) -> Tensor:
        """Attention within the prefix: a sees itself, op sees a and itself."""
        _, keys, values = of_prefix.unflatten(0, (PREFIX, -1)).transpose(0, 1).chunk(3, -1)
        queries = of_prefix[self.operands :].chunk(3, -1)[0]
        at_op = attend(queries, keys, values, self.blocks[0].heads)
        return torch.cat([values[:, 0], at_op])

    def _attend_suffix(self, of_prefix: Tensor, of_suffix: Tensor, a: Tensor, asked: int) -> Tensor:
        """Attention of the last ``asked`` positions, ``[n, asked, d]``."""
        width = of_suffix.shape[-1] // 3
        prefix = of_prefix[:, width:].unflatten(0, (PREFIX, -1)).transpose(0, 1)
        seen = torch.cat([prefix[a], of_suffix[..., width:]], 1)
        keys, values = seen.chunk(2, -1)
        queries = of_suffix[:, -asked:, :width]
        first = seen.shape[1] - asked + 1
        heads = self.blocks[0].heads
        return torch.stack(
            [
                attend(queries[:, i], keys[:, : first + i], values[:, : first + i], heads)
                for i in range(asked)
            ],
            1,
        )

    def _finish(
        self,
        block: DecoderBlock,
        prefix: Tensor,
        suffix: Tensor,
        at_prefix: Tensor,
        at_suffix: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The row-by-row rest of a block, for prefix and suffix in one call."""
        hidden = block.after_attention(
            torch.cat([prefix, suffix.flatten(0, 1)]),
            torch.cat([at_prefix, at_suffix.flatten(0, 1)]),
        )
        prefix, rest = hidden.split([len(prefix), suffix[..., 0].numel()])
        return prefix, rest.unflatten(0, suffix.shape[:2])


def attend(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """One query per example over few keys: ``[n, d], [n, j, d], [n, j, d] -> [n, d]``.

    With five keys, products and sums over whole rows beat thousands of tiny matrix products.
    """
    width = queries.shape[-1] // heads
    products = (queries.unsqueeze(1) * keys).unflatten(-1, (heads, width))
    weights = (products.sum(-1) / math.sqrt(width)).softmax(1)  # [n, j, h]
    return (weights.unsqueeze(-1) * values.unflatten(-1, (heads, width))).sum(1).flatten(1)
