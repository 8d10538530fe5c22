"""What the coming steps are given: examples, learning rates, the random numbers of augmentation.

They lie in tables on the device, a row for each step, whose memory stays where it is; a counter
beside them says which row is next. So a step asks the host for nothing, and can be captured in a
CUDA graph. The host refills the tables every `ROWS` steps, without waiting for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from grokscope.tasks.task import Augmentation

ROWS = 256  # steps in the tables, at most
TABLE_BYTES = 2**26  # of what augmentation draws, at most


class FeedRow(NamedTuple):
    """What one step is given, of one run; of several with an axis ``[runs]`` first.

    Attributes:
        examples: Which examples, ``[batch]``.
        rate: Learning rate, a scalar on the device; of several runs ``[optimisers]``.
        step: Number of the step, from 1; a scalar on the device, shared by all runs.
        drawn: What the task's augmentation drew for the batch, ``[batch, ...]``.
    """

    examples: Tensor
    rate: Tensor
    step: Tensor
    drawn: Tensor | None = None

    def of_run(self, place: int) -> FeedRow:
        """The part of one of several runs; the learning rates stay those of all."""
        drawn = None if self.drawn is None else self.drawn[place]
        return self._replace(examples=self.examples[place], drawn=drawn)


class Order:
    """The order in which a run sees its examples: a function of seed and epoch, nothing else.

    Args:
        examples: How many there are.
        batch_size: Examples in a step; the last step of an epoch may have fewer.
        seed: Of the order.
    """

    def __init__(self, examples: int, batch_size: int, seed: int) -> None:
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self.steps_per_epoch = -(-examples // batch_size)
        self._epoch: tuple[int, Tensor] | None = None

    def batch(self, step: int) -> Tensor:
        """Indices of the examples of a step (from 1), on the CPU."""
        epoch, done = divmod(step - 1, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, epoch_order(self.examples, self.seed, epoch)
        return self._epoch[1][done * self.batch_size :][: self.batch_size]


class Feed:
    """Tables of what the coming steps of runs of one shape are given.

    Args:
        orders: The order of each run; of equally many examples.
        rates: The learning rate as a function of the step, of each optimiser.
        span: The step before the first one, and the last one.
        device: Where the steps are computed.
        augmentations: Of the task of each run; None where it has none.
    """

    def __init__(
        self,
        orders: Sequence[Order],
        rates: Sequence[Callable[[int], float]],
        span: tuple[int, int],
        device: torch.device,
        *,
        augmentations: Sequence[Augmentation | None],
    ) -> None:
        self.orders, self.rates, self.augmentations = orders, rates, augmentations
        self.until, self.device = span[1], device
        rows = min(ROWS, span[1] - span[0])
        batch, drawn = orders[0].batch_size, None
        if augmentations[0] is not None:
            drawn = augmentations[0].draw(batch, generator_of_step(0, 1))
            rows = min(rows, TABLE_BYTES // max(1, len(orders) * drawn.nbytes))
        rows = max(1, rows)
        self.batches: list[list[Tensor]] = []  # of the rows, of each run, on the CPU
        self.first = 1  # step of the first row
        tables = {
            "examples": torch.zeros(rows, len(orders), batch, dtype=torch.int64),
            "rate": torch.zeros(rows, len(rates), dtype=rate_dtype(device)),
            "step": torch.zeros(rows, 1, dtype=torch.int64),
        }
        if drawn is not None:
            tables["drawn"] = drawn.new_zeros(rows, len(orders), *drawn.shape)
        self._tables = {name: table.to(device) for name, table in tables.items()}
        self._row = torch.zeros(1, dtype=torch.int64, device=device)

    def prepare(self, step: int) -> list[Tensor]:
        """Make sure that the next row is that of a step; returns each run's batch, on the CPU.

        Steps are asked for one after the other, from any first one on.
        """
        if not 0 <= step - self.first < len(self.batches):
            self._fill(step)
        return self.batches[step - self.first]

    def next(self, size: int) -> FeedRow:
        """The next row, for batches of ``size`` examples; part of the step, on the device."""
        tables = {name: table.index_select(0, self._row)[0] for name, table in self._tables.items()}
        self._row.add_(1)
        drawn = tables["drawn"][:, :size] if "drawn" in tables else None
        return FeedRow(tables["examples"][:, :size], tables["rate"], tables["step"][0], drawn)

    def _fill(self, first: int) -> None:
        """Write the rows from a step on, to the last one or as many as there are."""
        pinned = self.device.type == "cuda"
        host = {
            name: torch.zeros(table.shape, dtype=table.dtype, pin_memory=pinned)
            for name, table in self._tables.items()
        }
        steps = range(first, min(self.until + 1, first + len(host["step"])))
        self.first, self.batches = first, []
        for row, step in enumerate(steps):
            self.batches.append([order.batch(step) for order in self.orders])
            for run, batch in enumerate(self.batches[-1]):
                host["examples"][row, run, : len(batch)] = batch
                augmentation = self.augmentations[run]
                if augmentation is not None:
                    generator = generator_of_step(self.orders[run].seed, step)
                    drawn = augmentation.draw(len(batch), generator)
                    host["drawn"][row, run, : len(batch)] = drawn
        rates = [[rate(step) for rate in self.rates] for step in steps]
        host["rate"][: len(steps)] = torch.tensor(rates, dtype=torch.float64)
        host["step"][: len(steps), 0] = torch.tensor(steps)
        for name, table in self._tables.items():
            # After the steps enqueued before, which still read the old rows. Pinned memory is
            # given out again only when the copy has been made.
            table.copy_(host[name], non_blocking=True)
        self._row.zero_()


def rate_dtype(device: torch.device) -> torch.dtype:
    """What an optimiser's kernel takes a learning rate as; on a CPU the same as a number."""
    return torch.float32 if device.type == "cuda" else torch.float64


def epoch_order(examples: int, seed: int, epoch: int) -> Tensor:
    """The order of one epoch, ``[examples]``: a function of seed and epoch, nothing else."""
    return torch.randperm(examples, generator=_generator([seed, epoch]))


def generator_of_step(seed: int, step: int) -> torch.Generator:
    """The generator of what is random within a step, which is augmentation."""
    return _generator([seed, step, 1])


def _generator(entropy: list[int]) -> torch.Generator:
    mixed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator().manual_seed(mixed)
