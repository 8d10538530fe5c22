"""Arms over epochs: every line, ceiling, point and number is what a plain calculation gives."""

from __future__ import annotations

import math
import statistics
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from drawing import draw, line, panels, row, seeds
from made_arms import (
    DIVERGED,
    LAST,
    PHASES,
    REMOVAL,
    SEEDS,
    STEPS,
    TASK,
    arms_study,
    metrics,
    middle,
    naive_level,
    phase,
    stored,
)

from grokscope.analysis.run import Results
from grokscope.report import Study
from grokscope.report.answer import reading_guide
from grokscope.report.arms import alike, epoch_axis, phase_ends
from grokscope.report.figures.flatness_by_arm import ceilings
from grokscope.report.words import number, plain, quoted, share, short_tick
from grokscope.spec import Images, Optimizer

PANELS = [
    ("accuracies", "Accuracy, training", "accuracy", "train"),
    ("accuracies", "Accuracy, held out", "accuracy", "validation"),
    ("flatness_by_arm", "Exact κ", "relative_flatness", "train"),
    ("flatness_by_arm", "Bound on κ", "relative_flatness_bound", "train"),
    ("flatness_by_arm", "Published value", "published_penalty", "train"),
    ("collapse_by_arm", "NCC, training", "ncc", "train"),
    ("collapse_by_arm", "NCC, held out", "ncc", "validation"),
    ("collapse_by_arm", "Angle", "angle_deviation", "train"),
    ("losses_by_arm", "Loss, training", "loss", "train"),
    ("losses_by_arm", "Loss, held out", "loss", "validation"),
    ("losses_by_arm", "Logit scale", "logit_scale", "train"),
    ("losses_by_arm", "Minibatch loss", "minibatch_loss", "train"),
]


@pytest.fixture(scope="module")
def whole() -> Study:
    return arms_study()


def naive_line(study: Study, arm: str, measure: str, split: str) -> dict[float, float]:
    """The median over seeds and two neighbours to each side within the phase."""
    values = stored(study, arm, measure, split)
    ends = [0, *(each.until for each in study.results.experiment.arms[arm].phases)]
    line = {}
    for start, stop in pairwise(ends):
        steps = [each for each in sorted(values) if start < each <= stop or each == start == 0]
        for place, step in enumerate(steps):
            near = steps[max(0, place - 2) : place + 3]
            line[step / STEPS] = statistics.median(
                value for each in near for value in values[each].values()
            )
    return line


@pytest.mark.parametrize(("name", "title", "measure", "split"), PANELS)
def test_every_line_is_the_median_computed_naively(
    whole: Study, name: str, title: str, measure: str, split: str
) -> None:
    (axes,) = panels(draw(name, whole).figure, title)
    for arm in PHASES:
        assert line(axes, f"{arm}/{split}/{measure}/median") == pytest.approx(
            naive_line(whole, arm, measure, split)
        )
        values = stored(whole, arm, measure, split)
        for seed, curve in zip(SEEDS, seeds(axes, f"{arm}/{split}/{measure}/seeds"), strict=True):
            expected = {
                step / STEPS: value[seed] for step, value in values.items() if seed in value
            }
            assert curve == pytest.approx(expected)


def test_a_spike_moves_no_thick_line() -> None:
    def spiked(frame: pd.DataFrame) -> pd.DataFrame:
        at = (frame.arm == "cap 20") & (frame.step == 20 * STEPS) & (frame.seed == 42)
        frame.loc[at & (frame.measure == "relative_flatness"), "value"] = 1e9
        return frame

    (axes,) = panels(draw("flatness_by_arm", arms_study(change=spiked)).figure, "Exact κ")
    assert max(line(axes, "cap 20/train/relative_flatness/median").values()) < 1000
    assert axes.get_ylim()[1] < 1e5


