"""Class moments: how many examples of each class, their mean, how far they scatter about it.

Moments of parts add up to the moments of the whole, batch by batch or process by process, in
float64 and without loss: deviations are taken within a class, so that no common offset enters a
square. Axes: ``examples`` (n), ``classes`` (C), ``width`` (d).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grokscope.measures.checks import (
    check_at_least_two_classes,
    check_finite,
    check_floating,
    check_labels,
    check_same_device,
    is_differentiated,
    values_are_checked,
)
from grokscope.measures.pieces import Parts, deviations, parts_of, rows_of

# On a GPU, sums over the examples of up to so many classes are products with a one-hot matrix,
# which give the same each time: additions that race do not.
PRODUCT_CLASSES = 256


@dataclass(frozen=True, eq=False)
class ClassMoments:
    """Count, mean and scatter of features by class; float64, immutable, mergeable with ``+``.

    Attributes:
        count: Examples of each class, ``[classes]``.
        mean: Mean features of each class, ``[classes, width]``; zeros where the count is 0.
        within: Sum of squared distances to the class mean, ``[classes]``.
        scatter: Sum over all examples of the outer product of the deviation from the class mean
            with itself, ``[width, width]``; None unless asked for.

    Example:
        >>> features, labels = torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([0, 0, 1])
        >>> moments = ClassMoments.from_batch(features, labels, num_classes=2)
        >>> moments.mean.flatten().tolist(), moments.within.tolist()
        ([1.0, 5.0], [2.0, 0.0])
    """

    count: Tensor
    mean: Tensor
    within: Tensor
    scatter: Tensor | None = None

    @classmethod
    def from_batch(
        cls, features: Tensor, labels: Tensor, num_classes: int, scatter: bool = False
    ) -> ClassMoments:
        """Moments of one batch. Differentiable in the features.

        Args:
            features: Inputs of the head, ``[examples, width]``, any floating dtype.
            labels: Class indices, ``[examples]``.
            num_classes: Number of classes; those without examples have count 0.
            scatter: Whether to keep the pooled scatter matrix, ``width**2`` float64 numbers.

        Returns:
            The moments, on the device of the features.

        Raises:
            ValueError: If the features are not finite ``[examples, width]``, or the labels do not
                fit them.

        Cost: O(examples * width), and O(examples * width^2) with ``scatter``; two temporaries of
        4 MiB that each thread keeps (under autograd new ones, all of which it keeps).
        Source: the shifted one-pass algorithm (Chan, Golub and LeVeque 1983), the shift being an
        example of the class itself.
        """
        check_floating("features", features, ("examples", "width"))
        check_at_least_two_classes("num_classes", num_classes)
        check_labels(labels, num_classes, examples=features.shape[0])
        check_same_device(features=features, labels=labels)
        moments = cls.of(features, labels, num_classes, scatter)
        # A feature that is NaN or infinite makes the scatter of its class so: one look at that.
        if values_are_checked(moments.within) and not bool(moments.within.sum().isfinite()):
            check_finite("features", features)
        return moments

    @classmethod
    def of(
        cls, features: Parts, labels: Tensor, num_classes: int, scatter: bool = False
    ) -> ClassMoments:
        """`from_batch` without checks, for arguments that were checked.

        Features in one tensor never wait for a GPU.
        """
        labels = labels.long()
        # Deviations from an example of the same class, exact in float64, carry both moments in
        # one pass: turned over to deviations from the mean they lose at most a factor n_c.
        first = torch.arange(len(labels), device=labels.device)
        first = first.new_zeros(num_classes).scatter_reduce(
            0, labels, first, "amin", include_self=False
        )
        origin = rows_of(features, first).detach().double()
        count, square = origin.new_zeros(num_classes), origin.new_zeros(num_classes)
        total = torch.zeros_like(origin)
        outer = origin.new_zeros(2 * [origin.shape[1]]) if scatter else None
        watched = is_differentiated(parts_of(features)[0])
        for part, deviation in deviations(features, origin, labels):
            if watched:
                squares = deviation.square().sum(dim=-1)
            else:  # the same in one pass: memory costs more than the sums
                squares = torch.linalg.vector_norm(deviation, dim=-1).square()
            add = _adder(labels[part], num_classes)
            add(count, torch.ones_like(squares))
            add(total, deviation)
            add(square, squares)
            if outer is not None:
                outer = outer + deviation.mT @ deviation
        shift = total / count.clamp(min=1)[:, None]
        mean = (origin + shift).masked_fill(count[:, None] == 0, 0.0)
        within = (square - (total * shift).sum(dim=-1)).clamp(min=0)
        return cls(count, mean, within, None if outer is None else outer - total.mT @ shift)

    def __add__(self, other: ClassMoments) -> ClassMoments:
        """Moments of the union of both sets of examples.

        Raises:
            ValueError: If classes or widths differ, or only one side has a scatter matrix.
        """
        if self.mean.shape != other.mean.shape:
            raise ValueError(
                f"moments of [classes, width] = {tuple(self.mean.shape)} and "
                f"{tuple(other.mean.shape)} do not add up; they must come from the same head."
            )
        if (self.scatter is None) != (other.scatter is None):
            raise ValueError(
                "only one of the moments has a scatter matrix; make both with scatter=True, or "
                "call without_scatter() on that one."
            )
        count = self.count + other.count
        share = other.count / count.clamp(min=1)
        shift = other.mean - self.mean
        # Squared distance of the two means, weighted with n m / (n + m): 0 if one is empty.
        weight = self.count * share
        within = self.within + other.within + weight * shift.square().sum(dim=-1)
        scatter = None
        if self.scatter is not None and other.scatter is not None:
            scatter = self.scatter + other.scatter + (weight[:, None] * shift).mT @ shift
        return ClassMoments(count, self.mean + share[:, None] * shift, within, scatter)

    def __radd__(self, other: object) -> ClassMoments:
        """``sum`` starts from 0."""
        if other == 0:
            return self
        return NotImplemented

    def without_scatter(self) -> ClassMoments:
        """The same moments without the scatter matrix."""
        return replace(self, scatter=None)

    def to(self, device: torch.device) -> ClassMoments:
        """The same moments on another device."""
        scatter = None if self.scatter is None else self.scatter.to(device)
        return ClassMoments(
            self.count.to(device), self.mean.to(device), self.within.to(device), scatter
        )

    def of_present_classes(self) -> tuple[ClassMoments, Tensor]:
        """Moments of the classes that have examples, and their indices, ``[present]``.

        Raises:
            ValueError: If fewer than two classes have examples.
        """
        present = self.count.nonzero().squeeze(-1)
        if len(present) < 2:
            raise ValueError(
                f"only {len(present)} class(es) have examples, but collapse compares at least "
                "two; pass more examples, or moments of several batches added up."
            )
        return self if len(present) == len(self.count) else self.of_classes(present), present

    def of_classes(self, index: Tensor) -> ClassMoments:
        """Moments of some classes, by their indices, ``[chosen]``; a scatter stays that of all."""
        return replace(
            self, count=self.count[index], mean=self.mean[index], within=self.within[index]
        )


def _by_product(device: torch.device, num_classes: int) -> bool:
    return device.type == "cuda" and num_classes <= PRODUCT_CLASSES


def _adder(labels: Tensor, num_classes: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Adds examples ``[some, ...]`` to the sums of their classes, ``[classes, ...]``, in place."""
    if not _by_product(labels.device, num_classes):
        return lambda sums, values: sums.index_add_(0, labels, values)
    classes = torch.arange(num_classes, device=labels.device)
    one_hot = (labels == classes[:, None]).double()
    return lambda sums, values: sums.add_(one_hot @ values)
