"""Metrics as Parquet: one file for a segment, and the files of many segments as one table.

Columns are ``step, epoch, replica, split, measure, value``; names of splits and measures are kept
once (dictionary columns). ``replica`` is 0 in every row and is not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from grokscope.engine.observe import Row
from grokscope.runs.files import reading

if TYPE_CHECKING:
    import pandas as pd

NAMES = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("epoch", pa.float64()),
        ("replica", pa.int64()),
        ("split", NAMES),
        ("measure", NAMES),
        ("value", pa.float64()),
    ]
)
READ = list(Row._fields)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write the metrics of a segment."""
    columns = {name: [row[place] for row in rows] for place, name in enumerate(Row._fields)}
    columns["replica"] = [0] * len(rows)
    arrays = [pa.array(columns[field.name], field.type) for field in SCHEMA]
    pq.write_table(pa.table(arrays, schema=SCHEMA), path, compression="zstd")


def read_table(path: Path) -> pa.Table:
    """The metrics of a segment, without ``replica``.

    Raises:
        ValueError: If the file is missing or damaged; see `reading`.
    """
    with reading(path), pq.ParquetFile(path) as file:
        for field in SCHEMA:
            if field.name not in file.schema_arrow.names:
                raise KeyError(f"it lacks the column {field.name}")
        table: pa.Table = file.read(columns=READ, use_threads=False)
        # Files of earlier versions carry facts for pandas, and names of other types.
        return table.select(READ).replace_schema_metadata().cast(TABLE)


def read_rows(path: Path) -> list[Row]:
    """The metrics of a segment as `write_rows` was given them.

    Raises:
        ValueError: If the file is missing or damaged; see `reading`.
    """
    columns = read_table(path).to_pydict()
    return [Row(*values) for values in zip(*(columns[name] for name in READ), strict=True)]


def as_frame(runs: Iterable[tuple[str, int, pa.Table]]) -> pd.DataFrame:
    """Tables of runs as one tidy frame with the columns arm and seed in front.

    Names (arm, split, measure) are categories.
    """
    import numpy as np

    arms, seeds, tables = zip(*runs, strict=True) if (runs := list(runs)) else ((), (), ())
    lengths = [len(table) for table in tables]
    names = list(dict.fromkeys(arms))
    places = np.repeat(np.array([names.index(arm) for arm in arms], np.int32), lengths)
    whole = pa.concat_tables([TABLE.empty_table(), *tables]).unify_dictionaries()
    arm = pa.DictionaryArray.from_arrays(pa.array(places, pa.int32()), pa.array(names, pa.string()))
    whole = whole.add_column(0, "arm", arm)
    seed = pa.array(np.repeat(np.array(seeds, np.int64), lengths), pa.int64())
    frame: pd.DataFrame = whole.add_column(1, "seed", seed).to_pandas()
    return frame


TABLE = pa.schema([SCHEMA.field(name) for name in READ])
