"""Saved models on data sets in files: measured as the probe by hand measures them."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from grokscope.cli import app
from grokscope.integrations.huggingface import load_batches, measure_saved
from grokscope.probe import Measurement, Probe

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ["[PAD]", "[UNK]", "[END]", "good", "bad", "film", "dull", "fine"]
LONGEST = 12
BERT = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": LONGEST,
    "num_labels": 3,
}
GPT2 = {
    "vocab_size": len(WORDS), "n_positions": LONGEST, "n_embd": 16, "n_layer": 1, "n_head": 2,
    "num_labels": 3, "bos_token_id": 2, "eos_token_id": 2,
}  # fmt: skip
VIT = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "num_labels": 3,
}


def save_tokenizer(folder: Path, **tokens: Any) -> None:
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    settings = {"unk_token": "[UNK]", **tokens}
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **settings).save_pretrained(folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders bert, gpt2 and vit as ``save_pretrained`` writes them."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    wide = {"initializer_range": 0.5}  # so that answers differ
    bert = transformers.BertConfig(**BERT, **wide)
    transformers.BertForSequenceClassification(bert).save_pretrained(folder / "bert")
    save_tokenizer(folder / "bert", pad_token="[PAD]")
    gpt2 = transformers.GPT2Config(**GPT2, **wide)
    transformers.GPT2ForSequenceClassification(gpt2).save_pretrained(folder / "gpt2")
    save_tokenizer(folder / "gpt2", eos_token="[END]")
    vit = transformers.ViTConfig(**VIT, **wide)
    transformers.ViTForImageClassification(vit).save_pretrained(folder / "vit")
    return folder


@pytest.fixture
def bert(saved: Path, tmp_path: Path) -> Path:
    """A copy of the model of texts, to be damaged."""
    return Path(shutil.copytree(saved / "bert", tmp_path / "bert"))


def made_texts(count: int = 40, longest: int = LONGEST) -> tuple[list[str], list[int]]:
    random = np.random.default_rng(0)
    lengths = random.integers(1, longest + 1, count)
    texts = [" ".join(random.choice(WORDS[3:], length)) for length in lengths]
    return texts, [number % 3 for number in range(count)]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    sentences, labels = made_texts()
    write(folder / "test.parquet", text=sentences, label=labels)
    write(folder / "train.parquet", text=sentences[::-1], label=labels)
    return folder


def write(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def by_hand(model: nn.Module, sentences: list[str], labels: list[int], cut: int = LONGEST) -> Any:
    """One text at a time, so without padding, words looked up in a list."""
    batches = [
        ({"input_ids": torch.tensor([[WORDS.index(w) for w in text.split()][:cut]])}, [label])
        for text, label in zip(sentences, labels, strict=True)
    ]
    return Probe(model).measure(batches)


def assert_same(found: Measurement, expected: Measurement) -> None:
    assert found.examples == expected.examples
    assert set(found) == set(expected)
    # The head works in float32, and a sum of logits depends on who shares the batch.
    assert dict(found) == pytest.approx(dict(expected), rel=2e-3, abs=1e-4)


def refusal(model: Any, data: Any, **options: Any) -> str:
    with pytest.raises(ValueError) as refused:
        measure_saved(str(model), str(data), **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_texts_are_measured_as_one_by_one_without_padding(saved, texts, batch_size):
    model = transformers.BertForSequenceClassification.from_pretrained(saved / "bert")
    found = measure_saved(str(saved / "bert"), str(texts), batch_size=batch_size)
    assert_same(found, by_hand(model, *made_texts()))


@pytest.mark.parametrize("batch_size", [1, 7])
def test_a_model_that_answers_at_the_last_token_does_so_without_a_padding_token(
    saved, texts, batch_size
):
    model = transformers.GPT2ForSequenceClassification.from_pretrained(saved / "gpt2")
    found = measure_saved(str(saved / "gpt2"), str(texts), batch_size=batch_size)
    assert_same(found, by_hand(model, *made_texts()))


def test_examples_from_all_over_the_split_that_was_named_are_taken(saved, texts, tmp_path):
    model = transformers.BertForSequenceClassification.from_pretrained(saved / "bert")
    some, labels = made_texts(3)
    write(tmp_path / "train.parquet", text=np.repeat(some, 10), label=np.repeat(labels, 10))
    shutil.copy(texts / "test.parquet", tmp_path)
    found = measure_saved(str(saved / "bert"), str(tmp_path), split="train", max_examples=12)
    assert found["loss"] == pytest.approx(by_hand(model, some, labels)["loss"], rel=2e-3)


def test_texts_longer_than_the_model_are_cut_to_its_length(saved, tmp_path):
    # The tokenizer knows no limit here; the model has but so many positions.
    sentences, labels = made_texts(longest=3 * LONGEST)
    write(tmp_path / "test.parquet", text=sentences, label=labels)
    model = transformers.BertForSequenceClassification.from_pretrained(saved / "bert")
    found = measure_saved(str(saved / "bert"), str(tmp_path))
    assert_same(found, by_hand(model, sentences, labels))


def test_the_command_says_what_was_measured_and_nothing_else(saved, texts):
    said = CliRunner().invoke(
        app, ["measure", "--model", str(saved / "bert"), "--data", str(texts), "--split", "train"]
    )
    assert (said.exit_code, said.stderr) == (0, "")
    assert said.stdout == f"{measure_saved(str(saved / 'bert'), str(texts), split='train')}\n"


# Images.


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def processed(saved: Path) -> Path:
    """The model of images together with its processor."""
    try:
        processor = transformers.ViTImageProcessor(
            size={"height": 16, "width": 16}, image_mean=[0.5, 0.4, 0.3], image_std=[0.5, 0.2, 0.1]
        )
    except ImportError as error:
        pytest.skip(f"this version of transformers needs torchvision for images: {error}")
    processor.save_pretrained(saved / "vit")
    return saved / "vit"


@pytest.mark.parametrize("wrapped", [True, False], ids=["as on the hub", "bytes"])
def test_images_are_measured_as_their_pixels(processed, tmp_path, wrapped):
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    labels = [number % 3 for number in range(20)]
    encoded: list[Any] = [png(each) for each in pixels]
    images = [{"bytes": each, "path": None} for each in encoded] if wrapped else encoded
    names = [f"{number}.png" for number in range(20)]
    write(tmp_path / "test.parquet", text=names, image=images, label=labels)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.5, 0.2, 0.1])
    inputs = ((torch.tensor(pixels) / 255 - mean) / std).permute(0, 3, 1, 2)
    model = transformers.ViTForImageClassification.from_pretrained(processed)
    expected = Probe(model).measure([({"pixel_values": inputs}, torch.tensor(labels))])
    assert_same(measure_saved(str(processed), str(tmp_path), batch_size=6), expected)


def test_grey_images_are_shown_in_three_equal_colours(processed, tmp_path):
    grey = np.random.default_rng(2).integers(0, 256, (6, 16, 16), dtype=np.uint8)
    write(tmp_path / "test.parquet", image=[png(each) for each in grey], label=[0, 1, 2] * 2)
    rows = {"split": "test", "max_examples": 100, "batch_size": 64}
    (batch,) = load_batches(str(tmp_path), str(processed), **rows)
    mean, std = (torch.tensor(each)[:, None, None] for each in ([0.5, 0.4, 0.3], [0.5, 0.2, 0.1]))
    expected = (torch.tensor(grey)[:, None].expand(-1, 3, -1, -1) / 255 - mean) / std
    torch.testing.assert_close(batch["pixel_values"], expected, atol=1e-5, rtol=1e-5)


def test_a_row_that_is_no_image_is_named(processed, tmp_path):
    good = png(np.zeros((16, 16, 3), dtype=np.uint8))
    write(tmp_path / "test.parquet", image=[good, good, b"GIF?"], label=[0, 1, 2])
    told = refusal(processed, tmp_path)
    assert told.startswith(f"row 2 of the split in {tmp_path} is not an image: ")


def test_images_need_an_image_processor(saved, tmp_path):
    write(tmp_path / "test.parquet", image=[b"", b""], label=[0, 1])
    told = refusal(saved / "bert", tmp_path)
    assert told.startswith(f"no image processor could be read from {saved / 'bert'}: ")


# Functions.

OWN = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.Identity())

ready = model()
number = 3
number_of = lambda: 3

def batches():
    generator = torch.Generator().manual_seed(1)
    for size in (10, 7):
        yield torch.randn(size, 2, 2, generator=generator), torch.arange(size) % 3

listed = list(batches())
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    path = tmp_path / "own_models.py"
    path.write_text(OWN)
    return str(path)


@pytest.mark.parametrize("model", ["model", "ready"])
@pytest.mark.parametrize("data", ["batches", "listed"])
def test_model_and_data_may_be_functions_or_what_they_return(own, model, data):
    names: dict[str, Any] = {}
    exec(OWN, names)
    expected = Probe(names["model"]()).measure(names["batches"]())
    assert dict(measure_saved(f"{own}:{model}", f"{own}:{data}")) == dict(expected)


def test_a_saved_model_takes_batches_from_a_function(saved, tmp_path):
    (tmp_path / "own_batches.py").write_text(
        "import torch\n"
        "def batches():\n"
        "    return [{'input_ids': torch.tensor([[3, 4], [5, 6]]), 'labels': torch.tensor([0, 1])}]"
    )
    model = transformers.BertForSequenceClassification.from_pretrained(saved / "bert")
    expected = by_hand(model, ["good bad", "film dull"], [0, 1])
    assert_same(measure_saved(str(saved / "bert"), f"{tmp_path}/own_batches.py:batches"), expected)


def test_the_head_can_be_named_and_a_wrong_name_is_refused_before_data_are_read(own):
    whole = dict(measure_saved(f"{own}:model", f"{own}:listed"))
    assert dict(measure_saved(f"{own}:model", f"{own}:listed", head="3")) == whole
    told = refusal(f"{own}:model", "nowhere", head="fc")
    assert told == "head 'fc' is not an nn.Linear of this model; it has '1', '3'."


# Errors.


def test_functions_that_give_something_else_are_refused(own):
    told = refusal(f"{own}:number_of", "nowhere")
    assert told == f"{own}:number_of gave int; it must return a torch module"
    assert "number gave int" in refusal(f"{own}:number", "nowhere")
    assert refusal(f"{own}:model", f"{own}:number_of").endswith("gave int; it must return batches")


def test_a_folder_of_data_needs_a_folder_of_a_model(own, texts):
    told = refusal(f"{own}:model", texts)
    assert told == (
        "a data set in a folder needs the tokenizer or image processor of a model in a folder, "
        f"but --model is the function {own}:model; pass a function as --data, too"
    )


def test_what_is_no_folder_of_a_model_is_refused_with_what_one_is(tmp_path, texts):
    told = refusal(tmp_path, texts)
    assert told == (
        f"{tmp_path}/config.json does not exist; --model takes a folder written by "
        "save_pretrained, or a function such as package.module:name or path/to/file.py:name"
    )


def test_a_broken_configuration_is_named(bert, texts):
    (bert / "config.json").write_text("{")
    assert refusal(bert, texts).startswith(f"{bert}/config.json is not valid JSON: ")


@pytest.mark.parametrize("names", [None, [], ["BertForWonders"]])
def test_an_unknown_architecture_is_named_with_the_version(bert, texts, names):
    config = json.loads((bert / "config.json").read_text()) | {"architectures": names}
    (bert / "config.json").write_text(json.dumps(config))
    told = refusal(bert, texts)
    assert told == (
        f"{bert}/config.json names no architecture that transformers {transformers.__version__} "
        f"has (architectures: {names or []}); load it yourself and pass package.module:function"
    )


@pytest.mark.parametrize("content", [None, b"rubbish"], ids=["missing", "broken"])
def test_weights_that_cannot_be_read_are_refused(bert, texts, content):
    (bert / "model.safetensors").unlink()
    if content is not None:
        (bert / "model.safetensors").write_bytes(content)
    assert refusal(bert, texts).startswith(f"no weights could be read from {bert}: ")


def test_a_head_without_weights_is_refused_rather_than_measured_as_it_falls_out(bert, texts):
    from safetensors.torch import load_file, save_file

    weights = load_file(bert / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, bert / "model.safetensors", metadata={"format": "pt"})
    assert refusal(bert, texts) == (
        f"{bert} has no weights for classifier.weight: they would be random"
    )


@pytest.mark.parametrize("files", ["tokenizer*", "tokenizer.json"])
def test_a_model_without_a_tokenizer_says_so(bert, texts, files):
    for file in bert.glob(files):
        file.unlink()
    assert refusal(bert, texts).startswith(f"no tokenizer could be read from {bert}: ")


def test_a_tokenizer_that_cannot_fill_up_says_so(bert, texts):
    save_tokenizer(bert)
    assert refusal(bert, texts) == (
        f"the tokenizer in {bert} has neither a padding token nor an end token, so texts cannot "
        "be batched; set its pad_token and save it again"
    )


def test_a_data_set_without_text_or_images_is_refused(saved, tmp_path):
    file = write(tmp_path / "test.parquet", label=[0, 1], value=[0.5, 0.6])
    told = refusal(saved / "bert", tmp_path)
    assert told == f"{file} has neither a text column nor an image column"


def test_a_row_without_text_or_label_is_named(saved, tmp_path):
    write(tmp_path / "test.parquet", text=[*["good"] * 9, None], label=[0] * 10)
    told = refusal(saved / "bert", tmp_path, max_examples=7)  # the last of which is row 9
    assert told == f"row 9 of the split in {tmp_path} has no text; remove such rows"
    write(tmp_path / "test.parquet", text=["good", "bad"], label=[0, None])
    assert "row 1" in refusal(saved / "bert", tmp_path)


def test_a_label_that_the_model_does_not_know_is_refused(saved, tmp_path):
    write(tmp_path / "test.parquet", text=["good", "bad"], label=[0, 3])
    told = refusal(saved / "bert", tmp_path)
    assert told.startswith("batch 1: ")
    assert "3" in told


def test_a_split_without_rows_is_refused(saved, tmp_path):
    empty = {"text": pa.array([], pa.string()), "label": pa.array([], pa.int64())}
    write(tmp_path / "test.parquet", **empty)
    assert refusal(saved / "bert", tmp_path).startswith("there are no batches to measure")


def test_a_missing_split_is_refused(saved, texts):
    assert "has no split 'dev'; it holds" in refusal(saved / "bert", texts, split="dev")


def test_without_transformers_a_folder_says_what_to_install(saved, texts, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    told = refusal(saved / "bert", texts)
    assert told == "a Hugging Face folder needs transformers: pip install 'grokscope[transformers]'"
