"""How sure a classifier is: what could explain flatness away.

Relative flatness falls when confidence rises, so every comparison of flatness needs these beside
it: how large the logits are, by how much the right one wins, and how spread the softmax is. Axes:
``examples``, ``classes``. All are differentiable; half precision is computed in float32.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from grokscope.measures.checks import check_labels, checked_logits, reduce_examples
from grokscope.measures.flatness import gini_impurity, impurity, odds_of, runner_up_odds
from grokscope.measures.record import Batch, Measure


def logit_scale(logits: Tensor, reduction: str = "mean") -> Tensor:
    """Standard deviation of an example's logits over classes.

    Adding a number to all logits of an example changes nothing; a temperature divides it.

    Args:
        logits: Outputs of the head, ``[examples, classes]``.
        reduction: "mean", "sum", or "none" for one value per example.

    Returns:
        Scalar, or ``[examples]``, in nats (the unit of logits).

    Raises:
        ValueError: If the logits are not finite ``[examples, classes]``.

    Cost: O(examples * classes). Source: the root mean square of centred logits.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
        >>> float(logit_scale(logits))
        1.5
        >>> logit_scale(logits, reduction="none").tolist()
        [1.0, 2.0]
    """
    return reduce_examples(scale_of(checked_logits(logits)), reduction)


def margin(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """Logit of the label minus the largest other logit; positive where the answer is right.

    Args:
        logits: Outputs of the head, ``[examples, classes]``.
        labels: Class indices, ``[examples]``.
        reduction: "mean", "sum", or "none" for one value per example.

    Returns:
        Scalar, or ``[examples]``, in nats (the unit of logits); higher is surer.

    Raises:
        ValueError: If the logits are not finite or the labels do not fit them.

    Cost: O(examples * classes).

    Example:
        >>> logits, labels = torch.tensor([[2.0, 0.0], [0.0, 4.0]]), torch.tensor([0, 0])
        >>> float(margin(logits, labels))
        -1.0
        >>> margin(logits, labels, reduction="none").tolist()
        [2.0, -4.0]
    """
    logits = checked_logits(logits)
    check_labels(labels, logits.shape[-1], examples=logits.shape[0])
    return reduce_examples(margin_of(logits, labels), reduction)


def entropy(logits: Tensor, reduction: str = "mean") -> Tensor:
    """Shannon entropy of the softmax, accurate where it is nearly one-hot.

    Args:
        logits: Outputs of the head, ``[examples, classes]``.
        reduction: "mean", "sum", or "none" for one value per example.

    Returns:
        Scalar, or ``[examples]``, in nats, between 0 and ``ln classes``; lower is surer.

    Raises:
        ValueError: If the logits are not finite ``[examples, classes]``.

    Cost: O(examples * classes).

    Example:
        >>> logits = torch.zeros(1, 4)
        >>> round(float(entropy(logits)), 4)  # ln 4
        1.3863
    """
    return reduce_examples(entropy_of(checked_logits(logits)), reduction)


def gini(logits: Tensor, reduction: str = "mean") -> Tensor:
    """Gini impurity ``1 - |p|^2`` of the softmax, accurate where it is nearly one-hot.

    Args:
        logits: Outputs of the head, ``[examples, classes]``.
        reduction: "mean", "sum", or "none" for one value per example.

    Returns:
        Scalar, or ``[examples]``, a probability between 0 and ``1 - 1 / classes``: that two
        draws from the softmax differ. Lower is surer.

    Raises:
        ValueError: If the logits are not finite ``[examples, classes]``.

    Cost: O(examples * classes).

    Example:
        >>> logits = torch.zeros(1, 4)
        >>> float(gini(logits))
        0.75
    """
    return reduce_examples(gini_impurity(checked_logits(logits)), reduction)


def scale_of(logits: Tensor) -> Tensor:
    """`logit_scale` of each example, unchecked: ``[..., classes] -> [...]``."""
    centred = logits - logits.mean(dim=-1, keepdim=True)
    # The norm has a subgradient where all logits are equal; the root of a mean has NaN there.
    return torch.linalg.vector_norm(centred, dim=-1) / math.sqrt(logits.shape[-1])


def margin_of(logits: Tensor, labels: Tensor) -> Tensor:
    """`margin` of each example, unchecked: ``[..., classes], [...] -> [...]``."""
    index = labels.long().unsqueeze(-1)
    others = logits.scatter(-1, index, -math.inf).amax(dim=-1)
    return logits.gather(-1, index).squeeze(-1) - others


def entropy_of(logits: Tensor) -> Tensor:
    """`entropy` of each example, unchecked: ``[..., classes] -> [...]``."""
    return _entropy_of(*runner_up_odds(logits))


def _entropy_of(gaps: Tensor, odds: Tensor, mass: Tensor) -> Tensor:
    # H = ln(1 + mass) + sum_c p_c gap_c: non-negative terms. In -sum p ln p the term of the top
    # class is rounded to 0 as soon as the mass of the others is below the precision of 1.
    surprise = -(odds * gaps).sum(dim=-1) / (1 + mass.squeeze(-1))
    return mass.squeeze(-1).log1p() + surprise


def cross_entropy_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each example, unchecked, accurate where it is nearly 0.

    It is ln(1 + the others' odds against the label); the difference of a logarithm and a logit
    would be rounding there. ``[..., classes], [...] -> [...]``, nats.
    """
    index = labels.long().unsqueeze(-1)
    lead = logits - logits.gather(-1, index)
    others = lead.scatter(-1, index, -math.inf).logsumexp(dim=-1)
    return torch.logaddexp(others, torch.zeros_like(others))


def _correct(batch: Batch) -> Tensor:
    return (batch.logits.argmax(dim=-1) == batch.labels).to(batch.logits.dtype)


_of_logits = partial(Measure, range="≥ 0", cost="O(n C)", differentiable=True)
ACCURACY = _of_logits(
    name="accuracy",
    unit="share",
    direction="high is good",
    range="0 to 1",
    formula="mean [argmax z = y]",
    evaluate=_correct,
    differentiable=False,
)
LOSS = _of_logits(
    name="loss",
    unit="nats",
    direction="low is good",
    formula="mean −ln p_y",
    note="Mean cross-entropy in evaluation mode, without penalties or label smoothing.",
    evaluate=lambda batch: cross_entropy_of(batch.logits, batch.labels),
)
RECORDS = (
    ACCURACY,
    LOSS,
    _of_logits(
        name="logit_scale",
        unit="nats",
        direction="high is confident",
        formula="mean std_c(z_c)",
        note="Divided by a temperature; a number added to all logits leaves it as it is.",
        evaluate=lambda batch: scale_of(batch.logits),
    ),
    _of_logits(
        name="margin",
        unit="nats",
        direction="high is confident and right",
        range="any; positive where the answer is right",
        formula="mean (z_y − max_{c≠y} z_c)",
        evaluate=lambda batch: margin_of(batch.logits, batch.labels),
    ),
    _of_logits(
        name="entropy",
        symbol="H",
        unit="nats",
        direction="low is confident",
        range="0 to ln C",
        formula="mean −Σ_c p_c ln p_c",
        evaluate=lambda batch: _entropy_of(*batch.shared(odds_of)),
    ),
    _of_logits(
        name="gini",
        title="Gini impurity",
        unit="probability",
        direction="low is confident",
        range="0 to 1 − 1/C",
        formula="mean (1 − |p|²)",
        note="The probability that two draws from the softmax differ.",
        evaluate=lambda batch: batch.shared(impurity),
    ),
)