def test_a_log_axis_hides_what_is_not_positive_and_the_median_knows_of_it() -> None:
    def zeros(frame: pd.DataFrame) -> pd.DataFrame:
        late = (frame.measure == "relative_flatness") & (frame.step > 50 * STEPS)
        frame.loc[late, "value"] = 0.0
        return frame

    drawing = draw("flatness_by_arm", arms_study(("baseline",), (1,), change=zeros))
    (axes,) = panels(drawing.figure, "Exact κ")
    # At epoch 50 two of five neighbours are 0; at 52 three are, and so is the median.
    assert max(line(axes, "baseline/train/relative_flatness/median")) == 50
    assert any("5 values are not positive" in text for text in drawing.remarks)


def test_arms_that_are_one_run_are_striped_until_they_part(whole: Study) -> None:
    (axes,) = panels(draw("accuracies", whole).figure, "Accuracy, training")
    together = ["removed", "removed, restarted", "kept, restarted"]
    offsets = set()
    for arm in together:
        pieces = [each for each in axes.lines if each.get_label() == f"{arm}/train/accuracy/median"]
        assert len(pieces) == 2
        first = np.asarray(pieces[0].get_xdata(), float)
        assert first.max() == REMOVAL
        assert np.asarray(pieces[1].get_xdata(), float).min() == REMOVAL  # no gap between them
        offset, (on, off) = pieces[0]._unscaled_dash_pattern
        assert off == pytest.approx(2 * on)
        offsets.add(round(offset / on) % 3)
    assert len(offsets) == 3
    groups = [(step / STEPS, [arm.name for arm in group]) for step, group in alike(whole.arms)]
    assert groups == [(REMOVAL, together)]
    guide = reading_guide(whole, [draw("accuracies", whole).figure])
    names = "removed, “removed, restarted” and “kept, restarted”"
    assert f"Striped: {names}, which are one run until epoch {REMOVAL}." in guide


def test_a_common_beginning_counts_whether_or_not_a_phase_ends_there() -> None:
    later = phase(LAST, optimizer=Optimizer(name="sgd", lr=0.1))
    runs = {"baseline": [phase(LAST)], "late": [phase(20), later], "later": [phase(40), later]}

    def groups(study: Study) -> list[tuple[float, list[str]]]:
        return [(step / STEPS, [arm.name for arm in group]) for step, group in alike(study.arms)]

    study = arms_study(tuple(runs), (1,), phases=runs)
    assert groups(study) == [(40, ["baseline", "later"]), (20, ["baseline", "late", "later"])]
    other = Images(source=TASK.source, width=32)
    study = arms_study(tuple(runs), (1,), phases=runs, tasks={"late": other})
    assert groups(study) == [(40, ["baseline", "later"])]


def test_phases_end_at_dotted_lines_named_by_their_epochs(whole: Study) -> None:
    figure = draw("flatness_by_arm", whole).figure
    for axes in figure.axes:
        marks = [x for x in axes.lines if str(x.get_label()).startswith("end of a phase")]
        assert [np.asarray(each.get_xdata())[0] for each in marks] == [REMOVAL]
        assert axes.get_xlim() == (0, LAST)
    assert "epoch 30" in [text.get_text() for text in figure.axes[0].texts]
    x, pace = epoch_axis(whole.arms)
    assert phase_ends(whole.arms, pace, x.last) == [REMOVAL]


def test_ends_of_phases_that_lie_close_are_named_where_there_is_room() -> None:
    phases = {
        name: [phase(epoch), phase(LAST, 5)]
        for name, epoch in {"removed": 30, "cap 20": 31, "cap alone": 34}.items()
    }
    study = arms_study(("baseline", *phases), (1,), phases=phases)
    named = [text.get_text() for text in draw("accuracies", study, True).figure.axes[0].texts]
    assert named == ["epoch 30"]
    named = [text.get_text() for text in draw("flatness_by_arm", study).figure.axes[0].texts]
    assert named == ["epoch 30", "34"]


