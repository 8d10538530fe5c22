"""A probe that is asked for some measures: the same values, and none of the cost of the rest."""

from __future__ import annotations

import pytest
import torch
from probe_models import X, Y, mlp, normal
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from grokscope.measures import Measure, records
from grokscope.measures.moments import ClassMoments
from grokscope.probe import Measurement, Probe, measure_tensors

PROBED = [name for name, record in records().items() if record.is_probed]


def fitted() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A confident model with data that it answers right."""
    model, inputs = mlp().double(), normal(60, 4, seed=6)
    with torch.no_grad():
        model[4].weight *= 20
        return model, inputs, model.eval()(inputs).argmax(-1)


@pytest.fixture(scope="module")
def whole() -> tuple[nn.Module, Measurement, Measurement]:
    torch.manual_seed(0)
    model, inputs, labels = fitted()
    train = Probe(model).measure([(inputs, labels)])
    return model, train, Probe(model).measure([(X, Y)], train)


@pytest.mark.parametrize("name", PROBED)
def test_one_measure_alone_has_the_value_it_has_among_all(whole, name):
    model, train, held_out = whole
    inputs = normal(60, 4, seed=6)
    labels = model.eval()(inputs).argmax(-1)
    probe = Probe(model, measures=[name])
    one = probe.measure([(inputs, labels)])
    assert set(one) | set(one.left_out) == {name}
    assert one.get(name) == train.get(name) and one.left_out.get(name) == train.left_out.get(name)
    # Its own measurement of the training data serves as a reference, and so does a full one.
    for reference in (one, train):
        other = probe.measure([(X, Y)], reference)
        assert set(other) | set(other.left_out) == {name}
        assert other.get(name) == held_out.get(name)


def test_measures_of_your_own_are_named_like_ours():
    model = mlp().double()
    extra = {"mine": lambda features, *_: features.mean(), "other": lambda *_: 1 / 0}
    measured = Probe(model, measures=["mine", "loss"], extra=extra).measure([(X, Y)])
    assert list(measured) == ["loss", "mine"]
    probe = Probe(model)
    features, logits = probe.capture(X)
    tensors = measure_tensors(features, logits, Y, probe.head, measures=("ncc",))
    assert dict(tensors) == {"ncc": probe.measure([(X, Y)])["ncc"]}


def test_a_measure_of_your_own_may_have_its_record():
    double = Measure("double_loss", unit="nats", evaluate=lambda b: -2 * b.logits[:, 0])
    measured = Probe(mlp().double(), extra={"double_loss": double}).measure([(X, Y)])
    assert measured.unit("double_loss") == "nats"
    (line,) = [line for line in str(measured).splitlines() if line.startswith("double_loss ")]
    assert line.endswith("  nats")
    for name, wrong, message in (
        ("another", double, "'double_loss' under the name 'another'"),
        ("nothing", Measure("nothing"), "has no evaluate"),
    ):
        with pytest.raises(ValueError, match=message):
            Probe(mlp(), extra={name: wrong})


@pytest.mark.parametrize(
    ("measures", "message"),
    [
        (
            ["relative_flatnes"],
            "no measure called 'relative_flatnes'; did you mean 'relative_flatness'",
        ),
        (["loss", "kappa_"], "no measure called 'kappa_'"),
        (["parameter_norm"], "'parameter_norm' is taken in a run alone"),
        ("ncc", r"measures must be a list of names, got 'ncc'"),
    ],
)
def test_a_name_that_is_no_measure_is_answered_with_the_closest(measures, message):
    with pytest.raises(ValueError, match=message):
        Probe(mlp(), measures=measures)


def test_measures_of_your_own_are_given_float64_means_and_all_that_is_in_memory():
    """However many batches the features came in, and in whichever dtype."""
    model, inputs = mlp(), X.float()
    features = Probe(model).capture(inputs)[0]
    seen = []

    def average(features: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        seen.append(features.dtype)
        return features.mean()

    median = Measure("median", needs=("memory",), evaluate=lambda batch: batch.features.median())
    for size in (len(X), 3):
        batches = list(zip(inputs.split(size), Y.split(size), strict=True))
        found = Probe(model, extra={"average": average, "median": median}).measure(batches)
        assert found["average"] == pytest.approx(features.double().mean().item(), rel=1e-6)
        assert found["median"] == pytest.approx(features.median().item(), rel=1e-6)
    assert set(seen) == {torch.float64}


def operations(model: nn.Module, batch, **settings) -> int:
    count = [0]

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            count[0] += not func.is_view
            return func(*args, **(kwargs or {}))

    probe = Probe(model, **settings)
    with Count():
        probe.measure([batch])
    return count[0]


def test_what_is_not_asked_for_costs_nothing(monkeypatch):
    model, inputs, labels = fitted()
    batch = (inputs, labels)
    forward = operations(model, batch, measures=[])
    everything = operations(model, batch) - forward
    accuracy = operations(model, batch, measures=["accuracy"]) - forward
    assert accuracy < 0.03 * everything
    assert operations(model, batch, measures=["relative_flatness"]) - forward < 0.1 * everything
    monkeypatch.setattr(ClassMoments, "of", None)
    for name in ("feature_robustness", "matched_temperature", "margin"):  # no moments of classes
        measured = Probe(model, measures=[name]).measure([batch])
        assert name in measured and measured.moments is None


def test_robustness_and_matching_are_skipped_where_collapse_is_asked_for(monkeypatch):
    def not_asked(*_: object, **__: object) -> None:
        raise AssertionError("it was not asked for")

    model, inputs, labels = fitted()
    for name in ("feature_robustness", "kernel_robustness"):
        monkeypatch.setattr(f"grokscope.measures.robustness.{name}", not_asked)
    monkeypatch.setattr("grokscope.probe.assembly.matched_temperatures", not_asked)
    measured = Probe(model, measures=["ncc", "nc3_self_duality"]).measure([(inputs, labels)])
    assert set(measured) == {"ncc", "nc3_self_duality"}


def test_features_are_not_kept_for_means_over_examples():
    model, inputs, labels = fitted()
    measured = Probe(model, measures=["loss"], memory=0).measure([(inputs, labels)])
    assert set(measured) == {"loss"} and not measured.left_out


def test_a_reference_that_lacks_what_is_asked_for_is_said_to():
    model, inputs, labels = fitted()
    reference = Probe(model, measures=["accuracy"]).measure([(inputs, labels)])
    held_out = Probe(model).measure([(X, Y)], reference)
    assert held_out.left_out["generalisation_gap"] == "reference= was measured without loss."
    assert held_out.left_out["nc4_agreement"] == "reference= was measured without class means."
    assert "feature_robustness" in held_out.left_out


def test_every_missing_measure_is_named_with_its_reason():
    """Whatever the data, a measure is either there or left out."""
    model = mlp().double()
    for batch in ((X, Y), (X, 0 * Y), (X[:3], torch.tensor([0, 1, 2]))):
        for memory in (0, 2**30):
            train = Probe(model, memory=memory).measure([batch])
            for measured in (train, Probe(model, memory=memory).measure([(X, Y)], train)):
                assert set(measured) | set(measured.left_out) == set(PROBED)
                assert not set(measured) & set(measured.left_out)
                assert all(measured.left_out.values())
