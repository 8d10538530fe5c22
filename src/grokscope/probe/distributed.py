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
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data.distributed import DistributedSampler

from grokscope.measures.checks import NotFiniteError
from grokscope.measures.moments import ClassMoments
from grokscope.probe.assembly import Assembly
from grokscope.probe.measurement import Measurement
from grokscope.probe.trees import map_tensors

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# What every process raises for an error of one of them, by name; RuntimeError for all others.
KINDS: dict[str, type[Exception]] = {"NotFiniteError": NotFiniteError, "ValueError": ValueError}


@contextmanager
def added_up(assembly: Assembly, group: ProcessGroup | None) -> Iterator[None]:
    """Fill an assembly within; on leaving, it holds what those of all processes hold together.

    Without a group nothing happens. With one, no process may stay away, and none does because of
    an error: the others hear of it first.

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
    _Processes(group, assembly.heads.weight.device).add_up(assembly, error)


def warn_of_one_share(batches: object) -> None:
    """Warn if a process measures only its share of the data, by the loader's sampler."""
    sampler = getattr(batches, "sampler", None)
    if isinstance(sampler, DistributedSampler) and sampler.num_replicas > 1:
        warnings.warn(
            f"the loader has a DistributedSampler, so this measures one of {sampler.num_replicas} "
            "shares of the data; pass Probe(..., group=torch.distributed.group.WORLD) on every "
            "process to measure all of it, or a loader without that sampler.",
            stacklevel=3,
        )


class _Share(NamedTuple):
    """What a process shares with the others before anything is added up."""

    kind: str  # of its error, empty without one
    error: str
    head: tuple[int, ...]
    reference: str  # a digest of its numbers, empty without one
    names: tuple[str, ...]  # of its sums
    examples: int
    bytes: int
    memory: int


class _Processes:
    """The processes of a group, and what they do together."""

    def __init__(self, group: ProcessGroup, device: torch.device) -> None:
        self.group = group
        backends = dict(pair.split(":") for pair in dist.get_backend_config(group).split(","))
        self.device = torch.device("cpu") if backends.get(device.type) == "gloo" else device

    def add_up(self, assembly: Assembly, error: Exception | None) -> None:
        """Give an assembly what those of all processes hold."""
        share = _Share(
            kind="" if error is None else type(error).__name__,
            error="" if error is None else str(error),
            head=tuple(assembly.heads.weight.shape),
            reference=_digest(assembly.references),
            names=tuple(assembly.sums),
            examples=assembly.examples,
            bytes=assembly.bytes,
            memory=assembly.memory,
        )
        shares: list[_Share] = self.gathered(share)
        _check_shares(shares, error)
        names = next((share.names for share in shares if share.examples), ())
        if not names:
            return
        zero = assembly.heads.weight.new_zeros(1)
        sums = torch.stack([assembly.sums.get(name, zero) for name in names])
        assembly.sums = dict(zip(names, self.summed(sums), strict=True))
        assembly.examples = sum(share.examples for share in shares)
        assembly.bytes = sum(share.bytes for share in shares)
        if not assembly.keeps:
            return
        if assembly.bytes <= min(share.memory for share in shares):
            here = map_tensors(Tensor.cpu, assembly.kept)
            device = assembly.heads.weight.device
            everything = map_tensors(lambda tensor: tensor.to(device), self.gathered(here))
            assembly.kept = [block for kept in everything for block in kept]
        else:
            assembly.stream()
            assembly.streamed = self.moments(assembly)

    def gathered(self, found: object) -> list[Any]:
        """What every process has found, rank by rank; tensors in it are on the host."""
        everything: list[Any] = [None] * dist.get_world_size(self.group)
        # Objects travel by way of the current GPU, which need not be that of the head.
        on_gpu = self.device.type == "cuda"
        with torch.cuda.device(self.device) if on_gpu else nullcontext():
            dist.all_gather_object(everything, found, group=self.group)
        return everything

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, where the tensor was."""
        total = tensor.to(self.device, copy=True).contiguous()
        dist.all_reduce(total, group=self.group)
        return total.to(tensor.device)

    def moments(self, assembly: Assembly) -> ClassMoments:
        """Moments of all processes: as `ClassMoments` add up, of many at once."""
        here = assembly.streamed
        if here is None:  # this process has no examples
            mean = torch.zeros_like(assembly.heads.weight[0])
            square = mean.new_zeros(mean.shape[1], mean.shape[1])
            here = ClassMoments(mean[:, 0].clone(), mean, mean[:, 0].clone(), square)
        assert here.scatter is not None
        count = self.summed(here.count)
        mean = self.summed(here.count[:, None] * here.mean) / count.clamp(min=1)[:, None]
        shift = here.mean - mean
        within = self.summed(here.within + here.count * shift.square().sum(dim=-1))
        scatter = self.summed(here.scatter + (here.count[:, None] * shift).mT @ shift)
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
                f"the process of rank {rank} measures something else than the others: another head "
                f"({share.head}, not {first.head}), other measures=... or extra=..., or another "
                "reference=...; give every process the same."
            )


def _digest(references: Sequence[Measurement] | None) -> str:
    if references is None:
        return ""
    numbers = json.dumps(
        [(reference.examples, sorted(reference.items())) for reference in references]
    )
    return hashlib.sha256(numbers.encode()).hexdigest()
