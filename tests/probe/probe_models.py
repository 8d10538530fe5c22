"""Small classifiers of many makes: one line in `CASES` tests the probe on a new one everywhere.

Each case says what its head must be and computes the head's input by hand, through the backbone
alone. All are float64, have dropout or batch norm where their kind does, and are in training mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from grokscope.tasks.models.equations import EquationTransformer
from grokscope.tasks.models.transformer import Transformer

PAD = 0


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def integers(high: int, *shape: int, low: int = 0, seed: int = 0) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def mlp(width: int = 6, classes: int = 3, dropout: float = 0.5) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, width),
        nn.BatchNorm1d(width),
        nn.Tanh(),
        nn.Dropout(dropout),
        nn.Linear(width, classes),
    )


class ResNet(nn.Module):
    """As torchvision's: stem, residual blocks, average pool, ``fc``."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.layer1, self.layer2 = Residual(4, 4, 1), Residual(4, 8, 2)
        self.fc = nn.Linear(8, classes)

    def backbone(self, images: Tensor) -> Tensor:
        stem = functional.relu(self.bn1(self.conv1(images)))
        return self.layer2(self.layer1(stem)).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.backbone(images))


class Residual(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(inner + self.downsample(x))


class Timm(nn.Module):
    """Has timm's ``get_classifier``, under a name and at a place that nobody would guess."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = nn.Linear(5, 3)
        self.stem = nn.Linear(4, 5)
        self.distilled = nn.Linear(5, 3)

    def get_classifier(self) -> nn.Module:
        return self.answer

    def forward_features(self, x: Tensor) -> Tensor:
        return self.stem(x).relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.forward_features(x))


@dataclass(frozen=True)
class Case:
    """A model, a batch as `Probe.measure` takes it, and the truth about its head.

    Attributes:
        make: Makes the model.
        batch: What is measured.
        head: Name of the head.
        features: Input of the head by hand, from the model and its inputs.
    """

    make: Callable[[], nn.Module]
    batch: Any
    head: str
    features: Callable[[Any, Any], Tensor]

    def model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.make().double().train()

    @property
    def inputs(self) -> Any:
        if isinstance(self.batch, Mapping):
            return {name: value for name, value in self.batch.items() if name != "labels"}
        return self.batch[0]

    def logits(self, call: Callable[..., Any]) -> Tensor:
        if isinstance(self.batch, Mapping):
            return call(**self.inputs).logits
        return call(self.inputs)

    def loss(self, call: Callable[..., Any]) -> Tensor:
        """Mean loss as the library itself has it, for models of ``transformers``."""
        if isinstance(self.batch, Mapping):
            return call(**self.batch).loss
        return functional.cross_entropy(
            self.logits(call).flatten(0, -2), torch.as_tensor(self.batch[1]).flatten()
        )


def hidden_states(model: Transformer, tokens: Tensor) -> Tensor:
    hidden = model.embedding(tokens) + model.positions[: tokens.shape[1]]
    for block in model.blocks:
        hidden = block(hidden)
    return hidden


# transformers, imported where a model is made -------------------------------------------------


def vit() -> nn.Module:
    import transformers

    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
            image_size=8, patch_size=4, num_labels=3, hidden_dropout_prob=0.3,
        )
    )  # fmt: skip


def bert(kind: str) -> nn.Module:
    import transformers

    return getattr(transformers, kind)(
        transformers.BertConfig(
            vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=8, max_position_embeddings=8, num_labels=3,
        )
    )  # fmt: skip


def gpt2(kind: str) -> nn.Module:
    import transformers

    return getattr(transformers, kind)(
        transformers.GPT2Config(
            vocab_size=11, n_embd=8, n_layer=1, n_head=2, n_positions=8, num_labels=3,
            pad_token_id=PAD, bos_token_id=1, eos_token_id=1, initializer_range=0.3,
        )
    )  # fmt: skip


LENGTHS = torch.tensor([3, 6, 1, 4, 6])


def padded(side: str, high: int) -> dict[str, Tensor]:
    """Texts of several lengths, padded on one side, with positions counted from the text."""
    place = torch.arange(6)
    mask = place < LENGTHS[:, None] if side == "right" else place >= 6 - LENGTHS[:, None]
    tokens = integers(high, 5, 6, low=2).where(mask, PAD)
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    return {"input_ids": tokens, "attention_mask": mask.long(), "position_ids": positions}


def without(batch: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name not in names}


def last_token(batch: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
    """The rows of ``hidden`` at the last position that holds a token, by a loop."""
    return torch.stack([
        row[max(i for i, there in enumerate(mask) if there)]
        for row, mask in zip(hidden, batch["attention_mask"].tolist(), strict=True)
    ])  # fmt: skip


LABELS = torch.tensor([0, 2, 1, 1, 0])
TEXTS = {side: padded(side, 11) for side in ("right", "left")}
IGNORING = integers(3, 5, 6, seed=4).where(padded("right", 20)["attention_mask"] == 1, -100)
NEXT_TOKENS = TEXTS["right"]["input_ids"].where(TEXTS["right"]["attention_mask"] == 1, -100)
X, Y = normal(10, 4), integers(3, 10, seed=1)
TOKENS = integers(7, 9, 5)
EQUATIONS = torch.stack(
    [integers(5, 8), torch.full((8,), 5), integers(5, 8, seed=2), torch.full((8,), 6),
     integers(5, 8, seed=3)], 1)  # fmt: skip

CASES = [
    pytest.param(Case(mlp, (X, Y), "4", lambda m, x: m[:-1](x)), id="mlp"),
    pytest.param(
        Case(ResNet, (normal(6, 3, 6, 6), integers(3, 6)), "fc", lambda m, x: m.backbone(x)),
        id="resnet",
    ),
    pytest.param(Case(Timm, (X, Y), "answer", lambda m, x: m.forward_features(x)), id="timm"),
    pytest.param(
        Case(lambda: Transformer(7, 5, 8, heads=2), (TOKENS, integers(7, 9, 5, seed=5)), "head",
             hidden_states), id="transformer",
    ),
    pytest.param(
        Case(lambda: EquationTransformer(5, 2, 9, 8, heads=2),
             (EQUATIONS, integers(9, 8, 2, seed=6)), "head",
             lambda m, x: hidden_states(m, x)[:, -2:]), id="equations",
    ),
    pytest.param(
        Case(vit, {"pixel_values": normal(5, 3, 8, 8), "labels": LABELS}, "classifier",
             lambda m, x: m.vit(**x).last_hidden_state[:, 0]), id="vit",
    ),
    pytest.param(
        Case(lambda: bert("BertForSequenceClassification"),
             without(padded("right", 20), "position_ids") | {"labels": LABELS}, "classifier",
             lambda m, x: torch.tanh(m.bert.pooler.dense(m.bert(**x).last_hidden_state[:, 0]))),
        id="bert",
    ),
    pytest.param(
        Case(lambda: bert("BertForTokenClassification"),
             without(padded("right", 20), "position_ids") | {"labels": IGNORING}, "classifier",
             lambda m, x: m.bert(**x).last_hidden_state), id="bert of tokens",
    ),
    *(
        pytest.param(
            Case(lambda: gpt2("GPT2ForSequenceClassification"), TEXTS[side] | {"labels": LABELS},
                 "score", lambda m, x: last_token(x, m.transformer(**x).last_hidden_state)),
            id=f"gpt2 padded on the {side}",
        )
        for side in ("right", "left")
    ),
    pytest.param(
        Case(lambda: gpt2("GPT2LMHeadModel"), TEXTS["right"] | {"labels": NEXT_TOKENS}, "lm_head",
             lambda m, x: m.transformer(**x).last_hidden_state), id="gpt2 language model",
    ),
]  # fmt: skip


def counted(case: Case, model: nn.Module) -> SimpleNamespace:
    """Features, logits and labels of the questions that count, by hand and one by one."""
    model = model.eval()
    with torch.no_grad():
        features, logits = case.features(model, case.inputs), case.logits(model)
    labels = case.batch["labels"] if isinstance(case.batch, Mapping) else case.batch[1]
    if labels.dim() == 1:
        return SimpleNamespace(features=features, logits=logits, labels=labels)
    ahead = int(case.head == "lm_head")  # position t is asked for token t + 1
    rows = [
        (features[i, t], logits[i, t], labels[i, t + ahead])
        for i in range(labels.shape[0])
        for t in range(labels.shape[1] - ahead)
        if labels[i, t + ahead] != -100
    ]
    features, logits, labels = (torch.stack(each) for each in zip(*rows, strict=True))
    return SimpleNamespace(features=features, logits=logits, labels=labels)
