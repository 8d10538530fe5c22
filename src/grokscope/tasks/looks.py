"""How the probe looks at a task's model on a split: at one model, or at many of one shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from grokscope.measures.checks import NotFiniteError
from grokscope.probe import Measurement, Probe
from grokscope.probe.together import Heads, measure_together
from grokscope.probe.values import Block

if TYPE_CHECKING:
    from grokscope.tasks import Split

# Inputs ``[r, n, ...]`` of r models to what their heads see and say: ``[r, n, d], [r, n, c]``.
Forward = Callable[[Tensor], tuple[Tensor, Tensor]]
AT_ONCE = 8192  # examples of all models in one forward pass


class Look:
    """The probe's measures on a split, one label to an example or to a position.

    Args:
        at_once: Examples in one forward pass; all of them if None.
        head: Name of the head, as in `Probe`.
    """

    def __init__(self, at_once: int | None = None, head: str | None = None) -> None:
        self.at_once, self.head = at_once, head

    def __call__(
        self, model: nn.Module, split: Split, reference: Measurement | None = None
    ) -> Measurement:
        """Measure one model."""
        size = self.at_once or len(split)
        batches = zip(split.inputs.split(size), split.labels.split(size), strict=True)
        return Probe(model, self.head).measure(batches, reference)

    def together(
        self,
        forward: Forward,
        heads: Heads,
        splits: Sequence[Split],
        references: Sequence[Measurement] | None = None,
    ) -> list[Measurement | NotFiniteError]:
        """Measure many models, each on its own split.

        Args:
            forward: Of all models.
            heads: Of all models.
            splits: Of each, of one size.
            references: As of `measure_together`.

        Raises:
            ValueError: If splits differ in size, or labels are not one for each example.
        """
        return measure_together(self.blocks(forward, splits), heads, references)

    def blocks(self, forward: Forward, splits: Sequence[Split]) -> Iterator[Block]:
        """What the heads see and say on the splits, some examples of each at a time."""
        sizes = {len(split) for split in splits}
        if len(sizes) > 1:
            raise ValueError(f"splits differ in size: {sorted(sizes)}")
        (total,) = sizes
        size = min(self.at_once or total, max(1, AT_ONCE // len(splits)))
        for first in range(0, total, size):
            part = slice(first, first + size)
            inputs = torch.stack([split.inputs[part] for split in splits])
            labels = torch.stack([split.labels[part] for split in splits])
            yield self.block(*forward(inputs), labels)

    def block(self, features: Tensor, logits: Tensor, labels: Tensor) -> Block:
        """What is measured of a forward pass."""
        if labels.dim() != 2 or logits.dim() != 3 or features.dim() != 3:
            raise ValueError(
                f"models are measured together with one label to an example, [models, examples], "
                f"not {tuple(labels.shape)}"
            )
        return Block(features, logits, labels.long())
