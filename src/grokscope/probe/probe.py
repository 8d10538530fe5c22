"""`Probe`: one object that measures any PyTorch classifier."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from grokscope.measures.checks import NotFiniteError, check_all_finite, check_head, check_labels
from grokscope.measures.curvature import as_arguments, modes_kept
from grokscope.probe.assembly import MEMORY, Assembly
from grokscope.probe.choice import Extra, choose
from grokscope.probe.distributed import added_up, warn_of_one_share
from grokscope.probe.head import aligned, find_head, logits_of, recorded, unwrapped
from grokscope.probe.measurement import Measurement
from grokscope.probe.rows import IGNORED, Rows, select
from grokscope.probe.trees import Block, Heads, map_tensors

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

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
        measures: Names of the measures to take, as in a `Measurement`, and of your own; the cost of
            the others is saved. None: all.
        extra: Your own measures by name: functions of (features, logits, labels, weight),
            float64 except for the labels, that return a scalar, the mean over these examples, which
            is averaged over all batches; or a `measures.Measure`.
        rows: Chooses the rows that count: a function of features ``[n, ..., d]``, logits
            ``[n, ..., c]`` and labels ``[n, ...]`` that returns its choice of each. None: all.
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
        ValueError: If the head cannot be found, or there is no measure of a name.

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
        measures: Iterable[str] | None = None,
        extra: Mapping[str, Extra] | None = None,
        rows: Rows | None = None,
        shift_labels: bool | None = None,
        memory: int = MEMORY,
        group: ProcessGroup | None = None,
    ) -> None:
        self.model = unwrapped(model)
        self.name, self.head = find_head(self.model, head)
        self.measures, self.rows = choose(measures, extra or {}), rows
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
            The measures by name.

        Raises:
            ValueError: If a batch has another form, labels are out of range, or the head's output
                is not what the model returns; names the batch. `NotFiniteError`, a ValueError, if
                features or logits hold NaN or infinity. With a group, every process raises that of
                the lowest rank that failed, and names it (RuntimeError if it was no ValueError).

        Cost: one forward pass per batch, and O(n * c * (c + d)) for the measures; robustness moves
        a sample of 8,192 examples at most. With a group, every process holds the features of all
        if they fit into ``memory``.
        """
        if self.group is None:
            warn_of_one_share(batches)
        with undisturbed(self.model):
            # Inside: a parametrised weight is computed whenever it is looked at.
            references = None if reference is None else [reference]
            assembly = Assembly(
                Heads.of(self.head), self.measures, references=references, memory=self.memory
            )
            with added_up(assembly, self.group):
                for count, batch in enumerate(batches, 1):
                    try:
                        assembly.add(*self._blocks(batch))
                    except ValueError as error:
                        kind = NotFiniteError if isinstance(error, NotFiniteError) else ValueError
                        raise kind(f"batch {count}: {error}") from error
            if not assembly.examples:
                raise ValueError(
                    "there are no batches to measure: the loader is empty, or a generator that was "
                    "read before; pass at least one batch."
                )
            return _only(assembly)

    def capture(self, inputs: Any) -> tuple[Tensor, Tensor]:
        """The inputs and outputs of the head on one batch.

        Args:
            inputs: A tensor, a tuple of positional or a mapping of keyword arguments.

        Returns:
            Features ``[n, d]`` or ``[n, t, d]`` and logits ``[n, c]`` or ``[n, t, c]``, detached.
        """
        with undisturbed(self.model):
            return self._forward(inputs)

    def _forward(self, inputs: Any) -> tuple[Tensor, Tensor]:
        device = self.head.weight.device
        inputs = map_tensors(lambda tensor: tensor.to(device, non_blocking=True), inputs)
        attended = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
        positional, keywords = as_arguments(inputs)
        with recorded(self.head) as calls:
            output = self.model(*positional, **keywords)
        return aligned(calls, logits_of(output), self.name, attended)

    def _blocks(self, batch: Any) -> tuple[Block, Block | None]:
        """The rows of a batch that count, and all positions if there are more."""
        inputs, labels, mask = _parts(batch)
        features, logits = self._forward(inputs)
        if labels.shape != logits.shape[:-1]:
            raise ValueError(
                f"labels have shape {tuple(labels.shape)}, but the model returned logits for "
                f"{tuple(logits.shape[:-1])} positions; pass one label for each."
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
        if labels.is_floating_point() or labels.dtype == torch.bool:
            check_labels(labels.flatten(), logits.shape[-1])
        every, labels = labels.long(), labels.long()
        if mask is not None:
            labels = labels.masked_fill(~mask.to(labels.device).bool(), IGNORED)
        rows = select(self.rows, features, logits, labels)
        counted = rows[2] != IGNORED
        kept = rows[2][counted]
        if not len(kept):
            raise ValueError(
                "no label counts: all are -100 or masked; leave this batch out, or check the mask."
            )
        # Checked where they come from, usually the host: no wait for the device.
        check_labels(kept, logits.shape[-1])
        device = logits.device
        some = counted.to(device) if len(kept) < len(counted) else None
        chosen = [_taken(tensor, some) for tensor in rows[:2]]
        check_all_finite(features=chosen[0], logits=chosen[1])
        block = Block(chosen[0][None], chosen[1][None], kept.to(device)[None])
        if logits.dim() == 2:
            return block, None
        return block, Block(features[None], logits[None], every.to(device)[None])


def measure_tensors(
    features: Tensor,
    logits: Tensor,
    labels: Tensor,
    head: nn.Linear,
    *,
    measures: Iterable[str] | None = None,
    extra: Mapping[str, Extra] | None = None,
    reference: Measurement | None = None,
) -> Measurement:
    """The probe's measures of features and logits that were computed before.

    Args:
        features: Inputs of the head, ``[examples, width]``.
        logits: Outputs of the head, bias included, ``[examples, classes]``.
        labels: Class indices, ``[examples]``.
        head: The head itself: weight ``[classes, width]`` and bias.
        measures: As in `Probe`.
        extra: As in `Probe`.
        reference: As in `Probe.measure`.

    Returns:
        The measures by name.

    Raises:
        ValueError: If the arguments do not describe one linear head with finite values.

    Cost: O(n * c * (c + d)).
    """
    check_head(features, logits, head.weight)
    check_labels(labels, logits.shape[1], examples=len(features))
    with torch.no_grad():
        assembly = Assembly(
            Heads.of(head),
            choose(measures, extra or {}),
            references=None if reference is None else [reference],
            memory=sys.maxsize,
        )
        features, logits = features.detach(), logits.detach()
        assembly.add(Block(features[None], logits[None], labels[None].long()))
        return _only(assembly)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Forward passes inside leave modes and random number generators as they were."""
    devices = {tensor.device for tensor in model.parameters() if tensor.is_cuda}
    with (
        torch.random.fork_rng(devices=devices),
        torch.no_grad(),
        modes_kept(model, evaluate=True),
        _uncompiled(),
    ):
        yield


def _taken(tensor: Tensor, counted: Tensor | None) -> Tensor:
    """The rows that count; a copy only where others would be kept in memory with them."""
    if counted is not None:
        return tensor[counted]
    alone = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor.contiguous() if alone else tensor.clone(memory_format=torch.contiguous_format)


def _only(assembly: Assembly) -> Measurement:
    """The measurement of the only network."""
    (measurement,) = assembly.finish()
    if isinstance(measurement, NotFiniteError):
        raise measurement
    return measurement


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
