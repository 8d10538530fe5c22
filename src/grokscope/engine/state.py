"""Everything that the next step depends on, as named tensors and plain numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

MODEL, OPTIMIZER, GENERATOR, CUDA_GENERATOR = "model/", "optimizer/", "generator", "generator/cuda"


@dataclass(frozen=True)
class State:
    """A training run between two steps."""

    step: int  # updates so far
    # Copies: model/<name>, optimizer/<parameter>/<name>, generator and, from a GPU, generator/cuda.
    tensors: dict[str, Tensor]
    optimizer: str  # name of the optimiser to which the buffers belong
    threads: int  # CPU threads in use; sums depend on them in the last bit


def capture(
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    name: str,
    *,
    more: dict[str, Tensor],
) -> State:
    """Copy out the state of a run.

    Args:
        step: Updates so far.
        model: Its weights and buffers.
        optimizer: Its buffers.
        name: Of the optimiser.
        more: Other tensors by name.

    Cost: three times the bytes of the model for AdamW; of a GPU one wait for the present stream.
    """
    tensors = {MODEL + key: value for key, value in model.state_dict().items()}
    for index, buffers in optimizer.state_dict()["state"].items():
        for key, value in buffers.items():
            if value is not None:
                tensors[f"{OPTIMIZER}{index}/{key}"] = torch.as_tensor(value)
    tensors |= generators(model) | more
    copies = {
        key: value.detach().to("cpu", copy=True, non_blocking=True)
        for key, value in tensors.items()
    }
    if any(value.is_cuda for value in tensors.values()):
        torch.cuda.current_stream().synchronize()
    return State(step, copies, name, torch.get_num_threads())


def generators(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the global random number generators that a model draws from."""
    device = next(model.parameters()).device
    states = {GENERATOR: torch.get_rng_state()}
    if device.type == "cuda":
        states[CUDA_GENERATOR] = torch.cuda.get_rng_state(device)
    return states


def set_generators(states: dict[str, Tensor], model: nn.Module) -> None:
    """Set the global random number generators to states that `generators` returned."""
    torch.set_rng_state(states[GENERATOR])
    device = next(model.parameters()).device
    if device.type == "cuda" and CUDA_GENERATOR in states:
        torch.cuda.set_rng_state(states[CUDA_GENERATOR], device)


def restore(state: State, model: nn.Module, optimizer: torch.optim.Optimizer, name: str) -> None:
    """Continue from ``state``: weights, buffers, generator, and the optimiser's buffers.

    An optimiser of another kind starts with empty buffers; settings such as the learning rate
    are the new phase's own in any case.
    """
    tensors = state.tensors
    model.load_state_dict(
        {key.removeprefix(MODEL): tensors[key] for key in tensors if key.startswith(MODEL)}
    )
    set_generators(tensors, model)
    if state.optimizer != name:
        return
    buffers: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        if key.startswith(OPTIMIZER):
            index, _, field = key.removeprefix(OPTIMIZER).partition("/")
            buffers.setdefault(int(index), {})[field] = value.clone()
    rates = [group["lr"] for group in optimizer.param_groups]
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": buffers, "param_groups": groups})
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate  # the tensor that steps write to, not a copy of it
