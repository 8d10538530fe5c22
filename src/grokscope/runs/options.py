"""How to run: one frozen object that is passed whole to whoever needs a part of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from grokscope.runs.machine import count_cores, count_gpus

REPLICAS_ON_GPU = 32  # at most, where --replicas is not set
SHARE_OF_MEMORY = 0.8  # of the free memory, for replicas


@dataclass(frozen=True)
class Place:
    """Where one worker computes.

    Attributes:
        device: Name of the device, as `find_device` takes it.
        memory_share: The share of the memory that is free there which replicas may fill.
    """

    device: str = "cpu"
    memory_share: float = SHARE_OF_MEMORY


@dataclass(frozen=True)
class RunOptions:
    """How to run the missing segments of an experiment.

    Attributes:
        workers: Number of worker processes; None chooses by cores and segments.
        threads: CPU threads of each worker.
        checkpoint_seconds: Seconds of work that a killed worker loses at most.
        device: Where models and data are kept; ``auto`` is CUDA where there is a GPU.
        replicas: The most segments that one worker trains together, memory permitting. None means
            1 on a CPU, where separate processes are faster (docs/benchmarks.md), and
            `REPLICAS_ON_GPU` on a GPU.
        together: How one worker trains several segments: ``streams`` side by side, whatever they
            are, on a GPU with a CUDA stream and captured graphs for each; ``vmap`` as one program,
            which only segments of one shape can be; ``auto`` is streams on a GPU, else vmap.
        on: ``local`` for this machine, ``ray`` for a Ray cluster.
        address: Address of the Ray cluster, as Ray writes it; None starts one on this machine.

    Raises:
        ValueError: If ``on`` or ``together`` is something else, or there is an address without
            ``on="ray"``.
    """

    workers: int | None = None
    threads: int = 1
    checkpoint_seconds: float = 30.0
    device: str = "auto"
    replicas: int | None = None
    together: Literal["auto", "streams", "vmap"] = "auto"
    on: Literal["local", "ray"] = "local"
    address: str | None = None

    def __post_init__(self) -> None:
        if self.on not in ("local", "ray"):
            raise ValueError(f"--on {self.on}: write local or ray")
        if self.together not in ("auto", "streams", "vmap"):
            raise ValueError(f"--together {self.together}: write auto, streams or vmap")
        if self.address is not None and self.on != "ray":
            raise ValueError(f"--address {self.address} names a Ray cluster: add --on ray")

    def uses_streams(self, device_type: str) -> bool:
        """Whether several segments on a device (``cpu``, ``cuda``) are trained side by side."""
        return self.together == "streams" or (self.together == "auto" and device_type == "cuda")

    @property
    def mixes_shapes(self) -> bool:
        """Whether the segments of one job may be of different shapes."""
        return self.uses_streams("cuda" if count_gpus(self.device) else "cpu")

    @property
    def replicas_per_job(self) -> int:
        """The most segments that may make one job."""
        if self.replicas is not None:
            return self.replicas
        return REPLICAS_ON_GPU if count_gpus(self.device) else 1

    def worker_count(self, jobs: int) -> int:
        """How many local workers to start for so many jobs.

        One for each GPU, else one for each core. Where dividing the jobs among the cores leaves a
        remainder, the remainder runs at the same time and the system shares the cores out: three
        jobs on two cores take 1.5 rounds, not 2.
        """
        if self.workers is not None:
            return max(1, min(self.workers, jobs))
        if gpus := count_gpus(self.device):
            return min(jobs, gpus)
        cores = max(1, count_cores() // self.threads)
        return min(jobs, cores + jobs % cores)

    def place(self, worker: int, workers: int) -> Place:
        """Where the ``worker``-th of so many local workers computes."""
        gpus = count_gpus(self.device)
        if not gpus:
            return Place(self.device, SHARE_OF_MEMORY / workers)
        device = self.device if ":" in self.device else f"cuda:{worker % gpus}"
        return Place(device, SHARE_OF_MEMORY / -(-workers // gpus))
