"""The transformer against a transcription of the paper's, and its fast form against the plain."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers, sampled_from
from torch import Tensor
from torch.nn.functional import cross_entropy, layer_norm

from grokscope.tasks.models.equations import EquationTransformer
from grokscope.tasks.models.transformer import Transformer, sinusoidal_positions


def by_the_book(model: Transformer, tokens: Tensor) -> Tensor:
    """Logits at every position, with a loop over heads, positions and keys."""
    d = model.embedding.weight.shape[1]
    hidden = model.embedding.weight[tokens] + model.positions[: tokens.shape[1]]
    for block in model.blocks:
        projected = hidden @ block.queries_keys_values.weight.T
        queries, keys, values = projected.split(d, dim=-1)
        width = d // block.heads
        attended = torch.zeros_like(hidden)
        for h in range(block.heads):
            part = slice(h * width, (h + 1) * width)
            for t in range(tokens.shape[1]):
                scores = (keys[:, : t + 1, part] @ queries[:, t, part].unsqueeze(-1)).squeeze(-1)
                weights = (scores / math.sqrt(width)).softmax(-1)
                attended[:, t, part] = (weights.unsqueeze(-1) * values[:, : t + 1, part]).sum(1)
        mixed = hidden + attended @ block.mix.weight.T
        norm = block.attention_norm
        hidden = layer_norm(mixed, (d,), norm.weight, norm.bias)
        expanded = (hidden @ block.expand.weight.T).clamp(min=0) @ block.contract.weight.T
        norm = block.feedforward_norm
        hidden = layer_norm(hidden + expanded, (d,), norm.weight, norm.bias)
    return hidden @ model.head.weight.T


def tokens_of(operands: int, answers: int, examples: int = 30, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, operands, (examples, 3 + answers), generator=generator)
    tokens[:, 1], tokens[:, 3] = operands, operands + 1
    return tokens


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_plain_form_is_the_paper_s_decoder(layers):
    model = Transformer(23, length=6, width=16, heads=4, layers=layers).double()
    tokens = torch.randint(0, 23, (10, 6))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), by_the_book(model, tokens))


@settings(max_examples=25, deadline=None)
@given(
    operands=integers(2, 20),
    answers=sampled_from([1, 2]),
    layers=integers(1, 3),
    heads=sampled_from([1, 2, 4]),
    seed=integers(0, 10**6),
)
def test_the_fast_form_says_what_the_plain_one_says(operands, answers, layers, heads, seed):
    torch.manual_seed(seed)
    model = EquationTransformer(
        operands, answers, operands + 5, 16, heads=heads, layers=layers
    ).double()
    tokens = tokens_of(operands, answers, seed=seed)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), by_the_book(model, tokens)[:, -answers:])
        torch.testing.assert_close(
            model.forward_everywhere(tokens)[:, -answers:], model(tokens), rtol=1e-9, atol=1e-11
        )


@pytest.mark.parametrize("answers", [1, 2])
def test_both_forms_have_the_same_gradients(answers):
    model = EquationTransformer(11, answers, 16, 32, heads=4, layers=2).double()
    tokens = tokens_of(11, answers)
    labels = torch.randint(0, 11, (len(tokens) * answers,))
    gradients = []
    for logits in (model(tokens), model.forward_everywhere(tokens)[:, -answers:]):
        loss = cross_entropy(logits.flatten(0, 1), labels)
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for fast, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, plain)


def test_the_fast_form_trains_as_the_plain_one_over_hundreds_of_steps():
    trained = []
    for form in (EquationTransformer.forward, EquationTransformer.forward_everywhere):
        torch.manual_seed(0)
        model = EquationTransformer(11, 2, 14, 32, heads=4, layers=2).double()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1.0)
        for step in range(300):
            tokens = tokens_of(11, 2, seed=step)
            labels = torch.stack([tokens[:, 4], torch.full((len(tokens),), 13)], 1)
            loss = cross_entropy(form(model, tokens)[:, -2:].flatten(0, 1), labels.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        trained.append(torch.cat([each.detach().flatten() for each in model.parameters()]))
    torch.testing.assert_close(*trained, rtol=1e-6, atol=1e-8)


def test_the_model_has_the_parameters_of_the_paper_s():
    model = EquationTransformer(97, 2, 239)
    block = 128 * 384 + 128 * 128 + 2 * 128 * 512 + 4 * 128
    assert sum(each.numel() for each in model.parameters()) == 2 * block + 2 * 239 * 128
    assert not [
        name for name, _ in model.named_parameters() if "bias" in name and "norm" not in name
    ]


def test_positions_are_sines_and_cosines():
    table = sinusoidal_positions(7, 10)
    for t in range(7):
        for i in range(5):
            angle = t / 10_000 ** (2 * i / 10)
            assert table[t, 2 * i] == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[t, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-6)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="heads=3 must divide width=16"):
        Transformer(5, width=16, heads=3)
