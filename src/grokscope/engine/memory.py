"""How much memory a run takes while it trains, estimated before it starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from grokscope.engine.loop import Training
from grokscope.probe.trees import take

BUFFERS = {"adamw": 2, "sgd": 1}  # of the optimiser, in multiples of the parameters
# Of cuBLAS on one stream, as CUBLAS_WORKSPACE_CONFIG=:4096:8 sets it, forward and backward.
WORKSPACE_ON_GPU = 2**26
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def bytes_of(training: Training) -> int:
    """Bytes that one more run of this kind takes: an estimate, good to a factor of two.

    Parameters, gradients and the optimiser's buffers are counted; what autograd saves of one batch
    is taken four times, for its gradients and the workspace of batched convolutions; on a GPU also
    the workspace of its stream. Graphs of one run share the memory of one step. Data count as if
    every run held its own.

    Cost: one forward pass.
    """
    model, update = training.task.model, training.update
    held = [*model.parameters(), *model.buffers()]
    weights = sum(tensor.nbytes for tensor in held)
    trained = sum(tensor.nbytes for tensor in update.parameters)
    data = training.task.train.nbytes + training.task.validation.nbytes
    batch = torch.arange(training.order.batch_size)
    buffers = [buffer.clone() for buffer in model.buffers()]
    train = training.task.train
    examples = take(train.inputs, batch), train.labels[batch]
    saved = saved_bytes(lambda: update.outcome(*examples), besides=held)
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
    kept = BUFFERS[training.segment.phase.optimizer.name]
    workspace = WORKSPACE_ON_GPU if training.on_gpu else 0
    return weights + (1 + kept) * trained + 4 * saved + data + workspace


def saved_bytes(forward: Callable[[], object], besides: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd saves in a forward pass, without those of the tensors ``besides``."""
    excluded = {tensor.untyped_storage().data_ptr() for tensor in besides}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in excluded:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        outcome = forward()
    del outcome  # only now: memory that is freed may be given out again
    return sum(saved.values())


def free_bytes(device: torch.device) -> int | None:
    """Bytes that are still free there for this process; None if the system does not say."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what the allocator keeps counts as taken
        return int(torch.cuda.mem_get_info(device)[0])
    if not MEMINFO.is_file():
        return None
    lines = (line.split() for line in MEMINFO.read_text(encoding="utf-8").splitlines())
    free = next((int(parts[1]) * 1024 for parts in lines if parts[0] == "MemAvailable:"), None)
    most, taken = (_number(CGROUP / name) for name in ("memory.max", "memory.current"))
    if free is None or most is None or taken is None:
        return free
    return min(free, max(0, most - taken))


def _number(file: Path) -> int | None:
    """The number in a file of the control group; None if there is no file, or no limit."""
    text = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    return int(text) if text.isdigit() else None
