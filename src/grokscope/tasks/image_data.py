"""Image classification data as one uint8 tensor, whatever it was stored as.

Sources: ``digits`` (from scikit-learn, nothing to download), a folder of Parquet files in the
layout of the Hugging Face hub, a folder of class folders with image files, or the id of a data set
on the hub. Decoded images are kept in a cache. Axes: images ``[n, channels, height, width]``.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from grokscope.parquet import ParquetSplit, find_split

ADVICE = (
    "give a folder that holds it instead: Parquet files as on the hub (train-*.parquet), or "
    "train/CLASS/*.png, as task.source or, by its name, within $GROKSCOPE_DATA"
)
DECODING = 1  # in every name in the cache: raise it when the same files are decoded otherwise
Pixels = np.ndarray[Any, Any]
Item = tuple[Any, str, int]  # an encoded image, where it lies, and its label
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")


@dataclass(frozen=True)
class ImageSet:
    """Images with their classes."""

    images: Tensor  # [n, channels, height, width], uint8
    labels: Tensor  # [n], int64

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.labels.max()) + 1

    def take(self, index: Tensor) -> ImageSet:
        """The examples at some places."""
        return ImageSet(self.images[index], self.labels[index])


def read_images(source: str, split: str, size: int | None = None) -> ImageSet:
    """One split of a data set, decoded; from the cache where it was decoded before.

    Args:
        source: ``digits``, a folder, or ``owner/name`` on the hub.
        split: ``train`` or ``test``; the last 360 of the ``digits`` are their test split.
        size: Height and width of the result: the shorter side is resized, then the centre is
            cropped. None if all images already have one size.

    Raises:
        ValueError: If there is no such data set or split, or an image cannot be read; names the
            file and row, and says what to do.
    """
    if source == "digits":
        return _digits(split, size)
    folder = find_images(source) or _from_hub(source)
    if any(folder.rglob("*.parquet")):
        found = find_split(folder, split)
        return _cached(found.files, found.label, _of_table(found), size)
    return _read_folder(folder, split, size)


def find_images(source: str) -> Path | None:
    """The folder of a data set, unopened; None if it comes from the hub or with scikit-learn.

    Args:
        source: A folder, or ``owner/name``, which is looked for as ``$GROKSCOPE_DATA/name`` first.

    Raises:
        ValueError: If it is neither there nor the name of a data set on the hub.
    """
    if source == "digits":
        return None
    local = os.environ.get("GROKSCOPE_DATA")
    places = [Path(source), *([Path(local) / Path(source).name] if local else [])]
    for place in places:
        if place.is_dir():
            return place
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source):
        raise ValueError(f"there is no folder {source}; {ADVICE}")
    return None


def cache_folder() -> Path:
    """Where decoded images are kept: ``$GROKSCOPE_CACHE``, else the user's cache folder."""
    chosen = os.environ.get("GROKSCOPE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen) if chosen else Path(base) / "grokscope"


def _digits(split: str, size: int | None) -> ImageSet:
    if split not in ("train", "test"):
        raise ValueError(f"digits has no split {split!r}; it has train and test")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError(
            "the digits come with scikit-learn: pip install scikit-learn, or grokscope[images]"
        ) from error
    raw = load_digits()
    part = slice(0, 1437) if split == "train" else slice(1437, None)
    images = np.stack([_fitted(image, size) for image in (raw.images[part] * 15.9375).round()])
    return ImageSet(torch.from_numpy(images)[:, None], torch.as_tensor(raw.target[part]).long())


def _from_hub(source: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ValueError(
            f"{source} is on the Hugging Face hub: pip install huggingface_hub, or {ADVICE}"
        ) from error
    try:
        return Path(snapshot_download(source, repo_type="dataset", allow_patterns=["*.parquet"]))
    except Exception as error:
        why = str(error).strip().partition("\n")[0]
        raise ValueError(f"{source} could not be fetched from the hub ({why}); {ADVICE}") from error


def _cached(
    files: Sequence[Path], labels: object, items: Iterable[Item], size: int | None
) -> ImageSet:
    """What the items of some files decode to; ``labels`` are where their labels come from."""
    facts = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    content = repr((DECODING, facts, labels, size)).encode()
    path = cache_folder() / f"images-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
    if path.is_file():
        try:
            return ImageSet(**load_file(path))
        except Exception:  # an unreadable cache is written again
            path.unlink(missing_ok=True)
    decoded = _decoded(items, size)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(vars(decoded), temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError):  # the cache cannot be written: decode again next time
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return decoded


def _of_table(split: ParquetSplit) -> Iterator[Item]:
    """The images of a split in Parquet files."""
    if split.image is None:
        raise ValueError(f"{split.files[0]} has no column of images (bytes); is this an image set?")
    empty = True
    for path in split.files:
        read = replace(split, files=(path,)).read([split.image, split.label])
        values = zip(read[split.image], read[split.label], strict=True)
        for row, (value, label) in enumerate(values):
            where, empty = f"row {row} of {path}", False
            if label is None or label < 0:
                raise ValueError(
                    f"{where} has no label ({label}); is this a test set without labels?"
                )
            yield (value.get("bytes") if isinstance(value, dict) else value), where, label
    if empty:
        raise ValueError(f"{split.files[0]} has no rows; is the download complete?")


def _read_folder(folder: Path, split: str, size: int | None) -> ImageSet:
    place = folder / split
    names = _class_folders(place)
    if len(names) < 2:
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
        raise ValueError(
            f"{place} has no class folders, and {folder} has no Parquet files; it holds {held}. "
            f"Write {split}/CLASS/*.png, with two classes or more"
        )
    # A class has one number in every split, also where a split lacks another class.
    everywhere = _class_folders(folder / "train", folder / "test", place)
    files = []
    for name in names:
        paths = [path for path in (place / name).iterdir() if path.suffix.lower() in SUFFIXES]
        if not paths:
            raise ValueError(
                f"the class folder {place / name} holds no images ({', '.join(SUFFIXES)})"
            )
        files += [(path, everywhere.index(name)) for path in sorted(paths)]
    items = ((path.read_bytes(), str(path), label) for path, label in files)
    return _cached([path for path, _ in files], [label for _, label in files], items, size)


def _class_folders(*places: Path) -> list[str]:
    """Names of the folders within some places, without hidden ones, such as a notebook's."""
    paths = (path for place in places if place.is_dir() for path in place.iterdir())
    return sorted({path.name for path in paths if path.is_dir() and path.name[0] != "."})


def _decoded(items: Iterable[Item], size: int | None) -> ImageSet:
    """Images of one size as one tensor; grey ones among colour ones become colour."""
    images: list[Pixels] = []
    labels = []
    for content, where, label in items:
        image = _decode(content, where, size)
        first = images[0] if images else image
        if image.shape[1:] != first.shape[1:]:
            raise ValueError(
                f"{where} has height and width {image.shape[1:]}, the first image "
                f"{first.shape[1:]}; bring all to one size, for example with task.size=32"
            )
        images.append(image)
        labels.append(label)
    channels = max(len(image) for image in images)
    stacked = np.empty((len(images), channels, *images[0].shape[1:]), dtype=np.uint8)
    for place, image in zip(stacked, images, strict=True):
        place[:] = image
    return ImageSet(torch.from_numpy(stacked), torch.tensor(labels))


def _decode(content: Any, where: str, size: int | None) -> Pixels:
    """One image as ``[channels, height, width]`` uint8."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as opened:
            pixels = _pixels(opened)
    except Exception as error:  # parsers raise errors of many kinds
        raise ValueError(f"{where} cannot be read as an image: {error}") from error
    pixels = _fitted(pixels, size)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _pixels(image: Any) -> Pixels:
    """Pixels of a Pillow image, 0 to 255: grey ``[height, width]``, or with three channels."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return np.asarray(image) // 256  # Pillow's own conversion clips at 255
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits; store it with 8 or 16")
    return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))


def _fitted(pixels: Pixels, size: int | None) -> Pixels:
    """An image ``[height, width, ...]`` as uint8 with its shorter side resized, centre cropped."""
    pixels = pixels.astype(np.uint8, copy=False)
    if size is None:
        return pixels
    from PIL import Image

    image = Image.fromarray(pixels)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)))
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def stratified(labels: Tensor, count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yields places of ``count`` examples, of each class its share, then those of the others.

    Both are in random order. Shares that are not whole are rounded so that the total is ``count``:
    the classes with the largest remainders get one more.
    """
    order = torch.randperm(len(labels), generator=generator)
    classes, sizes = labels.unique(return_counts=True)
    wanted = count * sizes  # of len(labels) each: in integers, so that equal remainders are equal
    quota, remainder = wanted // len(labels), wanted % len(labels)
    for place in remainder.argsort(descending=True, stable=True)[: count - int(quota.sum())]:
        quota[place] += 1
    taken = torch.zeros(len(labels), dtype=torch.bool)
    for label, number in zip(classes, quota, strict=True):
        of_class = order[labels[order] == label]
        taken[of_class[:number]] = True
    yield order[taken[order]]
    yield order[~taken[order]]
