"""Image tasks: normalisation and augmentation against plain transcriptions, subsets by seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from grokscope.engine.loop import Training
from grokscope.probe import Probe
from grokscope.spec import Images, Observation, Optimizer, Phase, Run, Seeds
from grokscope.tasks import Split, build_task, check_task
from grokscope.tasks.image_data import read_images
from grokscope.tasks.images import CropAndFlip, Normalise, images
from made_images import encoded, hub, pictures

DIGITS = Images(source="digits", stem="cifar", width=4)


@pytest.fixture(autouse=True)
def _own_places(tmp_path, monkeypatch):
    monkeypatch.setenv("GROKSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GROKSCOPE_DATA", raising=False)


# Normalisation.


@pytest.mark.parametrize(
    ("mean", "std", "channels"),
    [((0.5,), (0.5,), 1), ((0.5,), (0.5,), 3), ((0.4914, 0.48, 0.44), (0.2023, 0.2, 0.21), 3)],
)
def test_normalisation_is_the_textbook_s(mean, std, channels):
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, channels, 1, 1)
    made = Normalise(mean, std)(every)
    expected = (every.numpy() / 255 - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1))
    assert made.dtype == torch.float32
    np.testing.assert_allclose(made.numpy(), expected, atol=1e-6)


def test_normalisation_is_no_part_of_what_is_stored():
    assert not Normalise((0.5,), (0.5,)).state_dict()


@pytest.mark.parametrize("count", [None, 12])
def test_by_its_own_data_each_channel_has_mean_0_and_standard_deviation_1(tmp_path, count):
    scaled = (pictures(30) * [1, 0.5, 0.1] + [0, 20, 200]).astype(np.uint8)
    hub(tmp_path, [encoded(each) for each in scaled], [0, 1, 2] * 10)
    hub(tmp_path, [encoded(each) for each in pictures(6)], [0, 1, 2] * 2, "test.parquet")
    settings = Images(source=str(tmp_path), normalisation="data", width=4, train_examples=count)
    task = images(settings, split_seed=1)
    made = task.model[0](task.train.inputs).double()
    torch.testing.assert_close(made.mean((0, 2, 3)), torch.zeros(3).double(), atol=1e-5, rtol=0)
    std = made.std((0, 2, 3), correction=0)
    torch.testing.assert_close(std, torch.ones(3).double(), atol=1e-5, rtol=0)


def test_images_of_one_colour_are_normalised_to_zero(tmp_path):
    black = np.zeros((4, 4), dtype=np.uint8)
    for file in ("train.parquet", "test.parquet"):
        hub(tmp_path, [encoded(black)] * 4, [0, 1, 0, 1], file)
    task = images(Images(source=str(tmp_path), normalisation="data", width=4), split_seed=1)
    assert float(task.model[0](task.train.inputs).abs().max()) == 0


# Augmentation.


def augmented(augment: CropAndFlip, inputs: torch.Tensor, seed: int) -> torch.Tensor:
    return augment(inputs, augment.draw(len(inputs), torch.Generator().manual_seed(seed)))


def one_by_one(inputs: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Pad, crop, mirror: each image by itself, with offsets drawn in the same order."""
    count, _, height, width = inputs.shape
    mirrored = (torch.rand(count, generator=generator) < 0.5).tolist() if flip else [False] * count
    down, right = [0] * count, [0] * count
    if padding:
        shifts = torch.randint(2 * padding + 1, (2, count, 1), generator=generator)
        down, right = shifts[0, :, 0].tolist(), shifts[1, :, 0].tolist()
    made = []
    for place, image in enumerate(inputs.numpy()):
        padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
        top, left = down[place], right[place]
        crop = padded[:, top : top + height, left : left + width]
        made.append(crop[:, :, ::-1] if mirrored[place] else crop)
    return torch.from_numpy(np.stack(made))


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 5, 9), (3, 7, 4)])
def test_augmentation_is_pad_crop_and_mirror_image_by_image(shape, padding, flip):
    inputs = torch.randint(256, (40, *shape), dtype=torch.uint8)
    before = inputs.clone()
    made = augmented(CropAndFlip(padding, flip), inputs, seed=7)
    expected = one_by_one(inputs, padding, flip, torch.Generator().manual_seed(7))
    assert (made.dtype, made.shape) == (torch.uint8, inputs.shape)
    assert torch.equal(made, expected)
    assert torch.equal(inputs, before)


