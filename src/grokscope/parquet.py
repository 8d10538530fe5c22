"""Data sets in the layout of the Hugging Face hub: Parquet files, one or more for each split."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LABELS = ("label", "labels", "fine_label", "coarse_label")
GOLDEN = (5**0.5 - 1) / 2  # its multiples spread over [0, 1) without a period
TEXTS = ("text", "sentence")  # before any other column of strings, such as an id


@dataclass(frozen=True)
class ParquetSplit:
    """One split of a data set on disk.

    Attributes:
        files: Its Parquet files, in order.
        label: Name of the column of class indices.
        text: Name of the column of text, if there is one.
        image: Name of the column of encoded images, if there is one.
    """

    files: tuple[Path, ...]
    label: str
    text: str | None
    image: str | None

    def spread(self, limit: int) -> list[int]:
        """Numbers of ``limit`` rows over the whole split, or of all if there are no more.

        One row from each of as many equal stretches, as labels may be sorted, but not always from
        the same place in its stretch, as labels may alternate. The same rows every time.

        Raises:
            ValueError: If a file cannot be read; names it.
        """
        total = 0
        for path in self.files:
            with _open(path) as file:
                total += file.metadata.num_rows
        limit = min(limit, total)
        rows = []
        for number in range(limit):
            start, end = number * total // limit, (number + 1) * total // limit
            rows.append(start + int(number * GOLDEN % 1 * (end - start)))
        return rows

    def read(self, columns: list[str], rows: Sequence[int] | None = None) -> dict[str, list[Any]]:
        """Values of some columns as Python lists.

        Args:
            columns: Their names.
            rows: Which rows of the split, ascending; None: all.

        Raises:
            ValueError: If a file cannot be read or lacks a column; names it.
        """
        import pyarrow as pa

        read: dict[str, list[Any]] = {name: [] for name in columns}
        before = 0
        for path in self.files:
            with _open(path) as file:
                for batch in file.iter_batches(4096, columns=columns):
                    start, before = before, before + len(batch)
                    if rows is not None:
                        asked = rows[bisect_left(rows, start) : bisect_left(rows, before)]
                        batch = batch.take(pa.array([row - start for row in asked], pa.int64()))
                    for name in columns:
                        read[name] += batch.column(name).to_pylist()
                    if rows is not None and len(read[columns[0]]) == len(rows):
                        return read
        return read


def find_split(folder: Path, split: str) -> ParquetSplit:
    """A split in a folder, such as ``train.parquet`` or ``data/train-00000-of-00001.parquet``.

    Args:
        folder: A data set as it lies on the hub, or a folder of Parquet files.
        split: Such as train, validation or test.

    Raises:
        ValueError: If there is no such folder, no file of this split or files of several data
            sets, or it is unclear which column holds labels or text; says what there is.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; give one with Parquet files in it")
    every = sorted(path for path in folder.rglob("*.parquet") if path.is_file())
    files = [path for path in every if path.name.split(".")[0].split("-")[0] == split]
    files = files or [path for path in every if path.parent.name == split]
    if not files:
        known = ", ".join(str(path.relative_to(folder)) for path in every[:12]) or "no Parquet file"
        raise ValueError(f"{folder} has no split {split!r}; it holds {known}")
    folders = sorted({str(path.parent.relative_to(folder)) for path in files})
    if len(folders) > 1:
        raise ValueError(
            f"{folder} holds several data sets with a split {split!r}, in {', '.join(folders)}; "
            "give the folder of one"
        )
    return _columns(tuple(files))


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """A Parquet file; what goes wrong while it is read names it."""
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield file
    except KeyError as error:
        raise ValueError(f"{path} lacks the column {error}, which others have") from error
    except (OSError, ValueError) as error:  # pyarrow's own are ValueErrors
        raise ValueError(f"{path} is not a readable Parquet file: {error}") from error


def _columns(files: tuple[Path, ...]) -> ParquetSplit:
    import pyarrow as pa

    with _open(files[0]) as file:
        schema = file.schema_arrow
    types = dict(zip(schema.names, schema.types, strict=True))
    labels = [name for name in LABELS if name in types and pa.types.is_integer(types[name])]
    if not labels:
        raise ValueError(
            f"{files[0]} has no column of integer labels ({', '.join(LABELS)}); it has "
            + ", ".join(f"{name}: {kind}" for name, kind in types.items())
        )
    strings, encoded = (pa.string(), pa.large_string()), (pa.binary(), pa.large_binary())
    texts = [name for name, kind in types.items() if kind in strings]
    images = [
        name
        for name, kind in types.items()
        if kind in encoded or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)
    ]
    known = [name for name in TEXTS if name in texts]
    if len(texts) > 1 and not known and not images:
        raise ValueError(
            f"{files[0]} has several columns of text ({', '.join(texts)}); call the one to use "
            f"{TEXTS[0]}, or give a function that returns batches"
        )
    text = next(iter(known or texts), None)
    return ParquetSplit(files, labels[0], text, next(iter(images), None))
