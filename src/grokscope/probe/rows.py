"""Which rows of the logits count: those that measures, penalties and constraints see."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

IGNORED = -100  # label of positions that do not count, as in PyTorch's cross-entropy

# Features ``[n, ..., d]``, logits ``[n, ..., c]`` and labels ``[n, ...]`` to those that count. A
# pure function of tensors of any width, which looks at no values.
Rows = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def select(
    rows: Rows | None, features: Tensor, logits: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The rows that count, one after the other; labels of -100 are still among them.

    Returns:
        Features ``[m, d]``, logits ``[m, c]`` and labels ``[m]``.

    Raises:
        ValueError: If there is no label for each row.
    """
    if rows is not None:
        features, logits, labels = rows(features, logits, labels)
    if features.shape[:-1] != logits.shape[:-1] or labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"features, logits and labels of the rows that count have shapes "
            f"{tuple(features.shape)}, {tuple(logits.shape)} and {tuple(labels.shape)}; choose the "
            "same rows of each."
        )
    return features.flatten(0, -2), logits.flatten(0, -2), labels.flatten()
