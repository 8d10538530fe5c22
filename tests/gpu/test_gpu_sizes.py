"""How much of an experiment is run: as much as the measured rate allows."""

from __future__ import annotations

import pytest
from benchmarks.gpu.files import write_json
from benchmarks.gpu.rates import (
    SAFETY,
    STARTING,
    Rates,
    between,
    choose,
    flatness_sizes,
    grokking_sizes,
)

FLATNESS, GROKKING = flatness_sizes(tiny=False), grokking_sizes(tiny=False)


def saturated(rate: float, kind: str = "streams") -> Rates:
    """A device that makes so many steps a second, however many runs share them; looks are free."""
    return Rates({kind: {count: count / rate for count in (1, 2, 4, 8, 16, 32)}}, look=0.0)


def test_flatness_comes_in_the_sizes_that_were_planned_for():
    # 782 steps an epoch: two runs to epoch 100; to 200; two seeds of that; and six more to 400.
    assert [size.steps() for size in FLATNESS] == [156_400, 312_800, 625_600, 1_251_200]
    assert [size.most_at_once for size in FLATNESS] == [6, 6, 12, 6]


def test_grokking_comes_with_three_to_ten_seeds_of_a_hundred_thousand_steps():
    assert [size.steps() for size in GROKKING] == [count * 100_000 for count in range(3, 11)]
    assert all(len(set(size.seeds)) == len(size.seeds) for size in GROKKING)
    assert GROKKING[0].seeds == (1, 42, 15213)  # those of the catalogue


@pytest.mark.parametrize("rate", [300, 900, 1_500, 3_000, 6_000, 20_000])
def test_the_largest_size_that_fits_is_chosen(rate):
    seconds = 240.0
    chosen, expected = choose(FLATNESS, saturated(rate), seconds)
    possible = [
        size.steps() for size in FLATNESS if STARTING + size.steps() / rate <= SAFETY * seconds
    ]
    assert chosen.steps() == max(possible, default=FLATNESS[0].steps())
    assert expected == pytest.approx(STARTING + chosen.steps() / rate)


def test_looks_are_counted_of_every_run():
    free, dear = saturated(10_000), Rates(saturated(10_000).steps, look=0.1)
    looks = 10 * 259  # of ten seeds
    added = GROKKING[-1].seconds(dear) - GROKKING[-1].seconds(free)
    assert added == pytest.approx(0.1 * looks)


def test_where_no_rate_is_known_the_smallest_size_is_run(tmp_path):
    assert Rates.read(tmp_path / "timings.json", "grokking") is None
    assert choose(GROKKING, None, 100.0) == (GROKKING[0], None)


def test_the_faster_way_is_taken_for_the_number_of_runs():
    rates = Rates({"streams": {3: 1.0, 10: 5.0}, "vmap": {3: 2.0, 10: 3.0}}, look=0.0)
    assert rates.best(3) == ("streams", 1.0)
    assert rates.best(10) == ("vmap", 3.0)


def test_seconds_between_measured_numbers_of_runs_lie_between_theirs():
    times = {2: 1.0, 8: 4.0}
    assert between(times, 4) == pytest.approx(2.0)  # half-way on a logarithmic scale
    assert between(times, 1) == 1.0  # no fewer runs were measured
    assert between(times, 16) == pytest.approx(8.0)


def entry(**facts) -> dict:
    """A passed timing of ten runs of grokking on streams."""
    usual = {"status": "passed", "kind": "grokking", "way": "streams", "runs": 10}
    return usual | {"precision": "float32", "seconds of a step": 1.0} | facts


def test_rates_are_read_without_failures_other_precisions_and_other_kinds(tmp_path):
    entries = [
        entry(),
        entry(way="look", runs=1, **{"seconds of a step": 0.25}),
        entry(precision="tf32", **{"seconds of a step": 0.1}),
        entry(status="failed", runs=30),
        entry(way="eager", runs=1),
        entry(kind="flatness", way="vmap", runs=2),  # arms that are unlike can't be run so
    ]
    path = tmp_path / "timings.json"
    write_json(path, {"items": {str(place): one for place, one in enumerate(entries)}})
    assert Rates.read(path, "grokking") == Rates({"streams": {10: 1.0}}, look=0.25)
    assert Rates.read(path, "flatness") is None
