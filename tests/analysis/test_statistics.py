"""Intervals that cover, correlations that agree with scipy and with textbook formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from grokscope.analysis import Onset
from grokscope.analysis.stages import lead
from grokscope.analysis.statistics import (
    Drawn,
    bootstrap_interval,
    correlation_draws,
    correlation_interval,
    correlation_over_seeds,
    geometric_ratio,
    paired_difference,
    rank_correlation,
)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_interval_over_a_few_seeds_covers_the_truth_about_as_often_as_it_says(seeds):
    rng = np.random.default_rng(0)
    covered = []
    for trial in range(300):
        low, high = bootstrap_interval(rng.normal(size=seeds), resamples=500, seed=trial)
        covered.append(low <= 0 <= high)
    assert 0.85 <= np.mean(covered) <= 1.0


def test_plain_percentiles_of_three_seeds_would_cover_far_too_rarely():
    rng = np.random.default_rng(0)
    plain, ours = [], []
    for trial in range(200):
        values = rng.normal(size=3)
        low, high = bootstrap_interval(values, resamples=500, seed=trial)
        found = stats.bootstrap(
            (values,), np.mean, n_resamples=500, method="percentile", rng=trial
        ).confidence_interval
        plain.append(found.low <= 0 <= found.high)
        ours.append(low <= 0 <= high)
    assert np.mean(plain) < 0.85
    assert np.mean(ours) > 0.9


def test_one_seed_has_no_interval():
    assert all(math.isnan(each) for each in bootstrap_interval([1.0, math.nan]))


@pytest.mark.parametrize("seeds", [2, 3, 4])
@pytest.mark.parametrize("value", [0.0, 0.9, -3e9])
def test_a_few_seeds_that_all_agree_have_no_interval(seeds, value):
    draws = [np.random.default_rng(seed).normal(5, 0.3, 200) for seed in range(seeds)]
    tied = [value] * (seeds - 1) + [value * (1 + 1e-15)]
    assert all(math.isnan(each) for each in bootstrap_interval(tied))
    assert all(math.isnan(each) for each in bootstrap_interval(tied, draws))
    perfect = {seed: Drawn(1.0, resampled) for seed, resampled in enumerate(draws)}
    assert all(math.isnan(each) for each in correlation_over_seeds(perfect).interval)
    agreed = paired_difference(dict.fromkeys(range(seeds), 0.9), dict.fromkeys(range(seeds), 0.94))
    assert all(math.isnan(each) for each in agreed.interval)


def test_ties_of_rounded_accuracies_are_not_taken_for_certainty():
    rng = np.random.default_rng(0)
    rounded = np.round(rng.normal(0, 0.03, size=(4000, 2)) * 360) / 360
    tied = rounded[rounded[:, 0] == rounded[:, 1]]
    assert len(tied) > 50
    assert (np.abs(tied[:, 0]) > 0.03).any()  # there a zero width would be wrong and certain
    assert not any(math.isfinite(bootstrap_interval(each, resamples=10)[0]) for each in tied)


def test_five_equal_seeds_are_as_uncertain_as_their_own_noise():
    draws = [np.random.default_rng(seed).normal(5, 0.3, 2000) for seed in range(5)]
    assert bootstrap_interval([1.0] * 5) == (1.0, 1.0)
    low, high = bootstrap_interval([1.0] * 5, draws)
    half = 1.96 * 0.3 / math.sqrt(5)
    assert (low, high) == (pytest.approx(1 - half, abs=0.03), pytest.approx(1 + half, abs=0.03))


def test_uncertainty_within_seeds_only_widens_the_interval():
    values = [1.0, 1.2, 0.9]
    draws = [np.random.default_rng(seed).normal(size=500) for seed in range(3)]
    bare, full = bootstrap_interval(values), bootstrap_interval(values, draws)
    assert full[0] < bare[0] < bare[1] < full[1]


def test_a_lead_is_positive_when_the_first_comes_first():
    assert lead(Onset(step=100, reason=""), Onset(step=1000, reason="")).value == pytest.approx(1.0)
    assert lead(Onset(step=1000, reason=""), Onset(step=100, reason="")).value == pytest.approx(
        -1.0
    )


def sample(seed: int, count: int = 60) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(3, count)) + rng.normal(size=count)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_correlations_agree_with_scipy_and_the_first_order_formula(seed):
    x, y, z = sample(seed)
    xy, xz, yz = (stats.spearmanr(*pair).statistic for pair in ((x, y), (x, z), (y, z)))
    assert rank_correlation(x, y) == pytest.approx(xy)
    expected = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    assert rank_correlation(x, y, [z]) == pytest.approx(expected)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_only_the_order_of_the_values_matters(seed):
    x, y, z = sample(seed)
    one = rank_correlation(x, y, [z])
    assert rank_correlation(np.exp(x), y**3, [5 * z - 2]) == pytest.approx(one)
    assert rank_correlation(-x, y, [-z]) == pytest.approx(-one)


def test_what_a_third_thing_explains_goes_away_and_what_it_hides_appears():
    rng = np.random.default_rng(0)
    z, a, b = rng.normal(size=(3, 400))
    x, y = z + 0.3 * a, z + 0.3 * b
    assert rank_correlation(x, y) > 0.8
    assert abs(rank_correlation(x, y, [z])) < 0.2
    assert abs(rank_correlation(a + z, a - z)) < 0.15
    assert rank_correlation(a + z, a - z, [z]) > 0.9


def test_what_does_not_vary_or_is_settled_by_the_rest_has_no_correlation():
    x, y, _ = sample(0)
    assert math.isnan(rank_correlation(x, np.ones_like(x)))
    assert math.isnan(rank_correlation(x, y, [x]))
    assert math.isnan(rank_correlation(x[:3], y[:3]))


def test_blocks_know_that_neighbours_are_not_independent():
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.normal(size=(2, 200)), axis=1)
    blocks = correlation_draws(*walk, resamples=300, block=20)
    points = correlation_draws(*walk, resamples=300, block=1)
    assert blocks.std() > 1.5 * points.std()


def test_correlations_are_averaged_on_fishers_scale():
    found = correlation_over_seeds({1: Drawn(0.9, np.empty(0)), 2: Drawn(0.99, np.empty(0))})
    rho, (low, high) = found.effect, found.interval
    assert rho == pytest.approx(math.tanh((math.atanh(0.9) + math.atanh(0.99)) / 2))
    assert -1 < low < rho < high < 1


def test_the_interval_of_a_rank_correlation_covers_the_truth():
    rng = np.random.default_rng(0)
    truth = 6 / math.pi * math.asin(0.6 / 2)  # Spearman's for normal pairs of correlation 0.6
    covered = []
    for _ in range(400):
        x, e = rng.normal(size=(2, 25))
        low, high = correlation_interval(rank_correlation(x, 0.6 * x + 0.8 * e), 25)
        covered.append(low <= truth <= high)
    assert 0.91 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize("pairs", [3, 4, 5])
def test_fewer_than_six_pairs_have_no_interval_even_in_perfect_order(pairs):
    assert all(math.isnan(each) for each in correlation_interval(1.0, pairs))


def test_six_pairs_are_rarely_called_strong_where_they_are_not():
    rng = np.random.default_rng(0)
    truth, covered, strong = 6 / math.pi * math.asin(0.65 / 2), [], []
    for _ in range(600):
        x, e = rng.normal(size=(2, 6))
        y = 0.65 * x + math.sqrt(1 - 0.65**2) * e
        low, high = correlation_interval(rank_correlation(x, y), 6)
        covered.append(low <= truth <= high)
        strong.append(low >= 0.7)
    assert np.mean(covered) > 0.91
    assert np.mean(strong) < 0.05


def test_paired_differences_remove_what_seeds_share():
    base = {1: 10.0, 2: 100.0, 3: 1000.0, 4: 5.0}
    found = paired_difference({s: base[s] + 1 for s in (1, 2, 3)}, base)
    assert found.effect == pytest.approx(1)
    assert all(math.isnan(each) for each in found.interval)
    assert [seed for seed, _ in found.per_seed] == [1, 2, 3]


def test_ratios_are_geometric_and_turn_over_with_their_arms():
    a, b = {1: 2.0, 2: 8.0, 3: 4.0}, {1: 1.0, 2: 1.0, 3: 1.0}
    one, other = geometric_ratio(a, b), geometric_ratio(b, a)
    assert one.effect == pytest.approx(4)
    assert other.effect == pytest.approx(1 / 4)
    assert one.interval[0] == pytest.approx(1 / other.interval[1], rel=0.1)
    with pytest.raises(ValueError, match="positive"):
        geometric_ratio({1: 0.0}, {1: 1.0})