@pytest.mark.parametrize(("classes", "part"), [(None, 0.9), (5.0, 0.8)])
def test_ceilings_are_at_their_heights(classes: float | None, part: float) -> None:
    def counted(frame: pd.DataFrame) -> pd.DataFrame:
        more = frame[(frame.measure == "ncc") & (frame.split == "train")]
        more = more.assign(measure="classes", value=classes)
        return frame if classes is None else pd.concat([frame, more])

    study = arms_study(change=counted)
    (axes,) = panels(draw("flatness_by_arm", study).figure, "Published")
    lines = [each for each in axes.lines if str(each.get_label()).startswith("mark")]
    heights = [float(np.asarray(each.get_ydata())[0]) for each in lines]
    assert heights == pytest.approx([part * cap**2 for cap in (10, 20, 50)])
    assert all(list(np.asarray(each.get_xdata())) == [0, LAST] for each in lines)
    assert f"ceiling\n{part * 2500:,.0f}" in [text.get_text() for text in axes.texts]


def test_without_a_known_number_of_classes_there_is_no_ceiling() -> None:
    unknown = dict.fromkeys(PHASES, Images(source="somebody/birds"))
    study = arms_study(tasks=unknown)
    drawing = draw("flatness_by_arm", study)
    assert all(not ceilings(arm) for arm in study.arms)
    labels = [str(each.get_label()) for axes in drawing.figure.axes for each in axes.lines]
    assert not any(label.startswith("mark") for label in labels)
    assert [table.name for table in drawing.tables] == ["flatness_by_arm"]


@pytest.mark.parametrize(
    ("arm", "start", "stop", "cap", "says"),
    [
        ("removed", 0, REMOVAL, 50, "at its ceiling, and exact κ does not follow"),
        ("kept, restarted", REMOVAL, LAST, 50, "at its ceiling, and exact κ does not follow"),
        ("cap 20", 0, LAST, 20, "at its ceiling, and exact κ follows"),
        ("cap 10, strong", 0, LAST, 10, "below its ceiling"),
        ("cap alone", 0, LAST, 50, "a cap without a penalty"),
    ],
)
def test_a_table_says_whether_kappa_follows_the_published_value(
    arm: str, start: float, stop: float, cap: float, says: str
) -> None:
    def raised(frame: pd.DataFrame) -> pd.DataFrame:
        mine = (frame.arm == "cap 20") & (frame.measure == "published_penalty")
        frame.loc[mine & (frame.epoch > 5), "value"] = 0.96 * 360
        return frame

    study = arms_study(change=raised)
    cells = row(draw("flatness_by_arm", study).tables[1], arm)
    levels = naive_level(study, arm, "published_penalty", "train", start, stop)
    value = statistics.median(levels.values())
    mine, other = (
        naive_level(study, each, "relative_flatness", "train", start, stop)
        for each in (arm, "baseline")
    )
    ratio = math.exp(statistics.fmean(math.log(mine[seed] / other[seed]) for seed in mine))
    part = value / (0.9 * cap**2)
    assert cells["Epoch"] == str(stop)
    assert cells["Published value"] == number(value)
    assert cells["Its ceiling"] == f"{0.9 * cap**2:,.0f}"
    assert cells["Share"] == (f"{number(100 * part)} %" if part > 0.01 else "below 1 %")
    assert cells["Exact κ, times reference"] == f"{number(ratio)}×"
    assert cells["What that says"] == says


def test_accuracies_where_a_phase_ends_are_those_of_its_last_fifth(whole: Study) -> None:
    (table,) = draw("accuracies", whole).tables
    assert table.title == f"At epoch {REMOVAL}, where a phase ends"
    for arm in ("removed", "baseline"):
        for heading, split in (("Training accuracy", "train"), ("Held-out accuracy", "validation")):
            levels = naive_level(whole, arm, "accuracy", split, 0, REMOVAL)
            assert row(table, arm)[heading] == share(statistics.median(levels.values()))
    assert [cells[0] for cells in table.rows] == [
        "baseline", "removed", "removed, restarted", "kept, restarted",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "heading", "measure", "split"),
    [
        ("losses_by_arm", "Loss, held out", "loss", "validation"),
        ("collapse_by_arm", "NCC, held out", "ncc", "validation"),
        ("collapse_by_arm", "Angle off the simplex, degrees", "angle_deviation", "train"),
        ("flatness_by_arm", "Bound on κ", "relative_flatness_bound", "train"),
        ("flatness_by_arm", "Published value", "published_penalty", "train"),
    ],
)
def test_levels_at_the_end_stand_in_a_table(
    whole: Study, name: str, heading: str, measure: str, split: str
) -> None:
    table = draw(name, whole).tables[0]
    for arm, start in (("cap 20", 0), ("removed", REMOVAL)):
        expected = middle(naive_level(whole, arm, measure, split, start, LAST))
        assert row(table, arm)[heading] == expected


