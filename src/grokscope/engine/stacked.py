"""One optimiser for replicas: a step costs as many kernels for all of them as for one.

It steps the stacked parameters. A replica's own optimiser, of which a checkpoint is made, is given
views of its part of the buffers when somebody asks for the replica's state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grokscope.engine.update import Update, build_optimizer
from grokscope.spec import Optimizer

STEP = "step"  # the buffer that replicas have in common


@dataclass(frozen=True)
class _Group:
    """Consecutive replicas with the same settings."""

    first: int
    until: int
    settings: Optimizer
    # Slices of the stacks that share their memory, in the order of a replica's parameters.
    parameters: list[Tensor]
    optimizer: torch.optim.Optimizer


class StackedOptimizer:
    """Steps all replicas.

    Args:
        updates: Updates of the replicas; their optimisers may hold buffers to resume from.
        stacks: Parameters of all replicas, ``[replicas, ...]``, in the order of one model's.
    """

    def __init__(self, updates: Sequence[Update], stacks: Sequence[Tensor]) -> None:
        self.updates, self.stacks = updates, [stack.detach() for stack in stacks]
        self.groups: list[_Group] = []
        self.left: set[int] = set()
        keys = [_key(update) for update in updates]
        first = 0
        for until in range(1, len(updates) + 1):
            if until == len(updates) or keys[until] != keys[first]:
                self.groups.append(self._group(first, until))
                first = until

    def step(self, step: int, gradients: Sequence[Tensor | None]) -> None:
        """Update all replicas by the gradients of the stacks, contiguous; None where not used."""
        for group in self.groups:
            phase, start = self.updates[group.first].phase, self.updates[group.first].start
            for settings in group.optimizer.param_groups:
                settings["lr"] = group.settings.rate(step, start, phase.until)
            for parameter, gradient in zip(group.parameters, gradients, strict=True):
                parameter.grad = None if gradient is None else gradient[group.first : group.until]
            group.optimizer.step()

    def hand_out(self, place: int) -> None:
        """Give the optimiser of a replica its present buffers; valid until the next step."""
        if place in self.left:
            return
        update = self.updates[place]
        group = next(group for group in self.groups if group.first <= place < group.until)
        for parameter, stacked in zip(update.parameters, group.parameters, strict=True):
            update.optimizer.state[parameter] = {
                name: buffer if name == STEP else buffer[place - group.first]
                for name, buffer in _buffers(group.optimizer, stacked).items()
            }

    def leave(self, place: int) -> None:
        """Hand out copies, for good: later steps are not this replica's."""
        self.hand_out(place)
        self.left.add(place)
        state = self.updates[place].optimizer.state
        for parameter, buffers in state.items():
            state[parameter] = {name: buffer.clone() for name, buffer in buffers.items()}

    def _group(self, first: int, until: int) -> _Group:
        settings = self.updates[first].phase.optimizer
        parameters = [stack[first:until] for stack in self.stacks]
        optimizer = build_optimizer(parameters, settings)
        members = self.updates[first:until]
        for index, parameter in enumerate(parameters):
            held = [_buffers(member.optimizer, member.parameters[index]) for member in members]
            for name, buffer in held[0].items():
                stacked = torch.stack([buffers[name] for buffers in held])
                optimizer.state[parameter][name] = buffer.clone() if name == STEP else stacked
        for member in members:
            member.optimizer.state.clear()
        return _Group(first, until, settings, parameters=parameters, optimizer=optimizer)


def _buffers(optimizer: torch.optim.Optimizer, parameter: Tensor) -> Mapping[str, Tensor]:
    state = optimizer.state.get(parameter, {})
    return {name: buffer for name, buffer in state.items() if buffer is not None}


def _key(update: Update) -> tuple[object, ...]:
    """What replicas that are stepped together have in common."""
    held = [_buffers(update.optimizer, parameter) for parameter in update.parameters]
    counters = [float(buffers[STEP]) if STEP in buffers else None for buffers in held]
    return update.phase.optimizer, [list(buffers) for buffers in held], counters
