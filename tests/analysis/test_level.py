"""Levels on curves whose level can be read off, and the runs and arms that ask for them."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grokscope.analysis import Curve, Results, Span, Trajectory, plateau_table
from grokscope.analysis.level import (
    level_around,
    level_at_end,
    quick_median,
    too_few_looks,
)
from grokscope.experiments import EXPERIMENTS, find_experiment
from grokscope.interventions import FrobeniusCap, Penalty
from grokscope.spec import Experiment, Optimizer, Phase, Run


def curve(steps, values) -> Curve:
    return Curve(np.array(steps, dtype=float), np.array(values, dtype=float))


def test_a_level_is_never_one_checkpoint():
    spiky = curve(range(1, 11), [1, 1, 1, 1, 1, 1, 1, 2, 900, 2])
    assert level_at_end(spiky, Span(0, 10)) == 2  # of steps 8, 9 and 10
    assert level_at_end(curve(range(1, 11), [9, 9, 9, 9, 9, 9, 9, 4, 0, 5]), Span(0, 10)) == 4


@pytest.mark.parametrize("looks", [0, 1, 2])
def test_fewer_than_three_looks_in_the_last_fifth_have_no_level(looks):
    early = np.linspace(1, 79, 40)
    steps = np.append(early, np.linspace(81, 100, looks) if looks != 1 else [100.0])
    assert math.isnan(level_at_end(curve(steps, np.ones_like(steps)), Span(0, 100)))


def test_the_last_fifth_holds_the_step_at_which_it_begins_and_the_last_one():
    three = curve([80, 90, 100, 101], [1, 2, 3, 50])
    assert level_at_end(three, Span(0, 100)) == 2
    assert math.isnan(level_at_end(curve([79.9, 90, 100], [1, 2, 3]), Span(0, 100)))


def test_what_lies_before_a_phase_does_not_count_for_its_end():
    steps = np.arange(0, 101, 5)
    values = np.where(steps <= 50, 1.0, 2.0)
    assert level_at_end(curve(steps, values), Span(0, 50)) == 1
    assert level_at_end(curve(steps, values), Span(50, 100)) == 2


@pytest.mark.parametrize(("step", "around"), [(80, 8), (81, 8), (10, 2), (1, 2), (100, 9)])
def test_around_a_step_a_level_is_the_median_of_five_looks(step, around):
    line = curve(range(10, 110, 10), range(1, 11))  # at step 80 it is 8; there are ten looks
    assert level_around(line, step) == around


def test_two_spikes_beside_a_milestone_do_not_move_the_level_there():
    steps, values = np.arange(1, 21), np.ones(20)
    values[[8, 10]] = 1e6
    assert level_around(curve(steps, values), 10) == 1


@given(values=st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=12))
def test_the_quick_median_is_numpys(values):
    assert quick_median(np.array(values)) == np.median(values)


@pytest.mark.parametrize(
    ("looks", "words"), [(0, "no looks in"), (1, "1 look in"), (2, "2 looks in")]
)
def test_too_few_looks_are_counted_in_words(looks, words):
    assert too_few_looks(looks) == f"{words} the last fifth of the phase, where 3 are needed"


WHOLE = (Span(0, 100),)


def run_of(steps, *, phases=WHOLE, **measures) -> Trajectory:
    curves = {(name, "train"): curve(steps, values) for name, values in measures.items()}
    return Trajectory("a", 1, curves, phases=phases)


def test_a_run_says_why_it_has_no_level():
    steps = [0, 20, 40, 60, 90, 100]
    run = run_of(steps, ncc=steps)
    assert math.isnan(run.level("ncc"))
    assert run.why_no_level("ncc") == "2 looks in the last fifth of the phase, where 3 are needed"
    assert run.why_no_level("loss") == "not measured"
    assert run_of([0, 20, 60], ncc=[1, 1, 1]).why_no_level("ncc") == "is at step 60"
    diverged = run_of([0, 60], ncc=[1, 1], diverged=[0, 1])
    assert diverged.why_no_level("ncc") == "diverged at step 60"
    many = np.arange(101)
    assert run_of(many, ncc=many).why_no_level("ncc") == ""


def test_a_level_is_taken_in_the_phase_at_the_milestone_or_before_it():
    steps = np.arange(0, 1001, 10.0)
    train = np.where(steps < 300, 0.1, 1.0)
    phases = (Span(0, 500), Span(500, 1000))
    run = run_of(steps, phases=phases, accuracy=train, ncc=steps)
    assert run.level("ncc", at=0) == 450  # of 400 to 500
    assert run.level("ncc", at=-1) == run.level("ncc", at=Span(500, 1000)) == 950
    assert run.level("ncc", at="memorised") == pytest.approx(run.memorised.step, abs=10)
    assert run.level("ncc", at="before memorised") == 265  # of 240 to 290
    assert math.isnan(run.level("ncc", at="generalised"))
    with pytest.raises(ValueError, match="memorised, onset, generalised"):
        run.level("ncc", at="grokked")


def frame(arm: str, seed: int, until: int, value: float, steps_in_epoch: int = 4) -> pd.DataFrame:
    steps = np.arange(0, until + 1, 5)
    columns = {"arm": arm, "seed": seed, "step": steps, "epoch": steps / steps_in_epoch}
    rows = pd.DataFrame(columns | {"split": "train", "measure": "ncc", "value": value})
    return pd.concat([rows, rows.assign(measure="loss", value=0.5)], ignore_index=True)


PENALISED = Run(
    phases=(
        Phase(
            until=50,
            penalties=(Penalty(measure="ncc", weight=-1.0, start=10, stop=40),),
            constraints=(FrobeniusCap(cap=20.0),),
        ),
        Phase(until=100, constraints=(FrobeniusCap(cap=20.0, start=60),)),
    )
)
PLAIN = Run(phases=(Phase(until=50), Phase(until=100)))


def study(**arms: Run) -> Experiment:
    return Experiment(name="x", title="X", question="?", arms=arms, seeds=(1, 2))


def test_an_arm_knows_when_its_penalty_and_its_cap_are_on():
    results = Results.from_metrics(
        frame("pushed", 1, 100, 1.0), study(baseline=PLAIN, pushed=PENALISED)
    )
    arm = results.arms["pushed"]
    assert arm.penalised() == Span(0, 40)
    assert arm.caps() == [(Span(0, 50), 20.0), (Span(60, 100), 20.0)]
    assert results.arms["baseline"].penalised() is None
    assert results.arms["baseline"].runs == {}
    assert results.arms["baseline"].phases == (Span(0, 50), Span(50, 100))


@pytest.mark.parametrize(
    ("other", "until"),
    [
        (Run(phases=(Phase(until=50), Phase(until=100, temperature=2.0))), 50),
        (Run(phases=(Phase(until=30),)), 30),
        (Run(phases=(Phase(until=50, temperature=2.0), Phase(until=100))), 0),
        (Run(phases=(Phase(until=50), Phase(until=100)), batch_size=8), 0),
        (PLAIN, 100),
    ],
    ids=["second phase", "shorter", "first phase", "batch size", "the same"],
)
def test_arms_are_one_run_for_as_long_as_their_settings_agree(other, until):
    experiment = study(baseline=PLAIN, other=other)
    arms = Results.from_metrics(frame("other", 1, 100, 1.0), experiment).arms
    assert arms["baseline"].common_until(arms["other"]) == until
    assert arms["other"].common_until(arms["baseline"]) == until


def test_a_cosine_that_ends_elsewhere_is_another_run_from_the_start():
    cosine = Optimizer(schedule="cosine")
    one, other = (Run(phases=(Phase(until=until, optimizer=cosine),)) for until in (50, 100))
    arms = Results.from_metrics(frame("one", 1, 50, 1.0), study(one=one, other=other)).arms
    assert arms["one"].common_until(arms["other"]) == 0


def test_an_arm_names_the_seeds_that_ended_early_and_compares_the_others():
    frames = [
        frame("baseline", 1, 100, 2.0), frame("baseline", 2, 100, 4.0),
        frame("pushed", 1, 60, 2.0), frame("pushed", 2, 100, 8.0),
    ]  # fmt: skip
    diverged = frames[2].iloc[-1:].assign(measure="diverged", value=1.0)
    experiment = study(baseline=PLAIN, pushed=PENALISED)
    results = Results.from_metrics(pd.concat([*frames, diverged]), experiment)
    arm = results.arms["pushed"]
    assert arm.ended_early == {1: 60.0}
    assert arm.diverged == [1]
    assert arm.steps_per_epoch == 4
    assert arm.level("ncc") == 8
    assert results.reference is results.arms["baseline"]
    assert arm.ratio(results.reference, "ncc").per_seed == ((2, pytest.approx(2.0)),)
    assert arm.difference(results.reference, "ncc", at=0).per_seed == ((1, 0.0), (2, 4.0))


def test_the_number_of_classes_is_measured_or_known_of_the_data():
    measured = frame("a", 1, 10, 7.0)
    measured.loc[measured["measure"] == "ncc", "measure"] = "classes"
    assert Results.from_metrics(measured).arms["a"].classes == 7
    assert math.isnan(Results.from_metrics(frame("a", 1, 10, 1.0)).arms["a"].classes)


@given(order=st.permutations(range(24)), as_categories=st.booleans())
@settings(max_examples=20, deadline=None)
def test_any_order_of_rows_gives_the_same_curves_and_the_last_of_repeated_looks_counts(
    order, as_categories
):
    once = pd.concat([frame(arm, seed, 10, seed) for arm in "ba" for seed in (2, 1)])
    shuffled = once.iloc[order]
    if as_categories:
        shuffled = shuffled.astype(dict.fromkeys(["arm", "split", "measure"], "category"))
    again = pd.concat([once.assign(value=-1.0), shuffled, once.assign(step=5, value=math.inf)])
    results = Results.from_metrics(again)
    assert [(run.arm, run.seed) for run in results.runs] == [
        ("a", 1), ("a", 2), ("b", 1), ("b", 2),
    ]  # fmt: skip
    for run in results.runs:
        steps, values = run.curve("ncc")
        assert steps.tolist() == [0, 10]  # the last look at step 5 was not finite
        assert values.tolist() == [run.seed, run.seed]


@pytest.mark.parametrize(
    ("name", "preset"),
    [(n, p) for n, entry in EXPERIMENTS.items() for p in entry.presets if p != "tiny"],
)
def test_every_preset_but_the_smoke_tests_looks_three_times_in_the_last_fifth_of_each_phase(
    name, preset
):
    for run in find_experiment(name, preset).arms.values():
        looks = np.array(run.observation.points(run.phases[-1].until), dtype=float)
        start = 0.0
        for phase in run.phases:
            span = Span(start, phase.until)
            assert math.isfinite(level_at_end(Curve(looks, looks), span)), (phase, looks)
            start = phase.until


def test_a_frame_is_still_read_in_place_of_results_with_a_warning():
    metrics = frame("a", 1, 50, 1.0)
    with pytest.warns(DeprecationWarning, match="from_metrics"):
        found = plateau_table(metrics)
    pd.testing.assert_frame_equal(found, plateau_table(Results.from_metrics(metrics)))
