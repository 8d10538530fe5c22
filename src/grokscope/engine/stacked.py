"""One optimiser for replicas: a step costs as many kernels for all of them as for one.

It steps the stacked parameters. A replica's own optimiser, of which a checkpoint is made, is given
views of its part of the buffers when somebody asks for the replica's state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grokscope.engine.update import Update, build_optimizer, rate_of
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

    @property
    def slice(self) -> slice:
        return slice(self.first, self.until)


class StackedOptimizer:
    """Steps all replicas.

    Args:
        updates: Updates of the replicas; their optimisers may hold buffers to resume from.
        stacks: Parameters of all replicas, ``[replicas, ...]``, in the order of one model's.
    """

    def __init__(self, updates: Sequence[Update], stacks: Sequence[Tensor]) -> None:
        self.updates, self.stacks = updates, [stack.detach() for stack in stacks]
        self.groups: list[_Group] = []
        keys = [_key(update) for update in updates]
        first = 0
        for until in range(1, len(updates) + 1):
            if until == len(updates) or keys[until] != keys[first]:
                self.groups.append(self._group(first, until))
                first = until

    def step(
        self, rates: Tensor, gradients: Sequence[Tensor | None], stopped: Tensor | None = None
    ) -> None:
        """Update all replicas.

        Args:
            rates: Learning rate of each group, ``[groups]``.
            gradients: Of the stacks, contiguous; None where a parameter was not used.
            stopped: Which replicas to leave as they are, ``[replicas]``; None: none.
        """
        kept = [] if stopped is None else [(tensor, tensor.clone()) for tensor in self._changed()]
        for group, rate in zip(self.groups, rates.unbind(), strict=True):
            rate_of(group.optimizer).copy_(rate)
            for parameter, gradient in zip(group.parameters, gradients, strict=True):
                parameter.grad = None if gradient is None else gradient[group.slice]
            group.optimizer.step()
        if stopped is None:
            return
        parts = [stopped[group.slice] for group in self.groups for _ in self._of(group)]
        for (tensor, before), part in zip(kept, parts, strict=True):
            tensor.copy_(torch.where(part.view(-1, *([1] * (tensor.dim() - 1))), before, tensor))

    def hand_out(self, place: int, ahead: int = 0) -> None:
        """Give the optimiser of a replica its present buffers; valid until the next step.

        ``ahead`` is how many steps the others have made since the replica's last one.
        """
        update = self.updates[place]
        group = next(group for group in self.groups if group.first <= place < group.until)
        for parameter, stacked in zip(update.parameters, group.parameters, strict=True):
            update.optimizer.state[parameter] = {
                name: buffer - ahead if name == STEP else buffer[place - group.first]
                for name, buffer in _buffers(group.optimizer, stacked).items()
            }

    def _changed(self) -> list[Tensor]:
        """All tensors that a step changes, with a first axis of the replicas of a group."""
        return [tensor for group in self.groups for tensor in self._of(group)]

    def _of(self, group: _Group) -> list[Tensor]:
        buffers = [
            buffer
            for parameter in group.parameters
            for name, buffer in _buffers(group.optimizer, parameter).items()
            if name != STEP
        ]
        return [*group.parameters, *buffers]

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
