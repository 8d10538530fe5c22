"""Experiments crossed with a grid: which arms there are, and what is refused before it starts."""

from __future__ import annotations

import sys

import pytest

from grokscope.cli import main
from grokscope.interventions import Penalty
from grokscope.report.figures import list_figures
from grokscope.runs.plan import Plan
from grokscope.runs.store import Store
from grokscope.spec import Contrast, Experiment, override, sweep
from one_segment import run_segment
from small_runs import experiment, run

LR = "phases.0.optimizer.lr"


def penalised() -> Experiment:
    plain = run(30)
    phase = plain.phases[0].model_copy(update={"penalties": (Penalty(measure="ncc", weight=0.1),)})
    arms = {"baseline": plain, "ncc": plain.model_copy(update={"phases": (phase,)})}
    made = experiment(**arms)
    return Experiment.model_validate(
        dict(made) | {"claims": ("C3", "C1"), "contrasts": (Contrast(claim="C3", arm="ncc"),)}
    )


def test_an_arm_of_a_sweep_is_the_arm_with_its_settings():
    study = experiment(a=run(30))
    swept = sweep(study, [f"{LR}=1e-3,0.5", "batch_size=4,8"])
    assert list(swept.arms) == [
        f"a, lr={lr}, batch_size={size}" for lr in ("0.001", "0.5") for size in (4, 8)
    ]
    for lr in ("0.001", "0.5"):
        for size in (4, 8):
            by_hand = override(study, [f"{LR}={lr}", f"batch_size={size}"]).arms["a"]
            assert swept.arms[f"a, lr={lr}, batch_size={size}"] == by_hand


def test_an_arm_without_the_setting_stays_as_it_is_once():
    study = penalised()
    swept = sweep(study, ["phases.0.penalties.0.weight=0.1,1,10"])
    assert list(swept.arms) == ["baseline", "ncc, weight=0.1", "ncc, weight=1", "ncc, weight=10"]
    assert swept.arms["baseline"] == study.arms["baseline"]
    assert [(each.arm, each.against) for each in swept.contrasts] == [
        (f"ncc, weight={weight}", "baseline") for weight in ("0.1", "1", "10")
    ]
    assert swept.claims == ("C3",)  # C1 rests on no contrast


def test_a_contrast_is_drawn_at_equal_settings():
    swept = sweep(penalised(), [f"{LR}=0.1,0.2", "phases.0.penalties.0.weight=1,2"])
    assert len(swept.arms) == 2 + 4
    assert ("ncc, lr=0.1, weight=2", "baseline, lr=0.1") in [
        (each.arm, each.against) for each in swept.contrasts
    ]


def test_paths_with_one_end_are_told_apart_in_names():
    swept = sweep(experiment(a=run(10, 20)), [f"{LR}=0.1", "phases.1.optimizer.lr=0.2"])
    assert list(swept.arms) == ["a, phases.0.optimizer.lr=0.1, phases.1.optimizer.lr=0.2"]


def test_lists_are_values_too():
    swept = sweep(experiment(a=run(10)), ["phases.0.optimizer.betas=[0.9, 0.98],[0.8, 0.9]"])
    assert [each.phases[0].optimizer.betas for each in swept.arms.values()] == [
        (0.9, 0.98),
        (0.8, 0.9),
    ]


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ([LR], "write it as path=a,b,c"),
        ([f"{LR}="], "write it as path=a,b,c"),
        ([f"{LR}=1,1"], "the value 1 appears twice"),
        ([f"{LR}=1", f"{LR}=2"], "appears twice"),
        ([f"{LR}r=1"], "has no 'lrr'. Did you mean lr?"),
        ([f"{LR}=0.1,-1"], "at a, lr=-1: phases.0.optimizer.lr: .*greater than 0"),
        (["task.kind=images"], "cannot be changed alone"),
        ([f"batch_size={','.join(map(str, range(1, 5002)))}"], "makes 10,002 runs"),
        ([], "a sweep needs a grid"),
    ],
)
def test_a_grid_that_cannot_be_meant_is_refused(grid, said):
    with pytest.raises(ValueError, match=said):
        sweep(experiment(a=run(30)), grid)


def test_runs_that_are_there_are_found_and_the_rest_is_estimated(tmp_path):
    study, store = experiment(seeds=(1,), a=run(30)), Store(tmp_path)
    (done,) = study.arms["a"].segments(1)
    swept = sweep(study, [f"{LR}=0.01,0.02,0.03"])
    before = Plan(swept, store).estimate()
    assert before.seconds is None and before.unknown == ("modular",)
    assert run_segment(store, done, lambda _: None, lambda: False)
    plan = Plan(swept, store)
    assert plan.runs_summary() == "3 runs: 1 finished, 2 new"
    outcome = store.outcome(done)
    left = plan.estimate()
    assert outcome is not None and left.seconds == pytest.approx(2 * outcome.seconds)
    assert plan.estimate(workers=2).seconds == pytest.approx(outcome.seconds)
    files = (tmp_path / "segments" / done.id).iterdir()
    assert left.disk == 2 * sum(each.stat().st_size for each in files)


@pytest.mark.parametrize("grid", [[], ["--grid", "batch_size=256,512"]])
def test_a_dry_run_shows_the_plan_and_starts_nothing(tmp_path, monkeypatch, capsys, grid):
    monkeypatch.chdir(tmp_path)
    command = "sweep" if grid else "run"
    line = ["grokscope", command, "grokking", "--preset", "tiny", "--seeds", "1", *grid]
    monkeypatch.setattr(sys, "argv", [*line, "--dry-run"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert ("2 runs: 2 new" if grid else "1 run: 1 new") in said
    assert "not known" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "grid",
    [
        ["phases.0.optimizer.lr=1e-3,1e-2", "phases.-1.optimizer.lr=0.1,0.2"],
        ["arms.a.phases.0.optimizer.lr=1e-3,1e-2", "phases.0.optimizer.lr=0.1,0.2"],
        ["phases.0.optimizer.lr=1e-3,1e-2", "phases.0.optimizer={lr: 0.5}"],
    ],
)
def test_two_axes_that_set_the_same_are_refused(grid):
    with pytest.raises(ValueError, match=r"in arm a it sets what --grid .* sets"):
        sweep(experiment(a=run(10)), grid)


def test_many_arms_are_drawn_as_lines_of_one_figure():
    made = experiment(a=run(30)).model_copy(update={"figures": ("grokking", "onsets")})
    few, many = sweep(made, [f"{LR}=0.1,0.2"]), sweep(made, [f"{LR}=0.1,0.2,0.3,0.4"])
    assert few.figures == ("grokking", "onsets")
    assert set(many.figures) <= set(list_figures()) and "flatness_by_arm" in many.figures
