"""One measurement of what several processes hold: their blocks and sums put together.

Every process of a group sees its own part of the data; afterwards each holds the same sums, and
either all blocks, rank after rank, or moments of all. Ranks are those within the group. Tensors
travel on the device of the head, as NCCL needs it, and through the host for gloo.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data.distributed import DistributedSampler

from grokscope.measures.checks import NotFiniteError
from grokscope.measures.moments import ClassMoments
from grokscope.probe.collector import Collector
from grokscope.probe.measurement import Measurement
from grokscope.probe.values import Block

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# What every process raises for an error of one of them, by name; RuntimeError for all others.
KINDS: dict[str, type[Exception]] = {"NotFiniteError": NotFiniteError, "ValueError": ValueError}


@contextmanager
def added_up(collector: Collector, group: ProcessGroup | None) -> Iterator[None]:
    """Fill a collector within; on leaving, it holds what those of all processes hold together.

    Without a group nothing happens. With one, no process may stay away, and none does because of
    an error: it is told to the others first.

    Raises:
        ValueError: If this process is not in the group, a process failed with a ValueError, or
            processes measure different things.
        RuntimeError: If a process failed with another error.
    """
    if group is None:
        yield
        return
    if dist.get_rank(group) < 0:
        raise ValueError("this process is not in the group of the Probe; measure on its members.")
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    _Processes(group, collector.weight.device).add_up(collector, error)


def warn_of_one_share(batches: object) -> None:
    """Warn that a process measures a share of the data alone, where the loader tells so."""
    sampler = getattr(batches, "sampler", None)
    if isinstance(sampler, DistributedSampler) and sampler.num_replicas > 1:
        warnings.warn(
            f"the loader has a DistributedSampler, so this measures one of {sampler.num_replicas} "
            "shares of the data; pass Probe(..., group=torch.distributed.group.WORLD) on every "
            "process to measure all of it, or a loader without that sampler.",
            stacklevel=3,
        )


@dataclass(frozen=True)
class _Share:
    """What a process tells the others before anything is added up."""

    kind: str  # of its error, empty without one
    error: str
    head: tuple[int, ...]
    reference: str  # a digest of its numbers, empty without one
    names: tuple[str, ...]  # of its sums
    dtypes: tuple[str, ...]  # of the features and logits it has kept
    examples: int
    bytes: int
    memory: int

    @classmethod
    def of(cls, collector: Collector, error: Exception | None) -> _Share:
        kept = list(zip(*collector.kept, strict=True))[:2]
        return cls(
            kind="" if error is None else type(error).__name__,
            error="" if error is None else str(error),
            head=tuple(collector.weight.shape),
            reference=_digest(collector.reference),
            names=tuple(collector.sums),
            dtypes=tuple(str(_common(each.dtype for each in every))[6:] for every in kept),
            examples=collector.examples,
            bytes=collector.bytes,
            memory=collector.memory,
        )


class _Processes:
    """The processes of a group, and what they do together."""

    def __init__(self, group: ProcessGroup, device: torch.device) -> None:
        self.group, self.size = group, dist.get_world_size(group)
        backends = dict(each.split(":") for each in dist.get_backend_config(group).split(","))
        self.device = torch.device("cpu") if backends.get(device.type) == "gloo" else device

    def add_up(self, collector: Collector, error: Exception | None) -> None:
        """Give a collector what those of all processes hold."""
        shares = self.told(_Share.of(collector, error))
        _check_shares(shares, error)
        names = next((share.names for share in shares if share.examples), ())
        if not names:
            return
        zero = collector.weight.new_zeros(())
        own = torch.stack([collector.sums.get(name, zero).double() for name in names])
        collector.sums = dict(zip(names, self.summed(own), strict=True))
        collector.examples = sum(share.examples for share in shares)
        collector.bytes = sum(share.bytes for share in shares)
        if collector.bytes <= min(share.memory for share in shares):
            collector.kept = self.blocks(collector, shares)
        else:
            collector.stream()
            collector.streamed = self.moments(collector)

    def told(self, share: _Share) -> list[_Share]:
        """The shares of all processes, rank by rank."""
        text = torch.tensor(list(json.dumps(asdict(share)).encode()), dtype=torch.uint8)
        lengths = self.gathered(torch.tensor([len(text)]))
        padded = text.new_zeros(max(map(int, lengths)))
        padded[: len(text)] = text
        texts = self.gathered(padded)
        read = [bytes(each[: int(n)].tolist()) for each, n in zip(texts, lengths, strict=True)]
        return [_read(each) for each in read]

    def gathered(self, tensor: Tensor) -> list[Tensor]:
        """A tensor of every process, all of one shape, rank by rank, on the host."""
        tensor = tensor.to(self.device)
        every = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(every, tensor, group=self.group)
        return [each.cpu() for each in every]

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, where the tensor was."""
        total = tensor.to(self.device, copy=True).contiguous()
        dist.all_reduce(total, group=self.group)
        return total.to(tensor.device)

    def blocks(self, collector: Collector, shares: Sequence[_Share]) -> list[Block]:
        """What all processes have kept: a block of each that has examples, rank by rank."""
        classes, width = collector.weight.shape
        every = [share.dtypes for share in shares if share.examples]
        dtypes = [_common(getattr(torch, each) for each in own) for own in zip(*every, strict=True)]
        shapes = [(width,), (classes,), ()]
        own = [torch.cat(tensors) for tensors in zip(*collector.kept, strict=True)]
        blocks = []
        for rank, share in enumerate(shares):
            if not share.examples:
                continue
            tensors = [
                torch.empty(share.examples, *shape, dtype=dtype, device=self.device)
                for shape, dtype in zip(shapes, [*dtypes, torch.int64], strict=True)
            ]
            for index, tensor in enumerate(tensors):
                if rank == dist.get_rank(self.group):
                    tensor.copy_(own[index])
                # As bytes: not every backend knows every dtype.
                source = dist.get_global_rank(self.group, rank)
                dist.broadcast(tensor.view(torch.uint8), src=source, group=self.group)
            blocks.append(Block(*(tensor.to(collector.weight.device) for tensor in tensors)))
        return blocks

    def moments(self, collector: Collector) -> ClassMoments:
        """Moments of all processes: as `ClassMoments` add up, of many at once."""
        own = collector.streamed
        if own is None:
            mean = torch.zeros_like(collector.weight)
            square = mean.new_zeros(mean.shape[1], mean.shape[1])
            own = ClassMoments(mean[:, 0].clone(), mean, mean[:, 0].clone(), square)
        assert own.scatter is not None
        count = self.summed(own.count)
        mean = self.summed(own.count[:, None] * own.mean) / count.clamp(min=1)[:, None]
        shift = own.mean - mean
        within = self.summed(own.within + own.count * shift.square().sum(dim=-1))
        scatter = self.summed(own.scatter + (own.count[:, None] * shift).mT @ shift)
        return ClassMoments(count, mean, within, scatter)


