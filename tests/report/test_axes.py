"""Axes: room for what happens late, ticks that are round and do not collide."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis.strategies import floats

from grokscope.report.axes import (
    Horizontal,
    first_step,
    linear_ticks,
    log_ticks,
    step_axis,
    vertical_axis,
)
from grokscope.report.overlays import apart


@given(first=floats(1, 50), switch=floats(200, 1e4), share=floats(0, 1))
def test_a_step_is_found_where_it_was_drawn(first: float, switch: float, share: float) -> None:
    axis = step_axis(first, 20 * switch, switch)
    value = axis.backward(np.array([share]))
    assert axis.forward(value)[0] == pytest.approx(share, abs=1e-9)
    assert first * (1 - 1e-9) <= value[0] <= 20 * switch * (1 + 1e-9)


def test_the_transition_is_not_squeezed_into_the_end_of_the_axis() -> None:
    # Memorised at 350 of 3,500 steps, generalising from 2,150 to 2,620: the demo.
    axis = step_axis(first_step(350), 3500, 350)
    logarithmic = Horizontal(axis.first, axis.last, "", log=True)
    assert logarithmic.share(2150) > 0.9
    assert axis.share(2150) < 0.8
    assert axis.share(2620) - axis.share(2150) > 2.5 * (
        logarithmic.share(2620) - logarithmic.share(2150)
    )
    assert axis.share(350) == pytest.approx(0.42)


@pytest.mark.parametrize("switch", [math.nan, 20.0, 4000.0])
def test_without_room_for_two_parts_the_axis_is_of_one_kind(switch: float) -> None:
    axis = step_axis(10, 5000, switch)
    assert axis.share(math.sqrt(10 * 5000)) == pytest.approx(0.5)
    assert "then linear" not in axis.text


@given(low=floats(-1e4, 1e4), width=floats(1e-3, 1e5))
def test_linear_ticks_are_few_round_and_within_the_limits(low: float, width: float) -> None:
    ticks = linear_ticks(low, low + width)
    assert 2 <= len(ticks) <= 7
    steps = np.diff(ticks)
    assert steps == pytest.approx(steps[0])
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0] * (1 + 1e-9)))
    assert min(abs(mantissa - round_) for round_ in (1, 2, 2.5, 5)) < 1e-6
    slack = 1e-6 * width
    assert low - slack <= ticks[0] <= ticks[-1] <= low + width + slack


@given(low=floats(1e-6, 1e6), factor=floats(3, 1e9))
def test_logarithmic_ticks_are_few_and_within_the_limits(low: float, factor: float) -> None:
    ticks = log_ticks(low, low * factor)
    assert 1 <= len(ticks) <= 7
    assert all(low * (1 - 1e-6) <= tick <= low * factor * (1 + 1e-6) for tick in ticks)
    assert ticks == sorted(ticks)


def test_an_axis_begins_well_before_memorisation() -> None:
    assert [first_step(at) for at in (math.nan, 40, 350, 458, 5000)] == [1, 1, 5, 10, 100]


def test_a_spike_does_not_stretch_an_axis_and_a_median_is_never_cut() -> None:
    values = np.concatenate([np.linspace(1, 2, 1000), [1e9]])
    axis = vertical_axis("linear", values, np.array([1.0, 5.0]))
    assert 5 < axis.high < 10
    assert axis.low < 1


def test_one_value_alone_has_an_axis() -> None:
    for scale in ("log", "linear", "auto"):
        axis = vertical_axis(scale, np.array([3.0]), np.array([3.0]))
        assert axis.low < 3 < axis.high


def test_labels_are_moved_apart_and_keep_their_order() -> None:
    moved = apart([0.5, 0.5, 0.52, 0.9], 0.1)
    gaps = np.diff(moved)
    assert (gaps >= 0.1 - 1e-6).all()
    assert moved[3] == pytest.approx(0.9, abs=0.02)
