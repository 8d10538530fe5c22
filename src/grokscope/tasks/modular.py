"""Binary operations on finite sets, as equations ``a op b = c <eos>``.

Operands are the tokens below m (the modulus, or 120 for S5), then the operator, ``=`` and
``<eos>``. Every operation is a table ``[m, m]`` of answers, -1 where it is not defined.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from grokscope.measures.record import record_of
from grokscope.probe import Look
from grokscope.spec import ModularArithmetic, Operation
from grokscope.tasks.models.equations import EquationTransformer
from grokscope.tasks.task import Split, Task


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
        heads=settings.heads,
        layers=settings.layers,
    )
    train, validation = order[:count], order[count:]
    return Task(
        model=model,
        train=Split(tokens[train], labels[train]),
        validation=Split(tokens[validation], labels[validation]),
        look=answer_look(settings.answers),
    )


def answer_look(answers: int) -> Look:
    """The look at the token that states the result; ``<eos>`` is not measured.

    With two answers ``<eos>`` is predicted too, and the value that the paper's grokking figure
    plots is added as ``published_flatness``: it multiplies the logits of both tokens.
    """
    extra = {"published_flatness": record_of("published_flatness")} if answers == 2 else {}
    return Look(head="head", rows=_result, extra=extra)


def _result(features: Tensor, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return features[:, 0], logits[:, 0], labels[:, 0]
