"""Image data: whatever it was stored as, the same pixels and classes; and what is refused."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from grokscope.tasks.image_data import cache_folder, find_images, read_images
from made_images import class_folders, encoded, hub, pictures, refusal

CIFAR = Path(__file__).parents[3] / "shared" / "data" / "cifar10"


@pytest.fixture(autouse=True)
def _own_places(tmp_path, monkeypatch):
    monkeypatch.setenv("GROKSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GROKSCOPE_DATA", raising=False)


def pixels_of(images: torch.Tensor) -> np.ndarray:
    """Back to ``[n, height, width, channels]``."""
    assert images.dtype == torch.uint8
    assert images.is_contiguous()
    return images.permute(0, 2, 3, 1).numpy()


# Where images come from.


def test_the_digits_are_scikit_learn_s_and_the_last_360_are_for_testing():
    raw = pytest.importorskip("sklearn.datasets").load_digits()
    train, test = (read_images("digits", split) for split in ("train", "test"))
    assert (train.images.shape, test.images.shape) == ((1437, 1, 8, 8), (360, 1, 8, 8))
    whole = np.concatenate([pixels_of(each.images)[..., 0] for each in (train, test)])
    assert np.abs(whole / 255 - raw.images / 16).max() <= 0.5 / 255
    assert torch.cat([train.labels, test.labels]).tolist() == raw.target.tolist()
    assert train.classes == test.classes == 10


def test_the_digits_can_be_enlarged():
    small, large = read_images("digits", "test"), read_images("digits", "test", size=24)
    assert large.images.shape == (360, 1, 24, 24)
    assert torch.equal(large.labels, small.labels)
    blocks = large.images.float().unflatten(3, (8, 3)).unflatten(2, (8, 3)).mean((3, 5))
    assert float((blocks - small.images.float()).abs().mean()) < 15  # of 255: the same picture


@pytest.mark.parametrize(
    "files",
    [
        ["train.parquet"],
        ["data/train-00000-of-00003.parquet", "data/train-00001-of-00003.parquet",
         "data/train-00002-of-00003.parquet"],
    ],
    ids=["one file", "as on the hub"],
)  # fmt: skip
def test_a_parquet_set_comes_back_pixel_by_pixel_in_its_order(tmp_path, files):
    images, labels = pictures(6), [2, 0, 1, 1, 0, 2]
    for place, file in enumerate(files):
        part = slice(place * 6 // len(files), (place + 1) * 6 // len(files))
        hub(tmp_path / "set", [encoded(each) for each in images[part]], labels[part], file)
    hub(tmp_path / "set", [encoded(images[0])] * 2, [0, 1], files[0].replace("train", "test"))
    read = read_images(str(tmp_path / "set"), "train")
    assert np.array_equal(pixels_of(read.images), images)
    assert read.labels.tolist() == labels
    assert read.labels.dtype == torch.int64
    assert (len(read), read.classes) == (6, 3)


def test_a_column_of_plain_bytes_is_read_too(tmp_path):
    images = pictures(2)
    columns = {"image": [encoded(each) for each in images], "label": [1, 0]}
    pq.write_table(pa.table(columns), tmp_path / "test.parquet")
    assert np.array_equal(pixels_of(read_images(str(tmp_path), "test").images), images)


def test_class_folders_are_numbered_by_name_and_their_files_sorted(tmp_path):
    images = pictures(5)
    source = class_folders(tmp_path / "train", dog=[*images[:2]], cat=[*images[2:]])
    (source / "train" / "cat" / "notes.txt").write_text("no image")
    (source / "train" / ".ipynb_checkpoints").mkdir()
    (source / "train" / "list.csv").write_text("no folder")
    read = read_images(str(source), "train")
    assert read.labels.tolist() == [0, 0, 0, 1, 1]
    assert np.array_equal(pixels_of(read.images), images[[2, 3, 4, 0, 1]])


def test_a_class_has_one_number_in_both_splits(tmp_path):
    images = pictures(2)
    class_folders(tmp_path / "train", b=[images[0]], c=[images[1]])
    assert read_images(str(tmp_path), "train").labels.tolist() == [0, 1]
    class_folders(tmp_path / "test", a=[images[0]], c=[images[1]])
    assert read_images(str(tmp_path), "test").labels.tolist() == [0, 2]
    assert read_images(str(tmp_path), "train").labels.tolist() == [1, 2]  # and not from the cache


# Pixels.


def test_grey_stays_one_channel_and_16_bits_become_8(tmp_path):
    grey = pictures(1)[0, :, :, 0]
    deep = grey.astype(np.uint16) * 256 + 77
    alpha = np.stack([grey, 255 - grey], -1)
    hub(tmp_path, [encoded(each) for each in (grey, deep, alpha)], [0, 1, 0])
    read = read_images(str(tmp_path), "train")
    assert read.images.shape == (3, 1, 4, 6)
    assert all(np.array_equal(each, grey) for each in pixels_of(read.images)[..., 0])


def test_black_and_white_is_0_and_255(tmp_path):
    bits = pictures(1)[0, :, :, 0] > 127
    hub(tmp_path, [encoded(bits)] * 2, [0, 1])
    assert np.array_equal(
        pixels_of(read_images(str(tmp_path), "train").images)[0, ..., 0], 255 * bits
    )


@pytest.mark.parametrize("first", [True, False])
def test_a_grey_image_among_colour_ones_becomes_colour(tmp_path, first):
    colour = pictures(1)[0]
    grey = colour[:, :, 0]
    order = [grey, colour] if first else [colour, grey]
    hub(tmp_path, [encoded(each) for each in order], [0, 1])
    read = pixels_of(read_images(str(tmp_path), "train").images)
    assert np.array_equal(read[0 if first else 1], np.stack([grey] * 3, -1))
    assert np.array_equal(read[1 if first else 0], colour)


def test_the_centre_is_kept_when_images_are_cropped(tmp_path):
    wide = np.full((20, 50), 200, dtype=np.uint8)
    wide[:, 15:35] = 100  # the square in the middle
    hub(tmp_path, [encoded(wide), encoded(wide.T)], [0, 1])
    assert read_images(str(tmp_path), "train", size=20).images.unique().tolist() == [100]
    halved = read_images(str(tmp_path), "train", size=10).images
    assert halved[:, :, 2:-2, 2:-2].unique().tolist() == [100]
    assert halved.shape == (2, 1, 10, 10)


def test_every_shape_is_brought_to_one_size(tmp_path):
    shapes = [(height, width) for height in range(1, 25) for width in range(1, 25)]
    contents = [encoded(np.full(shape, 9, dtype=np.uint8)) for shape in shapes]
    hub(tmp_path, contents, [0] * len(shapes))
    read = read_images(str(tmp_path), "train", size=7)
    assert read.images.shape == (len(shapes), 1, 7, 7)
    assert read.images.unique().tolist() == [9]


# The cache.


@pytest.fixture(params=["parquet", "folders"])
def source(request, tmp_path) -> Path:
    images = pictures(4)
    if request.param == "parquet":
        return hub(tmp_path / "set", [encoded(each) for each in images], [0, 1, 0, 1])
    return class_folders(tmp_path / "set" / "train", a=[*images[::2]], b=[*images[1::2]])


def nothing_decodes(monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("an image was opened")

    monkeypatch.setattr(Image, "open", fail)


def same(one, other) -> bool:
    return torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def test_what_was_decoded_once_is_not_decoded_again(source, monkeypatch):
    first = read_images(str(source), "train")
    sized = read_images(str(source), "train", size=5)
    kept = sorted(path.name for path in cache_folder().iterdir())
    assert len(kept) == 2
    assert all(name.startswith("images-") for name in kept)  # nothing half-written beside them
    nothing_decodes(monkeypatch)
    assert same(read_images(str(source), "train"), first)
    assert same(read_images(str(source), "train", size=5), sized)
    assert "an image was opened" in refusal(source, size=6)


def test_a_changed_file_is_decoded_anew(source):
    before = read_images(str(source), "train")
    file = next(path for path in sorted(source.rglob("*")) if path.is_file())
    then = file.stat()
    new = pictures(4, seed=1)
    if file.suffix == ".parquet":
        hub(source, [encoded(each) for each in new], [0, 1, 0, 1])
    else:
        file.write_bytes(encoded(new[0]))
    os.utime(file, ns=(then.st_atime_ns, then.st_mtime_ns + 1))
    after = read_images(str(source), "train")
    assert np.array_equal(pixels_of(after.images)[0], new[0])
    assert not torch.equal(after.images[0], before.images[0])


@pytest.mark.parametrize("damage", [b"", b"no safetensors", None])
def test_an_unreadable_cache_is_made_anew(source, damage, monkeypatch):
    first = read_images(str(source), "train")
    (kept,) = cache_folder().iterdir()
    kept.write_bytes(kept.read_bytes()[:-7] if damage is None else damage)
    assert same(read_images(str(source), "train"), first)
    nothing_decodes(monkeypatch)
    assert same(read_images(str(source), "train"), first)


def test_without_a_place_for_the_cache_images_are_still_read(source, monkeypatch, tmp_path):
    first = read_images(str(source), "train")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("GROKSCOPE_CACHE", str(tmp_path / "file" / "cache"))
    assert same(read_images(str(source), "train"), first)


def test_the_cache_is_where_users_keep_theirs_unless_told_otherwise(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    monkeypatch.setenv("GROKSCOPE_CACHE", "/elsewhere")
    assert cache_folder() == Path("/elsewhere")
    monkeypatch.delenv("GROKSCOPE_CACHE")
    assert cache_folder() == Path("/caches/grokscope")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "grokscope"


# Finding a data set by name.


@pytest.mark.parametrize("name", ["someone/birds", "birds", "someone/birds/"])
def test_a_name_is_looked_for_in_the_folder_of_data_sets(tmp_path, monkeypatch, name):
    hub(tmp_path / "all" / "birds", [encoded(each) for each in pictures(2)], [0, 1])
    hub(tmp_path / "all" / "cats", [encoded(each) for each in pictures(3)], [0, 1, 1])
    monkeypatch.setenv("GROKSCOPE_DATA", str(tmp_path / "all"))
    assert find_images(name) == tmp_path / "all" / "birds"
    assert len(read_images(name, "train")) == 2


def test_a_folder_comes_before_a_data_set_of_its_name(tmp_path, monkeypatch):
    for place in ("here", "all"):
        hub(tmp_path / place / "birds", [encoded(pictures(1)[0])], [0])
    monkeypatch.setenv("GROKSCOPE_DATA", str(tmp_path / "all"))
    assert find_images(str(tmp_path / "here" / "birds")) == tmp_path / "here" / "birds"
    assert find_images("someone/fish") is None  # it has to come from the hub
    assert find_images("digits") is None


def test_what_is_nowhere_comes_from_the_hub(tmp_path, monkeypatch):
    asked = []

    def download(name: str, **how: object) -> str:
        asked.append((name, how))
        return str(hub(tmp_path / "snapshot", [encoded(each) for each in pictures(3)], [0, 1, 1]))

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=download))
    assert len(read_images("someone/birds", "train")) == 3
    assert asked == [("someone/birds", {"repo_type": "dataset", "allow_patterns": ["*.parquet"]})]


def test_without_the_hub_it_is_said_where_to_put_the_data(monkeypatch):
    def download(*_: object, **__: object) -> str:
        raise ConnectionError("no network")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=download))
    told = refusal("someone/birds")
    assert told.startswith("someone/birds could not be fetched from the hub (no network); give")
    assert "$GROKSCOPE_DATA" in told
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    told = refusal("someone/birds")
    assert "pip install huggingface_hub" in told
    assert "$GROKSCOPE_DATA" in told


# CIFAR-10 as it comes.


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory):
    if not CIFAR.is_dir():
        pytest.skip(f"needs the data set in {CIFAR}, which isn't here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROKSCOPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return {split: read_images(str(CIFAR), split) for split in ("train", "test")}


@pytest.mark.parametrize(("split", "count"), [("train", 50_000), ("test", 10_000)])
def test_cifar10_has_as_many_images_of_each_class(cifar10, split, count):
    read = cifar10[split]
    assert read.images.shape == (count, 3, 32, 32)
    assert read.images.dtype == torch.uint8
    assert read.labels.bincount().tolist() == [count // 10] * 10


def test_cifar10_has_its_published_colours(cifar10):
    # Not to the last digit: the copy in shared/ is compressed as JPEG.
    values = np.arange(256) / 255
    channels = cifar10["train"].images.numpy().swapaxes(0, 1)
    counts = [np.bincount(each.flatten(), minlength=256) for each in channels]
    mean = [np.average(values, weights=each) for each in counts]
    mean_square = [np.average(values**2, weights=each) for each in counts]
    assert mean == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-4)
    std = np.sqrt(np.subtract(mean_square, np.square(mean)))
    assert std.tolist() == pytest.approx([0.2470, 0.2435, 0.2616], abs=2e-3)
