"""Jobs on a Ray cluster: one task each, whose results lie on a file system that all nodes share.

What matters of a job is its task's result. Mere steps go through an actor beside the driver, the
`_Board`, which also tells workers to stop; nothing depends on its being there. A job whose worker
or node was lost is put back: its segments go on elsewhere, from their checkpoints.
"""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grokscope
from grokscope.runs.launch import REPLICAS, Launch
from grokscope.runs.schedule import Job, RunFailedError
from grokscope.runs.store import Store
from grokscope.runs.worker import SHARE_OF_MEMORY, Progress, run_job, told_of

LOSSES = 3  # of a segment, one after the other without a new checkpoint, before we give up
PAUSE = 0.3  # seconds between messages of a worker
PATIENCE = 15.0  # seconds until a cluster that is just being started must answer
OBJECTS = 100 * 2**20  # bytes of Ray's object store; results lie in files


@dataclass(frozen=True)
class _Order:
    """What a worker must know besides its job."""

    folder: Path
    home: Path  # where relative paths begin
    how: Launch
    version: str
    traceback: str  # GROKSCOPE_TRACEBACK of the driver


class RayCrew:
    """Tasks of a Ray cluster, one for each job under way.

    Args:
        store: Where results go; its folder must be shared by all nodes.
        how: Threads, device, checkpoints; its ``address`` names the cluster, None starts one here.

    Raises:
        ValueError: If Ray is not installed, there is no such cluster, or no node of it can run
            a job.
    """

    def __init__(self, store: Store, how: Launch) -> None:
        self.ray = _import_ray()
        self.ours = not self.ray.is_initialized()
        if self.ours:
            _connect(self.ray, how.address)
        try:
            self.how = _resolve(how, self.ray.cluster_resources())
            self.board = _pinned(self.ray, _Board)
        except BaseException:
            self._disconnect()
            raise
        self.order = _Order(
            store.folder.resolve(),
            Path.cwd(),
            self.how,
            grokscope.__version__,
            os.environ.get("GROKSCOPE_TRACEBACK", ""),
        )
        needs = {"num_cpus": how.threads, "num_gpus": int(self.how.device == "cuda")}
        # No retries of Ray's: whether a segment is free again only its lease tells.
        self.task = self.ray.remote(max_retries=0, **needs)(_work)
        self.store = store
        self.jobs: dict[Any, Job] = {}  # by the reference of their result
        self.count, self.names = 0, dict[str, str]()  # a job that is handed over again is another
        self.gone: list[Job] = []
        self.losses: Counter[str] = Counter()
        self.reached: dict[str, int | None] = {}  # step of the checkpoint at the last loss

    @property
    def free(self) -> int:
        there = self.ray.cluster_resources()
        places = int(there.get("CPU", 0) // self.how.threads)
        if self.how.device == "cuda":
            places = min(places, int(there.get("GPU", 0)))
        return max(0, (self.how.workers or places) - len(self.jobs))

    def start(self, job: Job) -> None:
        self.count += 1
        name = f"{job[0].id}-{self.count}"
        self.jobs[self.task.remote(self.order, name, job, self.board)] = job
        self.names[job[0].id] = name

    def listen(self) -> list[Progress]:
        heard = self._steps()
        if not self.jobs:
            time.sleep(0.2)
            return heard
        ended, _ = self.ray.wait(list(self.jobs), timeout=0.2)
        for reference in ended:
            job = self.jobs.pop(reference)
            self.gone.append(job)
            heard += self._result(reference, job)
        return heard

    def leave(self) -> list[Job]:
        gone, self.gone = self.gone, []
        return gone

    def close(self) -> None:
        """Ask the workers to stop and wait for their checkpoints."""
        begun = set(self.names.values())  # what the board does not deny
        with contextlib.suppress(self.ray.exceptions.RayError):
            begun = self.ray.get(self.board.stop.remote(), timeout=PATIENCE)
        for reference, job in self.jobs.items():
            if self.names[job[0].id] not in begun:  # it may wait in a queue for long
                self.ray.cancel(reference)
        left = list(self.jobs)
        while left:
            _, left = self.ray.wait(left, timeout=0.5)
        self._disconnect()

    def _disconnect(self) -> None:
        if self.ours:
            self.ray.shutdown()

    def _steps(self) -> list[Progress]:
        try:
            return self.ray.get(self.board.take.remote(), timeout=5)
        except self.ray.exceptions.RayError:
            return []  # steps are for the eye

    def _result(self, reference: Any, job: Job) -> list[Progress]:
        """What a task that ended says of its job.

        Raises:
            RunFailedError: If it could not even begin, or was lost too often.
        """
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            raise RunFailedError(
                f"a worker of the cluster failed before it began ({_cause(error)}); every node "
                f"needs grokscope {grokscope.__version__} and what your task imports"
            ) from error
        except self.ray.exceptions.RayError as error:
            for segment in job:
                self._lost(segment.id, self.store.checkpoint_step(segment), _cause(error))
            # Their leases run out; until then they are as if another process held them.
            return [Progress(segment.id, segment.start, busy=True) for segment in job]

    def _lost(self, name: str, step: int | None, why: str) -> None:
        if step != self.reached.get(name):
            self.losses[name] = 0
        self.reached[name] = step
        self.losses[name] += 1
        if self.losses[name] >= LOSSES:
            raise RunFailedError(
                f"the worker of segment {name} was lost {LOSSES} times without a new checkpoint "
                f"({why}); often that is lack of memory. Run the same command again to go on."
            )


class _Board:
    """An actor beside the driver, on which workers leave their steps."""

    def __init__(self) -> None:
        self.steps: dict[str, Progress] = {}
        self.begun: set[str] = set()
        self.stopping = False

    def say(self, job: str, steps: Sequence[Progress]) -> bool:
        """Note steps; whether the worker is to stop."""
        self.begun.add(job)
        self.steps |= {each.segment: each for each in steps}
        return self.stopping

    def take(self) -> list[Progress]:
        """The latest step of each segment that was noted since the last call."""
        steps, self.steps = self.steps, {}
        return list(steps.values())

    def stop(self) -> set[str]:
        """Ask all to stop; which jobs have begun, by name."""
        self.stopping = True
        return self.begun


class _Line:
    """A worker's line to the board, in a thread: training never waits for it."""

    def __init__(self, board: Any, name: str) -> None:
        self.board, self.name = board, name
        self.steps: dict[str, Progress] = {}
        self.ends: list[Progress] = []
        self.stopping, self.closed = threading.Event(), threading.Event()
        self.lock = threading.Lock()

    def report(self, progress: Progress) -> None:
        if progress != Progress(progress.segment, progress.step, progress.values):
            self.ends.append(progress)
            return
        with self.lock:
            before = self.steps.get(progress.segment)
            values = (before.values if before else {}) | progress.values
            self.steps[progress.segment] = replace(progress, values=values)

    def talk(self) -> None:
        """Send what there is and hear whether to stop."""
        with self.lock:
            steps, self.steps = list(self.steps.values()), {}
        ray = _import_ray()
        with contextlib.suppress(ray.exceptions.RayError):
            if ray.get(self.board.say.remote(self.name, steps), timeout=PATIENCE):
                self.stopping.set()

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        self.talk()
        thread = threading.Thread(target=self._keep_talking, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.closed.set()
            thread.join()

    def _keep_talking(self) -> None:
        while not self.closed.wait(PAUSE):
            self.talk()


def _work(order: _Order, name: str, job: Job, board: Any) -> list[Progress]:
    """Body of a task: what matters of its progress, failures too."""
    line = _Line(board, name)
    node = platform.node()
    is_home = order.home.is_dir()
    if order.traceback:
        os.environ["GROKSCOPE_TRACEBACK"] = order.traceback
    try:
        _check_node(order, node)
        with line.open(), contextlib.chdir(order.home if is_home else Path.cwd()):
            how = order.how
            run_job(
                Store(order.folder),
                job,
                line.report,
                line.stopping.is_set,
                how.checkpoint_seconds,
                how.threads,
                how.device,
                _share(how),
            )
    except Exception as error:
        said = told_of(error)
        if not is_home:
            said += f" (node {node} has no folder {order.home}, where relative paths begin)"
        line.ends.append(Progress(job[0].id, 0, failure=said))
    return line.ends


def _share(how: Launch) -> float:
    """Of a node's memory for one job: a GPU is its own, main memory is shared by the cores."""
    if how.device == "cuda":
        return SHARE_OF_MEMORY
    return SHARE_OF_MEMORY * min(1.0, how.threads / (os.cpu_count() or 1))


def _check_node(order: _Order, node: str) -> None:
    if grokscope.__version__ != order.version:
        raise ValueError(
            f"node {node} has grokscope {grokscope.__version__}, but this is {order.version}; "
            "install the same version on every node"
        )
    if not (order.folder / "experiment.yaml").is_file():
        raise ValueError(
            f"node {node} does not see {order.folder}; name with --out a folder on a file system "
            "that all nodes share"
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
            f"--address {address}: results are written from here, too; run this on a node of the "
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
    deadline = time.monotonic() + PATIENCE
    while host:
        try:
            socket.create_connection((host, int(port)), timeout=PATIENCE).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return


def _resolve(how: Launch, there: dict[str, float]) -> Launch:
    """Device and replicas by what the cluster has, which this machine may lack."""
    has_gpu = there.get("GPU", 0) >= 1
    if how.device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device {how.device}: Ray chooses which GPU; write cuda with --on ray")
    if how.device == "cuda" and not has_gpu:
        raise ValueError("--device cuda can't be used here (the cluster has no GPU); try cpu")
    device = "cuda" if has_gpu and how.device != "cpu" else "cpu"
    replicas = how.replicas or (REPLICAS if device == "cuda" else 1)
    return replace(how, device=device, replicas=replicas)


def _pinned(ray: Any, actor: type) -> Any:
    """An actor on this node, where it lives as long as the driver."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(actor).remote()


def _cause(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
