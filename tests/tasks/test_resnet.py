"""ResNet-18 against the one in transformers, with copied weights."""

from __future__ import annotations

import pytest
import torch

from grokscope.probe.idle import idle_taps
from grokscope.tasks.models.resnet import ResNet18


def reference(classes: int = 10):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=64,
        hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        num_labels=classes,
    )
    return transformers.ResNetForImageClassification(config)


def copied(ours: ResNet18) -> torch.nn.Module:
    """transformers' ResNet with our weights, layer by layer."""
    theirs = reference(ours.fc.out_features)
    pairs = {
        "conv1": "resnet.embedder.embedder.convolution",
        "bn1": "resnet.embedder.embedder.normalization",
        "fc": "classifier.1",
    }
    for stage in range(4):
        for block in range(2):
            here, there = (
                f"layer{stage + 1}.{block}",
                f"resnet.encoder.stages.{stage}.layers.{block}",
            )
            for i in (0, 1):
                pairs[f"{here}.conv{i + 1}"] = f"{there}.layer.{i}.convolution"
                pairs[f"{here}.bn{i + 1}"] = f"{there}.layer.{i}.normalization"
            if block == 0 and stage > 0:
                pairs[f"{here}.downsample.0"] = f"{there}.shortcut.convolution"
                pairs[f"{here}.downsample.1"] = f"{there}.shortcut.normalization"
    modules = dict(ours.named_modules())
    for here, there in pairs.items():
        theirs.get_submodule(there).load_state_dict(modules[here].state_dict())
    copied_count = sum(p.numel() for name in pairs for p in modules[name].parameters())
    assert copied_count == sum(p.numel() for p in ours.parameters())  # nothing was left out
    return theirs


def test_the_parameters_are_those_of_the_paper_s_model():
    ours = ResNet18(10)
    assert sum(each.numel() for each in ours.parameters()) == 11_181_642
    assert sum(each.numel() for each in reference().parameters()) == 11_181_642


@pytest.mark.parametrize("training", [True, False])
def test_it_computes_the_function_of_transformers_resnet_18(training):
    torch.manual_seed(0)
    ours = ResNet18(10).double()
    images = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    ours(images)  # running statistics that are not the initial ones
    theirs = copied(ours.float()).double()
    ours = ours.double()
    ours.train(training)
    theirs.train(training)
    torch.testing.assert_close(ours(images), theirs(images).logits, rtol=1e-9, atol=1e-9)
    last = theirs.get_submodule("resnet.encoder.stages.3.layers.1.layer.1.normalization")
    torch.testing.assert_close(ours.layer4[1].bn2.running_var, last.running_var)


def test_a_training_step_moves_both_alike():
    torch.manual_seed(0)
    ours = ResNet18(10)
    theirs = copied(ours)
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    for _ in range(3):
        losses = []
        for model in (ours, theirs):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
            output = model(images)
            loss = torch.nn.functional.cross_entropy(getattr(output, "logits", output), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_the_small_stem_keeps_the_image_large():
    ours = ResNet18(10, stem="cifar")
    seen = []
    ours.layer1.register_forward_hook(lambda _, __, output: seen.append(output.shape))
    ours(torch.randn(2, 3, 32, 32))
    assert seen == [(2, 64, 32, 32)]
    assert sum(each.numel() for each in ours.parameters()) == 11_173_962


@pytest.mark.parametrize(
    ("initialisation", "first", "last"),
    [("pytorch", 0.047, 0.012), ("torchvision", 0.025, 0.021)],
)
def test_initialisations_spread_as_the_paper_s_code_and_torchvision_do(initialisation, first, last):
    torch.manual_seed(0)
    ours = ResNet18(10, initialisation=initialisation)
    assert float(ours.conv1.weight.detach().std()) == pytest.approx(first, rel=0.05)
    assert float(ours.layer4[0].conv1.weight.detach().std()) == pytest.approx(last, rel=0.05)


def test_it_can_be_narrow_and_grey_for_tests():
    ours = ResNet18(4, stem="cifar", width=4, channels=1)
    assert ours(torch.randn(2, 1, 8, 8)).shape == (2, 4)


def convolutions(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Conv2d)
    }


def test_6_95_of_11_17_million_weights_never_receive_a_gradient_behind_the_large_stem():
    torch.manual_seed(0)
    model = ResNet18(10)
    weights = convolutions(model)
    largest = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for _ in range(4):
        # Of large patches, so that they differ enough for every unit to be active on some.
        images = torch.nn.functional.interpolate(torch.randn(64, 3, 4, 4), size=32)
        labels = torch.randint(10, (64,))
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        gradients = torch.autograd.grad(loss, list(weights.values()))
        for seen, gradient in zip(largest.values(), gradients, strict=True):
            torch.maximum(seen, gradient.abs(), out=seen)
    # The last stage sees 2x2 pixels once, with a stride of 2, and then one pixel.
    untouched = 5 * 512 * 256 + 3 * 8 * 512 * 512
    assert untouched == 6_946_816
    assert sum(weight.numel() for weight in weights.values()) == 11_166_912
    assert sum(int((seen == 0).sum()) for seen in largest.values()) == untouched
    idle = idle_taps(model, images)
    filters = {name: len(weights[name].flatten(0, 1)) for name in idle}
    assert sum(int(taps.sum()) * filters[name] for name, taps in idle.items()) == untouched
    for name, taps in idle.items():
        assert float(largest[name][..., taps].max()) == 0


def test_every_weight_is_trained_behind_the_small_stem_and_on_larger_images():
    small = ResNet18(4, stem="cifar", width=4)
    assert not idle_taps(small, torch.randn(2, 3, 32, 32))
    assert not idle_taps(ResNet18(4, width=4), torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize("training", [True, False])
def test_replicas_under_vmap_compute_what_each_computes_alone(training):
    torch.manual_seed(0)
    models = [ResNet18(4, width=4).double().train(training) for _ in range(3)]
    images = torch.randn(3, 6, 3, 32, 32, dtype=torch.float64)
    alone = torch.stack([model(batch) for model, batch in zip(models, images, strict=True)])
    parameters, buffers = torch.func.stack_module_state(models)

    def one(parameters, buffers, images):
        return torch.func.functional_call(models[0], (parameters, buffers), (images,))

    together = torch.func.vmap(one)(parameters, buffers, images)
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)