def test_what_was_outside_the_image_is_black():
    white = torch.full((500, 3, 6, 6), 255, dtype=torch.uint8)
    made = augmented(CropAndFlip(2, False), white, seed=0)
    assert made.unique().tolist() == [0, 255]
    rows = (made[:, 0].amax(2) == 0).sum(1)  # black from one side to the other
    columns = (made[:, 0].amax(1) == 0).sum(1)
    met = Counter(zip(rows.tolist(), columns.tolist(), strict=True))
    assert set(met) == {(a, b) for a in range(3) for b in range(3)}
    assert met[0, 0] / 500 == pytest.approx(1 / 25, abs=0.03)  # one of five offsets either way


def test_half_of_the_images_are_mirrored_and_none_is_changed_otherwise():
    inputs = torch.randint(256, (400, 1, 6, 6), dtype=torch.uint8)
    made = augmented(CropAndFlip(0, True), inputs, seed=0)
    same = (made == inputs).flatten(1).all(1)
    mirrored = (made == inputs.flip(3)).flatten(1).all(1)
    assert bool((same | mirrored).all())
    assert int(same.sum()) == pytest.approx(200, abs=50)  # five standard deviations


def test_augmentation_depends_on_its_generator_alone():
    inputs = torch.randint(256, (50, 3, 6, 6), dtype=torch.uint8)
    augment = CropAndFlip(2, True)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = augmented(augment, inputs, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(augmented(augment, inputs, seed=3), first)
    assert not torch.equal(augmented(augment, inputs, seed=4), first)


# Subsets. Every image of this set says which it is: number n has the colour n.


@pytest.fixture
def numbered(tmp_path) -> Images:
    def squares(start: int, count: int) -> list[bytes]:
        return [encoded(np.full((8, 8), start + n, dtype=np.uint8)) for n in range(count)]

    hub(tmp_path, squares(0, 90), [n % 3 for n in range(90)])
    hub(tmp_path, squares(200, 30), [n % 3 for n in range(30)], "test.parquet")
    return Images(source=str(tmp_path), stem="cifar", width=4)


def numbers(split: Split | None) -> list[int]:
    assert split is not None
    assert split.labels.tolist() == [(n % 200) % 3 for n in split.inputs[:, 0, 0, 0].tolist()]
    return split.inputs[:, 0, 0, 0].tolist()


def changed(settings: Images, **changes: object) -> Images:
    return Images.model_validate(settings.model_dump() | changes)


def test_without_limits_every_image_is_used_once(numbered):
    task = images(numbered, split_seed=1)
    assert sorted(numbers(task.train)) == list(range(90))
    assert sorted(numbers(task.validation)) == list(range(200, 230))
    assert task.test is None
    assert task.model[1].fc.out_features == 3
    assert task.model[1].conv1.in_channels == 1


def test_subsets_hold_each_class_by_its_share(numbered):
    task = images(changed(numbered, train_examples=33, validation_examples=12), split_seed=1)
    assert Counter(task.train.labels.tolist()) == {0: 11, 1: 11, 2: 11}
    assert Counter(task.validation.labels.tolist()) == {0: 4, 1: 4, 2: 4}
    assert task.train.labels.tolist() != sorted(task.train.labels.tolist())
    assert len(set(numbers(task.train))) == 33


@pytest.mark.parametrize("held_out", ["test", "train"])
def test_subsets_belong_to_the_seed_of_the_split(numbered, held_out):
    settings = changed(
        numbered, train_examples=30, validation_examples=12, validation_from=held_out
    )
    first, again, other = (images(settings, split_seed=seed) for seed in (1, 1, 2))
    for name in ("train", "validation"):
        one, same, another = (numbers(getattr(task, name)) for task in (first, again, other))
        assert one == same
        assert set(one) != set(another)


def test_images_held_out_of_the_training_set_are_not_trained_on(numbered):
    settings = changed(numbered, validation_from="train", validation_examples=24)
    task = images(settings, split_seed=1)
    train, held_out = numbers(task.train), numbers(task.validation)
    assert sorted(train + held_out) == list(range(90))
    assert len(held_out) == 24
    assert sorted(numbers(task.test)) == list(range(200, 230))


def test_more_training_images_do_not_change_which_are_held_out(numbered):
    settings = changed(numbered, validation_from="train", validation_examples=24)
    few = images(changed(settings, train_examples=12), split_seed=1)
    many = images(changed(settings, train_examples=60), split_seed=1)
    assert numbers(few.validation) == numbers(many.validation)


def test_weights_belong_to_the_seed_of_the_initialisation(numbered):
    def weights(split: int, initialisation: int) -> Tensor:
        seeds = Seeds(split=split, initialisation=initialisation, order=1)
        model = build_task(numbered, seeds).model
        return torch.cat([each.detach().flatten() for each in model.parameters()])

    first = weights(1, 5)
    assert torch.equal(first, weights(2, 5))
    assert not torch.equal(first, weights(1, 6))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_examples": 91}, r"task.train_examples=91 is more than the 90 images there are"),
        ({"validation_examples": 31}, r"task.validation_examples=31 is more than the 30 images"),
        (
            {"validation_from": "train", "validation_examples": 60, "train_examples": 31},
            r"task.train_examples=31 is more than the 30 images there are to draw from",
        ),
        (
            {"validation_from": "train", "validation_examples": 90},
            r"task.validation_examples=90 leaves 0 of 90 images to train on",
        ),
        (
            {"normalisation": "cifar10"},
            r"task.normalisation=cifar10 is for 3 channels, but the images have 1; choose half or",
        ),
    ],
)
def test_what_the_data_do_not_give_is_refused(numbered, changes, message):
    with pytest.raises(ValueError, match=message):
        images(changed(numbered, **changes), split_seed=1)


