"""What one writes without grokscope: definitions loop by loop, the paper's loop, its networks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from grokscope.tasks.models.transformer import sinusoidal_positions


def ncc_by_loops(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """NCC sample by sample and pair by pair, in tensors, as a penalty needs it."""
    members = [[] for _ in range(classes)]
    for row, label in zip(features, labels.tolist(), strict=True):
        members[label].append(row)
    means, variances = [], []
    for rows in members:
        mean = torch.zeros(features.shape[1])
        for row in rows:
            mean = mean + row
        means.append(mean / len(rows))
        variance = torch.zeros(())
        for row in rows:
            variance = variance + (row - means[-1]).norm() ** 2
        variances.append(variance / len(rows))
    total = torch.zeros(())
    for a in range(classes):
        for b in range(classes):
            if a != b:
                distance = (means[a] - means[b]).norm() ** 2
                total = total + (variances[a] + variances[b]) / (2 * distance)
    return total / (classes * (classes - 1))


def ncc_penalty_by_loops(
    features: Tensor, _logits: Tensor, labels: Tensor, _weight: Tensor
) -> Tensor:
    """The same of one batch, as the published penalty takes it: of the classes that are there."""
    _, present = labels.unique(return_inverse=True)
    return ncc_by_loops(features, present, int(present.max()) + 1)


def kappa_by_loops(features: Tensor, logits: Tensor, weight: Tensor) -> Tensor:
    """Relative flatness sample by sample and block by block, in tensors, as a penalty needs it."""
    classes = len(weight)
    total = torch.zeros(())
    for row, logit in zip(features, logits, strict=True):
        probs, square = logit.softmax(-1), row @ row
        for s in range(classes):
            for t in range(classes):
                trace = probs[s] * (float(s == t) - probs[t]) * square
                total = total + (weight[s] @ weight[t]) * trace
    return total / len(features)


def kappa_by_hessian(features: Tensor, labels: Tensor, weight: Tensor) -> float:
    """Relative flatness from the full Hessian that autograd gives."""

    def loss(rows: Tensor) -> Tensor:
        return functional.cross_entropy(features @ rows.T, labels)

    hessian = torch.autograd.functional.hessian(loss, weight)
    traces = hessian.diagonal(dim1=1, dim2=3).sum(-1)
    return float((traces * (weight @ weight.T)).sum())


class Head(nn.Module):
    """One attention head with projections of its own."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(width, inner, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        queries, keys, values = self.query(hidden), self.key(hidden), self.value(hidden)
        scores = queries @ keys.transpose(1, 2) / math.sqrt(keys.shape[-1])
        later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        return scores.masked_fill(later, -math.inf).softmax(-1) @ values


class Block(nn.Module):
    """Attention and feed-forward, each added and normalised."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(width, width // heads) for _ in range(heads))
        self.mix = nn.Linear(width, width, bias=False)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width, bias=False)
        self.contract = nn.Linear(4 * width, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        attended = self.mix(torch.cat([head(hidden) for head in self.heads], -1))
        hidden = self.first(hidden + attended)
        return self.second(hidden + self.contract(self.expand(hidden).relu()))


class PlainDecoder(nn.Module):
    """The paper's decoder, a module for each head, every position computed."""

    def __init__(self, vocabulary: int, width: int = 128, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.register_buffer("positions", sinusoidal_positions(5, width))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.blocks(self.embedding(tokens) + self.positions)
        return hidden, self.head(hidden)


def paper_step(model: PlainDecoder, optimizer: torch.optim.Optimizer, batch: Tensor) -> float:
    """One step of the paper's loop: loss at both answers, then metrics of this very batch."""
    tokens, labels = batch[:, :-1], batch[:, 1:]
    features, logits = model(tokens)
    answers, wanted = logits[:, -2:], labels[:, -2:]
    loss = functional.cross_entropy(answers.flatten(0, 1), wanted.flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        accuracy = (answers.argmax(-1) == wanted).float().mean().item()
        probs = (logits[:, -2] * logits[:, -1]).softmax(-1)
        spread = 1 - probs.square().sum(-1)
        square = features[:, -2:].square().sum((1, 2))
        value = (model.head.weight.square().sum() * (spread * square).mean()).item()
    return loss.item() + accuracy + value


class PlainBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        hidden = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        return functional.relu(self.bn2(self.conv2(hidden)) + shortcut, inplace=True)


class PlainResNet(nn.Module):
    """torchvision's ResNet-18, by its names: every convolution is an `nn.Conv2d`."""

    def __init__(self, classes: int = 10, width: int = 64, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        for stage in range(4):
            outputs = width << stage
            first = PlainBlock(outputs // 2, outputs, 2) if stage else PlainBlock(width, width, 1)
            self.add_module(
                f"layer{stage + 1}", nn.Sequential(first, PlainBlock(outputs, outputs, 1))
            )
        self.fc = nn.Linear(8 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.maxpool(functional.relu(self.bn1(self.conv1(images)), inplace=True))
        hidden = self.layer4(self.layer3(self.layer2(self.layer1(hidden))))
        return self.fc(hidden.mean(dim=(2, 3)))
