"""Small image sets on disk, for the tests of image data."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from grokscope.tasks.image_data import read_images

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def pictures(count: int, height: int = 4, width: int = 6, seed: int = 0) -> np.ndarray:
    """Random colour images ``[n, height, width, 3]``."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, kind)
    return written.getvalue()


def hub(folder: Path, contents: list[Any], labels: list[Any], file: str = "train.parquet") -> Path:
    """A data set as it lies on the hub."""
    structs = [{"bytes": each, "path": None} for each in contents]
    columns = {"img": pa.array(structs, STRUCT), "label": pa.array(labels, pa.int64())}
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / file)
    return folder


def class_folders(folder: Path, **classes: list[np.ndarray]) -> Path:
    """``class_folders(set / "train", cat=[...], dog=[...])``."""
    for name, images in classes.items():
        (folder / name).mkdir(parents=True)
        for number, pixels in enumerate(images):
            (folder / name / f"{number}.png").write_bytes(encoded(pixels))
    return folder.parent


def refusal(source: Path | str, split: str = "train", size: int | None = None) -> str:
    with pytest.raises(ValueError) as refused:
        read_images(str(source), split, size)
    return str(refused.value)
