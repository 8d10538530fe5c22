"""Settings: what is refused and how, what a file gives back, when is measured, at which rate."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from grokscope.experiments import EXPERIMENTS, find_experiment
from grokscope.spec import (
    CustomTask,
    Experiment,
    ModularArithmetic,
    Observation,
    Optimizer,
    PaperValue,
    Phase,
    Run,
    Seeds,
    Segment,
    explain,
    read_experiment,
    to_yaml,
)

LONG = {"phases": [{"until": 10}]}
RUN = Run(phases=(Phase(until=10),))
OURS = [(name, preset) for name, entry in EXPERIMENTS.items() for preset in entry.presets]


def experiment(**changes: object) -> Experiment:
    settings: dict[str, object] = {"name": "x", "title": "X", "question": "?", "arms": {"a": RUN}}
    return Experiment(**(settings | changes))


REFUSED = {
    "heads that do not divide the width": (
        lambda: ModularArithmetic(width=128, heads=3),
        "settings: heads=3 must divide width=128",
    ),
    "an odd width": (
        lambda: ModularArithmetic(width=33),
        "width: Input should be a multiple of 2 (got 33)",
    ),
    "division by a composite": (
        lambda: ModularArithmetic(operation="division", modulus=91),
        "settings: division needs a prime modulus, but 91 is not prime",
    ),
    "a vocabulary below the tokens": (
        lambda: ModularArithmetic(modulus=97, vocabulary=99),
        "settings: vocabulary=99 is too small: 100 tokens are used",
    ),
    "a vocabulary below the permutations": (
        lambda: ModularArithmetic(operation="s5_composition", modulus=5, vocabulary=122),
        "settings: vocabulary=122 is too small: 123 tokens are used",
    ),
    "a split without training data": (
        lambda: ModularArithmetic(modulus=3, train_fraction=0.1),
        "settings: train_fraction=0.1 leaves 1 of 9 equations for training; both splits need at "
        "least 2",
    ),
    "a split without held-out data": (
        lambda: ModularArithmetic(modulus=3, operation="division", train_fraction=0.9),
        "settings: train_fraction=0.9 leaves 5 of 6 equations for training; both splits need at "
        "least 2",
    ),
    "a share that is none": (
        lambda: ModularArithmetic(train_fraction=40),
        "train_fraction: Input should be less than 1 (got 40)",
    ),
    "a modulus that is no number": (
        lambda: ModularArithmetic(modulus="many"),
        "modulus: Input should be a valid integer, unable to parse string as an integer "
        "(got 'many')",
    ),
    "a setting that does not exist": (
        lambda: ModularArithmetic(modulos=53),
        "modulos: there is no such setting (got 53)",
    ),
    "a decay rate of one": (
        lambda: Optimizer(betas=(0.9, 1.0)),
        "settings: betas=(0.9, 1.0) must lie in [0, 1)",
    ),
    "an infinite learning rate": (
        lambda: Optimizer(lr=math.inf),
        "lr: Input should be a finite number (got inf)",
    ),
    "a learning rate of zero": (
        lambda: Optimizer(lr=0),
        "lr: Input should be greater than 0 (got 0)",
    ),
    "a run without phases": (
        lambda: Run(phases=()),
        "settings: phases is empty; a run needs at least one phase",
    ),
    "phases that go back": (
        lambda: Run(phases=(Phase(until=5), Phase(until=3))),
        "settings: phases must end one after the other, but end at [5, 3]",
    ),
    "a phase without length": (
        lambda: Run(phases=(Phase(until=5), Phase(until=5))),
        "settings: phases must end one after the other, but end at [5, 5]",
    ),
    "a seed below zero": (
        lambda: Seeds(split=-1),
        "split: Input should be greater than or equal to 0 (got -1)",
    ),
    "a seed that no generator takes": (
        lambda: experiment(seeds=(2**63,)),
        "seeds.0: Input should be less than 9223372036854775808 (got 9223372036854775808)",
    ),
    "the same seed twice": (
        lambda: experiment(seeds=(1, 2, 1)),
        "settings: seeds must be distinct, but are 1, 2, 1",
    ),
    "no seeds": (
        lambda: experiment(seeds=()),
        "settings: seeds is empty; an experiment needs at least one seed",
    ),
    "no arms": (
        lambda: experiment(arms={}),
        "arms: Dictionary should have at least 1 item after validation, not 0",
    ),
    "a name that is no folder's": (
        lambda: experiment(name="a/b"),
        "name: String should match pattern '^[a-z0-9][a-z0-9-]*$' (got 'a/b')",
    ),
    "a wrong setting in an arm that is called like a kind of task": (
        lambda: experiment(arms={"modular": {"task": {"kind": "modular", "modulus": 1}, **LONG}}),
        "arms.modular.task.modulus: Input should be greater than or equal to 2 (got 1)",
    ),
    "an argument that YAML cannot hold": (
        lambda: CustomTask(function="a:b", arguments={"classes": {1, 2}}),
        "arguments.classes: input was not a valid JSON value",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_settings_are_refused_with_one_clear_line(make, message):
    with pytest.raises(ValidationError) as refused:
        make()
    assert explain(refused.value) == message


def test_several_mistakes_are_told_at_once():
    with pytest.raises(ValidationError) as refused:
        Optimizer(lr=-1, momentum=2)
    told = explain(refused.value)
    assert told == (
        "lr: Input should be greater than 0 (got -1); momentum: Input should be less than 1 (got 2)"
    )


@pytest.mark.parametrize("measured", ["", "memorised", "last train/ncc", "highest validation/loss"])
def test_a_value_of_the_paper_says_where_the_measured_one_is(measured):
    assert PaperValue(what="w", value="v", measured=measured).measured == measured
    earlier = {"what": "w", "value": "v", "ours": measured}  # as version 0.1 wrote it
    assert PaperValue.model_validate(earlier).measured == measured


@pytest.mark.parametrize(
    "measured", ["median train/ncc", "last ncc", "memorized", "last train/ncc!"]
)
def test_a_value_of_the_paper_that_points_nowhere_is_refused(measured):
    with pytest.raises(ValidationError, match="should match pattern"):
        PaperValue(what="w", value="v", measured=measured)


def test_settings_never_change():
    with pytest.raises(ValidationError, match="frozen"):
        RUN.batch_size = 3  # type: ignore[misc]


# Files.


@pytest.mark.parametrize(("name", "preset"), OURS)
def test_a_file_gives_every_experiment_back(name, preset, tmp_path):
    written = find_experiment(name, preset)
    path = tmp_path / "experiment.yaml"
    path.write_text(to_yaml(written), encoding="utf-8")
    assert read_experiment(path) == written


# PyYAML itself loses control characters and rare line ends.
TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")))
ARGUMENTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(TEXT, ARGUMENTS, max_size=3))
def test_any_argument_survives_its_file(tmp_path_factory, arguments):
    task = CustomTask(function="my.py:task", arguments=arguments)
    written = experiment(arms={"ä: [b]": RUN.model_copy(update={"task": task})})
    path = tmp_path_factory.mktemp("yaml") / "experiment.yaml"
    path.write_text(to_yaml(written), encoding="utf-8")
    assert read_experiment(path) == written


@pytest.mark.parametrize(
    "text", ["1e-3", "1E5", "-2e+3", "1.e3", "no", "null", "2020-01-01", "0x1F"]
)
def test_text_that_looks_like_something_else_stays_text(text, tmp_path):
    written = experiment(
        arms={"a": Run(task=CustomTask(function="m:f", arguments={"t": text}), **LONG)}
    )
    (tmp_path / "e.yaml").write_text(to_yaml(written))
    assert read_experiment(tmp_path / "e.yaml").arms["a"].task.arguments == {"t": text}
    # Other readers of YAML see text, too.
    assert yaml.safe_load(to_yaml(written))["arms"]["a"]["task"]["arguments"] == {"t": text}


def test_settings_in_a_file_stand_in_the_order_of_their_definition():
    keys = list(yaml.safe_load(to_yaml(experiment())))
    assert keys == list(Experiment.model_fields)


def test_a_file_that_is_not_there_is_answered_with_how_to_make_one(tmp_path):
    path = tmp_path / "study.yaml"
    with pytest.raises(FileNotFoundError) as refused:
        read_experiment(path)
    assert str(refused.value) == f"there is no file {path}; grokscope show NAME > {path} writes one"


@pytest.mark.parametrize("kind", ["modular", "images", "custom"])
def test_the_kind_of_a_task_is_no_part_of_the_path_of_a_mistake(kind):
    with pytest.raises(ValidationError) as refused:
        experiment(arms={"a": {"task": {"kind": kind, "function": "m:f", "withd": 3}, **LONG}})
    assert "arms.a.task.withd: there is no such setting" in explain(refused.value)


@pytest.mark.parametrize("kind", ["frobenius", "spectral", "logit_scale"])
def test_nor_is_that_of_a_constraint(kind):
    phase = {"until": 10, "constraints": [{"kind": kind, "mots": 3}]}
    with pytest.raises(ValidationError) as refused:
        experiment(arms={"a": {"phases": [phase]}})
    assert "arms.a.phases.0.constraints.0.mots: there is no such set" in explain(refused.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"name: [", "while parsing a flow node"),
        (b"", "Input should be a valid dictionary"),
        (b"\xff\xfe\x00", "codec can't decode"),
        (b"name: x\n", "title: Field required; question: Field required; arms: Field required"),
        (b"nome: x\n", "nome: there is no such setting"),
    ],
    ids=["broken", "empty", "binary", "incomplete", "misspelt"],
)
def test_a_file_that_is_no_experiment_is_named_with_its_problem(tmp_path: Path, content, problem):
    path = tmp_path / "experiment.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError) as refused:
        read_experiment(path)
    message = str(refused.value)
    assert message.startswith(f"{path} is not a grokscope experiment: ")
    assert problem in message
    assert "\n" not in message


# When is measured.

OBSERVATIONS = st.builds(Observation, per_decade=st.integers(1, 60), max_gap=st.integers(1, 600))


@given(OBSERVATIONS, st.integers(1, 20_000))
def test_a_run_is_measured_at_both_ends_and_never_too_rarely(observation, until):
    points = observation.points(until)
    assert points[0] == 0
    assert points[-1] == until
    gaps = [after - before for before, after in pairwise(points)]
    assert min(gaps) >= 1
    assert max(gaps) <= observation.max_gap


@given(OBSERVATIONS, st.integers(1, 5_000), st.integers(1, 5_000))
def test_a_longer_run_is_measured_wherever_a_shorter_one_is(observation, first, second):
    short, long = sorted((first, second))
    assert set(observation.points(short)[:-1]) <= set(observation.points(long))


@given(OBSERVATIONS, st.integers(1_000, 5_000))
def test_late_points_are_multiples_of_the_gap(observation, until):
    between = observation.points(until)[:-1]
    gap = observation.max_gap
    # From where a tenth of a decade and alike is more than the gap.
    far = 2 * gap / (10 ** (1 / observation.per_decade) - 1) + 2 * gap
    assert all(point % gap == 0 for point in between if point > far)


def test_early_points_are_spaced_by_decade():
    points = Observation(per_decade=10, max_gap=1_000_000).points(100_000)
    decades = [[p for p in points if 10**k <= p < 10 ** (k + 1)] for k in (2, 3, 4)]
    assert [len(each) for each in decades] == [10, 10, 10]


# At which rate.


@pytest.mark.parametrize(("start", "until"), [(0, 40), (40, 41), (13, 200)])
def test_the_cosine_is_that_of_torch(start, until):
    settings = Optimizer(lr=0.3, schedule="cosine", final_lr=0.01)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    length = until - start
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, length, eta_min=0.01)
    for step in range(start + 1, until + 1):
        rate = optimizer.param_groups[0]["lr"]
        assert settings.rate(step, start, until) == pytest.approx(rate, rel=1e-9)
        optimizer.step()
        schedule.step()


@given(st.floats(1e-6, 1), st.integers(1, 500), st.integers(1, 1000))
def test_warming_up_is_a_straight_line_through_zero_to_the_full_rate(lr, warmup, step):
    rate = Optimizer(lr=lr, warmup_steps=warmup).rate(step, 0, 1000)
    assert rate == pytest.approx(lr * step / warmup if step < warmup else lr)


def test_warming_up_counts_from_the_start_of_the_run_not_of_the_phase():
    settings = Optimizer(lr=1.0, warmup_steps=10)
    assert settings.rate(5, 0, 20) == 0.5
    assert settings.rate(21, 20, 40) == 1.0


def test_warming_up_and_the_cosine_multiply():
    both = Optimizer(lr=1.0, warmup_steps=10, schedule="cosine")
    half = 0.5 * (1 + math.cos(math.pi * 4 / 100))  # after 4 of 100 steps, before warm-up
    assert both.rate(5, 0, 100) == pytest.approx(0.5 * half)


# Seeds.


def test_seeds_that_are_set_do_not_follow_the_run():
    assert Seeds(split=0).resolve(42) == Seeds(split=0, initialisation=42, order=42)
    assert Seeds().resolve(0) == Seeds(split=0, initialisation=0, order=0)


def test_every_arm_runs_with_every_seed_phase_by_phase():
    two = Run(phases=(Phase(until=5), Phase(until=9)))
    chains = list(experiment(arms={"a": RUN, "b": two}, seeds=(7, 3)).runs())
    assert [(arm, seed, len(chain)) for arm, seed, chain in chains] == [
        ("a", 7, 1),
        ("a", 3, 1),
        ("b", 7, 2),
        ("b", 3, 2),
    ]
    first, second = chains[2][2]
    assert isinstance(first, Segment)
    assert (first.start, first.phase.until) == (0, 5)
    assert (second.start, second.phase.until) == (5, 9)
    assert first.parent is None
    assert second.parent == first
