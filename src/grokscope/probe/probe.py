"""`Probe`: one object that measures any PyTorch classifier."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from grokscope.measures.checks import NotFiniteError, check_all_finite, check_labels
from grokscope.measures.curvature import modes_kept
from grokscope.probe.collector import MEMORY, Collector, Extra
from grokscope.probe.distributed import added_up, warn_of_one_share
from grokscope.probe.head import aligned, find_head, logits_of, recorded, unwrapped
from grokscope.probe.measurement import Measurement
from grokscope.probe.values import Block

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

IGNORED = -100  # label of positions that do not count, as in PyTorch's cross-entropy
LABELS = ("labels", "label", "targets", "target")


class Probe:
    """Measures the geometry of a classifier's head on data.

    The model runs once per batch, in evaluation mode and without gradients. Its modes, gradients,
    parameters, BatchNorm statistics and the random number generators are afterwards what they were.

    Args:
        model: Any module that returns logits, or an object or tuple that holds them.
            DistributedDataParallel and torch.compile are looked through.
        head: Name of the layer that makes the logits; found by itself where libraries name it
            (torchvision, timm, Hugging Face) or where it is the last linear layer.
        extra: Your own measures by name: functions of (features, logits, labels, weight),
            float64 but for the labels, that return a scalar, the mean over the examples given:
            it is averaged over all batches.
        shift_labels: Whether labels are the tokens themselves, so that position t is asked for
            label t + 1. None: where the model is a causal language model of ``transformers``.
        memory: Bytes of features and logits to keep. Beyond it everything streams, and what needs
            all of them at once is left out: matched temperature, feature robustness, NC4 against
            the batch's own means.
        group: Processes of ``torch.distributed`` that measure together, as
            ``torch.distributed.group.WORLD``; each passes its own part of the data and gets the
            measurement of all of it. Then `measure` is a collective call: every process of the
            group makes it, or the others wait for it until the group's timeout. None: this process
            measures alone, so that rank 0 can do so by itself.

    Raises:
        ValueError: If the head cannot be found.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> batches = [(torch.randn(32, 4), torch.randint(0, 3, (32,)))]
        >>> measurement = Probe(model).measure(batches)
        >>> measurement.examples
        32
    """

    def __init__(
        self,
        model: nn.Module,
        head: str | None = None,
        *,
        extra: Mapping[str, Extra] | None = None,
        shift_labels: bool | None = None,
        memory: int = MEMORY,
        group: ProcessGroup | None = None,
    ) -> None:
        self.model = unwrapped(model)
        self.name, self.head = find_head(self.model, head)
        self.extra = dict(extra or {})
        causal = type(self.model).__name__.endswith(("ForCausalLM", "LMHeadModel"))
        self.shift_labels = causal if shift_labels is None else shift_labels
        self.memory = memory
        self.group = group

    def measure(self, batches: Iterable[Any], reference: Measurement | None = None) -> Measurement:
        """Measure on all batches together.

        Args:
            batches: Each ``(inputs, labels)``, ``(inputs, labels, mask)`` or a mapping with
                ``labels`` as Hugging Face collators make it. Inputs are a tensor, a tuple of
                positional or a mapping of keyword arguments. Labels ``[n]`` or ``[n, t]``; -100
                and what the mask leaves out do not count.
            reference: The measurement of the training data, if these are held-out data: adds the
                generalisation gap and its parts, and takes NC4 against the training means.

        Returns:
            All measures by name.

        Raises:
            ValueError: If a batch has another form, labels are out of range, or the head's output
                is not what the model returns; names the batch. `NotFiniteError`, a ValueError, if
                features or logits hold NaN or infinity. With a group, every process raises that of
                the lowest rank that failed, and names it (RuntimeError if it was no ValueError).

        Cost: one forward pass per batch, and O(n * c * (c + d)) for the measures; with a group,
        every process holds the features of all if they fit into ``memory``.
        """
        if self.group is None:
            warn_of_one_share(batches)
        with self._undisturbed():
            # Inside: a parametrised weight is computed whenever it is looked at.
            collector = Collector(
                self.head, extra=self.extra, reference=reference, memory=self.memory
            )
            with added_up(collector, self.group):
                for count, batch in enumerate(batches, 1):
                    try:
                        collector.add(self._block(batch))
                    except ValueError as error:
                        kind = NotFiniteError if isinstance(error, NotFiniteError) else ValueError
                        raise kind(f"batch {count}: {error}") from error
            if not collector.examples:
                raise ValueError(
                    "there are no batches to measure: the loader is empty, or a generator that was "
                    "read before; pass at least one batch."
                )
            return collector.finish()

    def capture(self, inputs: Any) -> tuple[Tensor, Tensor]:
        """What the head sees and says on one batch of inputs.

        Returns:
            Features ``[n, d]`` or ``[n, t, d]`` and logits ``[n, c]`` or ``[n, t, c]``, detached.
        """
        with self._undisturbed():
            return self._forward(inputs)

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        devices = {each.device for each in self.model.parameters() if each.device.type == "cuda"}
        with (
            torch.random.fork_rng(devices=devices),
            torch.no_grad(),
            modes_kept(self.model, evaluate=True),
            _uncompiled(),
        ):
            yield

    def _device(self) -> torch.device:
        return self.head.weight.device

    def _forward(self, inputs: Any) -> tuple[Tensor, Tensor]:
        inputs, attended = _moved(inputs, self._device()), None
        with recorded(self.head) as calls:
            if isinstance(inputs, Mapping):
                attended = inputs.get("attention_mask")
                output = self.model(**inputs)
            elif isinstance(inputs, (tuple, list)):
                output = self.model(*inputs)
            else:
                output = self.model(inputs)
        return aligned(calls, logits_of(output), self.name, attended)

    def _block(self, batch: Any) -> Block:
        inputs, labels, mask = _parts(batch)
        features, logits = self._forward(inputs)
        if labels.shape != logits.shape[:-1]:
            raise ValueError(
                f"labels have shape {tuple(labels.shape)}, but the model answers "
                f"{tuple(logits.shape[:-1])} questions; pass one label for each."
            )
        if mask is not None and mask.shape != labels.shape:
            raise ValueError(
                f"the mask has shape {tuple(mask.shape)}, but labels {tuple(labels.shape)}; "
                "pass one value for each label."
            )
        if self.shift_labels:
            if labels.dim() != 2:
                raise ValueError(
                    f"labels have shape {tuple(labels.shape)}, but shift_labels=True needs tokens "
                    "[n, t]; leave shift_labels out."
                )
            features, logits, labels = features[:, :-1], logits[:, :-1], labels[:, 1:]
            mask = None if mask is None else mask[:, 1:]
        counted = labels.long() != IGNORED
        if mask is not None:
            counted = counted & mask.to(labels.device).bool()
        kept = labels[counted]
        if not len(kept):
            raise ValueError(
                "no label counts: all are -100 or masked; leave this batch out, or check the mask."
            )
        # Checked where they come from, usually the host: no wait for the device.
        check_labels(kept, logits.shape[-1])
        counted = counted.to(logits.device)
        block = Block(features[counted], logits[counted], kept.to(logits.device))
        check_all_finite(features=block.features, logits=block.logits)
        return block


def _uncompiled() -> AbstractContextManager[object]:
    """Nothing is compiled again for the sake of a hook that is gone in a moment."""
    # Importing dynamo takes seconds, and without it nothing was compiled.
    if "torch._dynamo" in sys.modules:
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


def _parts(batch: Any) -> tuple[Any, Tensor, Tensor | None]:
    """Inputs, labels and mask of a batch."""
    if isinstance(batch, Mapping):
        names = [name for name in LABELS if name in batch]
        if not names:
            raise ValueError(f"it has no labels; it has {', '.join(map(str, batch))}.")
        inputs = {name: value for name, value in batch.items() if name != names[0]}
        labels = torch.as_tensor(batch[names[0]])
        mask = batch.get("attention_mask") if labels.dim() > 1 else None
        return inputs, labels, mask
    if isinstance(batch, (tuple, list)) and len(batch) in (2, 3):
        mask = torch.as_tensor(batch[2]) if len(batch) == 3 else None
        return batch[0], torch.as_tensor(batch[1]), mask
    raise ValueError(
        f"it is {type(batch).__name__}; pass (inputs, labels), (inputs, labels, mask) or a "
        "mapping with labels."
    )


def _moved(inputs: Any, device: torch.device) -> Any:
    if isinstance(inputs, Tensor):
        return inputs.to(device, non_blocking=True)
    if isinstance(inputs, Mapping):
        return {name: _moved(value, device) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(_moved(value, device) for value in inputs)
    return inputs
