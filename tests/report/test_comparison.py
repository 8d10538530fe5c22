"""Arms over epochs: every line, ceiling, point and number is what a plain calculation gives."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from made_arms import (
    DIVERGED,
    LAST,
    PHASES,
    REMOVAL,
    SEEDS,
    STEPS,
    TASK,
    arms_study,
    middle,
    naive_level,
    phase,
    stored,
)
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grokscope.report import Study
from grokscope.report.arms import Span, alike, arms_of, ceilings, phase_ends
from grokscope.report.curves import MissingMeasureError
from grokscope.report.figures import FIGURES
from grokscope.report.lines import plain, short_tick
from grokscope.report.panels import STYLE
from grokscope.report.words import number

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


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    """As `write_report` draws."""
    with rc_context(STYLE):
        yield


@pytest.fixture(scope="module")
def whole() -> Study:
    return arms_study()


def panels(figure: Figure, title: str) -> list[Axes]:
    return [axes for axes in figure.axes if axes.get_title("left").startswith(title)]


def drawn(axes: Axes, label: str) -> dict[float, float]:
    """Epoch -> value of all lines with that label: a line may be drawn in pieces."""
    points: dict[float, float] = {}
    for line in axes.lines:
        if line.get_label() == label:
            x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
            points |= dict(zip(x.tolist(), y.tolist(), strict=True))
    return points


def naive_line(study: Study, arm: str, measure: str, split: str) -> dict[float, float]:
    """The median over seeds and two neighbours to each side within the phase."""
    values = stored(study, arm, measure, split)
    ends = [0, *(each["until"] for each in study.settings["arms"][arm]["phases"])]
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
    (axes,) = panels(FIGURES[name](whole, False).figure, title)
    for arm in PHASES:
        assert drawn(axes, f"{arm}/{split}/{measure}/median") == pytest.approx(
            naive_line(whole, arm, measure, split)
        )
        values = stored(whole, arm, measure, split)
        for seed in SEEDS:
            own = {step / STEPS: value[seed] for step, value in values.items() if seed in value}
            assert drawn(axes, f"{arm}/{split}/{measure}/{seed}") == pytest.approx(own)


def test_a_spike_moves_no_thick_line(whole: Study) -> None:
    frame = whole.metrics.copy()
    at = (frame.arm == "cap 20") & (frame.step == 20 * STEPS) & (frame.seed == 42)
    frame.loc[at & (frame.measure == "relative_flatness"), "value"] = 1e9
    (axes,) = panels(FIGURES["flatness_by_arm"](replace(whole, metrics=frame)).figure, "Exact κ")
    assert max(drawn(axes, "cap 20/train/relative_flatness/median").values()) < 1000
    assert axes.get_ylim()[1] < 1e5


def test_a_log_axis_hides_what_is_not_positive_and_the_median_knows_of_it() -> None:
    one = arms_study(("baseline",), (1,))
    frame = one.metrics
    late = (frame.measure == "relative_flatness") & (frame.step > 50 * STEPS)
    frame.loc[late, "value"] = 0.0
    drawing = FIGURES["flatness_by_arm"](one, False)
    (axes,) = panels(drawing.figure, "Exact κ")
    shown = drawn(axes, "baseline/train/relative_flatness/median")
    # At epoch 50 two of five neighbours are 0; at 52 three are, and so is the median.
    assert max(shown) == 50
    assert "Not positive, so not on the log axis, are 5 values." in drawing.reading


def test_arms_that_are_one_run_are_striped_until_they_part(whole: Study) -> None:
    (axes,) = panels(FIGURES["accuracies"](whole, False).figure, "Accuracy, training")
    together = ["removed", "removed, restarted", "kept, restarted"]
    offsets = set()
    for arm in together:
        pieces = [line for line in axes.lines if line.get_label() == f"{arm}/train/accuracy/median"]
        assert len(pieces) == 2
        first = np.asarray(pieces[0].get_xdata(), float)
        assert first.max() == REMOVAL
        assert np.asarray(pieces[1].get_xdata(), float).min() == REMOVAL  # no gap between them
        offset, (on, off) = pieces[0]._unscaled_dash_pattern
        assert off == pytest.approx(2 * on)
        offsets.add(round(offset / on) % 3)
    assert len(offsets) == 3
    groups = [(epoch, [arm.name for arm in group]) for epoch, group in alike(arms_of(whole))]
    assert groups == [(REMOVAL, together)]


def test_a_common_beginning_counts_whether_or_not_a_phase_ends_there() -> None:
    later = {**phase(LAST), "optimizer": {"name": "sgd", "lr": 0.1}}
    runs = {"baseline": [phase(LAST)], "late": [phase(20), later], "later": [phase(40), later]}
    study = arms_study(tuple(runs), (1,))
    for name, phases in runs.items():
        study.settings["arms"][name]["phases"] = phases
    found = [(epoch, [arm.name for arm in group]) for epoch, group in alike(arms_of(study))]
    assert found == [(40, ["baseline", "later"]), (20, ["baseline", "late", "later"])]
    study.settings["arms"]["late"]["task"] = {**TASK, "width": 32}
    found = [(epoch, [arm.name for arm in group]) for epoch, group in alike(arms_of(study))]
    assert found == [(40, ["baseline", "later"])]


def test_phases_end_at_dotted_lines_named_by_their_epochs(whole: Study) -> None:
    figure = FIGURES["flatness_by_arm"](whole, False).figure
    for axes in figure.axes:
        marks = [x for x in axes.lines if str(x.get_label()).startswith("end of a phase")]
        assert [np.asarray(each.get_xdata())[0] for each in marks] == [REMOVAL]
        assert axes.get_xlim() == (0, LAST)
    assert "epoch 30" in [text.get_text() for text in figure.axes[0].texts]
    assert phase_ends(arms_of(whole)) == [REMOVAL]


def test_ends_of_phases_that_lie_close_are_named_where_there_is_room() -> None:
    study = arms_study(("baseline", "removed", "cap 20", "cap alone"), (1,))
    for arm, epoch in {"removed": 30, "cap 20": 31, "cap alone": 35}.items():
        middle = {**phase(LAST), "until": round(epoch * STEPS)}
        study.settings["arms"][arm]["phases"] = [middle, phase(LAST)]
    drawing = FIGURES["accuracies"](study, True)
    named = [text.get_text() for text in drawing.figure.axes[0].texts]
    assert named == ["epoch 30"]
    assert "Dotted: where a phase ends, at epoch 30, 31 and 35." in drawing.reading
    named = [text.get_text() for text in FIGURES["flatness_by_arm"](study).figure.axes[0].texts]
    assert named == ["epoch 30", "35"]


@pytest.mark.parametrize(("classes", "share"), [(None, 0.9), (5.0, 0.8)])
def test_ceilings_are_at_their_heights(classes: float | None, share: float) -> None:
    study = arms_study()
    if classes is not None:
        more = study.metrics[(study.metrics.measure == "ncc") & (study.metrics.split == "train")]
        more = more.assign(measure="classes", value=classes)
        study = replace(study, metrics=pd.concat([study.metrics, more]))
    (axes,) = panels(FIGURES["flatness_by_arm"](study, False).figure, "Published")
    lines = [line for line in axes.lines if str(line.get_label()).startswith("ceiling")]
    heights = [float(np.asarray(line.get_ydata())[0]) for line in lines]
    assert heights == pytest.approx([share * cap**2 for cap in (10, 20, 50)])
    assert all(list(np.asarray(line.get_xdata())) == [0, LAST] for line in lines)
    assert f"ceiling\n{share * 2500:,.0f}" in [text.get_text() for text in axes.texts]


def test_a_ceiling_lasts_as_long_as_its_cap() -> None:
    study = arms_study(("baseline", "removed"), (1,))
    for own in study.settings["arms"]["removed"]["phases"]:
        own["constraints"] = [{"kind": "frobenius", "cap": 50, "start": 100, "stop": 500}]
    on = [span for span, _ in ceilings(arms_of(study)[1])]
    assert [(span.start, span.stop) for span in on] == [(5, 25)]


def test_without_a_known_number_of_classes_there_is_no_ceiling(whole: Study) -> None:
    arms = {
        name: {**run, "task": {"source": "somebody/birds"}}
        for name, run in whole.settings["arms"].items()
    }
    drawing = FIGURES["flatness_by_arm"](replace(whole, settings={"arms": arms}), False)
    assert "ceiling" not in drawing.caption + drawing.reading
    labels = [str(line.get_label()) for axes in drawing.figure.axes for line in axes.lines]
    assert not any(label.startswith("ceiling") for label in labels)


@pytest.mark.parametrize(
    ("arm", "start", "stop", "cap", "lead"),
    [
        ("removed", 0, REMOVAL, 50, "sits at its ceiling, but exact κ does not follow: "),
        ("“kept, restarted”", REMOVAL, LAST, 50, "sits at its ceiling, but exact κ does not"),
        ("cap 20", 0, LAST, 20, "sits at its ceiling, and exact κ follows: "),
        ("“cap 10, strong”", 0, LAST, 10, "the published value is below its ceiling: "),
        ("cap alone", 0, LAST, 50, "under a cap without a penalty, the published value is: "),
    ],
)
def test_the_caption_says_whether_kappa_follows_the_published_value(
    arm: str, start: float, stop: float, cap: float, lead: str
) -> None:
    study = arms_study()
    frame = study.metrics
    mine = (frame.arm == "cap 20") & (frame.measure == "published_penalty")
    frame.loc[mine & (frame.epoch > 5), "value"] = 0.96 * 360
    caption = FIGURES["flatness_by_arm"](study, False).caption
    name = arm.strip("“”")
    value = statistics.median(
        naive_level(study, name, "published_penalty", "train", start, stop).values()
    )
    own, other = (
        naive_level(study, each, "relative_flatness", "train", start, stop)
        for each in (name, "baseline")
    )
    ratio = math.exp(statistics.fmean(math.log(own[seed] / other[seed]) for seed in own))
    share = value / (0.9 * cap**2)
    percent = f"{number(100 * share)}%" if share > 0.01 else "below 1%"
    (sentence,) = [each for each in caption.split(". ") if lead in each]
    assert arm in sentence
    assert (
        f"(epoch {stop}: {number(value)} of {0.9 * cap**2:,.0f}, {percent}; κ {number(ratio)}×)"
        in sentence
    )


def test_the_accuracies_in_the_caption_are_those_of_the_last_fifth(whole: Study) -> None:
    caption = FIGURES["accuracies"](whole, False).caption
    for arm, start, stop in (("cap 20", 0, LAST), ("removed", REMOVAL, LAST)):
        held, own = (
            middle(naive_level(whole, arm, "accuracy", split, start, stop))
            for split in ("validation", "train")
        )
        assert f"; {arm}: {held} ({own})" in caption
    held = middle(naive_level(whole, "baseline", "accuracy", "validation", 0, REMOVAL))
    there = caption[: caption.index("At the end")]
    assert there.startswith("At epoch 30, held-out (training) accuracy – removed, “removed, rest")
    assert f"baseline: {held} (" in there


def test_losses_and_collapse_say_their_numbers(whole: Study) -> None:
    wanted = {
        "losses_by_arm": ("loss", "{} ({}) at ", "logit_scale", ""),
        "collapse_by_arm": ("ncc", "{} ({}) and ", "angle_deviation", "°"),
    }
    for name, (measure, form, last, unit) in wanted.items():
        both = [
            middle(naive_level(whole, "cap 20", measure, split, 0, LAST))
            for split in ("train", "validation")
        ]
        third = middle(naive_level(whole, "cap 20", last, "train", 0, LAST))
        text = f"cap 20: {form.format(*both)}{third}{unit}"
        assert text in FIGURES[name](whole, False).caption


def test_a_diverged_arm_simply_ends(whole: Study) -> None:
    drawing = FIGURES["losses_by_arm"](whole, False)
    (axes,) = panels(drawing.figure, "Loss, training")
    ((arm, seed), epoch) = next(iter(DIVERGED.items()))
    assert max(drawn(axes, f"{arm}/train/loss/{seed}")) == epoch
    assert max(drawn(axes, f"{arm}/train/loss/median")) == LAST
    assert f"Ended before its last epoch: {arm}, seed {seed}, at epoch {epoch}." in drawing.reading
    alone = replace(whole, metrics=whole.metrics[whole.metrics.step <= 24 * STEPS])
    drawing = FIGURES["accuracies"](alone, False)
    assert "24 of 24 runs ended before their last epoch." in drawing.reading
    assert "No run of baseline, removed" in drawing.caption
    with pytest.raises(MissingMeasureError, match="no run has come to its end"):
        FIGURES["outcomes"](alone, False)


def test_a_level_without_points_in_the_last_fifth_is_taken_from_the_last_points() -> None:
    (arm,) = arms_of(arms_study(("baseline",), (1,)))
    values = arm.get("loss", "train")[1]
    assert math.isnan(arm.level("loss", "train", Span(2, 6)))  # two points are too few
    wide = statistics.median([values[each] for each in (2.0, 4.0, 6.0, 8.0)])
    assert arm.level("loss", "train", Span(0.5, 8)) == pytest.approx(wide)


def test_a_study_without_phases_in_its_settings_is_one_phase(whole: Study) -> None:
    bare = replace(whole, settings={})
    drawing = FIGURES["accuracies"](bare, False)
    (axes,) = panels(drawing.figure, "Accuracy, training")
    assert drawn(axes, "cap 20/train/accuracy/median") == pytest.approx(
        naive_line(whole, "cap 20", "accuracy", "train")
    )
    assert "Dotted" not in drawing.reading
    assert "Striped" not in drawing.reading


def test_an_arm_that_has_not_begun_is_left_out_and_epochs_must_be_known(whole: Study) -> None:
    frame = whole.metrics
    begun = frame[(frame.arm != "cap 20") | (frame.step == 0)]
    assert "cap 20" not in [arm.name for arm in arms_of(replace(whole, metrics=begun))]
    with pytest.raises(MissingMeasureError, match="nothing has been measured"):
        arms_of(replace(whole, metrics=frame[frame.step == 0]))
    with pytest.raises(MissingMeasureError, match="at which epoch"):
        arms_of(replace(whole, metrics=frame.assign(epoch=math.nan)))


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e5, "10⁵"), (2e-4, "2·10⁻⁴"), (331_000, "3.31·10⁵"), (10_000, "10,000"), (0, "0")],
)
def test_ticks_take_little_room(value: float, text: str) -> None:
    assert short_tick(value) == text


def test_names_that_would_blend_with_numbers_are_quoted() -> None:
    arms = arms_of(arms_study(("baseline", "1e-05", "0.01, augmented", "kept + optimiser"), (1,)))
    assert [arm.quoted for arm in arms] == [
        "baseline",
        "“1e-05”",
        "“0.01, augmented”",
        "kept + optimiser",
    ]


def test_epochs_and_ceilings_are_not_rounded_to_three_digits() -> None:
    assert [plain(each) for each in (30.0, 33.35, 1234, 22_275.0)] == [
        "30",
        "33.4",
        "1,234",
        "22,275",
    ]
