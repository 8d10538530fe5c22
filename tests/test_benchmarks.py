"""The benchmarks' contenders run, and do the same work."""

from __future__ import annotations

import torch
from benchmarks import images, step


def test_the_contenders_of_an_image_step_run():
    split = images.data()
    for contender in (
        images.plain_step(split, augmented=True),
        images.our_step(split, augmented=True),
        images.our_step(split, label_smoothing=0.1),
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
