"""The probe's numbers against Hessians, torch, the libraries' own losses and loops."""

from __future__ import annotations

import itertools

import pytest
import torch
from probe_models import CASES, IGNORING, X, Y, counted, integers, mlp, normal, padded
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from grokscope.measures.checks import NotFiniteError
from grokscope.measures.class_distances import ncc
from grokscope.measures.collapse import neural_collapse
from grokscope.measures.moments import ClassMoments
from grokscope.measures.theory import collapse_assumptions
from grokscope.probe import Probe


def naive(features: Tensor, logits: Tensor, labels: Tensor, weight: Tensor) -> dict[str, float]:
    """Means over examples and moments of classes, by torch and by loops over classes."""
    z, phi, w = logits.double(), features.double(), weight.detach().double()
    p, square = z.softmax(-1), phi.square().sum(-1)
    gini, cool = 1 - p.square().sum(-1), 1 - (z / 2).softmax(-1).square().sum(-1)
    variance = p @ w.square().sum(-1) - (p @ w).square().sum(-1)
    others = z.masked_fill(nn.functional.one_hot(labels, z.shape[1]).bool(), -torch.inf)
    groups = {c: phi[labels == c] for c in sorted(set(labels.tolist()))}
    means = {c: each.mean(0) for c, each in groups.items()}
    spread = {c: (each - means[c]).square().sum(-1).mean() for c, each in groups.items()}
    pairs = list(itertools.permutations(groups, 2))
    gaps = [(means[a] - means[b]).square().sum() for a, b in pairs]
    centre = torch.stack(list(means.values())).mean(0)
    values = {
        "accuracy": (z.argmax(-1) == labels).double().mean(),
        "loss": cross_entropy(z, labels),
        "relative_flatness": (square * variance).mean(),
        "relative_flatness_bound": w.square().sum() * (square * gini).mean(),
        "published_penalty": w.square().sum() * cool.mean(),
        "logit_scale": z.std(-1, correction=0).mean(),
        "margin": (z.gather(-1, labels[:, None])[:, 0] - others.amax(-1)).mean(),
        "entropy": torch.distributions.Categorical(logits=z).entropy().mean(),
        "gini": gini.mean(),
        "feature_norm": square.sqrt().mean(),
        "weight_norm": w.norm(),
        "ncc": sum((spread[a] + spread[b]) / (2 * gap)
                   for (a, b), gap in zip(pairs, gaps, strict=True)) / len(pairs),
        "nc1_quotient": sum(spread[c] * len(groups[c]) for c in groups) / len(phi)
        / (torch.stack(list(means.values())) - centre).square().sum() * len(groups),
    }  # fmt: skip
    return {name: float(value) for name, value in values.items()} | {
        "nc4_agreement": agreement(phi, z, means)
    }


def agreement(features: Tensor, logits: Tensor, means: dict[int, Tensor]) -> float:
    """Share of examples whose nearest class mean is the class that the head picks."""
    nearest = [min(means, key=lambda c: float((x - means[c]).norm())) for x in features]
    return sum(c == int(z.argmax()) for c, z in zip(nearest, logits, strict=True)) / len(logits)


def assert_alike(got, expected, names=None, rel=1e-9):
    for name in names or expected:
        assert got[name] == pytest.approx(expected[name], rel=rel, abs=1e-12), name


