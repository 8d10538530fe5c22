"""Onsets of resampled curves: drawn only when asked for, and the same as all drawn at once."""

from __future__ import annotations

import numpy as np
import pytest
from worlds import points, rise, run_of, two_stages

from grokscope.analysis.curve import WINDOW, prepare, resampled, smoothed
from grokscope.analysis.locate import locate, steepest
from grokscope.analysis.onset import detect_onset

STEPS = points()


@pytest.mark.parametrize("stage", ["first", "largest"])
def test_draws_that_wait_until_they_are_asked_for_are_those_of_every_curve_resampled_at_once(stage):
    curve = two_stages(STEPS, 1.2, 0.5)
    onset = detect_onset(STEPS, curve, "fall", "log", stage=stage, resamples=60, seed=4)
    prepared = prepare(STEPS, curve, "fall", "log")
    expected = []
    for drawn in resampled(prepared, 60, 4):
        smooth = smoothed(drawn, WINDOW)
        part = steepest(prepared.time, smooth[None])[0] if stage == "largest" else slice(None)
        expected.append(locate(prepared.time[part], smooth[part], drawn[part]).time)
    assert np.log10(onset.draws) == pytest.approx(np.array(expected), nan_ok=True)
    inside = np.quantile(np.array(expected)[np.isfinite(expected)], [0.05, 0.95])
    assert onset.interval[0] <= 10 ** inside[0] * (1 + 1e-9)
    assert onset.interval[1] >= 10 ** inside[1] * (1 - 1e-9)


def test_an_interval_that_nobody_asks_for_costs_nothing(monkeypatch):
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return resampled(*arguments)

    monkeypatch.setattr("grokscope.analysis.onset.resampled", counted)
    accuracy = rise(STEPS, 350, 0.05)
    memorised = run_of(STEPS, accuracy, accuracy).memorised
    assert memorised.found
    assert not calls
    assert len(memorised.draws) == 200
    assert memorised.interval == memorised.interval
    assert len(calls) == 1


def test_an_onset_is_found_where_half_of_the_resampled_curves_have_one():
    rng = np.random.default_rng(2)
    found = []
    for noise in np.linspace(0.05, 0.3, 40):
        curve = 0.5 * rise(STEPS, 900, 0.03) + noise * rng.normal(size=len(STEPS))
        onset = detect_onset(STEPS, curve, resamples=40)
        if onset.found or "resampled" in onset.reason:
            prepared = prepare(STEPS, curve, "rise", "linear")
            drawn = resampled(prepared, 40, 0)
            times = [locate(prepared.time, smoothed(one, WINDOW), one).time for one in drawn]
            found.append((onset.found, np.isfinite(times).mean() >= 0.5))
    assert len(found) > 10
    assert all(claimed == half for claimed, half in found)
    assert len(set(found)) == 2  # both happen
