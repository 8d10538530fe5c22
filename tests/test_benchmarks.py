"""The benchmarks' contenders run, and do the same work."""

from __future__ import annotations

import torch
from benchmarks import baselines, growth, images, replicas, step
from benchmarks.timing import Table, Timed

from grokscope.measures import ClassMoments, ncc


def test_the_contenders_of_an_image_step_run():
    split = images.data()
    for contender in (
        images.plain_step(split, augmented=True),
        images.our_step(split, augmented=True),
        images.our_step(split, label_smoothing=0.1),
        images.penalty_alone(images.Penalty(measure="ncc", weight=1.0)),
        images.penalty_alone(None),
    ):
        contender()


def test_the_contenders_of_a_grokking_step_run():
    for contender in (step.plain_loop(), step.our_step(1), step.our_step(2)):
        contender()


def test_plain_and_batched_images_are_normalised_alike():
    split = images.data()
    plain, _ = images.PlainImages(split.inputs, split.labels, augmented=False)[3]
    ours = images.Normalise((0.5,), (0.5,))(split.inputs[3:4])[0]
    torch.testing.assert_close(plain, ours)


def test_the_contenders_with_several_runs_run():
    for contender in (replicas.grokking(2), replicas.solo_grokking("bfloat16"), replicas.images(2)):
        contender()


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
