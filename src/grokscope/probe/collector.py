"""All measures of a head at once: sums over blocks of examples, in float64, and what they make.

Blocks add up; nothing is copied to the host before the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from grokscope.measures.checks import NotFiniteError, check_head, check_labels
from grokscope.measures.collapse import collapse_of
from grokscope.measures.confidence import matched_temperature
from grokscope.measures.moments import ClassMoments
from grokscope.measures.theory import assumptions_of
from grokscope.probe import values as computed
from grokscope.probe.measurement import UNITS, Measurement, assembled, reasons_of
from grokscope.probe.values import Block

Extra = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

MEMORY = 2**30  # bytes of features and logits that are kept
NOT_FINITE = (
    "features or logits hold NaN or infinity; the model has diverged or overflowed: "
    "measure an earlier step, or run it in a wider dtype."
)


def measure_tensors(
    features: Tensor,
    logits: Tensor,
    labels: Tensor,
    head: nn.Linear,
    *,
    extra: Mapping[str, Extra] | None = None,
    reference: Measurement | None = None,
) -> Measurement:
    """The probe's measures for features and logits that are there already.

    Args:
        features: Inputs of the head, ``[examples, width]``.
        logits: Outputs of the head, bias included, ``[examples, classes]``.
        labels: Class indices, ``[examples]``.
        head: The head itself: weight ``[classes, width]`` and bias.
        extra: As in `Probe`.
        reference: As in `Probe.measure`.

    Raises:
        ValueError: If the arguments do not describe one linear head with finite values.
    """
    check_head(features, logits, head.weight)
    check_labels(labels, logits.shape[1], examples=len(features))
    with torch.no_grad():
        collector = Collector(head, extra=extra or {}, reference=reference, memory=2**62)
        collector.add(Block(features, logits, labels))
        return collector.finish()


class Collector:
    """Adds up blocks; `finish` makes a `Measurement` of them.

    Args:
        head: The head the blocks belong to.
        extra: As in `Probe`.
        reference: As in `Probe.measure`.
        memory: As in `Probe`.
    """

    def __init__(
        self,
        head: nn.Linear,
        *,
        extra: Mapping[str, Extra],
        reference: Measurement | None,
        memory: int,
    ) -> None:
        taken = sorted(extra.keys() & UNITS.keys())
        if taken:
            raise ValueError(f"the probe has a measure called {taken[0]!r}; name yours otherwise.")
        self.weight = local(head.weight.detach()).double()
        self.bias = None if head.bias is None else local(head.bias.detach()).double()
        self.extra, self.reference, self.memory = extra, reference, memory
        self.means: tuple[ClassMoments, Tensor] | None = None
        if reference is not None and int((reference.moments.count > 0).sum()) >= 2:
            self.means = reference.moments.to(self.weight.device).of_present_classes()
        self.sums: dict[str, Tensor] = {}
        self.kept: list[Block] = []
        self.streamed: ClassMoments | None = None
        self.bytes = self.examples = 0

    @property
    def streaming(self) -> bool:
        """Whether the memory was used up."""
        return self.streamed is not None

    def add(self, block: Block) -> None:
        """Count a block, in pieces whose temporaries stay small."""
        block = Block(local(block.features), local(block.logits), local(block.labels).long())
        rows = max(1, computed.ELEMENTS // max(block.features.shape[1], block.logits.shape[1]))
        for piece in zip(*(tensor.split(rows) for tensor in block), strict=True):
            sums = self._sums(Block(*piece).wide())
            self.sums = {name: self.sums.get(name, 0) + value for name, value in sums.items()}
        self.examples += len(block.labels)
        self.bytes += sum(tensor.nbytes for tensor in block)
        self.kept.append(block)
        if self.bytes > self.memory:
            self.stream()

    def stream(self) -> None:
        """Turn the blocks kept so far into moments, which add up in any amount."""
        for own in self.kept:
            moments = self._moments(own, scatter=True)
            self.streamed = moments if self.streamed is None else self.streamed + moments
        self.kept = []

    def _sums(self, block: Block) -> dict[str, Tensor]:
        sums = computed.sums_of(block, self.weight)
        if self.means is not None:
            sums["nc4_agreement"] = computed.agreed_of(block, *self.means)
        for name, function in self.extra.items():
            value = torch.as_tensor(function(*block, self.weight))
            if value.dim():
                raise ValueError(
                    f"the extra measure {name!r} returned shape {tuple(value.shape)}; return a "
                    "scalar, the mean over the examples it is given."
                )
            sums[name] = value.double().to(block.features.device) * len(block.labels)
        return sums

    def _moments(self, block: Block, scatter: bool) -> ClassMoments:
        return ClassMoments.of(block.features, block.labels, len(self.weight), scatter)

    def finish(self) -> Measurement:
        """The measurement.

        Raises:
            NotFiniteError: If features or logits hold NaN or infinity.
        """
        names = list(self.sums)
        means = (torch.stack([self.sums[name].double() for name in names]) / self.examples).tolist()
        numbers = dict(zip(names, means, strict=True))
        if not (math.isfinite(numbers["feature_norm"]) and math.isfinite(numbers["logit_scale"])):
            raise NotFiniteError(NOT_FINITE)
        numbers["weight_norm"] = float(self.weight.square().sum().sqrt())
        whole = None
        if not self.streaming:
            whole = Block(*(torch.cat(tensors) for tensors in zip(*self.kept, strict=True)))
        moments = self._moments(whole, scatter=False) if whole is not None else self.streamed
        assert moments is not None
        present, several = (int((moments.count > least).sum()) for least in (0, 1))
        if present >= 2:
            numbers |= self._collapse(moments, whole, unbiased=several >= 2)
        kernel = math.nan
        if whole is not None:
            numbers |= self._matched(whole, numbers["accuracy"])
            if self.reference is None:
                both = computed.robustness_of(whole, self.weight).tolist()
                numbers["feature_robustness"], kernel = both
        reasons = reasons_of(present, several, self.reference, self.streaming)
        kept = moments.without_scatter().to(torch.device("cpu"))
        return assembled(numbers, kernel, kept, self.examples, self.reference, reasons)

    def _collapse(
        self, moments: ClassMoments, whole: Block | None, unbiased: bool
    ) -> dict[str, float]:
        # Of a vocabulary few tokens are there: pairs of the others would fill the memory.
        present, index = moments.of_present_classes()
        values = computed.ncc_of(present, unbiased)
        if whole is not None:
            own = self.reference is None
            values |= computed.spread_of(whole, moments, present, index, own)
        values |= collapse_of(present, index, self.weight, self.bias)
        numbers = dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))
        met = assumptions_of(present, index, self.weight, self.bias).tolist()
        return numbers | computed.collapse_numbers(met, len(index))

    def _matched(self, whole: Block, accuracy: float) -> dict[str, float]:
        """Kappa at the temperature where the loss is `MATCHED_LOSS`, if there is one."""
        if not computed.may_match(accuracy):
            return {}
        try:
            temperature = matched_temperature(
                whole.logits, whole.labels, computed.MATCHED_LOSS, computed.MATCHED_TOLERANCE
            )
        except ValueError:
            return {}
        kappa = computed.matched_of(whole, self.weight, temperature)
        return {"matched_temperature": temperature, "relative_flatness_matched": float(kappa)}


def local(tensor: Tensor) -> Tensor:
    """On a device that knows float64: Apple's MPS does not."""
    return tensor.cpu() if tensor.device.type == "mps" else tensor
