"""Onsets of made-up curves whose true onset is known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import points, rise, run_of, tenth, two_stages

from grokscope.analysis import Trajectory
from grokscope.analysis.locate import split_of
from grokscope.analysis.onset import LOST, detect_crossing, detect_onset
from grokscope.analysis.trajectory import stability

STEPS = points()
GAPS = np.log10(STEPS[2:] / STEPS[1:-1])


def grid_around(step: float) -> float:
    """Distance of the measuring points around a step, in decades."""
    return float(GAPS[np.searchsorted(STEPS[2:], step).clip(max=len(GAPS) - 1)])


def decades(a: float, b: float) -> float:
    return abs(math.log10(a / b))


@given(at=st.floats(100, 2800), width=st.floats(0.01, 0.06), low=st.floats(-5, 5))
@settings(max_examples=40, deadline=None)
def test_without_noise_the_onset_is_found_to_one_gap_of_the_grid(at, width, low):
    curve = low + 3 * rise(STEPS, at, width)
    onset = detect_onset(STEPS, curve, resamples=0)
    assert onset.found
    assert decades(onset.step, tenth(at, width)) <= grid_around(tenth(at, width)) + 0.01


# Where noise is stronger, three curves in a thousand mislead by more: see below.
@pytest.mark.parametrize("seed", range(40))
def test_with_noise_the_error_is_small_beside_a_plateau(seed):
    rng = np.random.default_rng(seed)
    at, noise = rng.uniform(200, 2500), rng.uniform(0.001, 0.09)
    curve = rise(STEPS, at, 0.03) + noise * rng.normal(size=len(STEPS))
    onset = detect_onset(STEPS, curve, resamples=50)
    assert onset.found
    assert decades(onset.step, tenth(at, 0.03)) < 0.3


def test_strong_noise_misleads_the_point_in_few_of_many_curves():
    """By 0.3 decades or more in 9 of 3,000 draws, all with noise above 0.09; here in 400."""
    rng = np.random.default_rng(1)
    near = []
    for _ in range(400):
        at, noise = 10 ** rng.uniform(math.log10(200), math.log10(2500)), rng.uniform(0.001, 0.12)
        curve = rise(STEPS, at, 0.03) + noise * rng.normal(size=len(STEPS))
        onset = detect_onset(STEPS, curve, resamples=0)
        near.append(onset.found and decades(onset.step, tenth(at, 0.03)) < 0.3)
    assert np.mean(near) >= 0.99


@pytest.mark.parametrize("spikes", [0.0, 0.06])
@pytest.mark.parametrize("noise", [0.04, 0.1])
def test_ninety_per_cent_intervals_cover_the_truth_at_least_eight_times_in_ten(noise, spikes):
    rng = np.random.default_rng(3)
    covered = []
    for seed in range(120):
        at = 10 ** rng.uniform(math.log10(150), math.log10(2500))
        curve = 0.3 + rise(STEPS, at, 0.03) + noise * rng.normal(size=len(STEPS))
        curve -= 0.5 * (rng.random(len(STEPS)) < spikes)
        # Where noise reaches the threshold it is raised, by rule, to two deviations.
        part = max(0.1, 2 * noise)
        truth = 10 ** (math.log10(at) + 0.03 * math.log(part / (1 - part)))
        onset = detect_onset(STEPS, curve, resamples=120, seed=seed)
        covered.append(onset.found and onset.interval[0] <= truth <= onset.interval[1])
    assert np.mean(covered) >= 0.8


def covers(noise: float, spikes: float, width: float, seed: int) -> bool:
    """Whether the interval covers the onset of a fall whose noise neighbours share."""
    rng = np.random.default_rng(seed)
    at = 10 ** (math.log10(800) + rng.uniform(-0.1, 0.1))
    shared = rng.normal(size=len(STEPS))
    for i in range(1, len(STEPS)):
        shared[i] = 0.5 * shared[i - 1] + math.sqrt(0.75) * shared[i]
    spike = (rng.random(len(STEPS)) < spikes) * rng.exponential(1.0, len(STEPS))
    curve = 10 ** (-0.8 * rise(STEPS, at, width) + noise * shared + spike)
    part = max(0.1, 2 * noise / 0.8)
    truth = 10 ** (math.log10(at) + width * math.log(part / (1 - part)))
    onset = detect_onset(STEPS, curve, "fall", "log", resamples=80, seed=seed)
    return onset.found and onset.interval[0] <= truth <= onset.interval[1]


def test_intervals_cover_the_truth_when_neighbours_share_their_noise():
    noises = ((0.01, 0.0), (0.03, 0.0), (0.05, 0.04), (0.1, 0.04))
    covered = [
        np.mean([covers(*noise, width, seed) for seed in range(40)])
        for noise in noises
        for width in (0.015, 0.05, 0.12)
    ]
    assert np.mean(covered) >= 0.88
    assert min(covered) >= 0.75


def test_the_interval_is_never_narrower_than_the_points_around_the_onset():
    onset = detect_onset(STEPS, rise(STEPS, 700, 0.001))
    below, above = STEPS[onset.step > STEPS][-1], STEPS[onset.step <= STEPS][0]
    assert onset.interval[0] <= below * (1 + 1e-9)
    assert onset.interval[1] >= above * (1 - 1e-9)


def noisy(seed: int = 0, at: float = 900) -> np.ndarray:
    return 10 ** (
        2 - 1.5 * rise(STEPS, at, 0.04) + 0.05 * np.random.default_rng(seed).normal(size=len(STEPS))
    )


@given(factor=st.floats(1e-6, 1e6), scale=st.sampled_from(["log", "linear"]))
@settings(max_examples=25, deadline=None)
def test_the_unit_of_the_values_changes_nothing(factor, scale):
    one = detect_onset(STEPS, noisy(), "fall", scale, resamples=20)
    other = detect_onset(STEPS, factor * noisy(), "fall", scale, resamples=20)
    assert other.step == pytest.approx(one.step, rel=1e-6)
    assert other.level_before == pytest.approx(factor * one.level_before, rel=1e-6)


@given(factor=st.floats(0.01, 1000))
@settings(max_examples=25, deadline=None)
def test_steps_in_another_unit_move_the_onset_by_that_unit(factor):
    one = detect_onset(STEPS, noisy(), "fall", "log", resamples=20)
    other = detect_onset(factor * STEPS, noisy(), "fall", "log", resamples=20)
    assert other.step == pytest.approx(factor * one.step, rel=1e-6)
    assert other.interval == pytest.approx([factor * each for each in one.interval], rel=1e-6)


def test_a_rise_and_its_mirror_image_have_the_same_onset():
    up = detect_onset(STEPS, np.log10(noisy()), "fall", resamples=20)
    down = detect_onset(STEPS, -np.log10(noisy()), "rise", resamples=20)
    assert up.step == pytest.approx(down.step)


def test_the_order_of_the_points_does_not_matter_and_missing_values_are_left_out():
    order = np.random.default_rng(0).permutation(len(STEPS))
    curve = noisy()
    one = detect_onset(STEPS, curve, "fall", "log")
    more_steps = np.append(STEPS, 4050)
    for steps, values in (
        (STEPS[order], curve[order]), (more_steps, np.append(curve, math.nan)),
    ):  # fmt: skip
        other = detect_onset(steps, values, "fall", "log")
        assert other == one
        assert other.interval == one.interval


@pytest.mark.parametrize("seed", range(8))
def test_single_and_double_spikes_do_not_move_the_onset(seed):
    rng = np.random.default_rng(seed)
    clean = rise(STEPS, 1200, 0.03)
    spiky = clean.copy()
    for at in rng.choice(np.arange(20, len(STEPS) - 2, 6), size=7, replace=False):
        spiky[at : at + rng.integers(1, 3)] += rng.choice([-1.0, 1.5])
    a, b = detect_onset(STEPS, clean, resamples=0), detect_onset(STEPS, spiky, resamples=0)
    assert decades(a.step, b.step) < 0.05


def test_how_long_the_run_goes_on_afterwards_does_not_matter():
    long = points(20_000)
    rng = np.random.default_rng(0)
    curve = rise(long, 1500, 0.03) + 0.03 * rng.normal(size=len(long))
    short = long <= 4000
    a = detect_onset(long, curve, resamples=0)
    b = detect_onset(long[short], curve[short], resamples=0)
    assert decades(a.step, b.step) < 0.03


@pytest.mark.parametrize("stage", ["first", "largest"])
def test_noise_alone_is_rarely_given_an_onset(stage):
    rng = np.random.default_rng(1)
    curves = rng.normal(size=(150, len(STEPS)))
    found = [detect_onset(STEPS, each, stage=stage, resamples=40).found for each in curves]
    assert np.mean(found) <= 0.05


@pytest.mark.parametrize(
    ("curve", "direction"),
    [
        (np.ones_like(STEPS), "rise"),
        (np.ones_like(STEPS), "fall"),
        (rise(STEPS, 900, 0.03), "fall"),
        (-rise(STEPS, 900, 0.03), "rise"),
        (rise(STEPS, 500, 0.03) - rise(STEPS, 1500, 0.03), "rise"),
        (rise(STEPS, 3995, 0.0001), "rise"),
    ],
    ids=["flat", "flat, fall", "rises", "falls", "comes back", "on the last point"],
)
def test_what_does_not_change_for_good_has_no_onset_but_a_reason(curve, direction):
    onset = detect_onset(STEPS, curve, direction)
    assert not onset.found
    assert math.isnan(onset.step)
    assert onset.reason


def test_a_change_smaller_than_asked_for_is_none():
    curve = 10 ** (-0.1 * rise(STEPS, 900, 0.02))
    assert detect_onset(STEPS, curve, "fall", "log").found
    assert not detect_onset(STEPS, curve, "fall", "log", least_change=0.15).found


@pytest.mark.parametrize(("early", "late", "largest"), [(1.2, 0.5, 700), (0.5, 1.2, 2700)])
def test_a_fall_in_stages_has_a_first_and_a_largest_one(early, late, largest):
    curve = two_stages(STEPS, early, late)
    first = detect_onset(STEPS, curve, "fall", "log")
    steepest = detect_onset(STEPS, curve, "fall", "log", stage="largest")
    assert decades(first.step, tenth(700, 0.02)) < 0.1
    assert decades(steepest.step, tenth(largest, 0.02)) < 0.1
    assert math.log10(first.level_before / first.level_after) == pytest.approx(
        early + late, abs=0.15
    )


@pytest.mark.parametrize("between", [0.2, 0.5, 0.8])
def test_a_fall_in_two_stages_is_not_taken_for_noise(between):
    early, late = 3 * between, 3 * (1 - between)
    log = 1.6 - early * rise(STEPS, 300, 0.04) - late * rise(STEPS, 2900, 0.025)
    log = log + 0.03 * np.random.default_rng(0).normal(size=len(STEPS))
    onset = detect_onset(STEPS, 10**log, "fall", "log")
    assert onset.found, onset.reason
    assert 180 < onset.step < 320


def test_a_fall_that_is_taken_back_is_not_the_onset():
    log = 2 - rise(STEPS, 500, 0.02) + rise(STEPS, 900, 0.02) - rise(STEPS, 2700, 0.02)
    onset = detect_onset(STEPS, 10**log, "fall", "log")
    assert decades(onset.step, tenth(2700, 0.02)) < 0.05


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("start", [0.1, 0.3, -0.3])
def test_a_higher_peak_after_a_first_fall_is_what_the_curve_falls_from(start, seed):
    """Falls, rises above where it began, and falls eightfold from there."""
    steps = np.arange(60) * 50.0 + 1
    noise = 0.03 * np.random.default_rng(seed).normal(size=60)
    at = np.arange(60)
    log = np.select([at < 8, at < 38, at < 48], [start, -0.8, 0.5], -0.4) + noise
    onset = detect_onset(steps, 10**log, "fall", "log")
    assert onset.found, onset.reason
    assert steps[47] < onset.step <= steps[48]
    assert math.log10(onset.level_before / onset.level_after) == pytest.approx(0.9, abs=0.1)


@given(beyond=st.lists(st.booleans(), max_size=12))
def test_the_split_leaves_the_fewest_points_on_the_wrong_side(beyond):
    flags = np.array(beyond, dtype=bool)
    wrong = [flags[:at].sum() + (~flags[at:]).sum() for at in range(len(flags) + 1)]
    assert wrong[split_of(flags)] == min(wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"direction": "up"}, "direction"),
        ({"scale": "ln"}, "scale"),
        ({"scale": "log", "values": np.linspace(-1, 1, 9)}, "negative"),
        ({"stage": "second"}, "stage"),
        ({"steps": np.zeros(9)}, "distinct"),
        ({"values": np.zeros(8)}, "one curve"),
    ],
)
def test_what_is_no_curve_or_no_rule_is_refused(change, message):
    arguments = {"steps": np.arange(9.0), "values": np.arange(9.0)} | change
    with pytest.raises(ValueError, match=message):
        detect_onset(**arguments)


def accuracies(spike_every: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Training accuracy, and validation accuracy with a plateau that creeps from 0.2 to 0.38."""
    fit, grok = rise(STEPS, 350, 0.05), rise(STEPS, 2800, 0.015)
    creep = 0.2 + 0.18 * np.clip(np.log(np.maximum(STEPS, 1) / 600) / np.log(4), 0, 1)
    train, held_out = 0.01 + 0.99 * fit, fit * creep + (1 - fit * creep) * grok
    if spike_every:
        hit = (STEPS > 700) & (np.arange(len(STEPS)) % spike_every == 0)
        train, held_out = np.where(hit, 0.7, train), np.where(hit, 0.4 * held_out, held_out)
    return train, held_out


