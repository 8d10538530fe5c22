"""How a task's model is looked at: by its head, on the rows that count, by all measures.

A task has one `Look`. Its loss, penalties, constraints and every measurement, alone or of many
networks at once, go by it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from types import FunctionType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from grokscope.measures.checks import NotFiniteError, check_labels
from grokscope.measures.record import Measure
from grokscope.probe.assembly import Assembly
from grokscope.probe.choice import Extra, choose
from grokscope.probe.head import find_head
from grokscope.probe.measurement import Measurement
from grokscope.probe.probe import Probe
from grokscope.probe.rows import Rows, select
from grokscope.probe.trees import Block, Heads, over_networks, split, stacked

# Inputs ``[r, n, ...]`` of r networks to the inputs and outputs of their heads.
Forward = Callable[[Any], tuple[Tensor, Tensor]]
ON_GPU = 8  # times as many examples in one forward pass: there, launching is what takes time
TOGETHER = 8192  # examples of all networks in one forward pass


class Examples(Protocol):
    """Inputs, a tree of tensors ``[n, ...]``, and labels ``[n, ...]``."""

    @property
    def inputs(self) -> Any: ...

    @property
    def labels(self) -> Tensor: ...


@dataclass(frozen=True)
class Look:
    """How a model is looked at.

    Args:
        head: Name of the layer that makes the logits, as in `Probe`.
        rows: Chooses the rows that measures, penalties and constraints see; the loss sees all. A
            pure function of features ``[n, ..., d]``, logits ``[n, ..., c]`` and labels
            ``[n, ...]`` that returns its choice of each, without looking at their values. None:
            all rows. Labels of -100 never count.
        extra: Measures of your own, as in `Probe`.
        batch_size: Examples in one forward pass, on a GPU eight times as many; None: all of them.
        at_once: What ``batch_size`` was called before; for one version, with a warning.

    Raises:
        ValueError: If the head is not a name.

    Example:
        >>> def last(features, logits, labels):
        ...     return features[:, -1], logits[:, -1], labels[:, -1]
        >>> look = Look(head="head", rows=last)
    """

    head: str | None = None
    rows: Rows | None = None
    extra: Mapping[str, Extra] = field(default_factory=dict)
    batch_size: int | None = None
    at_once: InitVar[int | None] = None

    def __post_init__(self, at_once: int | None) -> None:
        if at_once is not None:
            warnings.warn(
                "Look(at_once=...) is called batch_size=... now.", DeprecationWarning, stacklevel=3
            )
            object.__setattr__(self, "batch_size", at_once)
        if self.head is not None and not isinstance(self.head, str):
            raise ValueError(
                f"head must be the name of a layer, got {self.head!r}; the number of examples in "
                "one forward pass is Look(batch_size=...)."
            )

    def find_head(self, model: nn.Module) -> tuple[str, nn.Linear]:
        """Name and module of the head of a model.

        Raises:
            ValueError: If there is no such layer.
        """
        return find_head(model, self.head)

    def is_like(self, other: Look) -> bool:
        """Whether another look looks in the same way, so that both can look together."""
        names = list(self.extra) == list(other.extra)
        plain = (self.head, self.batch_size) == (other.head, other.batch_size)
        return (
            type(self) is type(other)
            and names
            and plain
            and same_function(self.rows, other.rows)
            and all(same_function(self.extra[name], other.extra[name]) for name in self.extra)
        )

    def select(
        self, features: Tensor, logits: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The rows that count, one after the other; labels of -100 are still among them."""
        return select(self.rows, features, logits, labels)

    def labels_of(self, labels: Tensor) -> Tensor:
        """The labels of the rows that count, without a forward pass."""
        stand_in = labels.unsqueeze(-1)  # of features and logits: their axes are what matters
        return self.select(stand_in, stand_in, labels)[2]

    def __call__(
        self, model: nn.Module, examples: Examples, reference: Measurement | None = None
    ) -> Measurement:
        """Measure one model.

        Args:
            model: As in `Probe`.
            examples: Inputs and labels.
            reference: The measurement of the training data, if these are held-out data.

        Returns:
            Its measures by name.

        Raises:
            ValueError: As `Probe.measure`.
        """
        probe = Probe(model, self.head, extra=self.extra, rows=self.rows)
        size = self._size(examples.labels)
        batches = zip(split(examples.inputs, size), examples.labels.split(size), strict=True)
        return probe.measure(batches, reference)

    def together(
        self,
        forward: Forward,
        heads: Heads,
        examples: Sequence[Examples],
        references: Sequence[Measurement] | None = None,
    ) -> list[Measurement | NotFiniteError]:
        """Measure many networks of one shape, each on its own examples.

        Args:
            forward: Of all networks.
            heads: Of all networks.
            examples: Of each, equally many.
            references: For held-out data, the measurement of each network's training data.

        Returns:
            A measurement of each; an error for those that are no longer finite.

        Raises:
            ValueError: If the numbers of examples differ, or labels are not classes.

        Cost: the arithmetic of all; kernels and waits for the device of about one.
        """
        sizes = {len(part.labels) for part in examples}
        if len(sizes) > 1:
            raise ValueError(f"the numbers of examples differ: {sorted(sizes)}")
        assembly = Assembly(heads, choose(None, self.extra), references=references)
        labels = torch.stack([part.labels for part in examples]).long()
        # Of all at once: one wait for the device.
        check_labels(self.labels_of(labels.flatten(0, 1)), assembly.classes)
        size = min(self._size(labels[0]), max(1, TOGETHER // len(examples)))
        inputs = zip(*(split(part.inputs, size) for part in examples), strict=True)
        for trees, some_labels in zip(inputs, labels.split(size, dim=1), strict=True):
            features, logits = forward(stacked(trees))
            whole = Block(features, logits, some_labels)
            assembly.add(
                Block(**over_networks(self._rows, whole._asdict())),
                whole if logits.dim() > 3 else None,
            )
        return assembly.finish()

    def _size(self, labels: Tensor) -> int:
        """Examples in one forward pass of those with these labels."""
        if self.batch_size is None:
            return len(labels)
        return self.batch_size * (ON_GPU if labels.is_cuda else 1)

    def _rows(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(Block._fields, self.select(**tensors), strict=True))


def same_function(one: object, other: object) -> bool:
    """Whether two functions are the same: one object, or the same code that holds nothing else.

    A file of somebody's is executed once for each task, and defines its functions anew.
    """
    if isinstance(one, Measure) and isinstance(other, Measure):
        return same_function(one.evaluate, other.evaluate)
    if not isinstance(one, FunctionType) or not isinstance(other, FunctionType):
        return one is other
    held = (one.__closure__, other.__closure__) == (None, None)
    return one is other or (
        held and one.__code__ == other.__code__ and one.__defaults__ == other.__defaults__
    )
