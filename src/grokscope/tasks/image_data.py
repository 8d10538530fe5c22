"""Image classification data as one uint8 tensor, whatever it was stored as.

Sources: ``digits`` (scikit-learn's, nothing to download), a folder of Parquet files in the layout
of the Hugging Face hub, a folder of class folders with image files, or the id of a data set on the
hub. What had to be decoded is kept in a cache. Axes: images ``[n, channels, height, width]``.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterator
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
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")


@dataclass(frozen=True)
class ImageSet:
    """Images with their classes.

    Attributes:
        images: ``[n, channels, height, width]``, uint8.
        labels: ``[n]``, int64.
    """

    images: Tensor
    labels: Tensor

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
        split: ``train`` or ``test``; ``digits`` has its last 360 images for testing.
        size: Height and width to which images are brought (shorter side resized, centre cropped);
            None where all have one size.

    Raises:
        ValueError: If there is no such data set or split, or an image cannot be read; names the
            file and row, and says what to do.
    """
    if source == "digits":
        return _digits(split, size)
    folder = find_images(source) or _from_hub(source)
    if any(folder.rglob("*.parquet")):
        found = find_split(folder, split)
        return _cached(found.files, found.label, size, lambda: _decode_parquet(found, size))
    return _read_folder(folder, split, size)


def find_images(source: str) -> Path | None:
    """The folder of a data set, without opening it; None: it has to come from the hub, or is ours.

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
            "the digits are scikit-learn's: pip install scikit-learn, or grokscope[images]"
        ) from error
    raw = load_digits()
    part = slice(0, 1437) if split == "train" else slice(1437, None)
    images = [_fitted(image, size)[None] for image in (raw.images[part] * 15.9375).round()]
    return ImageSet(_stacked(images), torch.as_tensor(raw.target[part]).long())


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


def _cached(files: tuple[Path, ...], labels: Any, size: int | None, decode: Any) -> ImageSet:
    facts = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    content = repr((DECODING, facts, labels, size)).encode()
    path = cache_folder() / f"images-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
    if path.is_file():
        try:
            tensors = load_file(path)
            return ImageSet(tensors["images"], tensors["labels"])
        except Exception:  # an unreadable cache is written again
            path.unlink(missing_ok=True)
    decoded: ImageSet = decode()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"images": decoded.images, "labels": decoded.labels}, temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError):  # no place to keep it: decoded again the next time
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return decoded


def _decode_parquet(split: ParquetSplit, size: int | None) -> ImageSet:
    if split.image is None:
        raise ValueError(f"{split.files[0]} has no column of images (bytes); is this an image set?")
    images: list[np.ndarray[Any, Any]] = []
    labels: list[int] = []
    for path in split.files:
        read = replace(split, files=(path,)).read([split.image, split.label])
        values = zip(read[split.image], read[split.label], strict=True)
        for row, (value, label) in enumerate(values):
            where = f"row {row} of {path}"
            if label is None or label < 0:
                raise ValueError(
                    f"{where} has no label ({label}); is this a test set without labels?"
                )
            content = value.get("bytes") if isinstance(value, dict) else value
            images.append(_decode(content, where, size))
            labels.append(label)
            _check_shape(images, where)
    if not images:
        raise ValueError(f"{split.files[0]} has no rows; is the download complete?")
    return ImageSet(_stacked(images), torch.tensor(labels))


def _read_folder(folder: Path, split: str, size: int | None) -> ImageSet:
    place = folder / split
    names = _class_folders(place)
    if len(names) < 2:
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
        raise ValueError(
            f"{place} has no class folders, and {folder} no Parquet files; it holds {held}. Write "
            f"{split}/CLASS/*.png, with two classes or more"
        )
    # A class has one number in every split, also where a split lacks another class.
    everywhere = _class_folders(folder / "train", folder / "test", place)
    numbers = {name: number for number, name in enumerate(everywhere)}
    files = []
    for name in names:
        paths = [path for path in (place / name).iterdir() if path.suffix.lower() in SUFFIXES]
        if not paths:
            raise ValueError(
                f"the class folder {place / name} holds no images ({', '.join(SUFFIXES)})"
            )
        files += [(path, numbers[name]) for path in sorted(paths)]
    labels = [label for _, label in files]

    def decode() -> ImageSet:
        images: list[np.ndarray[Any, Any]] = []
        for path, _ in files:
            images.append(_decode(path.read_bytes(), str(path), size))
            _check_shape(images, str(path))
        return ImageSet(_stacked(images), torch.tensor(labels))

    return _cached(tuple(path for path, _ in files), labels, size, decode)


def _class_folders(*places: Path) -> list[str]:
    """Names of the folders within some places, without hidden ones, such as a notebook's."""
    paths = (path for place in places if place.is_dir() for path in place.iterdir())
    return sorted({path.name for path in paths if path.is_dir() and path.name[0] != "."})


def _decode(content: Any, where: str, size: int | None) -> np.ndarray[Any, Any]:
    """One image as ``[channels, height, width]`` uint8."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as opened:
            pixels = _pixels(opened)
    except Exception as error:  # of whatever kind a parser stumbles with
        raise ValueError(f"{where} cannot be read as an image: {error}") from error
    pixels = _fitted(pixels, size)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _pixels(image: Any) -> np.ndarray[Any, Any]:
    """Of a Pillow image, from 0 to 255: grey ``[height, width]``, colour with three channels."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return np.asarray(image) // 256  # where Pillow clips at 255
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits; store it with 8 or 16")
    return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))


def _fitted(pixels: np.ndarray[Any, Any], size: int | None) -> np.ndarray[Any, Any]:
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


def _check_shape(images: list[np.ndarray[Any, Any]], where: str) -> None:
    if images[-1].shape[1:] != images[0].shape[1:]:
        raise ValueError(
            f"{where} has height and width {images[-1].shape[1:]}, the first image "
            f"{images[0].shape[1:]}; bring all to one size, for example with task.size=32"
        )


def _stacked(images: list[np.ndarray[Any, Any]]) -> Tensor:
    """All images as one tensor; grey ones among colour ones become colour."""
    channels = max(len(image) for image in images)
    stacked = np.empty((len(images), channels, *images[0].shape[1:]), dtype=np.uint8)
    for place, image in zip(stacked, images, strict=True):
        place[:] = image
    return torch.from_numpy(stacked)


def stratified(labels: Tensor, count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Random places of ``count`` examples, as many of each class as its share; then the others.

    Both in random order. Shares that are not whole are rounded so that the total is ``count``:
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
