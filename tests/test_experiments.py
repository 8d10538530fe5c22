"""Our experiments: what they declare is there, and is the paper's where it says so."""

from __future__ import annotations

import pytest

from grokscope.analysis.claims import find_claim, list_claims
from grokscope.experiments import EXPERIMENTS, find_experiment
from grokscope.experiments.catalogue import collect
from grokscope.report.figures import list_figures
from grokscope.spec import Experiment, Images, Run

EVERY = [(name, preset) for name, entry in EXPERIMENTS.items() for preset in entry.presets]
CIFAR = 782  # steps of an epoch of 50,000 images in batches of 64


def segments(experiment: Experiment) -> int:
    return len({each.id for _, _, chain in experiment.runs() for each in chain})


@pytest.mark.parametrize(("name", "preset"), EVERY)
def test_claims_figures_and_contrasts_are_there(name, preset):
    made = find_experiment(name, preset)
    assert (made.name, made.preset) == (name, preset)
    assert set(made.claims) <= {claim.id for claim in list_claims()}
    assert set(made.figures) <= set(list_figures())
    assert {each.claim for each in made.contrasts} <= set(made.claims)
    compared = {each for each in made.claims if find_claim(each).compares}
    assert compared == {each.claim for each in made.contrasts}


@pytest.mark.parametrize(("name", "preset"), EVERY)
def test_the_tiny_presets_and_no_others_are_smoke_tests(name, preset):
    assert find_experiment(name, preset).smoke_test == (preset == "tiny")


NEW = """
from grokscope.experiments.catalogue import Preset, offer
from grokscope.spec import Experiment, Phase, Run

@offer({"small": Preset("five steps", "a second")})
def hot_and_cold(preset):
    return Experiment(name="hot-and-cold", title="Hot", question="Or cold?",
                      arms={"a": Run(phases=(Phase(until=len(preset)),))})
"""


def test_a_new_experiment_is_one_file(tmp_path, monkeypatch):
    package = tmp_path / "made_up_catalogue"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "shared.py").write_text("nothing = 'to offer'")
    (package / "heat.py").write_text(NEW)
    monkeypatch.syspath_prepend(tmp_path)
    found = collect("made_up_catalogue", [str(package)])
    assert list(found) == ["hot-and-cold"]
    assert found["hot-and-cold"]().arms["a"].phases[0].until == 5
    with pytest.raises(ValueError, match="no preset 'smal'. Did you mean small"):
        found["hot-and-cold"]("smal")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_without_a_preset_the_first_one_is_meant(name):
    assert find_experiment(name) == find_experiment(name, next(iter(EXPERIMENTS[name].presets)))


@pytest.mark.parametrize(
    ("name", "of_a_seed", "chained"),
    [
        # Two beginnings, and six ways of going on.
        ("suppress-flatness", 8, 12),
        ("suppress-flatness-early", 8, 12),
        ("suppress-flatness-cap", 8, 8),
        ("suppress-collapse", 3, 3),
        ("suppress-flatness-controls", 10, 10),
    ],
)
def test_what_arms_have_in_common_is_trained_once(name, of_a_seed, chained):
    made = find_experiment(name, "small")
    assert segments(made) == of_a_seed * len(made.seeds)
    assert sum(len(chain) for _, _, chain in made.runs()) == chained * len(made.seeds)


def test_the_forks_start_from_two_states():
    arms = find_experiment("suppress-flatness", "small").arms
    first = {name: run.segments(1)[0].id for name, run in arms.items()}
    pushed = {name for name in arms if name.startswith(("kept", "removed"))}
    assert len({first[name] for name in pushed}) == 1
    assert len({first[name] for name in arms.keys() - pushed}) == 1
    assert len(set(first.values())) == 2


