"""Heads of many makes, against what their backbones give when called by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from probe_models import CASES, LABELS, TEXTS, Case, X, Y, counted, gpt2, mlp, normal
from torch import Tensor, nn

from grokscope.probe import Probe

# Finding it -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_the_head_is_the_layer_that_makes_the_logits(case):
    model = case.model()
    probe = Probe(model)
    assert probe.name == case.head
    assert probe.head is model.get_submodule(case.head)


@pytest.mark.parametrize("case", CASES)
def test_features_and_logits_are_those_of_the_backbone_and_the_model(case):
    model = case.model()
    features, logits = Probe(model).capture(case.inputs)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(features, case.features(model, case.inputs))
        torch.testing.assert_close(logits, case.logits(model))
        torch.testing.assert_close(logits, model.get_submodule(case.head)(features))
    assert not features.requires_grad and not logits.requires_grad


class Named(nn.Module):
    """A head under a library's name, in a Sequential or not, and linear layers around it."""

    def __init__(self, name: str, deep: bool) -> None:
        super().__init__()
        self.name = name
        self.first = nn.Linear(4, 5)
        last = nn.Linear(5, 3)
        self.add_module(name, nn.Sequential(nn.Linear(5, 5), nn.ReLU(), last) if deep else last)
        self.auxiliary = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.name)(self.first(x))


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("name", ["fc", "classifier", "score", "lm_head", "head", "heads"])
def test_a_head_called_as_libraries_call_it_is_found_among_later_layers(name, deep):
    model = Named(name, deep)
    probe = Probe(model)
    assert probe.name == (f"{name}.2" if deep else name)
    torch.testing.assert_close(probe.capture(X.float())[1], model(X.float()))


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.used = nn.Linear(4, 3), nn.Linear(4, 3), "left"

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.used)(x)


def test_the_named_head_is_taken():
    assert Probe(TwoHeads(), head="left").capture(X.float())[1].shape == (10, 3)
    with pytest.raises(ValueError, match=r"'right' was called 0 times .* name the layer .*head="):
        Probe(TwoHeads()).capture(X.float())


def test_what_the_head_saw_in_bert_is_pooled_by_tanh_and_no_hidden_state():
    case = next(each.values[0] for each in CASES if each.id == "bert")
    model = case.model()
    features, _ = Probe(model).capture(case.inputs)
    hidden = model.eval().bert(**case.inputs).last_hidden_state
    assert features.abs().max() < 1
    assert hidden.abs().max() > 1
    gaps = (features[:, None] - hidden).abs().amax(dim=-1)
    assert gaps.min() > 0.1


# Padding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_padded_text_has_the_features_that_it_has_alone(side):
    case = Case(lambda: gpt2("GPT2ForSequenceClassification"), TEXTS[side], "score", None)
    probe = Probe(case.model())
    together, _ = probe.capture(case.inputs)
    for row, one in enumerate(together):
        there = case.inputs["attention_mask"][row].bool()
        text = {name: value[row][there][None] for name, value in case.inputs.items()}
        torch.testing.assert_close(one, probe.capture(text)[0][0])


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_head_of_zeros_is_asked_at_the_last_token_though_it_says_the_same_everywhere(side):
    truth = next(each.values[0] for each in CASES if each.id == f"gpt2 padded on the {side}")
    model = truth.model()
    nn.init.zeros_(model.score.weight)
    features, _ = Probe(model).capture(truth.inputs)
    with torch.no_grad():
        torch.testing.assert_close(features, truth.features(model.eval(), truth.inputs))


# Wrappers -------------------------------------------------------------------------------------


class DistributedDataParallel(nn.Module):
    """Known by its name alone, as the real one is."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensor:
        raise AssertionError("measuring must not start the communication of a training step")


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda m: torch.compile(m, backend="eager"), id="compiled"),
        pytest.param(DistributedDataParallel, id="distributed"),
        pytest.param(
            lambda m: torch.compile(DistributedDataParallel(m), backend="eager"),
            id="compiled distributed",
        ),
        pytest.param(
            lambda m: DistributedDataParallel(torch.compile(m, backend="eager")),
            id="distributed compiled",
        ),
        pytest.param(nn.DataParallel, id="parallel"),
    ],
)
def test_wrappers_change_nothing(wrap):
    model = mlp().double()
    probe = Probe(wrap(model))
    assert probe.name == "4" and probe.model is model
    assert dict(probe.measure([(X, Y)])) == dict(Probe(model).measure([(X, Y)]))


def test_a_world_of_one_process_is_measured_like_its_model(tmp_path):
    model = mlp().double()
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'world'}", rank=0, world_size=1
    )
    try:
        distributed = nn.parallel.DistributedDataParallel(model)
        measurement = Probe(distributed).measure([(X, Y)])
    finally:
        torch.distributed.destroy_process_group()
    assert dict(measurement) == dict(Probe(model).measure([(X, Y)]))


class Unit(nn.Module):
    """Dynamo leaves torch's own modules alone: a layer of ours, to be compiled in place."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize("part", ["whole", "head", "backbone"])
def test_a_model_compiled_in_place_is_measured_and_not_compiled_again(part):
    compiled = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> object:
        compiled.append(graph)
        return graph.forward

    plain = mlp(dropout=0.0).double()
    backbone, head = Unit(plain[:4]), Unit(plain[4])
    model = Unit(nn.Sequential(backbone, head))
    {"whole": model, "head": head, "backbone": backbone}[part].compile(backend=backend)
    model(X)  # in training mode, as in a training loop
    before = len(compiled)
    assert before > 0
    probe = Probe(model)
    assert probe.name == "layer.1.layer"
    assert dict(probe.measure([(X, Y)])) == dict(Probe(plain).measure([(X, Y)]))
    model(X)
    assert len(compiled) == before


