"""Figures over steps: what is drawn is what was measured."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from drawing import draw, line, panels, row, seeds, spans, texts
from made_study import SEEDS, Change, beside, metrics, results, study
from matplotlib.backends.backend_agg import FigureCanvasAgg

from grokscope.analysis import onset_table, partial_correlations, plateau_table
from grokscope.analysis.correlations import plateau_correlation
from grokscope.report import MissingMeasureError, Study, find_figure, list_figures
from grokscope.report.words import number, times

BY_STEPS = (
    "grokking", "onsets", "collapse", "confidence", "representativeness", "partial_correlations",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole() -> Study:
    return study()


def stored(frame: pd.DataFrame, measure: str, split: str, seed: int) -> dict[int, float]:
    rows = frame[(frame.measure == measure) & (frame.split == split) & (frame.seed == seed)]
    return {int(each.step): float(each.value) for each in rows.itertuples() if each.step > 0}


def medians(whole: Study, measure: str, split: str, steps: list[int]) -> float:
    frame = metrics()
    values = [stored(frame, measure, split, seed) for seed in SEEDS]
    return statistics.median(curve[step] for curve in values for step in steps)


@pytest.mark.parametrize(("title", "measure"), [("Accuracy", "accuracy"), ("NCC", "ncc")])
def test_thin_lines_are_the_stored_values(whole: Study, title: str, measure: str) -> None:
    (axes,) = panels(draw("grokking", whole).figure, title)
    for split in ("train", "validation"):
        found = seeds(axes, f"grokking/{split}/{measure}/seeds")
        assert found == [stored(metrics(), measure, split, seed) for seed in SEEDS]


def test_the_thick_line_is_a_running_median_that_a_spike_does_not_move(whole: Study) -> None:
    steps = sorted(stored(metrics(), "ncc", "train", 1))

    def spiked(frame: pd.DataFrame) -> pd.DataFrame:
        one = (frame.step == steps[60]) & (frame.measure == "ncc") & (frame.seed == 42)
        frame.loc[one & (frame.split == "train"), "value"] = 1e9
        return frame

    (axes,) = panels(draw("grokking", study(change=spiked)).figure, "NCC")
    found = line(axes, "grokking/train/ncc/median")
    curves = [stored(spiked(metrics()), "ncc", "train", seed) for seed in SEEDS]
    for i in (2, 30, 60, 80):
        window = steps[i - 2 : i + 3]
        expected = statistics.median(curve[each] for curve in curves for each in window)
        assert found[steps[i]] == pytest.approx(expected)
    assert max(found.values()) < 100
    assert axes.get_ylim()[1] < 1e4


def test_sharpness_is_one_at_memorisation_for_every_value(whole: Study) -> None:
    (axes,) = panels(draw("grokking", whole).figure, "Sharpness, relative to memorisation")
    memorised = plateau_table(whole.results).set_index("seed")["memorised"]
    for measure in ("relative_flatness", "relative_flatness_bound", "published_flatness"):
        found = seeds(axes, f"grokking/train/{measure}/seeds")
        for seed, curve in zip(SEEDS, found, strict=True):
            values = stored(metrics(), measure, "train", seed)
            steps = sorted([0, *values])
            nearest = int(np.abs(np.array(steps) - memorised[seed]).argmin())
            unit = statistics.median(values[each] for each in steps[nearest - 2 : nearest + 3])
            assert curve == pytest.approx({each: value / unit for each, value in values.items()})


def test_spans_begin_and_end_at_the_median_milestones(whole: Study) -> None:
    table = plateau_table(whole.results)
    memorised, onset, generalised = table[["memorised", "onset", "generalised"]].median()
    for axes in draw("grokking", whole).figure.axes:
        found = spans(axes)
        assert found["memorised"] == pytest.approx((memorised, onset))
        assert found["generalised"] == pytest.approx((generalised, 4000))


def lost(*which: int) -> Change:
    """Held-out accuracy that stays low in some seeds."""

    def change(frame: pd.DataFrame) -> pd.DataFrame:
        low = (frame.measure == "accuracy") & (frame.split == "validation")
        frame.loc[low & frame.seed.isin(which), "value"] = 0.2
        return frame

    return change


def test_only_seeds_that_generalised_are_called_so() -> None:
    drawing = draw("grokking", study(change=lost(42)))
    written = [text.get_text() for text in texts(drawing.figure)]
    assert "generalised (2 of 3)" in written
    assert "memorised" in written
    table = plateau_table(study(change=lost(42)).results)
    (axes, *_) = drawing.figure.axes
    assert spans(axes)["generalised"][0] == pytest.approx(table["generalised"].median())
    assert len([each for each in axes.lines if len(each.get_xdata()) == 2]) >= 5  # ticks of seeds


def test_nothing_is_shaded_that_no_seed_reached() -> None:
    drawing = draw("grokking", study(change=lost(*SEEDS)))
    for axes in drawing.figure.axes:
        assert set(spans(axes)) == {"memorised"}
        assert spans(axes)["memorised"][1] == 4000
    assert not any("generalised" in text.get_text() for text in texts(drawing.figure))


def test_panels_share_one_axis_of_steps_on_which_the_transition_has_room(whole: Study) -> None:
    figure = draw("grokking", whole).figure
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    onset, generalised = plateau_table(whole.results)[["onset", "generalised"]].median()
    (axes, *_) = figure.axes
    to_share = axes.transData + axes.transAxes.inverted()
    left, right = (float(to_share.transform((step, 0.5))[0]) for step in (onset, generalised))
    assert left < 0.8
    assert right - left > 0.1


def test_the_table_tells_levels_in_the_course_of_training(whole: Study) -> None:
    (table,) = draw("grokking", whole).tables
    milestones = plateau_table(whole.results).set_index("seed")
    for name, measure in (("Exact κ (training)", "relative_flatness"), ("NCC (training)", "ncc")):
        expected: dict[str, list[float]] = {"at": [], "before": [], "end": []}
        for seed in SEEDS:
            values = stored(metrics(), measure, "train", seed)
            steps = sorted(values)
            near = int(np.abs(np.array(steps) - milestones["memorised"][seed]).argmin())
            memorised, begins = milestones.loc[seed, ["memorised", "onset"]]
            late = begins - 0.2 * (begins - memorised)  # the last fifth of the plateau
            onset = [each for each in steps if late <= each <= begins]
            end = [each for each in steps if each >= 3200]
            for key, window in (
                ("at", steps[near - 2 : near + 3]), ("before", onset), ("end", end),
            ):  # fmt: skip
                expected[key].append(statistics.median(values[each] for each in window))
        ratios = {
            key: statistics.median(
                level / unit for level, unit in zip(levels, expected["at"], strict=True)
            )
            for key, levels in expected.items()
        }
        cells = row(table, name)
        assert cells["When memorised"] == number(statistics.median(expected["at"]))
        for heading, key in (("Before generalisation begins", "before"), ("At the end", "end")):
            level = number(statistics.median(expected[key]))
            assert cells[heading] == f"{level}\n{times(ratios[key])}"


@pytest.mark.parametrize("narrow", [False, True], ids=["wide", "narrow"])
@pytest.mark.parametrize("name", BY_STEPS)
def test_every_figure_is_drawn_for_one_seed_and_for_phones(name: str, narrow: bool) -> None:
    drawing = draw(name, study((42,)), narrow)
    assert drawing.figure.axes
    assert drawing.caption
    assert drawing.tables
    assert (drawing.figure.get_figwidth() < 5) == narrow


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("collapse", ("nc1", "nc2", "nc3", "nc4", "angle")),
        ("representativeness", ("representativeness",)),
        ("grokking", ("accuracy", "ncc", "relative", "published")),
        ("measures", ("nothing",)),
    ],
)
def test_a_figure_without_its_measures_says_that_they_are_missing(
    name: str, gone: tuple[str, ...]
) -> None:
    with pytest.raises(MissingMeasureError):
        draw(name, study((1,), lambda frame: frame[~frame.measure.str.startswith(gone)]))


def test_a_missing_line_is_named_and_the_rest_is_drawn() -> None:
    drawing = draw("grokking", study(change=lambda f: f[f.measure != "published_flatness"]))
    assert "Not measured: published value (training)." in drawing.remarks
    assert len(drawing.figure.axes) == 3
    written = [text.get_text() for text in texts(drawing.figure)]
    assert "exact κ" in written
    assert "published value" not in written


def test_values_that_a_log_axis_cannot_show_are_counted() -> None:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        bad = (frame.measure == "ncc") & (frame.split == "train") & (frame.step.isin([100, 150]))
        frame.loc[bad, "value"] = [0.0, -1.0] * 3
        frame.loc[(frame.measure == "ncc") & (frame.step == 200), "value"] = math.nan
        frame.loc[(frame.measure == "ncc") & (frame.step == 250), "value"] = math.inf
        return frame

    drawing = draw("grokking", study(change=change))
    assert any("6 values are not positive and have no place" in text for text in drawing.remarks)
    (axes,) = panels(drawing.figure, "NCC")
    for curve in seeds(axes, "grokking/train/ncc/seeds"):
        assert all(0 < value < math.inf for value in curve.values())


def test_without_milestones_sharpness_is_relative_to_the_start() -> None:
    def never(frame: pd.DataFrame) -> pd.DataFrame:
        frame.loc[frame.measure == "accuracy", "value"] *= 0.5
        return frame

    drawing = draw("grokking", study(change=never))
    (axes,) = panels(drawing.figure, "Sharpness, relative to start")
    assert not axes.patches
    for curve in seeds(axes, "grokking/train/relative_flatness/seeds"):
        assert min(curve) == 1  # step 0 has no place
    assert [each.headings[1:] for each in drawing.tables] == [("At the start", "At the end")]


def test_the_counterpart_is_drawn_beside_on_its_own_steps_and_the_same_heights() -> None:
    whole = study(counterpart=beside(metrics((1, 42))))
    drawing = draw("grokking", whole)
    assert {axes.get_xlim()[1] for axes in drawing.figure.axes} == {4000, 100_000}
    for title in ("Accuracy", "Sharpness", "NCC"):
        left, right = panels(drawing.figure, title)
        assert left.get_ylim() == right.get_ylim()
    written = [text.get_text() for text in texts(drawing.figure)]
    for text in (
        "This run", "3 seeds, 4,000 steps",
        "grokscope's run in the paper's setting", "2 seeds, 100,000 steps",
    ):  # fmt: skip
        assert text in written
    titles = [table.title for table in drawing.tables]
    assert titles == ["This run", "grokscope's run in the paper's setting"]
    narrow = draw("grokking", whole, narrow=True).figure
    assert len(narrow.axes) == len(drawing.figure.axes)
    assert len({axes.get_position().x0 for axes in narrow.axes}) == 1


def arms(*names: str, seed: int = 1) -> Study:
    frames = [metrics((seed,)).assign(arm=name) for name in names]
    return study((seed,), results=results(pd.concat(frames), (seed,)))


def test_each_arm_has_its_own_column_and_all_share_their_axes() -> None:
    figure = draw("collapse", arms("baseline", "penalty", "third")).figure
    assert len(figure.axes) == 18
    for axes in panels(figure, "NC1"):
        assert axes.get_xlim() == figure.axes[0].get_xlim()
        assert axes.get_ylim() == panels(figure, "NC1")[0].get_ylim()
    written = [text.get_text() for text in texts(figure)]
    assert {"baseline", "penalty", "third"} <= set(written)


def test_more_arms_than_columns_become_lines_and_none_is_lost() -> None:
    names = [f"arm {place}" for place in range(14)]
    figure = draw("grokking", arms(*names)).figure
    assert {str(axes.get_label()) for axes in figure.axes} >= {
        "Accuracy: training", "Accuracy: held out", "NCC (low = collapsed): training",
    }  # fmt: skip
    labels = [str(each.get_label()) for axes in figure.axes for each in axes.lines]
    for name in names:
        assert f"{name}/train/ncc/median" in labels


def test_onsets_are_drawn_in_order_and_those_not_found_are_counted() -> None:
    def flat(frame: pd.DataFrame) -> pd.DataFrame:
        gone = (frame.measure == "representativeness") & (frame.seed == 1)
        frame.loc[gone, "value"] = 1.0
        return frame

    whole = study(change=flat)
    drawing = draw("onsets", whole)
    (axes,) = drawing.figure.axes
    frame = onset_table(whole.results)
    for each in frame.dropna().itertuples():
        assert list(line(axes, f"{each.measure}/{each.split}/{each.seed}")) == [each.step]
        ends = line(axes, f"{each.measure}/{each.split}/{each.seed}/interval")
        assert sorted(ends) == sorted({each.low, each.high})
    (table,) = drawing.tables
    assert row(table, "Representativeness (held out)")["Found in"] == "2 of 3 seeds"
    steps = frame.groupby(["measure", "split"])["step"].median()
    names = [cells[0] for cells in table.rows]
    early = names.index("NCC (training)") < names.index("Generalisation begins")
    assert early == (steps["ncc", "train"] < steps["generalisation", ""])


def test_correlations_are_drawn_plain_and_given_the_loss(whole: Study) -> None:
    drawing = draw("partial_correlations", whole)
    (axes,) = drawing.figure.axes
    frame = partial_correlations(whole.results).dropna(subset=["rho"])
    for each in frame.to_dict("records"):
        label = f"{each['measure']}/{each['with']}/{each['given']}/{each['window']}"
        assert list(line(axes, label)) == [each["rho"]]
    assert len(drawing.tables[0].rows) == len(frame[frame.given == ""])


def test_the_scatter_holds_the_plateau_alone(whole: Study) -> None:
    one = study((42,))
    drawing = draw("confidence", one)
    (axes,) = panels(drawing.figure, "κ against the loss")
    (dots,) = axes.collections
    memorised, onset = plateau_table(one.results).loc[0, ["memorised", "onset"]]
    loss, kappa = (stored(metrics(), each, "train", 42) for each in ("loss", "relative_flatness"))
    expected = [(loss[each], kappa[each]) for each in loss if memorised <= each <= onset]
    drawn = np.array(sorted(map(tuple, np.asarray(dots.get_offsets()))))
    assert drawn == pytest.approx(np.array(sorted(expected)))
    rho = plateau_correlation(list(one.results.runs)).effect
    assert row(drawing.tables[0], "mean")["Rank correlation"].startswith(f"{rho:.2f}")


def test_the_names_of_the_spans_do_not_overlap() -> None:
    def late(frame: pd.DataFrame) -> pd.DataFrame:
        accuracy = frame.measure == "accuracy"
        train = accuracy & (frame.split == "train")
        frame.loc[train, "value"] = 1.0 * (frame.step >= 1500)
        frame.loc[accuracy & (frame.split == "validation"), "value"] = 0.01 + 0.99 * (
            frame.step >= 3800
        )
        return frame

    figure = draw("grokking", study(change=late), narrow=True).figure
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [
        text.get_window_extent(renderer)
        for text in figure.axes[0].texts
        if text.get_text().startswith(("memorised", "generalised"))
    ]
    assert len(boxes) == 2
    assert not boxes[0].overlaps(boxes[1])


def test_every_figure_of_grokscope_is_listed_with_what_it_shows() -> None:
    found = list_figures()
    assert set(BY_STEPS) < set(found)
    assert all((figure.__doc__ or "").split("\n")[0].endswith(".") for figure in found.values())


def test_what_does_not_take_a_study_and_a_canvas_is_not_a_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "from grokscope.results import Finding\nnumber = 3\n"
        "def one(study): ...\ndef more(study, canvas, *, size=1): ...\n"
    )
    for name in ("Finding", "number", "one"):
        with pytest.raises(ValueError, match=f"mine.py:{name} is not a function of a study and a"):
            find_figure(f"mine.py:{name}")
    assert find_figure("mine.py:more")