def test_the_paper_s_flatness_experiment_is_as_published():
    made = find_experiment("suppress-flatness", "paper")
    start, end = made.arms["removed + optimiser"].phases
    assert (start.until, end.until) == (200 * CIFAR, 400 * CIFAR)
    (penalty,), (cap,) = start.penalties, start.constraints
    assert (penalty.measure, penalty.weight) == ("relative_flatness_bound", -0.01)
    assert (penalty.temperature, penalty.normalize_features) == (2.0, True)
    assert (cap.kind, cap.cap) == ("frobenius", 50)
    assert (start.optimizer.lr, start.optimizer.momentum) == (0.01, 0.9)
    assert start.optimizer.weight_decay == 0
    assert not end.penalties
    assert end.constraints == start.constraints
    assert (end.optimizer.lr, end.optimizer.weight_decay) == (0.1, 2e-4)
    assert (end.optimizer.schedule, end.optimizer.final_lr) == ("cosine", 1e-4)
    run = made.arms["baseline"]
    assert run.batch_size == 64
    assert run.task == Images(source="uoft-cs/cifar10")
    assert made.seeds == (1, 42, 15213)


def test_each_control_changes_one_thing():
    arms = find_experiment("suppress-flatness", "paper").arms

    def last(name: str):
        return arms[name].phases[-1]

    plain, moved = last("removed"), last("removed + optimiser")
    assert plain.model_copy(update={"optimizer": moved.optimizer}) == moved
    kept = last("kept")
    assert kept.model_copy(update={"penalties": ()}) == plain
    assert last("kept + optimiser") == kept.model_copy(update={"optimizer": moved.optimizer})
    baseline = last("baseline")
    assert last("baseline + optimiser").optimizer == moved.optimizer
    assert not baseline.penalties
    assert not baseline.constraints


def test_the_paper_s_collapse_experiments_are_as_published():
    made = find_experiment("suppress-collapse", "paper")
    (phase,) = made.arms["suppressed"].phases
    assert phase.until == 250 * CIFAR
    (penalty,) = phase.penalties
    assert (penalty.measure, penalty.weight, penalty.memory) == ("ncc", -1e-3, 0)
    augmented = find_experiment("suppress-collapse-augmented", "paper")
    task = augmented.arms["augmented"].task
    assert isinstance(task, Images)
    assert (task.crop_padding, task.flip, task.stem) == (4, True, "cifar")
    assert task.normalisation == "cifar10"
    strengths = find_experiment("suppress-collapse-strength", "paper")
    weights = [arm.phases[0].penalties[0].weight for arm in list(strengths.arms.values())[1:]]
    assert weights == [-1e-2, -1e-3, -1e-4, -1e-5, -1e-6]
    assert strengths.seeds == (42,)


def test_the_paper_s_sweeps_of_flatness_are_as_published():
    strength = find_experiment("suppress-flatness-strength", "paper")
    phases = [run.phases[0] for name, run in strength.arms.items() if name != "baseline"]
    assert [each.penalties[0].weight for each in phases] == [-0.5, -0.1, -1e-3, -1e-4]
    assert {each.until for each in phases} == {300 * CIFAR}
    caps = find_experiment("suppress-flatness-cap", "paper")
    heights = [run.phases[0].constraints for name, run in caps.arms.items() if name != "baseline"]
    assert [each[0].cap for each in heights] == [20, 100, 150, 200]


def both_signs(name: str) -> set[float]:
    runs = find_experiment(name, "small").arms.values()
    return {penalty.weight for run in runs for p in run.phases for penalty in p.penalties}


def test_both_signs_run():
    assert max(both_signs("suppress-collapse")) < 0 < min(both_signs("encourage-collapse"))
    assert max(both_signs("suppress-flatness")) < 0 < min(both_signs("encourage-flatness"))


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if "grokking" not in name])
def test_scales_differ_in_size_and_not_in_what_is_asked(name):
    paper, small = find_experiment(name, "paper"), find_experiment(name, "small")
    assert small.claims == paper.claims
    assert small.figures == paper.figures
    assert cost(small) < cost(paper) / 100


def cost(experiment: Experiment) -> float:
    """Images seen, times the square of the width."""

    def of(run: Run) -> float:
        assert isinstance(run.task, Images)
        return run.phases[-1].until * run.batch_size * run.task.width**2

    return sum(map(of, experiment.arms.values()))
