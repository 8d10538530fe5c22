"""Measures of your own run in experiments, alone and in replicas, and are stored."""

from __future__ import annotations

import pandas as pd
import pytest

from grokscope.runs.store import Store
from grokscope.runs.worker import run_job
from grokscope.spec import CustomTask
from small_runs import segment

TASK = """
import torch
from grokscope import Split, Task
from grokscope.measures import Measure
from grokscope.tasks import Look

def largest(features, logits, labels, weight):
    return logits.amax(dim=-1).mean()

LOOK = Look(extra={
    "largest_logit": largest,
    "square_logit": Measure("square_logit", evaluate=lambda batch: batch.logits.square().mean(-1)),
})

class Sum(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)

    def forward(self, left, right):
        return self.head(self.body(left + right).tanh())

def pairs(seed: int) -> Task:
    left = torch.randn(40, 4, generator=torch.Generator().manual_seed(seed))
    data = Split({"left": left, "right": left.square()}, torch.arange(40) % 4)
    return Task(Sum(), data, data, look=LOOK)
"""


def test_measures_of_your_own_are_stored_with_the_values_of_each_run_alone(tmp_path):
    (tmp_path / "mine.py").write_text(TASK)
    task = CustomTask(function=f"{tmp_path / 'mine.py'}:pairs")
    segments = [segment(12, seed=seed, task=task) for seed in (1, 2)]
    together, apart = Store(tmp_path / "together"), Store(tmp_path / "apart")
    run_job(together, segments, lambda _: None, lambda: False)
    for each in segments:
        run_job(apart, [each], lambda _: None, lambda: False)
    for each in segments:
        path = f"segments/{each.id}/metrics.parquet"
        frames = [pd.read_parquet(store.folder / path) for store in (together, apart)]
        mine = [frame[frame.measure.isin(["largest_logit", "square_logit"])] for frame in frames]
        assert set(mine[0].split) == {"train", "validation"} and len(mine[0]) > 8
        assert list(mine[0].step) == list(mine[1].step)
        assert mine[0].value.tolist() == pytest.approx(mine[1].value.tolist(), rel=1e-3)
        facts = (together.folder / f"segments/{each.id}/environment.json").read_text()
        assert '"replicas": 2' in facts and "measured_alone" not in facts
