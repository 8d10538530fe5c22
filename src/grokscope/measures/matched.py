"""Flatness at matched confidence: the temperature at which two networks would be equally sure.

Relative flatness falls when confidence rises; at one training loss it shows what confidence does
not explain. Axes: ``examples``, ``classes``.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from functools import partial

import torch
from torch import Tensor

from grokscope.measures.checks import (
    at_least_float32,
    check_labels,
    check_logits,
    check_positive,
    checked_logits,
)
from grokscope.measures.confidence import ACCURACY
from grokscope.measures.flatness import relative_flatness
from grokscope.measures.pieces import lengths_of
from grokscope.measures.record import Batch, Measure
from grokscope.measures.row_variance import row_variance

MATCHED_LOSS = 0.1  # nats: well fitted, and not saturated
MATCHED_TOLERANCE = 1e-6
# Newton steps until a matched temperature is given up; about ten suffice in practice.
MAX_STEPS = 200


def matched_temperature(
    logits: Tensor, labels: Tensor, target_loss: float, tolerance: float = 1e-10
) -> float:
    """Temperature at which the mean cross-entropy of ``logits / temperature`` is a given loss.

    As a function of the inverse temperature b the loss is convex, ``ln classes`` at b = 0. From
    there it falls, without end if every answer is right, else to a minimum behind which wrong
    answers are too sure. The solution on the falling side is returned; it is unique. Newton's
    method from b = 0 climbs towards it and, the function being convex, never passes it.

    Args:
        logits: Outputs of the head, ``[examples, classes]``.
        labels: Class indices, ``[examples]``.
        target_loss: Mean cross-entropy to reach, in nats, above 0 and below ``ln classes``.
        tolerance: Relative error of the loss that is reached.

    Returns:
        The temperature; above 1 if the network must become less sure.

    Raises:
        ValueError: If the arguments do not fit, or no temperature reaches the loss; then the
            message says which loss is the smallest that can be reached.

    Cost: about ten passes of O(examples * classes) in float64, one look at the host each. Not
    differentiable.

    Example:
        >>> logits, labels = 9 * torch.eye(3), torch.arange(3)
        >>> temperature = matched_temperature(logits, labels, target_loss=0.1)
        >>> round(float(torch.nn.functional.cross_entropy(logits / temperature, labels)), 6)
        0.1
    """
    check_logits(logits)
    classes = logits.shape[-1]
    check_labels(labels, classes, examples=logits.shape[0])
    check_positive("target_loss", target_loss)
    check_positive("tolerance", tolerance)
    if target_loss >= math.log(classes):
        raise ValueError(
            f"target_loss must be below ln {classes} = {math.log(classes):.6g}, the loss at "
            f"infinite temperature, got {target_loss:.6g}; pass a smaller loss."
        )
    (temperature,) = matched_temperatures(logits[None], labels[None], target_loss, tolerance)
    if temperature is None:
        raise ValueError(_unreachable(_LossCurve(logits, labels), target_loss))
    return temperature


def matched_temperatures(
    logits: Tensor, labels: Tensor, target_loss: float, tolerance: float = 1e-10
) -> list[float | None]:
    """`matched_temperature` of many networks at once, unchecked; None where there is none.

    Logits are ``[networks, examples, classes]``, labels ``[networks, examples]``. Cost: as many
    looks at the host as the slowest network needs.
    """
    curve = _LossCurve(logits, labels)
    searches = [_search(target_loss, tolerance) for _ in logits]
    asked = [next(search) for search in searches]
    found: dict[int, float | None] = {}
    while len(found) < len(searches):
        sharpness = torch.tensor(asked, dtype=torch.float64, device=logits.device)[:, None]
        answers = curve.at(sharpness).tolist()
        for place, (search, answer) in enumerate(zip(searches, answers, strict=True)):
            if place not in found:
                try:
                    asked[place] = search.send(tuple(answer))
                except StopIteration as end:
                    found[place] = end.value
    return [found[place] for place in range(len(searches))]


def _search(
    target_loss: float, tolerance: float
) -> Generator[float, tuple[float, float], float | None]:
    """Newton's method: asks for loss and slope at inverse temperatures; returns the temperature.

    None if no temperature reaches the loss.
    """
    sharpness = 0.0
    loss, slope = yield sharpness
    for _ in range(MAX_STEPS):
        if slope >= 0 or sharpness == math.inf:
            return None
        if abs(loss - target_loss) <= tolerance * target_loss:
            break
        # The step for ln(loss) is longer and exact for exponential tails. It may go too far,
        # unlike the plain one, and counts only where that is seen not to be so.
        bold = sharpness - loss * math.log(loss / target_loss) / slope
        plain = sharpness - (loss - target_loss) / slope
        if max(bold, plain) == sharpness:  # the step is below the precision of float64
            break
        ahead = yield bold
        if ahead[0] >= target_loss * (1 - tolerance) and ahead[1] < 0:
            sharpness, (loss, slope) = bold, ahead
        else:
            sharpness = plain
            loss, slope = yield plain
    else:
        return None
    return 1.0 / sharpness if sharpness > 0 else math.inf


def relative_flatness_at_temperature(
    features: Tensor,
    logits: Tensor,
    weight: Tensor,
    temperature: float,
    reduction: str = "mean",
) -> Tensor:
    """Exact relative flatness of the network whose head is divided by a temperature.

    That network has weight ``weight / temperature`` and the same features and decisions. At its
    `matched_temperature` it shows the flatness that confidence does not explain.

    Args:
        features: Inputs of the head, ``[examples, width]``.
        logits: Outputs of the head as trained, bias included, ``[examples, classes]``.
        weight: Rows of the head as trained, ``[classes, width]``.
        temperature: Divides weight and logits.
        reduction: "mean", "sum", or "none" for one value per example.

    Returns:
        Scalar, or ``[examples]``, in nats; lower is flatter. Differentiable in the tensors.

    Raises:
        ValueError: If the arguments do not describe one linear head, or the temperature is not
            positive.

    Cost: that of `relative_flatness`.

    Example:
        >>> features = weight = torch.eye(2)
        >>> logits = features @ weight.T
        >>> round(float(relative_flatness_at_temperature(features, logits, weight, 1.0)), 4)
        0.3932
    """
    check_positive("temperature", temperature)
    logits, weight = checked_logits(logits), at_least_float32(weight)
    return relative_flatness(features, logits / temperature, weight / temperature, reduction)


class _LossCurve:
    """Mean cross-entropy and its slope as a function of the inverse temperature, in float64.

    Of one network, ``[examples, classes]``, or of several with an axis before.
    """

    def __init__(self, logits: Tensor, labels: Tensor) -> None:
        logits = logits.detach().double()
        self.top = logits.argmax(dim=-1, keepdim=True)
        self.gaps = logits - logits.gather(-1, self.top)
        self.label_gaps = self.gaps.gather(-1, labels.long().unsqueeze(-1)).squeeze(-1)

    def at(self, sharpness: Tensor | float) -> Tensor:
        """Loss and slope, ``[..., 2]``; one inverse temperature, or one of each, ``[..., 1]``."""
        of_gaps = sharpness.unsqueeze(-1) if isinstance(sharpness, Tensor) else sharpness
        odds = (self.gaps * of_gaps).exp().scatter(-1, self.top, 0.0)
        mass = odds.sum(dim=-1)
        expected = (odds * self.gaps).sum(dim=-1) / (1 + mass)
        loss = (mass.log1p() - sharpness * self.label_gaps).mean(dim=-1)
        return torch.stack([loss, (expected - self.label_gaps).mean(dim=-1)], dim=-1)

    def __call__(self, sharpness: float) -> tuple[float, float]:
        loss, slope = self.at(sharpness).tolist()
        return loss, slope

    def infimum(self) -> tuple[float, float]:
        """Smallest loss over all temperatures and the inverse temperature where it is reached."""
        if bool((self.label_gaps == 0).all()):
            ties = (self.gaps == 0).sum(dim=-1).double()
            return float(ties.log().mean()), math.inf
        if self(0.0)[1] >= 0:
            return self(0.0)[0], 0.0
        low, high = 0.0, 1.0 / max(float(self.gaps.abs().max()), 1e-300)
        while self(high)[1] < 0 and high < 1e300:
            low, high = high, 2 * high
        for _ in range(60):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if self(middle)[1] < 0 else (low, middle)
        return self(high)[0], high


def _unreachable(curve: _LossCurve, target_loss: float) -> str:
    smallest, sharpness = curve.infimum()
    accuracy = float((curve.label_gaps == 0).double().mean())
    where = f"at temperature {1 / sharpness:.6g}" if sharpness > 0 else "at infinite temperature"
    if sharpness == math.inf:
        where = "as the temperature goes to 0"
    return (
        f"target_loss = {target_loss:.6g} cannot be reached by any temperature: the smallest mean "
        f"cross-entropy of these logits is {smallest:.6g}, {where}, at an accuracy of "
        f"{accuracy:.4f}; pass a larger target_loss, or logits of a network that fits its data."
    )


def may_match(accuracy: float) -> bool:
    """Whether a temperature may give `MATCHED_LOSS`: a wrong answer costs ln 2 at any."""
    return (1 - accuracy) * math.log(2) < MATCHED_LOSS


def _temperature(batch: Batch) -> Tensor:
    assert batch.temperature is not None
    return batch.temperature


def _matched(batch: Batch) -> Tensor:
    temperature = _temperature(batch)
    weight = batch.weight.double() / temperature
    square = torch.cat([lengths_of(part) for part in batch.parts]).square()
    return (square * row_variance(batch.logits.double() / temperature, weight)).mean()


_of_matched = partial(Measure, range="≥ 0", needs=("memory", "matched loss"), parts=(ACCURACY,))
RECORDS = (
    _of_matched(
        name="matched_temperature",
        symbol="τ",
        direction="high is confident",
        range="> 0",
        formula="τ with mean loss of z / τ = 0.1 nats",
        cost="about ten passes of O(n C)",
        note="Exists only where few answers are wrong: a wrong answer costs ln 2 at any "
        "temperature.",
        evaluate=_temperature,
    ),
    _of_matched(
        name="relative_flatness_matched",
        title="exact κ at matched loss",
        symbol="κ(τ)",
        unit="nats",
        direction="low is flat",
        formula="κ of z / τ and W / τ, τ with mean loss 0.1 nats",
        cost="about ten passes of O(n C), and that of κ",
        source="Petzka et al., NeurIPS 2021, Definition 3, at matched confidence",
        note="Exists only where few answers are wrong, so it begins late in training.",
        evaluate=_matched,
    ),
)