def test_a_diverged_arm_simply_ends(whole: Study) -> None:
    (axes,) = panels(draw("losses_by_arm", whole).figure, "Loss, training")
    ((arm, seed), epoch) = next(iter(DIVERGED.items()))
    thin = dict(zip(SEEDS, seeds(axes, f"{arm}/train/loss/seeds"), strict=True))
    assert max(thin[seed]) == epoch
    assert max(line(axes, f"{arm}/train/loss/median")) == LAST
    guide = " ".join(reading_guide(whole, [axes.figure]))
    assert f"Did not reach their last step: {arm}, seed {seed}, at step {epoch * STEPS}." in guide
    alone = arms_study(change=lambda frame: frame[frame.step <= 24 * STEPS])
    guide = " ".join(reading_guide(alone, [axes.figure]))
    assert "24 of 24 runs did not reach their last step." in guide


def test_a_table_at_the_end_of_a_phase_that_holds_only_dashes_is_left_out(whole: Study) -> None:
    for study, amount in ((whole, 1), (arms_study(change=lambda f: f[f.step % 600 == 0]), 0)):
        names = [table.name for table in draw("accuracies", study).tables]
        assert len([name for name in names if name.endswith(f"-{REMOVAL * STEPS}")]) == amount


def test_a_study_without_settings_is_one_phase(whole: Study) -> None:
    bare = Study(Results.from_metrics(metrics(tuple(PHASES), SEEDS)))
    figure = draw("accuracies", bare).figure
    (axes,) = panels(figure, "Accuracy, training")
    assert line(axes, "cap 20/train/accuracy/median") == pytest.approx(
        naive_line(whole, "cap 20", "accuracy", "train")
    )
    guide = " ".join(reading_guide(bare, [figure]))
    assert "Dotted" not in guide
    assert "Striped" not in guide


def test_an_arm_that_has_not_begun_is_left_out(whole: Study) -> None:
    begun = arms_study(change=lambda frame: frame[(frame.arm != "cap 20") | (frame.step == 0)])
    assert "cap 20" not in [arm.name for arm in begun.arms]
    nothing = arms_study(change=lambda frame: frame[frame.step == 0])
    with pytest.raises(LookupError, match="nothing has been measured"):
        draw("accuracies", nothing)


def test_where_epochs_are_not_known_the_axis_counts_steps() -> None:
    study = arms_study(change=lambda frame: frame.assign(epoch=math.nan))
    (axes,) = panels(draw("accuracies", study).figure, "Accuracy, training")
    assert axes.get_xlim() == (0, LAST * STEPS)
    assert axes.get_xlabel() == "optimiser step"


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e5, "10⁵"), (2e-4, "2·10⁻⁴"), (331_000, "3.31·10⁵"), (10_000, "10,000"), (0, "0"),
     (-2e5, "−2·10⁵")],
)  # fmt: skip
def test_ticks_take_little_room(value: float, text: str) -> None:
    assert short_tick(value) == text


def test_names_that_would_blend_with_numbers_are_quoted() -> None:
    names = ("baseline", "1e-05", "0.01, augmented", "kept + optimiser")
    assert [quoted(name) for name in names] == [
        "baseline", "“1e-05”", "“0.01, augmented”", "kept + optimiser",
    ]  # fmt: skip


def test_epochs_and_ceilings_are_not_rounded_to_three_digits() -> None:
    assert [plain(each) for each in (30.0, 33.35, 1234, 22_275.0)] == [
        "30",
        "33.4",
        "1,234",
        "22,275",
    ]
