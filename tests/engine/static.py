"""What a CUDA graph asks of a step, watched on a CPU: no reads, no moves, one device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.optim import optimizer
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from grokscope.engine.loop import Training
from grokscope.tasks import Task

# On CUDA their kernels wait for the device; PyTorch has no tag that says so.
WAITING = (
    "_linalg_check_errors",
    "_linalg_eigh",
    "_linalg_eigvals",
    "_linalg_svd",
    "linalg_eig",
    "linalg_lstsq",
    "linalg_matrix_exp",
    "linalg_pinv",
)
# On a CPU some of these go past the dispatcher.
METHODS = (
    "__array__",
    "__bool__",
    "__complex__",
    "__float__",
    "__index__",
    "__int__",
    "cpu",
    "item",
    "numpy",
    "tolist",
)
FUSED = ("_fused_sgd_", "_fused_sgd_.tensor_lr", "_fused_adamw_", "_fused_adamw_.tensor_lr")
MASKS = (torch.bool, torch.uint8)
TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class ReadError(RuntimeError):
    """A value of a tensor was read, or decided a shape."""


class _NoReads(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        reason = _reads(func, args)
        if reason:
            raise ReadError(f"{func} {reason}")
        return func(*args, **kwargs)


def _reads(func: torch._ops.OpOverload, args: tuple[Any, ...]) -> str:
    """Why an operation can't be captured; empty if it can."""
    name = func._schema.name.removeprefix("aten::")
    if name in ("index", "index_put", "index_put_", "_unsafe_index", "_unsafe_index_put"):
        masks = [index for index in args[1] if index is not None and index.dtype in MASKS]
        return "counts what a mask lets through" if masks else ""
    if name == "lift_fresh":
        return "sends numbers from Python to the device"
    if name in WAITING:
        return "waits for the device"
    return "depends on values" if TAGS & set(func.tags) else ""


@contextmanager
def no_reads() -> Iterator[None]:
    """Within it `ReadError`, which names the operation, is raised by whatever reads a value.

    So it is by tensors made of Python numbers, which a graph would bake in or have to wait for.
    """

    def refuse(name: str) -> Callable[..., None]:
        def method(tensor: Tensor, *_: object, **__: object) -> None:
            raise ReadError(f"Tensor.{name} reads a value")

        return method

    with ExitStack() as stack:
        for name in METHODS:
            stack.enter_context(patch.object(Tensor, name, refuse(name)))
        stack.enter_context(_NoReads())
        yield


@contextmanager
def unmoved(held: Callable[[], Mapping[str, Tensor]]) -> Iterator[None]:
    """Asserts that tensors keep their names, addresses and shapes.

    Args:
        held: Called before and after; what it returns before is kept, so that nothing new can come
            to lie at a freed address.
    """
    before = dict(held())
    places = {name: place(tensor) for name, tensor in before.items()}
    yield
    after = {name: place(tensor) for name, tensor in held().items()}
    changed = [name for name in places.keys() | after if places.get(name) != after.get(name)]
    assert not changed, f"moved: {', '.join(sorted(changed))}"


def place(tensor: Tensor) -> tuple[object, ...]:
    """Where a tensor lies, and how."""
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def buffers(training: Training) -> dict[str, Tensor]:
    """What lasts from step to step: the model, the optimiser's state, sums and memories."""
    update = training.update
    held = dict(training.task.model.state_dict(keep_vars=True))
    for index, parameter in enumerate(update.parameters):
        for name, buffer in update.optimizer.state.get(parameter, {}).items():
            if isinstance(buffer, Tensor):
                held[f"optimizer/{index}/{name}"] = buffer
    held["sums"] = update.sums
    return held | {f"memory/{place}": means for place, means in update.memories.items()}


class OtherDeviceError(RuntimeError):
    """An operation saw, or made, a tensor on another device."""


class OneDevice(TorchDispatchMode):
    """Refuses every tensor that is not on one device.

    PyTorch accepts some from the host: an index, a single number. In a graph the one would be
    waited for, the other baked in.

    Args:
        device: Type of the device, such as "meta".
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        returned = func(*args, **kwargs)
        for leaf in tree_leaves((args, kwargs, returned)):
            if isinstance(leaf, Tensor) and leaf.device.type != self.device:
                raise OtherDeviceError(
                    f"{func} has a tensor {list(leaf.shape)} on {leaf.device}, not on {self.device}"
                )
        return returned


def on_meta(task: Task) -> Task:
    """The task where tensors have shapes but no values, so that reading one fails."""
    return task.to(torch.device("meta"))


@contextmanager
def fused_on_meta() -> Iterator[None]:
    """Lets fused optimisers step on the meta device, which PyTorch refuses.

    They return nothing, so that there is nothing to do for the kernels that it lacks.
    """
    supported = [*_foreach_utils._get_fused_kernels_supported_devices(), "meta"]
    with torch.library._scoped_library("aten", "IMPL") as library, ExitStack() as stack:
        for name in FUSED:
            if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "Meta"):
                library.impl(name, lambda *_, **__: None, "Meta")
        for module in (optimizer, _foreach_utils):
            name = "_get_fused_kernels_supported_devices"
            stack.enter_context(patch.object(module, name, lambda: supported))
        yield
