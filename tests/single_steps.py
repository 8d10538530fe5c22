"""Steps of an update on chosen examples, without a training around them."""

from __future__ import annotations

import torch
from torch import Tensor

from grokscope.engine.feed import FeedRow, generator_of_step
from grokscope.engine.update import Update


def given(update: Update, step: int, batch: Tensor, seed: int = 1) -> FeedRow:
    """What the feed of a run that starts at step 0 gives to a step."""
    phase, augmentation = update.phase, update.task.augmentation
    rate = torch.tensor(phase.optimizer.rate(step, 0, phase.until), dtype=torch.float64)
    drawn = None
    if augmentation is not None:
        drawn = augmentation.draw(len(batch), generator_of_step(seed, step))
    return FeedRow(batch, rate, torch.tensor(step), drawn)


def make_step(update: Update, step: int, batch: Tensor, seed: int = 1) -> None:
    update(update.kind(step, batch), given(update, step, batch, seed))