# What a model returns -------------------------------------------------------------------------


class Returning(nn.Module):
    """A linear head whose logits are changed by ``finish`` on the way out."""

    def __init__(self, finish, width: int = 4) -> None:
        super().__init__()
        self.finish, self.fc = finish, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> object:
        return self.finish(self.fc(x))


@pytest.mark.parametrize(
    "finish",
    [
        lambda z: (z, "hidden"),
        lambda z: {"loss": None, "logits": z},
        lambda z: SimpleNamespace(logits=z),
        lambda z: z.log_softmax(-1),
        lambda z: z + z.new_tensor([[5.0]]),
    ],
    ids=["tuple", "mapping", "object", "log-softmax", "one number added"],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_logits_are_found_in_what_the_model_returns(finish, dtype):
    model = Returning(finish).to(dtype)
    features, logits = Probe(model).capture(X.to(dtype))
    assert torch.equal(features, X.to(dtype))
    assert torch.equal(logits, model.fc(X.to(dtype)))


def test_log_softmax_is_accepted_under_autocast_and_where_logits_share_a_large_offset():
    model = Returning(lambda z: z.log_softmax(-1))
    with torch.autocast("cpu", torch.bfloat16):
        Probe(model).measure([(X.float(), Y)])
    nn.init.constant_(model.fc.bias, 300.0)
    plain = Probe(Returning(lambda z: z))
    plain.head.load_state_dict(model.fc.state_dict())
    assert dict(Probe(model).measure([(X.float(), Y)])) == dict(plain.measure([(X.float(), Y)]))


@pytest.mark.parametrize(
    "finish",
    [
        lambda z: z.softmax(-1),
        lambda z: z / 2,
        lambda z: 1.0001 * z,
        lambda z: z.div_(2),
        lambda z: 30 * torch.tanh(z / 30),
        lambda z: z.sigmoid(),
        lambda z: z[:, :2],
        lambda z: z.index_fill(1, torch.tensor(2), -torch.inf),
        lambda z: z.roll(1, 0),
        lambda z: z.T,
    ],
    ids=["softmax", "temperature", "temperature near 1", "temperature in place", "soft cap",
         "sigmoid", "fewer classes", "class masked out", "other order", "transposed"],
)  # fmt: skip
def test_a_model_that_does_not_return_the_logits_of_its_head_is_refused(finish):
    model = Returning(finish)
    message = (
        r"batch 1: the output of the head 'fc' \(10, 3\) is not what the model .*head=.*no temp"
    )
    with pytest.raises(ValueError, match=message):
        Probe(model).measure([(X.float(), Y)])


@pytest.mark.parametrize("output", [None, "logits", {"scores": X}, (), SimpleNamespace(logits=3)])
def test_an_output_without_logits_is_refused(output):
    kind = type(output).__name__
    with pytest.raises(ValueError, match=f"batch 1: the model returned {kind}, .* must return a"):
        Probe(Returning(lambda z: output)).measure([(X.float(), Y)])


def test_logits_flattened_over_positions_keep_their_features():
    model, sequences = Returning(lambda z: z.reshape(-1, 3)).double(), normal(6, 5, 4)
    features, logits = Probe(model).capture(sequences)
    assert torch.equal(features, sequences.flatten(0, 1))
    assert torch.equal(logits, model.fc(features))


def test_a_head_may_be_called_by_keyword_and_its_input_overwritten_afterwards():
    class Careless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            features = x + 1
            logits = self.fc(input=features)
            features.zero_()
            return logits

    features, _ = Probe(Careless()).capture(X.float())
    assert torch.equal(features, X.float() + 1)


def test_positions_that_do_not_count_may_hold_nan():
    class LastOne(Returning):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, 1]

    inputs = normal(4, 3, 4)
    inputs[0, 0] = inputs[1, 2] = torch.nan
    measured = Probe(LastOne(lambda z: z).double()).measure([(inputs, LABELS[:4])])
    assert measured.examples == 4
    everywhere, labels = Returning(lambda z: z).double(), torch.arange(12).view(4, 3) % 3
    labels[inputs.isnan().any(dim=-1)] = -100
    assert Probe(everywhere).measure([(inputs, labels)]).examples == 10


# Errors ---------------------------------------------------------------------------------------


def test_a_model_without_a_linear_layer_is_refused():
    with pytest.raises(ValueError, match=r"Conv2d has no nn.Linear.*with grokscope.measures"):
        Probe(nn.Conv2d(3, 4, 1))


def test_a_wrong_name_is_refused_with_the_names_there_are():
    for name in ("fc", "2", "module.4"):
        with pytest.raises(
            ValueError, match=f"head '{name}' is not an nn.Linear .*; it has '0', '4'"
        ):
            Probe(mlp(), head=name)
    with pytest.raises(ValueError, match="it has none"):
        Probe(nn.Flatten(), head="fc")


def test_a_head_that_is_called_twice_is_refused():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) + self.fc(x)

    with pytest.raises(
        ValueError, match=r"batch 1: the head 'fc' was called 2 times .*head=\.\.\."
    ):
        Probe(Twice()).measure([(X.float(), Y)])


def test_truth_by_hand_counts_the_questions_that_have_a_label():
    for case in (each.values[0] for each in CASES):
        if isinstance(case.batch, dict) and case.batch["labels"].dim() == 2:
            asked = case.batch["labels"][:, 1:] if case.head == "lm_head" else case.batch["labels"]
            assert len(counted(case, case.model()).labels) == int((asked != -100).sum())