@pytest.mark.parametrize("spike_every", [0, 4, 3])
def test_milestones_are_found_through_spikes_and_the_creeping_plateau_is_no_onset(spike_every):
    train, held_out = accuracies(spike_every)
    run = run_of(STEPS, train, held_out)
    memorised, onset, generalised = run.memorised, run.onset, run.generalised
    assert decades(memorised.step, 10 ** (math.log10(350) + 0.05 * math.log(99))) < 0.05
    # A tenth of the way from the plateau, 0.35 half way in log time, to one.
    assert 2_300 < onset.step < 2_750
    assert onset.level_before == pytest.approx(0.34, abs=0.05)
    assert onset.step < generalised.step < 3_500


def test_a_run_that_only_memorises_has_no_other_milestone():
    train, _ = accuracies()
    held_out = 0.3 * rise(STEPS, 350, 0.05)
    run = run_of(STEPS, train, held_out)
    assert run.memorised.found
    assert not run.onset.found
    assert not run.generalised.found
    assert not run_of(STEPS, held_out, held_out).memorised.found


def test_a_curve_beyond_its_level_from_the_start_passes_it_there():
    assert detect_crossing(STEPS, np.ones_like(STEPS), 0.9).step == pytest.approx(0.5)


@pytest.mark.parametrize("back", [22, 13])
def test_a_level_that_is_lost_for_good_is_not_passed(back):
    steps = np.arange(1, 91) * 50.0
    curve = np.r_[np.full(40, 0.1), np.full(50 - back, 1.0), np.full(back, 0.1)]
    lost = run_of(steps, curve, curve).generalised
    assert not lost.found
    assert lost.reason == LOST
    kept = detect_crossing(steps, curve, 0.95, lasting=False)
    assert kept.step == pytest.approx(2050, abs=50)
    held = np.where(steps < 2050, 0.1, 1.0)
    assert run_of(steps, held, held).generalised.found


