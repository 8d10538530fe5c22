"""Binary operations on finite sets, as equations ``a op b = c <eos>``.

Operands are the tokens below m (the modulus, or 120 for S5), then the operator, ``=`` and
``<eos>``. Every operation is a table ``[m, m]`` of answers, -1 where it is not defined.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from grokscope.measures.checks import NotFiniteError
from grokscope.measures.flatness import published_grokking_flatness
from grokscope.probe import Measurement, Probe, measure_tensors
from grokscope.probe.together import Heads
from grokscope.probe.values import Block
from grokscope.spec import ModularArithmetic, Operation
from grokscope.tasks import Split, Task
from grokscope.tasks.looks import Forward, Look
from grokscope.tasks.models.equations import EquationTransformer


def _division(a: Tensor, b: Tensor, p: int) -> Tensor:
    inverses = torch.tensor([0, *(pow(value, -1, p) for value in range(1, p))])
    return torch.where(b == 0, -1, a * inverses[b] % p)


def _s5_composition(a: Tensor, b: Tensor, _: int) -> Tensor:
    permutations = torch.tensor(list(itertools.permutations(range(5))))  # [120, 5], sorted
    digits = 5 ** torch.arange(4, -1, -1)
    composed = permutations[a].gather(-1, permutations[b])  # b first, then a
    return torch.searchsorted((permutations * digits).sum(-1), (composed * digits).sum(-1))


OPERATIONS: dict[Operation, Callable[[Tensor, Tensor, int], Tensor]] = {
    "addition": lambda a, b, p: (a + b) % p,
    "subtraction": lambda a, b, p: (a - b) % p,
    "multiplication": lambda a, b, p: a * b % p,
    "division": _division,
    "sum_of_squares": lambda a, b, p: (a**2 + b**2) % p,
    "quadratic_form": lambda a, b, p: (a**2 + a * b + b**2) % p,
    "cubic": lambda a, b, p: (a**3 + a * b) % p,
    "s5_composition": _s5_composition,
}


def operation_table(operation: Operation, modulus: int) -> Tensor:
    """Answers ``c`` of ``a op b`` as ``table[a, b]``, integers; -1 where it is not defined."""
    size = 120 if operation == "s5_composition" else modulus
    operands = torch.arange(size)
    return OPERATIONS[operation](
        operands[:, None].expand(size, size), operands.expand(size, size), modulus
    )


def equations(operation: Operation, modulus: int, answers: int) -> tuple[Tensor, Tensor]:
    """All equations as ``(tokens [n, 3 + answers], next tokens of the last ``answers`` ones)``."""
    table = operation_table(operation, modulus)
    size = len(table)
    operator, equals, end = size, size + 1, size + 2
    a, b = (table >= 0).nonzero(as_tuple=True)
    c = table[a, b]
    sequence = [a, torch.full_like(a, operator), b, torch.full_like(a, equals), c]
    tokens = torch.stack(sequence[: 3 + answers], 1)
    labels = torch.stack([c, torch.full_like(c, end)][:answers], 1)
    return tokens, labels


def modular_arithmetic(settings: ModularArithmetic, split_seed: int) -> Task:
    """The task; the model is initialised from torch's global generator."""
    tokens, labels = equations(settings.operation, settings.modulus, settings.answers)
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(split_seed))
    count = round(settings.train_fraction * len(tokens))
    model = EquationTransformer(
        settings.operands,
        settings.answers,
        settings.vocabulary or settings.operands + 3,
        settings.width,
        settings.heads,
        settings.layers,
    )
    train, validation = order[:count], order[count:]
    return Task(
        model=model,
        train=Split(tokens[train], labels[train]),
        validation=Split(tokens[validation], labels[validation]),
        measure=AnswerLook(),
    )


class AnswerLook(Look):
    """Measures at the token that states the result; ``<eos>`` is no question.

    Where ``<eos>`` is predicted too, the value that the paper's grokking figure plots is added as
    ``published_flatness``: it multiplies the logits of both tokens.
    """

    def __init__(self) -> None:
        super().__init__(head="head")

    def __call__(
        self, model: nn.Module, split: Split, reference: Measurement | None = None
    ) -> Measurement:
        probe = Probe(model, head=self.head)
        features, logits = probe.capture(split.inputs)
        measurement = measure_tensors(
            features[:, 0], logits[:, 0], split.labels[:, 0], probe.head, reference=reference
        )
        if features.shape[1] == 1:
            return measurement
        published = _published(features, logits, probe.head.weight.detach())
        return measurement.including(published_flatness=float(published))

    def together(
        self,
        forward: Forward,
        heads: Heads,
        splits: Sequence[Split],
        references: Sequence[Measurement] | None = None,
    ) -> list[Measurement | NotFiniteError]:
        passes: list[tuple[Tensor, Tensor]] = []

        def kept(inputs: Tensor) -> tuple[Tensor, Tensor]:
            passes.append(forward(inputs))
            return passes[-1]

        measured = super().together(kept, heads, splits, references)
        features, logits = (torch.cat(each, dim=1) for each in zip(*passes, strict=True))
        if features.shape[2] == 1:
            return measured
        values = torch.func.vmap(_published)(features, logits, heads.weight.detach()).tolist()
        return [
            own.including(published_flatness=value) if isinstance(own, Measurement) else own
            for own, value in zip(measured, values, strict=True)
        ]

    def block(self, features: Tensor, logits: Tensor, labels: Tensor) -> Block:
        return super().block(features[:, :, 0], logits[:, :, 0], labels[:, :, 0])


def _published(features: Tensor, logits: Tensor, weight: Tensor) -> Tensor:
    return published_grokking_flatness(features.double(), logits.double(), weight.double())
