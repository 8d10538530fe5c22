"""Jobs on a Ray cluster: one task each, whose results lie on a file system that all nodes share.

What matters about a job is its task's result. Mere steps go through an actor beside the driver,
the `_Board`; nothing depends on its being alive. To stop, tasks are cancelled, which Ray does by
an interrupt: those under way leave a checkpoint. A job whose worker or node was lost is put back:
its segments are retried elsewhere, from their checkpoints.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import socket
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from grokscope.runs.jobs import Job, Progress, RunFailedError, Throttle
from grokscope.runs.machine import count_cores
from grokscope.runs.options import REPLICAS_ON_GPU, RunOptions
from grokscope.runs.store import Store
from grokscope.runs.worker import describe_failure, run_job
from grokscope.spec import Segment
from grokscope.version import __version__

ATTEMPTS = 3  # at a segment, in a row and without a new checkpoint, before we give up
PAUSE = 1.0  # seconds between two steps of one segment that a worker sends
TIMEOUT = 15.0  # seconds within which a cluster that is just being started must answer
OBJECTS = 100 * 2**20  # bytes of Ray's object store; results are kept in files


@dataclass(frozen=True)
class _Context:
    """What a task must know besides its job."""

    folder: Path
    working_directory: Path  # of the driver, where relative paths begin
    options: RunOptions
    version: str
    traceback: str  # GROKSCOPE_TRACEBACK of the driver


class RayExecutor:
    """Tasks of a Ray cluster, one for each job under way.

    Args:
        store: Where results go; its folder must be shared by all nodes.
        options: Threads, device and checkpoints; its ``address`` names the cluster, None starts
            one on this machine.

    Raises:
        ValueError: If Ray is not installed, there is no such cluster, or no node of it can run
            a job.
    """

    def __init__(self, store: Store, options: RunOptions) -> None:
        self.ray = _import_ray()
        self.connected_here = not self.ray.is_initialized()
        if self.connected_here:
            _connect(self.ray, options.address)
        try:
            self.options = _resolve(options, self.ray.cluster_resources())
            self.board = _start_board(self.ray)
        except BaseException:
            self._disconnect()
            raise
        self.context = _Context(
            folder=store.folder.resolve(),
            working_directory=Path.cwd(),
            options=self.options,
            version=__version__,
            traceback=os.environ.get("GROKSCOPE_TRACEBACK", ""),
        )
        needs = {"num_cpus": self.options.threads, "num_gpus": int(self.options.device == "cuda")}
        # Ray itself must not retry: whether a segment is free again, only its lease can say.
        self.task = self.ray.remote(max_retries=0, **needs)(_run_task)
        self.store = store
        self.jobs: dict[Any, Job] = {}  # by the reference of their result
        self.ended: list[Job] = []
        # By segment: how often its worker was lost in a row, and its checkpoint at the last loss.
        self.losses: dict[str, tuple[int, int | None]] = {}

    @property
    def free_slots(self) -> int:
        resources = self.ray.cluster_resources()
        slots = int(resources.get("CPU", 0) // self.options.threads)
        if self.options.device == "cuda":
            slots = min(slots, int(resources.get("GPU", 0)))
        return max(0, (self.options.workers or slots) - len(self.jobs))

    def submit(self, job: Job) -> None:
        self.jobs[self.task.remote(self.context, job, self.board)] = job

    def poll(self) -> list[Progress]:
        news = self._steps()
        if not self.jobs:
            time.sleep(0.2)
            return news
        finished, _ = self.ray.wait(list(self.jobs), timeout=0.2)
        for reference in finished:
            job = self.jobs.pop(reference)
            self.ended.append(job)
            news += self._result(reference, job)
        return news

    def done(self) -> list[Job]:
        ended, self.ended = self.ended, []
        return ended

    def shutdown(self) -> None:
        for reference in self.jobs:
            self.ray.cancel(reference)
        if self.jobs:
            self.ray.wait(list(self.jobs), num_returns=len(self.jobs))
        self._disconnect()

    def _disconnect(self) -> None:
        if self.connected_here:
            self.ray.shutdown()

    def _steps(self) -> list[Progress]:
        try:
            return self.ray.get(self.board.drain.remote(), timeout=5)
        except self.ray.exceptions.RayError:
            return []  # steps are only for the progress bars

    def _result(self, reference: Any, job: Job) -> list[Progress]:
        """What a task that ended reports of its job.

        Raises:
            RunFailedError: If it could not even begin, or was lost too often.
        """
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            raise RunFailedError(
                f"a worker of the cluster failed before it began ({_cause(error)}); every node "
                f"needs grokscope {__version__} and whatever your task imports"
            ) from error
        except self.ray.exceptions.RayError as error:
            for segment in job:
                self._count_loss(segment, _cause(error))
            # Until their leases run out, it is as if another process held them.
            return [Progress(segment.id, segment.start, busy=True) for segment in job]

    def _count_loss(self, segment: Segment, cause: str) -> None:
        checkpoint = self.store.checkpoint_step(segment)
        count, before = self.losses.get(segment.id, (0, checkpoint))
        count = count + 1 if checkpoint == before else 1
        self.losses[segment.id] = (count, checkpoint)
        if count >= ATTEMPTS:
            raise RunFailedError(
                f"the worker of segment {segment.id} was lost {ATTEMPTS} times without a new "
                f"checkpoint ({cause}); memory often runs out in this way. Run the same command "
                "again to resume."
            )


class _Board:
    """An actor beside the driver, with which workers leave their steps."""

    def __init__(self) -> None:
        self.steps: list[Progress] = []

    def publish(self, progress: Progress) -> None:
        self.steps.append(progress)

    def drain(self) -> list[Progress]:
        """The steps that were published since the last call."""
        steps, self.steps = self.steps, []
        return steps


def _start_board(ray: Any) -> Any:
    """A board on this node, where it lives as long as the driver."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(_Board).remote()