def test_splits_of_two_shapes_are_refused(numbered):
    hub(
        Path(numbered.source), [encoded(each) for each in pictures(4)], [0, 1, 2, 0], "test.parquet"
    )
    with pytest.raises(ValueError, match=r"shape \(1, 8, 8\) .* the test images \(3, 4, 6\)"):
        images(numbered, split_seed=1)


def test_a_folder_that_is_not_there_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        check_task(Images(source=str(tmp_path / "nowhere")))
    check_task(DIGITS)


# Together.


def test_the_published_normalisation_is_that_of_the_paper_s_code(tmp_path):
    for file in ("train.parquet", "test.parquet"):
        hub(tmp_path, [encoded(each) for each in pictures(4)], [0, 1, 2, 0], file)
    task = images(Images(source=str(tmp_path), normalisation="cifar10", width=4), split_seed=1)
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2023, 0.1994, 0.2010])
    expected = (task.train.inputs / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(task.model[0](task.train.inputs), expected, atol=1e-5, rtol=1e-5)


def test_augmentation_is_there_where_it_is_asked_for():
    assert images(DIGITS, split_seed=1).augment is None
    augment = images(changed(DIGITS, crop_padding=2), split_seed=1).augment
    assert (augment.padding, augment.flip) == (2, False)
    augment = images(changed(DIGITS, flip=True), split_seed=1).augment
    assert (augment.padding, augment.flip) == (0, True)


def test_a_measurement_in_parts_is_that_of_one_batch():
    task = build_task(DIGITS, Seeds().resolve(1))
    task.model.train()
    for part in task.train.inputs.split(200)[:5]:
        task.model(part)  # running statistics that are not the initial ones
    parts = task.look(task.model, task.train.first(700))
    held_out = task.look(task.model, task.validation, parts)
    train, validation = task.train.first(700), task.validation
    whole = Probe(task.model).measure([(train.inputs, train.labels)])
    other = Probe(task.model).measure([(validation.inputs, validation.labels)], whole)
    for own, reference in ((parts, whole), (held_out, other)):
        assert own.examples == reference.examples
        assert set(own) == set(reference)
        assert dict(own) == pytest.approx(dict(reference), rel=1e-3, abs=1e-6)


def test_a_narrow_resnet_learns_the_digits():
    phase = Phase(until=150, optimizer=Optimizer(name="sgd", lr=0.05))
    looks = Observation(per_decade=1, max_gap=150, train_examples=200, validation_examples=360)
    settings = changed(DIGITS, crop_padding=1, train_examples=800)
    run = Run(task=settings, batch_size=64, phases=(phase,), observation=looks)
    segment = run.segments(1)[0]
    training = Training(build_task(settings, segment.run.seeds), segment)
    rows = [row for tick in training.run() for row in tick.rows]
    accuracy = [row.value for row in rows if (row.split, row.measure) == ("validation", "accuracy")]
    assert accuracy[0] < 0.3
    assert accuracy[-1] > 0.7
    expected = read_images("digits", "test")
    with torch.no_grad():
        own = training.task.model.eval()(expected.images).argmax(1)
    assert float((own == expected.labels).double().mean()) == pytest.approx(accuracy[-1])
