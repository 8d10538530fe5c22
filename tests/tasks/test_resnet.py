"""ResNet-18 against the one in transformers, with copied weights."""

from __future__ import annotations

import pytest
import torch

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