# Truth ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_kappa_is_the_hessian_of_the_models_own_loss_in_its_head(case):
    model = case.model()
    measured = Probe(model).measure([case.batch])["relative_flatness"]
    model.eval()
    name = f"{case.head}.weight"
    weight = model.get_parameter(name).detach()

    def loss(weight: Tensor) -> Tensor:
        # Not tied: GPT-2's head shares its weight with the embedding, which is no part of kappa.
        return case.loss(
            lambda *args, **keywords: functional_call(
                model, {name: weight}, args, keywords, tie_weights=False
            )
        )

    hessian = torch.autograd.functional.hessian(loss, weight)
    traces = torch.einsum("sjtj->st", hessian)
    # transformers computes the loss of language models in float32.
    assert measured == pytest.approx(float((weight @ weight.mT * traces).sum()), rel=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_every_number_is_that_of_the_questions_that_count(case):
    model = case.model()
    measured = Probe(model).measure([case.batch])
    truth = counted(case, model)
    assert measured.examples == len(truth.labels)
    assert measured["loss"] == pytest.approx(float(case.loss(model.eval()).detach()), rel=1e-6)
    head = model.get_submodule(case.head)
    assert_alike(measured, naive(truth.features, truth.logits, truth.labels, head.weight))


@pytest.mark.parametrize("memory", [0, 2**30])
def test_collapse_is_that_of_all_class_means_and_of_the_head_with_its_bias(memory):
    model = mlp(classes=5).double()
    nn.init.normal_(model[4].bias, std=2.0)
    inputs, labels = normal(40, 4, seed=3), integers(4, 40, seed=5)  # the fifth class is missing
    batches = zip(inputs.split(9), labels.split(9), strict=True)
    measured = Probe(model, memory=memory).measure(batches)
    with torch.no_grad():
        features = model.eval()[:4](inputs)
    weight, bias = model[4].weight.detach(), model[4].bias.detach()
    moments = ClassMoments.from_batch(features, labels, 5, scatter=True)
    expected = neural_collapse(moments, weight, bias)
    expected["ncc_unbiased"] = ncc(moments, unbiased=True)
    met = collapse_assumptions(moments, weight, bias)
    expected |= {f"collapse_{each}": getattr(met, each) for each in ("scale", "radius", "offset")}
    expected |= {"collapse_residual": met.residual, "collapse_flatness_bound": met.bound}
    assert met.lemma == met.residual  # the assumption that the bias breaks
    assert_alike(measured, {name: float(value) for name, value in expected.items()})
    for kept, truth in zip(vars(measured.moments).values(), vars(moments).values(), strict=True):
        if kept is not None:
            torch.testing.assert_close(kept, truth)


def test_robustness_is_the_mean_over_many_clouds_of_features():
    model = mlp().double()
    inputs = normal(6000, 4)
    with torch.no_grad():
        features, bias = model.eval()[:4](inputs), model[4].bias
        labels = model(inputs).argmax(-1)
        kicks = normal(50, *features.shape, seed=5)
        radius = 6000 ** (-1 / (4 + 6)) * features.norm(dim=-1, keepdim=True)
        sphere = radius * kicks / kicks.norm(dim=-1, keepdim=True)

        def loss(moved: Tensor) -> float:
            return float(cross_entropy((moved @ model[4].weight.mT + bias).transpose(1, 2),
                                       labels.expand(len(moved), -1)))  # fmt: skip

        still = loss(features[None])
        # In opposite pairs, as they are drawn: else noise of first order would hide the second.
        own, kernel = (
            (loss(features + each) + loss(features - each)) / 2 - still for each in (sphere, kicks)
        )
        gap = float(cross_entropy(model(X), Y)) - float(cross_entropy(model(inputs), labels))
    train = Probe(model).measure([(inputs, labels)])
    held_out = Probe(model).measure([(X, Y)], reference=train)
    # Two pairs for each example: a standard error of 0.9 %.
    assert train["feature_robustness"] == pytest.approx(own, rel=0.04)
    assert held_out["generalisation_gap"] == pytest.approx(gap, rel=1e-9)
    assert held_out["feature_robustness"] == train["feature_robustness"]
    assert held_out["feature_robustness"] + held_out["representativeness"] == pytest.approx(gap)
    assert gap - held_out["representativeness_kde"] == pytest.approx(kernel, rel=0.04)


def test_held_out_data_agree_with_the_means_of_the_training_data():
    model = mlp().double()
    train, held_out = (normal(60, 4, seed=7), integers(3, 60, seed=8)), (X + 0.5, Y)
    reference = Probe(model).measure([train])
    measured = Probe(model).measure([held_out], reference)
    with torch.no_grad():
        own = model.eval()[:4](train[0])
        means = {c: own[train[1] == c].mean(0) for c in range(3)}
        expected = agreement(model[:4](held_out[0]), model(held_out[0]), means)
    assert measured["nc4_agreement"] == pytest.approx(expected)
    assert measured["nc4_agreement"] != Probe(model).measure([held_out])["nc4_agreement"]
    # The moments it keeps are its own.
    torch.testing.assert_close(measured.moments.count, Y.bincount(minlength=3).double())


def test_training_data_of_one_class_have_no_means_to_agree_with():
    model = mlp().double()
    reference = Probe(model).measure([(X, 0 * Y)])
    assert "ncc" not in reference
    measured = Probe(model).measure([(X, Y)], reference)
    assert "generalisation_gap" in measured and "nc4_agreement" not in measured


# One pass, in parts ---------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [0, 400, 2**30])
def test_the_model_runs_once_on_each_batch(memory):
    model, calls = mlp().double(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    batches = ((X[i : i + 4], Y[i : i + 4]) for i in range(0, 10, 4))
    assert Probe(model, memory=memory).measure(batches).examples == 10
    assert len(calls) == 3


def positions(width: int = 4) -> nn.Module:
    """Answers at every position, each seeing itself alone."""
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3)).double()


