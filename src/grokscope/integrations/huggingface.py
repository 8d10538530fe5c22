"""Measures models and data sets in the formats of Hugging Face.

``transformers`` is imported where it is used; everything is read from disk.
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
AS_TENSORS: dict[str, Any] = {"padding": True, "truncation": True, "return_tensors": "pt"}


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
        model: A folder written by ``save_pretrained``, or a reference to a function that returns
            a module.
        data: A folder of Parquet files, or a reference to a function that returns batches as
            `Probe.measure` takes them.
        head: Name of the head, if the probe doesn't find it.
        split: Name of the split, if the data are a folder.
        max_examples: Number of rows to use of that split. They are spread evenly over it, because
            a split may be sorted by label, and are the same every time.
        batch_size: Number of rows in a batch.

    Returns:
        The measures by name.

    Raises:
        ValueError: If a folder, file, column or function is missing or does not fit; the message
            says what to do.
    """
    from grokscope.probe import Probe

    network = load_model(model)
    probe = Probe(network, head)
    batches = load_batches(
        data, model, split=split, max_examples=max_examples, batch_size=batch_size
    )
    return probe.measure(batches)


def load_model(source: str) -> nn.Module:
    """A module from a folder of ``transformers`` or from a function."""
    from torch import nn

    if is_reference(source):
        found = load(source)
        found = found() if callable(found) and not isinstance(found, nn.Module) else found
        if not isinstance(found, nn.Module):
            raise ValueError(f"{source} gave {type(found).__name__}; it must return a torch module")
        return found
    folder = Path(source)
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist; --model takes a folder written by save_pretrained, or a "
            "function such as package.module:name or path/to/file.py:name"
        )
    transformers = _transformers()
    names = _config(folder).get("architectures") or []
    classes = [getattr(transformers, name) for name in names if hasattr(transformers, name)]
    if not classes:
        raise ValueError(
            f"{path} names no architecture that transformers {transformers.__version__} has "
            f"(architectures: {names}); load it yourself and pass package.module:function"
        )
    try:
        network, found = classes[0].from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # of many kinds, down to those of safetensors
        raise ValueError(f"no weights could be read from {folder}: {_line(error)}") from error
    if found["missing_keys"]:
        missing = ", ".join(sorted(found["missing_keys"])[:4])
        raise ValueError(f"{folder} has no weights for {missing}: they would be random")
    if getattr(network.config, "pad_token_id", 0) is None and any(folder.glob("tokenizer*.json")):
        network.config.pad_token_id = _tokenizer(folder).pad_token_id
    return network


def load_batches(
    source: str, model: str, *, split: str, max_examples: int, batch_size: int
) -> Iterable[Any]:
    """Batches from a folder of Parquet files, or from a function; arguments as `measure_saved`.

    The tokenizer or image processor is that of the model.
    """
    if is_reference(source):
        found = load(source)
        found = found() if callable(found) else found
        if not isinstance(found, Iterable):
            raise ValueError(f"{source} gave {type(found).__name__}; it must return batches")
        return found
    if is_reference(model):
        raise ValueError(
            "a data set in a folder needs the tokenizer or image processor of a model in a folder, "
            f"but --model is the function {model}; pass a function as --data, too"
        )
    found_split = find_split(Path(source), split)
    if found_split.image is not None:  # its text, if any, is a file name or a caption
        return _image_batches(found_split, Path(model), max_examples, batch_size)
    if found_split.text is not None:
        return _text_batches(found_split, Path(model), max_examples, batch_size)
    raise ValueError(f"{found_split.files[0]} has neither a text column nor an image column")


def _text_batches(
    split: ParquetSplit, model: Path, limit: int, batch_size: int
) -> Iterator[dict[str, Any]]:
    import torch

    tokenizer, config = _tokenizer(model), _config(model)
    positions = config.get("max_position_embeddings") or config.get("n_positions") or LONGEST
    longest = min(tokenizer.model_max_length, positions, LONGEST)
    texts, labels, _ = _rows(split, split.text, limit)
    for start in range(0, len(labels), batch_size):
        part = slice(start, start + batch_size)
        tokens = tokenizer(texts[part], max_length=longest, **AS_TENSORS)
        yield {**tokens, "labels": torch.tensor(labels[part])}


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
        raise ValueError(
            f"no image processor could be read from {model}: {_line(error)}"
        ) from error
    values, labels, rows = _rows(split, split.image, limit)
    for start in range(0, len(labels), batch_size):
        part = slice(start, start + batch_size)
        images = []
        for row, value in zip(rows[part], values[part], strict=True):
            content = value["bytes"] if isinstance(value, dict) else value
            try:
                images.append(Image.open(io.BytesIO(content)).convert("RGB"))
            except (OSError, TypeError) as error:
                where = f"row {row} of the split in {split.files[0].parent}"
                raise ValueError(f"{where} is not an image: {error}") from error
        pixels = processor(images, return_tensors="pt")["pixel_values"]
        yield {"pixel_values": pixels, "labels": torch.tensor(labels[part])}


def _rows(
    split: ParquetSplit, column: str | None, limit: int
) -> tuple[list[Any], list[int], list[int]]:
    """Values of a column from all over the split, none missing, with their labels and rows."""
    assert column is not None
    rows = split.spread(limit)
    read = split.read([column, split.label], rows)
    for name, values in read.items():
        if None in values:
            where = f"row {rows[values.index(None)]} of the split in {split.files[0].parent}"
            raise ValueError(f"{where} has no {name}; remove such rows")
    return read[column], read[split.label], rows


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def _tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder; it pads with its end token if it has no padding token."""
    try:
        tokenizer = _transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of many kinds, down to those of the Rust library
        raise ValueError(f"no tokenizer could be read from {folder}: {_line(error)}") from error
    # Some tokenizers load without their files, and then have an empty vocabulary.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ValueError(f"no tokenizer could be read from {folder}: its vocabulary is missing")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ValueError(
            f"the tokenizer in {folder} has neither a padding token nor an end token, so texts "
            "cannot be batched; set its pad_token and save it again"
        )
    return tokenizer


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ValueError(
            "a Hugging Face folder needs transformers: pip install 'grokscope[transformers]'"
        ) from error
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()  # it would flash up for a second
    return transformers
