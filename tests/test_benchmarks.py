"""The benchmarks' contenders run, and do the same work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import baselines, collapse, growth, images, replicas, step
from benchmarks.timing import Table, Timed

from grokscope.measures import ClassMoments, ncc

ROOT = Path(__file__).parent.parent


def test_the_contenders_of_an_image_step_run():
    split = images.data()
    for contender in (
        images.plain_step(split, augmented=True),
        images.our_step(split, augmented=True),
        images.our_step(split, label_smoothing=0.1),
        images.replicas_step(split, lambda: images.ResNet18(width=4)),
        images.replicas_step(split, lambda: baselines.PlainResNet(width=4)),
        images.penalty_alone(images.Penalty(measure="ncc", weight=1.0)),
        images.penalty_alone(None),
    ):
        contender()


def test_the_plain_network_of_an_image_step_computes_what_ours_computes():
    torch.manual_seed(0)
    ours, plain = images.ResNet18().double(), baselines.PlainResNet().double()
    plain.load_state_dict(ours.state_dict())
    batch, labels = torch.randn(8, 3, 32, 32).double(), torch.arange(8)
    assert {type(each) for each in plain.modules() if isinstance(each, torch.nn.Conv2d)} == {
        torch.nn.Conv2d
    }
    logits, gradients = [], []
    for model in (ours, plain):
        logits.append(model(batch))
        loss = torch.nn.functional.cross_entropy(logits[-1], labels)
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    torch.testing.assert_close(*logits, rtol=0, atol=1e-9)
    for mine, other in zip(*gradients, strict=True):
        assert float((mine - other).norm()) <= 1e-9 * float(other.norm())


def test_the_contenders_of_a_grokking_step_run():
    for contender in (step.plain_loop(), step.our_step(1), step.our_step(2)):
        contender()


def test_plain_and_batched_images_are_normalised_alike():
    split = images.data()
    plain, _ = images.PlainImages(split.inputs, split.labels, augmented=False)[3]
    ours = images.Normalise((0.5,), (0.5,))(split.inputs[3:4])[0]
    torch.testing.assert_close(plain, ours)


def test_the_contenders_with_several_runs_run():
    for run in (replicas.grokking(), replicas.images()):
        for contender in (replicas.together(run, 2), replicas.solo(run)):
            contender()
    replicas.solo(replicas.grokking("bfloat16"))()


MEASURED = """
import re, sys
from pathlib import Path
from benchmarks import replicas
from grokscope.engine.memory import bytes_of
step = replicas.together(getattr(replicas, sys.argv[1])(), int(sys.argv[2]))
for _ in range(3):
    step()
status = Path("/proc/self/status").read_text()
print(1024 * int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]), bytes_of(step.__self__.trainings[0]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="no peak to be read here")
@pytest.mark.parametrize("name", ["grokking", "images"])
def test_the_memory_of_a_replica_is_about_what_the_system_sees(name):
    def peak(count: int) -> list[int]:
        command = [sys.executable, "-c", MEASURED, name, str(count)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return [int(each) for each in done.stdout.split()]

    (few, told), (many, _) = peak(1), peak(7)
    assert 0.4 < (many - few) / 6 / told < 2.5


def test_replicas_are_timed_in_the_mode_in_which_a_run_trains():
    own = replicas.together(replicas.images(), 2).__self__
    assert all(each.training for run in own.trainings for each in run.task.model.modules())


def test_sizes_are_read_from_names():
    names = {"10,000 classes": 10_000, "grokscope, replicas in one process: 8": 8}
    assert {name: growth.size(name) for name in names} == names


def test_growth_is_drawn(tmp_path):
    tables = []
    for name, keys in {
        "kappa by classes": ["10 classes", "100 classes"],
        "NCC by classes": ["10 classes", "100 classes"],
        "moments by samples": ["1,000 samples", "10,000 samples"],
        "grokking replicas": ["other", "replicas in one process: 1", "replicas in one process: 2"],
    }.items():
        table = Table(name, "how long?", keys[0])
        table.times = {key: Timed(1.0, 1.0, 1.0) for key in keys}
        tables.append(table)
    growth.draw(tables, tmp_path)
    assert (tmp_path / growth.PICTURE).read_text().count("linear") >= 1


def test_the_loops_over_a_batch_are_ncc():
    features, labels = torch.randn(20, 3), torch.arange(20) % 4 + 2
    loops = baselines.ncc_penalty_by_loops(features, features, labels, features)
    exact = ncc(ClassMoments.from_batch(features, labels, 9))
    torch.testing.assert_close(loops.double(), exact, rtol=1e-4, atol=0)


def test_the_contenders_at_scale_measure_the_same():
    stored = collapse.Stored.made(examples=400, width=12, classes=5)
    one_by_one = collapse.functions(stored)
    for contender in collapse.whole(stored).values():
        measured = contender()
        for name in collapse.SET:
            assert measured[name] == pytest.approx(float(one_by_one[name]), rel=1e-5), name


def test_the_library_measures_what_we_do():
    pytest.importorskip("neural_collapse")
    stored = collapse.Stored.made(examples=400, width=12, classes=5)
    measured = collapse.functions(stored)
    for size in (400, 64):
        for name, value in collapse.library(stored, size).items():
            if name != "duality":  # another definition
                assert value == pytest.approx(float(measured[name]), rel=1e-3), name