def test_batches_of_any_size_and_any_mask_make_one_whole():
    model, inputs, labels = positions(), normal(9, 5, 4), integers(3, 9, 5)
    mask = integers(2, 9, 5, seed=3).bool()
    mask[:, 0] = True
    ignoring = labels.where(mask, -100)
    whole = Probe(model).measure([(inputs[mask], labels[mask])])
    assert whole.examples == int(mask.sum())
    mixed = [
        (inputs[:2], labels[:2], mask[:2]),
        (inputs[2:3], ignoring[2:3]),
        (inputs[3:7], ignoring[3:7], torch.ones_like(mask[3:7])),
        ((inputs[7:8],), labels[7:8].tolist(), mask[7:8].long()),
        {"input": inputs[8:], "targets": ignoring[8:]},
    ]
    for batches in (mixed, [(inputs, ignoring)], [[inputs, labels, mask]]):
        measured = Probe(model).measure(batches)
        assert measured.examples == whole.examples and measured.keys() == whole.keys()
        assert_alike(measured, whole)


@pytest.mark.parametrize("classes", [156, 257])
def test_labels_may_have_any_integer_dtype(classes):
    model = nn.Linear(4, classes).double()
    labels = torch.tensor([0, 3, 100, 155, 127] * 2)
    expected = dict(Probe(model).measure([(X, labels)]))
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if classes > 156:
            labels = labels.clone().clamp(max=255)
            labels[0] = 156  # the byte that -100 would be
            expected = dict(Probe(model).measure([(X, labels)]))
        assert dict(Probe(model).measure([(X, labels.to(dtype))])) == expected


def test_an_attention_mask_masks_labels_of_positions():
    bert = next(each.values[0] for each in CASES if each.id == "bert of tokens")
    model, labels = bert.model(), integers(3, 5, 6, seed=4)
    masked = Probe(model).measure([bert.inputs | {"labels": labels}])
    assert masked.examples == int(padded("right", 20)["attention_mask"].sum())
    assert dict(masked) == dict(Probe(model).measure([bert.inputs | {"labels": IGNORING}]))


def test_an_attention_mask_masks_the_tokens_that_are_asked_for():
    gpt2 = next(each.values[0] for each in CASES if each.id == "gpt2 language model")
    model, batch = gpt2.model(), gpt2.batch
    expected = Probe(model).measure([batch])
    assert expected.examples == int(batch["attention_mask"][:, 1:].sum())
    assert Probe(model).measure([batch | {"labels": batch["input_ids"]}]) == expected
    # Without a shift each position is asked for the label that stands there.
    there = batch["attention_mask"].bool()
    hidden = gpt2.features(model.eval(), gpt2.inputs)[there]
    loss = cross_entropy(model.lm_head(hidden), batch["input_ids"][there]).item()
    plain = Probe(model, shift_labels=False).measure([batch | {"labels": batch["input_ids"]}])
    assert plain["loss"] == pytest.approx(loss, rel=1e-12)


