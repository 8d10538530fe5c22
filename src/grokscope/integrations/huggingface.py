"""Models and data sets as Hugging Face stores them, measured by the probe.

``transformers`` is imported where it is used; everything is read from the disk.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grokscope.parquet import ParquetSplit, find_split
from grokscope.reference import is_reference, load

if TYPE_CHECKING:
    from torch import nn

    from grokscope.probe import Measurement

LONGEST = 512  # tokens of one text


def measure_saved(
    model: str,
    data: str,
    *,
    head: str | None = None,
    split: str = "test",
    max_examples: int = 2048,
    batch_size: int = 64,
) -> Measurement:
    """Measure a saved model on a data set.

    Args:
        model: A folder that ``save_pretrained`` wrote, or a reference to a function that returns
            a module.
        data: A folder of Parquet files, or a reference to a function that returns batches as
            `Probe.measure` takes them.
        head: Name of the head, if the probe doesn't find it.
        split: Of the data set in a folder.
        max_examples: Use so many from its beginning.
        batch_size: Examples at a time.

    Raises:
        ValueError: If a folder, file, column or function is missing or does not fit; says how to
            go on.
    """
    from grokscope.probe import Probe

    network = load_model(model)
    batches = load_batches(data, model, split, max_examples, batch_size)
    return Probe(network, head).measure(batches)


def load_model(source: str) -> nn.Module:
    """A module from a folder of ``transformers`` or from a function.

    Raises:
        ValueError: If there is none.
    """
    from torch import nn

    if is_reference(source):
        found = load(source)
        found = found if isinstance(found, nn.Module) else found()
        if not isinstance(found, nn.Module):
            raise ValueError(f"{source} gave {type(found).__name__}; it must return a torch module")
        return found
    folder = Path(source)
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(
            f"there is no {path}; --model is a folder that save_pretrained wrote, or a function as "
            "package.module:name or path/to/file.py:name"
        )
    transformers = _transformers()
    names = json.loads(path.read_text(encoding="utf-8")).get("architectures") or []
    classes = [getattr(transformers, name) for name in names if hasattr(transformers, name)]
    if not classes:
        raise ValueError(
            f"{path} names no architecture that transformers {transformers.__version__} has "
            f"(architectures: {names}); load it yourself and pass package.module:function"
        )
    return classes[0].from_pretrained(folder, local_files_only=True)


def load_batches(
    source: str, model: str, split: str, max_examples: int, batch_size: int
) -> Iterable[Any]:
    """Batches from a folder of Parquet files, or from a function.

    Raises:
        ValueError: If there are none.
    """
    if is_reference(source):
        found = load(source)
        return found() if callable(found) else found
    if is_reference(model):
        raise ValueError(
            f"a data set in a folder needs the tokenizer or image processor of a model folder, but "
            f"--model is the function {model}; give --data as a function, too"
        )
    found_split = find_split(Path(source), split)
    if found_split.text is not None:
        return list(_text_batches(found_split, Path(model), max_examples, batch_size))
    if found_split.image is not None:
        return _image_batches(found_split, Path(model), max_examples, batch_size)
    raise ValueError(f"{found_split.files[0]} has neither a column of text nor one of images")


def _text_batches(
    split: ParquetSplit, model: Path, limit: int, batch_size: int
) -> Iterator[dict[str, Any]]:
    import torch

    try:
        tokenizer = _transformers().AutoTokenizer.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{model} has no tokenizer that can be read: {error}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    assert split.text is not None
    read = split.read([split.text, split.label], limit)
    for start in range(0, len(read[split.label]), batch_size):
        part = slice(start, start + batch_size)
        longest = min(tokenizer.model_max_length, LONGEST)
        tokens = tokenizer(
            read[split.text][part],
            padding=True,
            truncation=True,
            max_length=longest,
            return_tensors="pt",
        )
        yield {**tokens, "labels": torch.tensor(read[split.label][part])}


def _image_batches(
    split: ParquetSplit, model: Path, limit: int, batch_size: int
) -> Iterator[dict[str, Any]]:
    import torch
    from PIL import Image

    try:
        processor = _transformers().AutoImageProcessor.from_pretrained(
            model, local_files_only=True, use_fast=False
        )
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"{model} has no image processor that can be read: {error}") from error
    assert split.image is not None
    read = split.read([split.image, split.label], limit)
    for start in range(0, len(read[split.label]), batch_size):
        part = slice(start, start + batch_size)
        images = []
        for row, value in enumerate(read[split.image][part], start):
            content = value["bytes"] if isinstance(value, dict) else value
            try:
                images.append(Image.open(io.BytesIO(content)).convert("RGB"))
            except (OSError, TypeError) as error:
                raise ValueError(f"row {row} of {split.files[0]} is no image: {error}") from error
        pixels = processor(images, return_tensors="pt")["pixel_values"]
        yield {"pixel_values": pixels, "labels": torch.tensor(read[split.label][part])}


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ValueError(
            "a Hugging Face folder needs transformers: pip install 'grokscope[transformers]'"
        ) from error
    transformers.logging.set_verbosity_error()
    return transformers