def _check_shares(shares: Sequence[_Share], error: Exception | None) -> None:
    """Raise on every process what one of them failed with, or where they differ."""
    for rank, share in enumerate(shares):
        if share.kind:
            message = f"on the process of rank {rank}: {share.error}"
            if share.kind in KINDS:
                raise KINDS[share.kind](message) from error
            raise RuntimeError(f"{message} ({share.kind})") from error
    first = next((share for share in shares if share.examples), shares[0])
    for rank, share in enumerate(shares):
        names = share.names if share.examples else first.names
        if (share.head, share.reference, names) != (first.head, first.reference, first.names):
            raise ValueError(
                f"the process of rank {rank} measures something else than the others: a head "
                f"{share.head}, not {first.head}, other extra=... or another reference=...; give "
                "every process the same."
            )


def _digest(reference: Measurement | None) -> str:
    if reference is None:
        return ""
    numbers = json.dumps([reference.examples, sorted(reference.items())])
    return hashlib.sha256(numbers.encode()).hexdigest()


def _read(text: bytes) -> _Share:
    fields: dict[str, Any] = json.loads(text)
    sequences = {name: tuple(fields[name]) for name in ("head", "names", "dtypes")}
    return _Share(**(fields | sequences))


def _common(dtypes: Iterator[torch.dtype]) -> torch.dtype:
    first, *others = dtypes
    for each in others:
        first = torch.promote_types(first, each)
    return first