def fitted(examples: int = 40) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A confident model that is right, and its data in uneven batches."""
    model, inputs = mlp().double(), normal(examples, 4, seed=6)
    with torch.no_grad():
        model[4].weight *= 20
        labels = model.eval()(inputs).argmax(-1)
    return model, list(zip(inputs.split([7, 1, 20, 12]), labels.split([7, 1, 20, 12]), strict=True))


OF_HELD_OUT = {"generalisation_gap", "representativeness", "representativeness_kde"}
NEEDS_ALL = {
    "feature_robustness", "matched_temperature", "nc4_agreement", "relative_flatness_matched",
}  # fmt: skip


@pytest.mark.parametrize("memory", [0, 1000, 3000])
def test_streaming_measures_the_same_and_says_what_it_leaves_out(memory):
    model, batches = fitted()
    extra = {"longest": lambda features, logits, labels, weight: features.square().mean()}
    kept = Probe(model, extra=extra).measure(batches)
    streamed = Probe(model, extra=extra, memory=memory).measure(batches)
    assert set(kept) - set(streamed) == NEEDS_ALL
    assert set(kept.left_out) == OF_HELD_OUT and set(streamed) <= set(kept)
    assert set(streamed.left_out) == NEEDS_ALL | OF_HELD_OUT
    assert_alike(streamed, kept, names=streamed)
    with pytest.raises(KeyError, match=r"'nc4_agreement' was not measured.* more memory="):
        streamed["nc4_agreement"]
    lines = str(streamed).splitlines()[-2:]
    assert lines[0].startswith("not measured: feature_robustness, matched")
    assert lines[1].startswith("not measured: generalisation_gap, representativeness, ")
    assert lines[1].endswith("; needs reference=, the measurement of the training data.")


def test_held_out_data_lack_what_their_streamed_reference_left_out():
    model, batches = fitted()
    reference = Probe(model, memory=0).measure(batches)
    matched = {"matched_temperature", "relative_flatness_matched"}
    for memory, needed in ((2**30, matched), (0, NEEDS_ALL - {"nc4_agreement"})):
        held_out = Probe(model, memory=memory).measure([(X, Y)], reference)
        parts = {"feature_robustness", "representativeness", "representativeness_kde"}
        assert set(held_out.left_out) == parts | needed
        assert not set(held_out.left_out) & set(held_out)
        assert {"generalisation_gap", "nc4_agreement"} <= set(held_out)


def test_a_vocabulary_of_which_few_words_occur_needs_no_memory_for_pairs_of_all():
    model, words = nn.Linear(4, 200_000).double(), torch.tensor([3, 150_000, 199_999, 3, 4, 4])
    measured = Probe(model).measure([(X[:6], words)])  # all pairs would be 320 GB
    few = X[:6], torch.tensor([0, 1, 2, 0, 3, 3])
    small = nn.Linear(4, 4).double()
    assert_alike(measured, Probe(small).measure([few]), names=["ncc", "ncc_unbiased", "nc1_pinv"])


# Your own measures ----------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [0, 2**30])
def test_your_own_measures_see_every_example_in_float64(memory):
    seen = []

    def largest(features: Tensor, logits: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
        assert {features.dtype, logits.dtype, weight.dtype} == {torch.float64}
        seen.extend(labels.tolist())
        return (logits.amax(dim=-1) + features[:, 0] + weight.sum() + labels).mean()

    model = mlp()
    extra = {"largest": largest, "constant": lambda *_: 2.5}
    batches = [(X[:7].float(), Y[:7]), (X[7:].float(), Y[7:])]
    measured = Probe(model, extra=extra, memory=memory).measure(batches)
    assert seen == Y.tolist()
    features, logits = Probe(model).capture(X.float())
    expected = logits.amax(dim=-1) + features[:, 0] + model[4].weight.sum() + Y
    assert measured["largest"] == pytest.approx(expected.mean().item(), rel=1e-5)
    assert measured["constant"] == 2.5


def test_your_own_measures_must_be_means_with_a_name_of_their_own():
    for name in ("loss", "ncc", "representativeness"):
        with pytest.raises(ValueError, match=f"the probe has a measure called '{name}'; give"):
            Probe(mlp().double(), extra={name: lambda *_: 0.0}).measure([(X, Y)])
    with pytest.raises(ValueError, match=r"batch 1: the extra measure 'mine' returned .*\(10,\)"):
        Probe(mlp().double(), extra={"mine": lambda f, *_: f.sum(-1)}).measure([(X, Y)])


# Errors ---------------------------------------------------------------------------------------

NAN = X.clone().fill_(torch.nan)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (X, r"it is Tensor; pass \(inputs, labels\), \(inputs, labels, mask\) or a mapping with"),
        ((X, Y, Y, Y), r"it is tuple; pass \(inputs, labels\)"),
        ({"input": X}, "it has no labels; it has input"),
        (
            (X, Y[:5]),
            r"labels have shape \(5,\), but the model returned logits for \(10,\) pos.*; pass one",
        ),
        ((X, Y[:, None]), r"labels have shape \(10, 1\), but .*; pass one label for each"),
        ((X, Y + 1), r"labels must lie in \[0, 2\] for 3 classes, got .* 1 to 3; .*check the head"),
        ((X, Y - 1), r"labels must lie in \[0, 2\] .* drop ignored examples \(such as -100\)"),
        ((X, Y.double()), r"labels must be class indices .*; convert them with labels.long\(\)"),
        ((X, Y, Y[:5]), r"the mask has shape \(5,\), but labels \(10,\); pass one value for each"),
        ((X, Y, 0 * Y), "no label counts: all are -100 or masked; leave this batch out"),
        ((X, 0 * Y - 100), "no label counts: all are -100 or masked; leave this batch out"),
        ((X[:0], Y[:0]), "no label counts"),
        ((NAN, Y), "features holds 60 NaN .*; the model has diverged or overflowed: measure an"),
        ((X * 1e308 * 10, Y), "features holds .* NaN .*; the model has diverged"),
    ],
)
def test_a_batch_that_cannot_be_measured_is_named_with_the_fix(batch, message):
    with pytest.raises(ValueError, match=f"^batch 2: {message}"):
        Probe(mlp().double()).measure([(X, Y), batch])


def test_a_network_that_diverged_is_told_apart_from_wrong_arguments():
    model = mlp().double()
    with pytest.raises(NotFiniteError, match="batch 1: features holds"):
        Probe(model).measure([(NAN, Y)])
    with torch.no_grad():
        model[4].bias[1] = torch.inf
    with pytest.raises(NotFiniteError, match="batch 1: logits holds 0 NaN and 10 infinite of 30"):
        Probe(model).measure([(X, Y)])
    sequences = next(each.values[0] for each in CASES if each.id == "gpt2 padded on the left")
    diverged = sequences.model()
    nn.init.constant_(diverged.transformer.wte.weight, torch.nan)
    with pytest.raises(NotFiniteError, match="batch 1: features holds 40 NaN"):
        Probe(diverged).measure([sequences.batch])


def test_shifted_labels_must_be_tokens():
    with pytest.raises(ValueError, match="batch 1: labels have shape .10,., .* leave shift_labels"):
        Probe(mlp().double(), shift_labels=True).measure([(X, Y)])


@pytest.mark.parametrize("batches", [[], iter(()), torch.utils.data.DataLoader([])])
def test_an_empty_loader_is_refused(batches):
    with pytest.raises(ValueError, match=r"no batches .* loader is empty.* pass at least one"):
        Probe(mlp()).measure(batches)


def test_a_head_of_one_class_is_refused():
    with pytest.raises(ValueError, match=r"batch 1: .* at least two; write a binary head"):
        Probe(nn.Linear(4, 1).double()).measure([(X, 0 * Y)])
