"""Checks of the estimate by which runs are fitted into memory."""

from __future__ import annotations

import torch

from benchmarks.gpu.checks import cases
from benchmarks.gpu.checks.check import Found, check, worst
from benchmarks.gpu.engine import training_of
from benchmarks.gpu.session import Session
from grokscope.engine.memory import bytes_of
from grokscope.experiments import find_experiment


@check(needs_gpu=True)
def estimated_memory_is_within_a_factor_of_two_of_the_peak(session: Session) -> Found:
    """Too many runs are put on the GPU, and it runs out; or too few, and it idles."""
    digits = cases.DIGITS.model_copy(update={"width": 64, "train_examples": 1000})
    runs = {
        "grokking, the paper's setting": find_experiment("grokking", "paper").arms["grokking"],
        "ResNet-18 of full width": cases.images(60, task=digits).model_copy(
            update={"batch_size": 64}
        ),
    }
    ratios, details = {}, {}
    for name, run in runs.items():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        training = training_of(run, session.device)
        training.advance(30)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        estimate = bytes_of(training)
        ratios[name] = max(estimate / peak, peak / estimate)
        details[name] = {"estimated bytes": estimate, "bytes at the peak": peak}
        del training
    found = worst(ratios, 2.0, "times too large or too small")
    return Found(found.measured, found.limit, found.unit, details)
