"""A segment's id stands for its outcome: the same for the same outcome, another for another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from grokscope.experiments.grokking import grokking
from grokscope.interventions import (
    FrobeniusCap,
    LogitScaleCap,
    Penalty,
    SharpnessAware,
    SpectralCap,
)
from grokscope.spec import (
    CustomTask,
    Experiment,
    Images,
    ModularArithmetic,
    Observation,
    Optimizer,
    Phase,
    Run,
    Seeds,
    override,
)

PHASES = (Phase(until=10), Phase(until=20))
RUN = Run(phases=PHASES)


def ids(run: Run, seed: int = 1) -> list[str]:
    return [segment.id for segment in run.segments(seed)]


def changed(**settings: object) -> Run:
    return Run(**({"phases": PHASES} | settings))


def first_phase(**settings: object) -> Run:
    return changed(phases=(Phase(until=10, optimizer=Optimizer(**settings)), PHASES[1]))


def phase(**settings: object) -> Run:
    return changed(phases=(Phase(until=10, **settings), PHASES[1]))


PENALTY = Penalty(measure="relative_flatness_bound", weight=-0.1)
OTHERWISE = {
    "operation": changed(task=ModularArithmetic(operation="subtraction")),
    "modulus": changed(task=ModularArithmetic(modulus=89)),
    "train fraction": changed(task=ModularArithmetic(train_fraction=0.41)),
    "answers": changed(task=ModularArithmetic(answers=1)),
    "vocabulary": changed(task=ModularArithmetic(vocabulary=200)),
    "width": changed(task=ModularArithmetic(width=64)),
    "heads": changed(task=ModularArithmetic(heads=2)),
    "layers": changed(task=ModularArithmetic(layers=1)),
    "batch size": changed(batch_size=511),
    "points per decade": changed(observation=Observation(per_decade=11)),
    "gap": changed(observation=Observation(max_gap=51)),
    "examples of training data": changed(observation=Observation(train_examples=1000)),
    "examples of held-out data": changed(observation=Observation(validation_examples=1000)),
    "seed of the split": changed(seeds=Seeds(split=2)),
    "seed of the initialisation": changed(seeds=Seeds(initialisation=2)),
    "seed of the order": changed(seeds=Seeds(order=2)),
    "optimiser": first_phase(name="sgd"),
    "learning rate": first_phase(lr=1.0001e-3),
    "weight decay": first_phase(weight_decay=1e-9),
    "betas": first_phase(betas=(0.9, 0.99)),
    "momentum": first_phase(name="sgd", momentum=0.5),
    "warm-up": first_phase(warmup_steps=1),
    "schedule": first_phase(schedule="cosine"),
    "end of the schedule": first_phase(schedule="cosine", final_lr=1e-5),
    "end": changed(phases=(Phase(until=11), PHASES[1])),
    "custom": changed(task=CustomTask(function="m.py:f")),
    "function": changed(task=CustomTask(function="m.py:g")),
    "arguments": changed(task=CustomTask(function="m.py:f", arguments={"width": 1})),
    "value of an argument": changed(task=CustomTask(function="m.py:f", arguments={"width": 2})),
    "penalty": phase(penalties=(PENALTY,)),
    "weight of a penalty": phase(penalties=(PENALTY.model_copy(update={"weight": -0.2}),)),
    "temperature of a penalty": phase(penalties=(PENALTY.model_copy(update={"temperature": 2.0}),)),
    "features of a penalty": phase(
        penalties=(PENALTY.model_copy(update={"normalize_features": True}),)
    ),
    "start of a penalty": phase(penalties=(PENALTY.model_copy(update={"start": 2}),)),
    "stop of a penalty": phase(penalties=(PENALTY.model_copy(update={"stop": 5}),)),
    "measure of a penalty": phase(penalties=(Penalty(measure="ncc", weight=-0.1),)),
    "memory of a penalty": phase(penalties=(Penalty(measure="ncc", weight=-0.1, memory=0.9),)),
    "cap": phase(constraints=(FrobeniusCap(cap=5),)),
    "height of a cap": phase(constraints=(FrobeniusCap(cap=6),)),
    "norm of a cap": phase(constraints=(SpectralCap(cap=5),)),
    "cap of the logit scale": phase(constraints=(LogitScaleCap(cap=5),)),
    "SAM": phase(sharpness_aware=SharpnessAware()),
    "radius of SAM": phase(sharpness_aware=SharpnessAware(radius=0.1)),
    "label smoothing": phase(label_smoothing=0.1),
    "temperature": phase(temperature=2.0),
    "precision": phase(precision="bfloat16"),
    "images": changed(task=Images()),
    "images, source": changed(task=Images(source="digits")),
    "images, size": changed(task=Images(size=32)),
    "images, training examples": changed(task=Images(train_examples=100)),
    "images, held-out examples": changed(task=Images(validation_examples=100)),
    "images, held out of": changed(task=Images(validation_from="train", validation_examples=100)),
    "images, normalisation": changed(task=Images(normalisation="cifar10")),
    "images, crops": changed(task=Images(crop_padding=4)),
    "images, flips": changed(task=Images(flip=True)),
    "images, stem": changed(task=Images(stem="cifar")),
    "images, initialisation": changed(task=Images(initialisation="torchvision")),
    "images, width": changed(task=Images(width=32)),
    "depth of an argument": changed(task=CustomTask(function="m.py:f", arguments={"a": {"b": 1}})),
}


def test_whatever_decides_the_outcome_decides_the_id():
    runs = {"plain": RUN, **OTHERWISE}
    every = [each for run in runs.values() for each in ids(run)] + ids(RUN, seed=2)
    assert len(set(every)) == len(every)


def test_every_setting_of_a_run_is_among_those():
    # Whoever adds a setting adds it above, or says here why it decides nothing.
    models = (
        ModularArithmetic, Images, CustomTask, Optimizer, Phase, Observation, Seeds, Run,
        Penalty, FrobeniusCap, SpectralCap, LogitScaleCap, SharpnessAware,
    )  # fmt: skip
    expected = (9, 12, 3, 8, 8, 4, 3, 5, 7, 4, 4, 4, 3)
    assert tuple(len(model.model_fields) for model in models) == expected


SAME = {
    "a default written out": (changed(batch_size=512, observation=Observation(max_gap=50)), RUN),
    "a whole number as a float": (first_phase(weight_decay=1.0), first_phase(weight_decay=1)),
    "a minus before zero": (first_phase(weight_decay=-0.0), RUN),
    "a list for a tuple": (first_phase(betas=[0.8, 0.9]), first_phase(betas=(0.8, 0.9))),
    "a mapping for settings": (changed(task={"kind": "modular", "modulus": 97}), RUN),
    "the run's seed written out": (changed(seeds=Seeds(split=1, order=1)), RUN),
    "arguments in another order": (
        changed(task=CustomTask(function="m.py:f", arguments={"a": 1, "b": {"c": 2, "d": 3}})),
        changed(task=CustomTask(function="m.py:f", arguments={"b": {"d": 3, "c": 2}, "a": 1})),
    ),
}


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME)
def test_equal_settings_written_otherwise_have_one_id(one, other):
    assert ids(one) == ids(other)


def test_a_seed_is_a_seed_whether_the_run_or_its_own_says_so():
    apart = changed(seeds=Seeds(split=5, initialisation=5, order=5))
    assert ids(apart, seed=9) == ids(RUN, seed=5)


def test_arms_that_begin_alike_share_their_beginning_and_nothing_more():
    other = changed(phases=(PHASES[0], Phase(until=20, optimizer=Optimizer(lr=0.1))))
    (start, end), (other_start, other_end) = ids(RUN), ids(other)
    assert start == other_start
    assert len({start, end, other_end}) == 3


def test_what_comes_later_does_not_matter():
    longer = changed(phases=(*PHASES, Phase(until=30, optimizer=Optimizer(name="sgd"))))
    assert ids(longer)[:2] == ids(RUN)
    assert ids(changed(phases=PHASES[:1])) == ids(RUN)[:1]


def test_a_parent_is_the_segment_that_the_chain_has_before():
    longer = changed(phases=(*PHASES, Phase(until=30)))
    first, second, third = longer.segments(seed=3)
    assert (third.parent, second.parent, first.parent) == (second, first, None)


def test_names_seeds_and_other_arms_of_an_experiment_do_not_matter():
    one = Experiment(name="a", title="A", question="?", arms={"x": RUN}, seeds=(1,))
    more = Experiment(
        name="b", title="B", question="!", arms={"y": OTHERWISE["width"], "z": RUN}, seeds=(2, 1)
    )
    wanted = {segment.id for _, _, chain in one.runs() for segment in chain}
    assert wanted < {segment.id for _, _, chain in more.runs() for segment in chain}


def test_a_change_that_is_taken_back_leaves_no_trace():
    tiny = grokking("tiny")
    there = override(tiny, ["task.modulus=13"])
    back = override(there, ["task.modulus=11"])
    of = [[segment.id for _, _, chain in each.runs() for segment in chain] for each in (tiny, back)]
    assert of[0] == of[1]


def test_ids_are_the_same_in_every_process():
    program = (
        "from test_segment_ids import OTHERWISE, ids\n"
        "print(' '.join(id for run in OTHERWISE.values() for id in ids(run)))"
    )
    here = str(Path(__file__).parent)
    for salt in ("1", "77"):
        environment = {**os.environ, "PYTHONHASHSEED": salt, "PYTHONPATH": here}
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True, text=True, check=True, env=environment,
        )  # fmt: skip
        assert done.stdout.split() == [each for run in OTHERWISE.values() for each in ids(run)]


def test_an_id_is_twelve_hexadecimal_digits():
    for run in OTHERWISE.values():
        for each in ids(run):
            assert len(each) == 12
            assert set(each) <= set("0123456789abcdef")


def test_the_ids_of_the_grokking_experiment_are_these():
    # Results on disks everywhere are found by these. Another id here makes all of them worthless:
    # change a default, or the meaning of a setting, together with FORMAT and with this line only.
    found = {
        preset: grokking(preset).arms["grokking"].segments(seed=1)[0].id
        for preset in ("default", "two-tokens", "paper", "tiny")
    }
    assert found == {
        "default": "22208dbdbf2f",
        "two-tokens": "9c466d8dd776",
        "paper": "3d98ed479efe",
        "tiny": "ff50b17f5df2",
    }