def _run_task(context: _Context, job: Job, board: Any) -> list[Progress]:
    """Body of a task; returns the progress that matters, failures included."""
    ray, stopping = _import_ray(), threading.Event()
    # Cancelling a task interrupts it.
    before = signal.signal(signal.SIGINT, lambda *_: stopping.set())
    results: list[Progress] = []

    def report(progress: Progress) -> None:
        if progress.is_mere_step:
            with contextlib.suppress(ray.exceptions.RayError):
                board.publish.remote(progress)  # training does not wait for it
        else:
            results.append(progress)

    node, directory, options = platform.node(), context.working_directory, context.options
    # A GPU belongs to one task; the main memory is shared by as many as there are cores for.
    tasks = 1 if options.device == "cuda" else max(1, count_cores() // options.threads)
    if context.traceback:
        os.environ["GROKSCOPE_TRACEBACK"] = context.traceback
    try:
        _check_node(context, node)
        with contextlib.chdir(directory if directory.is_dir() else Path.cwd()):
            run_job(
                Store(context.folder),
                job,
                Throttle(report, PAUSE),
                stopping.is_set,
                options=options,
                place=options.place(0, tasks),
            )
    except Exception as error:
        failure = describe_failure(error)
        if not directory.is_dir():
            failure += f" (node {node} has no folder {directory}, where relative paths begin)"
        results.append(Progress(job[0].id, 0, failure=failure))
    finally:
        signal.signal(signal.SIGINT, before)
    return results


def _check_node(context: _Context, node: str) -> None:
    if __version__ != context.version:
        raise ValueError(
            f"node {node} has grokscope {__version__}, but this is {context.version}; "
            "install the same version on every node"
        )
    if not (context.folder / "experiment.yaml").is_file():
        raise ValueError(
            f"node {node} does not see {context.folder}; with --out, choose a folder on a file "
            "system that all nodes share"
        )


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ValueError("--on ray needs Ray: pip install 'grokscope[ray]'") from error
    return ray


def _connect(ray: Any, address: str | None) -> None:
    """Join the cluster at an address, or start one here."""
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init("local", include_dashboard=False, object_store_memory=OBJECTS, **quiet)
        return
    if address.startswith("ray://"):
        raise ValueError(
            f"--address {address}: results are also written from here; run this on a node of the "
            "cluster, with --address auto"
        )
    try:
        _await_answer(address)
        ray.init(address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"there is no Ray cluster at {address} ({_cause(error)}); start one with "
            "'ray start --head', or leave --address out to start one on this machine"
        ) from error


def _await_answer(address: str) -> None:
    """Wait until something listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + TIMEOUT
    while host:
        try:
            with socket.create_connection((host, int(port)), timeout=TIMEOUT):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _resolve(options: RunOptions, resources: dict[str, float]) -> RunOptions:
    """Device and replicas by what the cluster has, which this machine may lack."""
    has_gpu = resources.get("GPU", 0) >= 1
    if options.device not in ("auto", "cpu", "cuda"):
        raise ValueError(
            f"--device {options.device}: Ray chooses which GPU; write cuda with --on ray"
        )
    if options.device == "cuda" and not has_gpu:
        raise ValueError("--device cuda can't be used here (the cluster has no GPU); try cpu")
    device = "cuda" if has_gpu and options.device != "cpu" else "cpu"
    replicas = options.replicas or (REPLICAS_ON_GPU if device == "cuda" else 1)
    return replace(
        options,
        device=device,
        replicas=replicas,
        together="streams" if options.uses_streams(device) else "vmap",
    )


def _cause(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
