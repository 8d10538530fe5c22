"""A measurement as a mapping, tensors measured without a model, and answers of equations."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch
from probe_models import EQUATIONS, X, Y, integers, mlp, normal
from torch import nn
from torch.nn.functional import cross_entropy

from grokscope.measures import records
from grokscope.measures.moments import ClassMoments
from grokscope.probe import Measurement, Probe, measure_tensors
from grokscope.tasks import Split
from grokscope.tasks.models.equations import EquationTransformer
from grokscope.tasks.modular import answer_look

PROBED = [name for name, record in records().items() if record.is_probed]


def measurement(**numbers: float) -> Measurement:
    return Measurement(numbers, 1234, ClassMoments.from_batch(X, Y, 3))


# A mapping ------------------------------------------------------------------------------------


def test_it_is_a_mapping_of_plain_floats():
    model = mlp().double()
    reference = Probe(model).measure([(X, Y)])
    for measured in (reference, Probe(model, memory=0).measure([(X, Y)], reference)):
        assert all(type(value) is float for value in measured.values())
        assert json.loads(json.dumps(dict(measured))) == dict(measured)
        assert len(measured) == len(list(measured)) == len({**measured})
        assert "loss" in measured and measured.get("temperature") is None


def test_it_prints_as_a_table_with_units():
    text = str(measurement(loss=0.1234567, accuracy=1.0, mean_class_angle=109.47, mine=-3e-9))
    assert text.splitlines() == [
        "1,234 examples",
        "loss                  0.123457  nats",
        "accuracy                     1  share",
        "mean_class_angle        109.47  degrees",
        "mine                    -3e-09",
    ]
    assert "1234" in repr(measurement(loss=1.0))


def test_every_measure_of_the_probe_has_its_unit_named():
    model, inputs = mlp().double(), normal(30, 4)
    labels = model.eval()(inputs).argmax(-1)
    with torch.no_grad():
        model[4].weight *= 50
        model[4].bias *= 50
    train = Probe(model).measure([(inputs, labels)])
    held_out = Probe(model).measure([(X, Y)], train)
    assert train.keys() | held_out.keys() == {*PROBED}
    assert {train.unit(name) for name in train} == {"nats", "share", "degrees", "probability", ""}
    assert train.unit("loss") == train.unit("relative_flatness") == "nats"
    assert train.unit("something of yours") == ""


def test_a_name_that_is_not_there_is_answered_with_those_that_are():
    with pytest.raises(KeyError, match=r"'los' was not measured; there are loss, accuracy"):
        measurement(loss=1.0, accuracy=0.5)["los"]


def collapse_of(measured: Measurement) -> set[str]:
    names = {"mean_class_angle", "angle_deviation"}
    return {each for each in measured if each.startswith(("nc", "collapse_")) or each in names}


@pytest.mark.parametrize("memory", [0, 2**30])
def test_data_of_one_class_say_why_their_collapse_is_missing(memory):
    model, inputs = mlp().double(), normal(30, 4)
    batches = [(inputs, model.eval()(inputs).argmax(-1))]
    probe = Probe(model, memory=memory)
    whole, one = probe.measure(batches), probe.measure([(X, torch.zeros_like(Y))])
    assert collapse_of(whole) <= set(one.left_out) and not collapse_of(one)
    with pytest.raises(KeyError, match=r"'ncc' was not measured: fewer than two classes have exam"):
        one["ncc"]
    (line,) = [each for each in str(one).splitlines() if "two classes" in each]
    assert line.startswith("not measured: angle_deviation, collapse_") and " ncc, " in line
    held_out = probe.measure(batches, one)
    assert "of the training data" in held_out.left_out["nc4_agreement"]


def test_classes_of_one_example_have_no_variance_to_correct():
    measured = Probe(mlp().double()).measure([(X[:3], torch.tensor([0, 1, 2]))])
    assert "ncc" in measured and measured.left_out["ncc_unbiased"].startswith("fewer than two")


def test_it_cannot_be_changed():
    numbers = {"loss": 1.0}
    measured = measurement(**numbers)
    kept = Measurement(numbers, 3, measured.moments)
    numbers["loss"] = 2.0
    assert kept["loss"] == 1.0
    for change in (
        lambda: setattr(measured, "examples", 3),
        lambda: setattr(measured, "numbers", {}),
        lambda: measured.__setitem__("loss", 0.0),
        lambda: measured.numbers.__setitem__("loss", 0.0),
        lambda: measured.numbers.clear(),
    ):
        with pytest.raises((dataclasses.FrozenInstanceError, AttributeError, TypeError)):
            change()
    more = measured.including(mine=3.0, loss=4.0)
    assert dict(more) == {"loss": 4.0, "mine": 3.0} and dict(measured) == {"loss": 1.0}
    assert more.examples == 1234 and more.moments is measured.moments


@pytest.mark.parametrize("copied", [lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy])
def test_a_copy_through_pickle_is_the_same(copied):
    probe = Probe(mlp().double(), memory=0)
    train, kept = probe.measure([(X, Y)]), Probe(probe.model).measure([(X, Y)])
    for measured in (train, kept, probe.measure([(X, Y)], train), measurement(loss=1.0)):
        twin = copied(measured)
        assert twin == measured and hash(twin) == hash(measured)
        assert str(twin) == str(measured) and twin.left_out == measured.left_out
        assert torch.equal(twin.moments.mean, measured.moments.mean)
    # The copy serves as a reference, too.
    parts = [Probe(probe.model).measure([(X + 1, Y)], each) for each in (kept, copied(kept))]
    assert parts[0] == parts[1] and "representativeness_kde" in parts[0]


def test_measurements_are_equal_when_their_numbers_are():
    assert measurement(loss=1.0, mine=2.0) == measurement(mine=2.0, loss=1.0)
    assert hash(measurement(loss=1.0, mine=2.0)) == hash(measurement(mine=2.0, loss=1.0))
    assert measurement(loss=1.0) != measurement(loss=1.5)
    assert measurement(loss=1.0) == {"loss": 1.0}


# Tensors --------------------------------------------------------------------------------------


def test_tensors_are_measured_as_the_probe_measures_their_model():
    model = mlp().double()
    extra = {"mine": lambda features, logits, labels, weight: logits.mean()}
    probe = Probe(model, extra=extra)
    features, logits = probe.capture(X)
    train = measure_tensors(features, logits, Y, probe.head, extra=extra)
    assert train == probe.measure([(X, Y)])
    again = measure_tensors(features, logits, Y, probe.head, extra=extra, reference=train)
    assert again == probe.measure([(X, Y)], train)
    needing = features.clone().requires_grad_()
    assert measure_tensors(needing, logits, Y, probe.head, extra=extra) == train


def test_at_matched_confidence_the_loss_is_a_tenth_and_kappa_that_of_the_cooled_head():
    head = nn.Linear(6, 4, bias=False).double()
    with torch.no_grad():
        head.weight.copy_(30 * normal(4, 6))
    features = normal(50, 6, seed=2)
    logits = (features @ head.weight.mT).detach()
    measured = measure_tensors(features, logits, logits.argmax(-1), head)
    cooled = logits / measured["matched_temperature"]
    assert cross_entropy(cooled, logits.argmax(-1)).item() == pytest.approx(0.1, rel=1e-5)
    w, p = head.weight.detach() / measured["matched_temperature"], cooled.softmax(-1)
    variance = p @ w.square().sum(-1) - (p @ w).square().sum(-1)
    kappa = (features.square().sum(-1) * variance).mean().item()
    assert measured["relative_flatness_matched"] == pytest.approx(kappa, rel=1e-9)
    # Where too many answers are wrong, no temperature gives that loss.
    wrong = torch.where(torch.arange(50) < 10, (logits.argmax(-1) + 1) % 4, logits.argmax(-1))
    assert "matched_temperature" not in measure_tensors(features, logits, wrong, head)


def test_tensors_of_different_heads_are_refused():
    head, z = nn.Linear(4, 3).double(), normal(10, 3)
    for arguments, message in (
        ((X[:5], z, Y), "logits has 10 examples but features has 5"),
        ((X[:, :3], z, Y), "weight has width 4 but features has width 3"),
        ((X, z, Y[:4]), "labels has 4 entries for 10 examples; pass one label per example"),
        ((X, z, Y + 1), r"labels must lie in \[0, 2\]"),
        ((X * torch.nan, z, Y), "features holds 40 NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            measure_tensors(*arguments, head)


def test_blocks_larger_than_a_temporary_are_taken_in_pieces(monkeypatch):
    model = mlp().double()
    train = Probe(model).measure([(X, Y)])
    held_out = Probe(model).measure([(X + 1, Y)], train)
    monkeypatch.setattr("grokscope.probe.assembly.ELEMENTS", 20)  # three examples
    assert dict(Probe(model).measure([(X, Y)])) == pytest.approx(dict(train), rel=1e-12)
    again = Probe(model).measure([(X + 1, Y)], train)
    assert dict(again) == pytest.approx(dict(held_out), rel=1e-12)


# Answers of equations -------------------------------------------------------------------------


def equation_split(answers: int) -> tuple[nn.Module, Split]:
    model = EquationTransformer(5, answers, 9, 8, heads=2).double()
    tokens = EQUATIONS[:, : 3 + answers]
    labels = torch.stack([integers(5, 8, seed=9), torch.full((8,), 7)], 1)[:, :answers]
    return model, Split(tokens, labels)


@pytest.mark.parametrize("answers", [1, 2])
def test_answers_are_measured_at_the_token_that_states_the_result(answers):
    model, split = equation_split(answers)
    measured = answer_look(answers)(model, split)
    assert measured.examples == 8
    with torch.no_grad():
        logits = model.forward_everywhere(split.inputs)[:, 3]  # what "=" predicts
    expected = cross_entropy(logits, split.labels[:, 0]).item()
    assert measured["loss"] == pytest.approx(expected, rel=1e-12)
    assert measured.moments.count.tolist() == split.labels[:, 0].bincount(minlength=9).tolist()


def test_the_published_flatness_is_the_transcription_of_the_papers_code():
    model, split = equation_split(2)
    hidden = []
    model.head.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
    with torch.no_grad():
        logits = model.forward_everywhere(split.inputs).numpy()
    features, weight = hidden[0].numpy(), model.head.weight.detach().numpy()
    values = []
    for z, phi in zip(logits, features, strict=True):
        product = z[-2] * z[-1]  # of the logits at "=" (which predict c) and at c (<eos>)
        p = np.exp(product) / np.exp(product).sum()
        both = np.concatenate([phi[-2], phi[-1]])
        values.append((weight**2).sum() * (1 - (p**2).sum()) * (both**2).sum())
    measured = answer_look(2)(model, split)
    assert measured["published_flatness"] == pytest.approx(np.mean(values), rel=1e-10)
    train = answer_look(2)(model, split, measured)
    assert train["published_flatness"] == measured["published_flatness"]
    assert train["generalisation_gap"] == 0.0


def test_one_answer_has_no_published_flatness():
    model, split = equation_split(1)
    with pytest.raises(KeyError, match="'published_flatness' was not measured"):
        answer_look(1)(model, split)["published_flatness"]
