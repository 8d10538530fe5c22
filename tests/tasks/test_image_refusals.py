"""Image data that are refused: what was wrong, where it lies, and what to do."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grokscope.tasks.image_data import cache_folder, read_images
from made_images import class_folders, encoded, hub, pictures, refusal


@pytest.fixture(autouse=True)
def _own_places(tmp_path, monkeypatch):
    monkeypatch.setenv("GROKSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GROKSCOPE_DATA", raising=False)


PNG = encoded(pictures(1)[0])
BOMB = bytearray(encoded(pictures(1)[0], "BMP"))
BOMB[18:26] = b"\xff\xff\x00\x00" * 2  # 65,535 by 65,535 pixels, says its header
DAMAGED = {
    "nothing": None,
    "empty": b"",
    "text": b"<html>404</html>",
    "cut off": PNG[:-30],
    "too large": bytes(BOMB),
    "32 bits": encoded(np.ones((4, 6), dtype=np.float32), "TIFF"),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_corrupt_image_is_named_by_file_and_row(tmp_path, content):
    names = [f"data/train-0000{number}-of-00002.parquet" for number in (0, 1)]
    hub(tmp_path / "set", [PNG] * 3, [0, 1, 2], names[0])
    hub(tmp_path / "set", [PNG, PNG, content], [0, 1, 2], names[1])
    told = refusal(tmp_path / "set")
    assert told.startswith(f"row 2 of {tmp_path / 'set' / names[1]} cannot be read as an image: ")
    assert not cache_folder().exists()


def test_a_corrupt_image_file_is_named(tmp_path):
    class_folders(tmp_path / "test", a=[*pictures(1)], b=[*pictures(2)])
    (tmp_path / "test" / "b" / "1.png").write_bytes(PNG[:-30])
    told = refusal(tmp_path, "test")
    assert told.startswith(f"{tmp_path / 'test' / 'b' / '1.png'} cannot be read as an image: ")


@pytest.mark.parametrize("label", [None, -1])
def test_an_image_without_a_label_is_named(tmp_path, label):
    hub(tmp_path, [PNG] * 2, [0, label], "test.parquet")
    told = refusal(tmp_path, "test")
    assert told.startswith(f"row 1 of {tmp_path / 'test.parquet'} has no label ({label}); is this")


def test_images_of_two_sizes_are_refused_until_a_size_is_given(tmp_path):
    hub(tmp_path, [PNG, encoded(pictures(1, height=5)[0])], [0, 1])
    assert refusal(tmp_path) == (
        f"row 1 of {tmp_path / 'train.parquet'} has height and width (5, 6), the first image "
        "(4, 6); bring all to one size, for example with task.size=32"
    )
    assert read_images(str(tmp_path), "train", size=4).images.shape == (2, 3, 4, 4)


def test_a_table_without_images_is_refused(tmp_path):
    file = tmp_path / "train.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "label": [0, 1]}), file)
    assert refusal(tmp_path) == f"{file} has no column of images (bytes); is this an image set?"
    hub(tmp_path, [], [])
    assert refusal(tmp_path) == f"{file} has no rows; is the download complete?"


def test_a_folder_that_is_not_there_is_answered_with_what_to_do(tmp_path):
    told = refusal(tmp_path / "nowhere")
    assert told.startswith(f"there is no folder {tmp_path / 'nowhere'}; give a folder that holds")
    assert "train-*.parquet" in told
    assert "$GROKSCOPE_DATA" in told


def test_a_split_that_is_not_there_is_answered_with_those_that_are(tmp_path):
    hub(tmp_path / "set", [PNG], [0])
    told = refusal(tmp_path / "set", "test")
    assert told == f"{tmp_path / 'set'} has no split 'test'; it holds train.parquet"
    folders = class_folders(tmp_path / "folders" / "train", a=[*pictures(1)], b=[*pictures(1)])
    told = refusal(folders, "test")
    assert told.startswith(f"{folders / 'test'} has no class folders, and {folders} has no Parquet")
    assert "it holds train. Write test/CLASS/*.png" in told
    assert refusal("digits", "validation") == (
        "digits has no split 'validation'; it has train and test"
    )


def test_one_class_is_none_and_a_class_without_images_is_named(tmp_path):
    class_folders(tmp_path / "train", cat=[*pictures(2)])
    assert "two classes or more" in refusal(tmp_path)
    (tmp_path / "train" / "dog").mkdir()
    (tmp_path / "train" / "dog" / "0.svg").write_text("<svg/>")
    told = refusal(tmp_path)
    assert told.startswith(f"the class folder {tmp_path / 'train' / 'dog'} holds no images (.png")
