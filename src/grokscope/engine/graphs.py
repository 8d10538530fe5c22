"""Steps launched as CUDA graphs where that is possible, and as they are where it is not.

A graph is a step recorded once and replayed: the host launches it as a whole, where an eager step
takes hundreds of launches. It holds addresses and numbers, so what changes from step to step has to
lie in memory that stays, and nothing may be read back: see `engine.feed` and `engine.update`.
"""

from __future__ import annotations

import gc
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WARM_UP = 2  # eager steps of a kind before it is captured; the last of them is watched
# Beside operations whose result or shape depends on values: these ask the device for a status.
DECOMPOSITIONS = (
    "_linalg_det",
    "_linalg_eigh",
    "_linalg_slogdet",
    "_linalg_solve_ex",
    "_linalg_svd",
    "cholesky",
    "linalg_cholesky_ex",
    "linalg_eig",
    "linalg_inv_ex",
    "linalg_lstsq",
    "linalg_lu_factor_ex",
    "linalg_matrix_exp",
    "linalg_qr",
)
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")
MASKS = (torch.bool, torch.uint8)
WAITED = "called a synchronizing CUDA operation"  # in PyTorch's warning


class Launcher:
    """Launches the steps of one run, or of replicas, on a stream of its own.

    The first steps of each kind are eager: they train like any other, make what is made once, and
    are watched for what a graph cannot hold. Then the kind is captured.

    Args:
        device: Where the steps are computed.
        capture: Whether to capture them.

    Attributes:
        eager: Why steps are not captured; empty if they are.
    """

    def __init__(self, device: torch.device, capture: bool = True) -> None:
        self.eager = "" if capture else "capture was switched off"
        self.stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)
            self.stream.wait_stream(torch.cuda.current_stream(device))
            self._pool = torch.cuda.graph_pool_handle()
        else:
            self.eager = f"on {device.type.upper()}, which has no graphs"
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._failed: torch.cuda.CUDAGraph | None = None
        self._counts: Counter[Hashable] = Counter()

    def here(self) -> AbstractContextManager[object]:
        """A context in which work is done on this launcher's stream."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def facts(self) -> dict[str, object]:
        """On a GPU how many graphs were captured and, if steps were eager, why."""
        if self.stream is None:
            return {}
        return {"graphs": len(self._graphs)} | ({"eager": self.eager} if self.eager else {})

    def __call__(self, kind: Hashable, step: Callable[[], None]) -> None:
        """Make a step; steps of one kind consist of the same operations on the same memory."""
        with self.here():
            if kind not in self._graphs and not self._captured(kind, step):
                self._run(kind, step)
                return
            self._graphs[kind].replay()

    def _run(self, kind: Hashable, step: Callable[[], None]) -> None:
        """An eager step."""
        self._counts[kind] += 1
        if self.eager or self._counts[kind] != WARM_UP:
            step()
            return
        with _waiting() as waits, CaptureCheck() as check:
            step()
        self.eager = check.why or next(iter(waits), "")

    def _captured(self, kind: Hashable, step: Callable[[], None]) -> bool:
        """Capture a kind of step that is warm; whether that succeeded."""
        if self.eager or self._counts[kind] < WARM_UP:
            return False
        graph = torch.cuda.CUDAGraph()
        try:
            self._capture(graph, step)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.eager = f"capture failed: {str(error).strip().splitlines()[0]}"
            self._recover(graph)
            return False
        self._graphs[kind] = graph
        return True

    def _capture(self, graph: torch.cuda.CUDAGraph, step: Callable[[], None]) -> None:
        """Capture a step on the present stream; other streams go on computing.

        `torch.cuda.graph` would wait for the whole device and empty its caches each time.
        """
        # Graphs of one run share memory: they are replayed one after the other, and nothing that
        # a step leaves behind lies in it. What is collected meanwhile could free memory.
        collects = gc.isenabled()
        gc.disable()
        try:
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                step()
            finally:
                graph.capture_end()
        finally:
            if collects:
                gc.enable()

    def _recover(self, graph: torch.cuda.CUDAGraph) -> None:
        """Undo what a failed capture leaves behind, for the other runs of this process.

        Before PyTorch 2.12 the allocator and the generator go on as if it were under way
        (pytorch#180395, pytorch#176752).
        """
        assert self.stream is not None
        self._failed = graph  # the allocator may still refer to it
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            with suppress(RuntimeError, AttributeError):
                getattr(torch._C, name)(self.stream.device.index, self._pool)
        with suppress(RuntimeError):  # a capture that succeeds resets the generator
            other = torch.cuda.CUDAGraph()
            other.capture_begin(capture_error_mode="thread_local")
            torch.zeros(1, device=self.stream.device)
            other.capture_end()


@contextmanager
def _waiting() -> Iterator[list[str]]:
    """Notes, at its end, whether operations within it made the host wait for the GPU."""
    waits: list[str] = []
    if not torch.cuda.is_initialized():
        yield waits
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for one in caught:
        if WAITED in str(one.message):
            waits.append(f"a step waits for the device at {one.filename}:{one.lineno}")
        elif "prototype feature" not in str(one.message):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


class CaptureCheck(TorchDispatchMode):
    """Notes what the operations under it do that a CUDA graph cannot hold.

    Attributes:
        obstacles: What was found, one phrase for each kind.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.obstacles: dict[str, None] = {}

    @property
    def why(self) -> str:
        """All obstacles in one line; empty if there are none."""
        return f"a step needs {', '.join(self.obstacles)}" if self.obstacles else ""

    def __torch_dispatch__(
        self,
        func: Any,
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        obstacle = _obstacle(func, args, result)
        if obstacle:
            self.obstacles[f"{obstacle} ({func.overloadpacket.__name__})"] = None
        return result


def _obstacle(func: Any, args: tuple[Any, ...], result: Any) -> str:
    """What a graph can't hold of an operation; empty if it can hold it."""
    name = func.overloadpacket.__name__
    if torch.Tag.data_dependent_output in func.tags:
        return "to read a value"
    if name in INDEXING:
        by_mask = any(index is not None and index.dtype in MASKS for index in args[1])
        return "shapes that depend on values" if by_mask else ""
    if torch.Tag.dynamic_output_shape in func.tags:
        return "shapes that depend on values"
    if name in DECOMPOSITIONS:
        return "a decomposition that waits for the device"
    if torch.Tag.nondeterministic_seeded in func.tags:
        # Before PyTorch 2.12 graphs of several runs would share the state of the generator.
        return "random numbers"
    if name == "lift_fresh":
        return "a tensor made of Python numbers"
    devices = {value.device.type for value in (*args, result) if isinstance(value, Tensor)}
    if name in ("_to_copy", "copy_") and len(devices) > 1:
        return "a copy between host and device"
    return ""
