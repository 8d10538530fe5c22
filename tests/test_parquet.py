"""A data set in Parquet: which files are a split, and which columns hold what."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from grokscope.parquet import find_split

SHARED = Path(__file__).parents[2] / "shared" / "data"
INTEGERS = {"label": pa.array([0, 1])}
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns or INTEGERS), path)
    return path


def names(folder: Path, split: str) -> list[str]:
    return [str(path.relative_to(folder)) for path in find_split(folder, split).files]


LAYOUTS = {
    "by name": ["train.parquet", "test.parquet", "validation.parquet"],
    "as on the hub": [
        "data/train-00000-of-00001.parquet",
        "data/test-00000-of-00001.parquet",
        "data/validation-00000-of-00001.parquet",
    ],
    "a folder each": ["train/0000.parquet", "test/0000.parquet", "validation/0000.parquet"],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_split_is_found_by_its_name(tmp_path, layout):
    for file in layout:
        write(tmp_path / file)
    for file, split in zip(layout, ("train", "test", "validation"), strict=True):
        assert names(tmp_path, split) == [file]


def test_a_split_is_not_taken_for_another_whose_name_it_begins(tmp_path):
    for name in ("train", "training", "train_extra", "validation_matched"):
        write(tmp_path / f"{name}-00000-of-00001.parquet")
    assert names(tmp_path, "train") == ["train-00000-of-00001.parquet"]
    assert names(tmp_path, "validation_matched") == ["validation_matched-00000-of-00001.parquet"]


def test_shards_come_in_order_and_rows_are_numbered_across_them(tmp_path):
    counted = iter(range(100))
    for shard in range(11):
        values = [next(counted) for _ in range(3)]
        write(tmp_path / f"data/train-{shard:05}-of-00011.parquet", label=values, text=["x"] * 3)
    split = find_split(tmp_path, "train")
    assert len(split.files) == 11
    assert split.read(["label"]) == {"label": list(range(33))}
    for rows in ([0], [2, 3], [0, 17, 32], range(5, 30), range(33)):
        assert split.read(["label"], rows)["label"] == list(rows)
    for limit in (1, 3, 4, 32, 33, 1000):
        rows = split.spread(limit)
        assert len(rows) == min(limit, 33) and rows == sorted(set(rows)) == split.spread(limit)
        assert split.read(["label"], rows)["label"] == rows
    assert split.spread(1000) == list(range(33))


ORDERS = {
    "sorted": [number // 1000 for number in range(4000)],
    "in turns of two": [number % 2 for number in range(4000)],
    "in turns of four": [number % 4 for number in range(4000)],
    "in turns of ten": [number % 10 for number in range(4000)],
}


@pytest.mark.parametrize("labels", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("limit", [400, 1000, 2000, 3999])
def test_rows_over_a_split_hold_its_classes_as_the_split_does(tmp_path, labels, limit):
    for shard in range(4):
        part = labels[1000 * shard : 1000 * (shard + 1)]
        write(tmp_path / f"test-{shard}.parquet", label=part, text=["x"] * 1000)
    split = find_split(tmp_path, "test")
    taken = split.read(["label"], split.spread(limit))["label"]
    classes = len(set(labels))
    for label in range(classes):
        assert taken.count(label) == pytest.approx(limit / classes, rel=0.1)


def test_a_split_without_rows_has_none_to_spread(tmp_path):
    write(tmp_path / "test.parquet", label=pa.array([], pa.int64()))
    split = find_split(tmp_path, "test")
    assert split.spread(5) == [] and split.read(["label"], []) == {"label": []}


def test_only_the_files_that_are_needed_are_opened(tmp_path):
    write(tmp_path / "train-0.parquet", label=[1, 2], text=["a", "b"])
    (tmp_path / "train-1.parquet").write_bytes(b"no Parquet")
    split = find_split(tmp_path, "train")
    assert split.read(["text"], [0, 1]) == {"text": ["a", "b"]}
    with pytest.raises(ValueError, match=r"train-1\.parquet is not a readable Parquet file"):
        split.spread(2)  # but how many rows there are, all of them say


def test_long_files_are_read_row_by_row_as_they_were_written(tmp_path):
    labels = [number % 7 for number in range(10_000)]
    texts = [f"text {number}" for number in range(10_000)]
    write(tmp_path / "train.parquet", text=texts, label=labels)
    read = find_split(tmp_path, "train").read(["text", "label"], range(9_000))
    assert read == {"text": texts[:9_000], "label": labels[:9_000]}


# Columns.

STRINGS = pa.array(["a", "b"])
BINARY = pa.array([b"a", b"b"])
COLUMNS = {
    "text": ({"text": STRINGS, **INTEGERS}, ("label", "text", None)),
    "text of another name": (
        {"idx": [0, 1], "review": STRINGS, **INTEGERS},
        ("label", "review", None),
    ),
    "text beside names of labels": (
        {"label_text": STRINGS, "text": STRINGS, **INTEGERS},
        ("label", "text", None),
    ),
    "a sentence beside an id": (
        {"id": STRINGS, "sentence": STRINGS, **INTEGERS},
        ("label", "sentence", None),
    ),
    "long text": ({"text": STRINGS.cast(pa.large_string()), **INTEGERS}, ("label", "text", None)),
    "encoded images": ({"img": BINARY, **INTEGERS}, ("label", None, "img")),
    "large images": ({"img": BINARY.cast(pa.large_binary()), **INTEGERS}, ("label", None, "img")),
    "images of the hub": (
        {"image": pa.array([{"bytes": b"a", "path": "a.png"}] * 2, IMAGE), **INTEGERS},
        ("label", None, "image"),
    ),
    "images with names": (
        {"name": STRINGS, "class": STRINGS, "image": BINARY, **INTEGERS},
        ("label", "name", "image"),
    ),
    "fine before coarse labels": (
        {"coarse_label": [0, 1], "fine_label": [2, 3], "img": BINARY},
        ("fine_label", None, "img"),
    ),
    "small integers": (
        {"labels": pa.array([0, 1], pa.uint8()), "text": STRINGS},
        ("labels", "text", None),
    ),
    "labels as names beside integers": (
        {"label": STRINGS, "labels": [0, 1], "text": STRINGS},
        ("labels", "text", None),
    ),
    "labels alone": (INTEGERS, ("label", None, None)),
}


@pytest.mark.parametrize(("columns", "found"), COLUMNS.values(), ids=COLUMNS)
def test_columns_of_labels_text_and_images_are_found(tmp_path, columns, found):
    write(tmp_path / "test.parquet", **columns)
    split = find_split(tmp_path, "test")
    assert (split.label, split.text, split.image) == found


# Errors.


def refusal(folder: Path, split: str = "test") -> str:
    with pytest.raises(ValueError) as refused:
        find_split(folder, split)
    return str(refused.value)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    missing = tmp_path / "nowhere"
    assert refusal(missing) == f"there is no folder {missing}; give one with Parquet files in it"
    file = write(tmp_path / "test.parquet")
    assert refusal(file) == f"there is no folder {file}; give one with Parquet files in it"


def test_a_split_that_is_not_there_is_answered_with_those_that_are(tmp_path):
    assert refusal(tmp_path) == f"{tmp_path} has no split 'test'; it holds no Parquet file"
    write(tmp_path / "data" / "train-0.parquet")
    write(tmp_path / "dev.parquet")
    told = refusal(tmp_path)
    assert told == f"{tmp_path} has no split 'test'; it holds data/train-0.parquet, dev.parquet"


def test_two_data_sets_are_not_taken_for_one(tmp_path):
    for name in ("cola", "sst2"):
        write(tmp_path / name / "test-00000-of-00001.parquet")
    told = refusal(tmp_path)
    assert told == (
        f"{tmp_path} holds several data sets with a split 'test', in cola, sst2; "
        "give the folder of one"
    )
    assert names(tmp_path / "cola", "test") == ["test-00000-of-00001.parquet"]


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    file = tmp_path / "test.parquet"
    file.write_bytes(b"<html>404</html>")
    assert refusal(tmp_path).startswith(f"{file} is not a readable Parquet file: ")


def test_without_integer_labels_the_columns_are_listed(tmp_path):
    file = write(tmp_path / "test.parquet", label=["pos", "neg"], score=[0.1, 0.2])
    assert refusal(tmp_path) == (
        f"{file} has no column of integer labels (label, labels, fine_label, coarse_label); "
        "it has label: string, score: double"
    )


def test_of_two_texts_none_is_chosen_blindly(tmp_path):
    file = write(tmp_path / "test.parquet", premise=STRINGS, hypothesis=STRINGS, **INTEGERS)
    assert refusal(tmp_path) == (
        f"{file} has several columns of text (premise, hypothesis); call the one to use text, "
        "or give a function that returns batches"
    )


def test_a_shard_that_differs_or_is_broken_is_named_when_it_is_read(tmp_path):
    write(tmp_path / "test-0.parquet", label=[0, 1], text=STRINGS)
    other = write(tmp_path / "test-1.parquet", label=[0, 1], sentence=STRINGS)
    split = find_split(tmp_path, "test")
    with pytest.raises(ValueError) as refused:
        split.read(["text", "label"])
    assert str(refused.value).startswith(f"{other} lacks the column")
    assert "'text'" in str(refused.value) or '"text"' in str(refused.value)
    other.write_bytes(other.read_bytes()[:-10])
    with pytest.raises(ValueError) as refused:
        split.read(["text", "label"])
    assert str(refused.value).startswith(f"{other} is not a readable Parquet file: ")


# The data sets of the paper, as they come.

needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"needs the data sets in {SHARED}, which aren't here"
)


@needs_shared
@pytest.mark.parametrize(("split", "rows"), [("train", 8544), ("validation", 1101), ("test", 2210)])
def test_sst5_is_found_with_all_its_sentences(split, rows):
    found = find_split(SHARED / "sst5", split)
    assert (found.label, found.text, found.image) == ("label", "text", None)
    read = found.read(["text", "label"])
    assert len(read["text"]) == len(read["label"]) == rows  # Socher et al. 2013
    assert set(read["label"]) == set(range(5))
    assert all(read["text"])


@needs_shared
def test_cifar10_is_found_with_images_of_its_size():
    found = find_split(SHARED / "cifar10", "test")
    assert found.text is None
    assert found.image is not None
    read = found.read([found.image, found.label], found.spread(200))
    assert set(read[found.label]) == set(range(10))
    value = read[found.image][0]
    image = Image.open(io.BytesIO(value["bytes"] if isinstance(value, dict) else value))
    assert (image.size, image.mode) == ((32, 32), "RGB")