def lost_at_the_end(points: int, measure: str = "validation") -> Trajectory:
    """A run that memorises at 500, generalises at 2,050 and loses one of both again."""
    steps = np.arange(1, 91) * 50.0
    train = np.r_[np.linspace(0.1, 1, 10), np.ones(80)]
    held_out = np.r_[np.full(40, 0.1), np.ones(50)]
    (held_out if measure == "validation" else train)[90 - points :] = 0.1
    return run_of(steps, train, held_out)


@pytest.mark.parametrize("points", [10, 22])
def test_a_run_that_lost_what_it_had_learned_says_so_and_counts_as_unstable(points):
    run = lost_at_the_end(points)
    assert run.unusable == "generalised and lost it again"
    assert run.fell_again == pytest.approx(points / 50, abs=0.03)
    assert lost_at_the_end(0).unusable == ""
    assert lost_at_the_end(30, "train").unusable == "memorised and lost it again"


def test_stability_counts_the_points_that_were_lost_again():
    steps, accuracy = np.arange(10.0), np.array([0, 0, 0.5, 0.96, 1, 0.7, 1, 1, 0.89, 1])
    assert stability(steps, accuracy, 3.0) == pytest.approx(2 / 7)
    assert math.isnan(stability(steps, accuracy, math.nan))
