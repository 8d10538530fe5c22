"""Wrong arguments are refused by name, and right ones are not."""

from __future__ import annotations

import pytest
import torch
from cases import make_head

from grokscope.measures.checks import check_bias, check_finite
from grokscope.measures.collapse import simplex_angle
from grokscope.measures.flatness import (
    published_grokking_flatness,
    relative_flatness,
    relative_flatness_bound,
)

GOOD = make_head()
NAN = torch.full((6, 4), float("nan"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": GOOD.features[0]}, r"features must have shape \[examples, width\]"),
        ({"features": GOOD.features[:5]}, "logits has 6 examples but features has 5"),
        ({"features": GOOD.features[:, :3]}, "weight has width 4 but features has width 3"),
        ({"features": NAN}, "features holds 24 NaN"),
        ({"features": GOOD.features.long()}, "features must be of a floating dtype"),
        ({"features": GOOD.features.tolist()}, "features must be a torch.Tensor"),
        ({"features": GOOD.features[:0], "logits": GOOD.logits[:0]}, "features must not be empty"),
        ({"logits": GOOD.logits[:, :2]}, "weight has 3 rows .* logits has 2 columns"),
        ({"logits": GOOD.logits + float("inf")}, "logits holds 0 NaN and 18 infinite"),
        ({"weight": GOOD.weight.mT}, "weight has width 3"),
        ({"weight": GOOD.weight * float("nan")}, "weight holds 12 NaN"),
        ({"weight": GOOD.weight[:1], "logits": GOOD.logits[:, :1]}, "at least two"),
        ({"weight": GOOD.weight.to("meta")}, "one device"),
        ({"reduction": "median"}, "reduction must be one of 'mean', 'sum', 'none'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("measure", [relative_flatness, relative_flatness_bound])
def test_wrong_arguments_are_refused_by_name(measure, changes, message):
    good = {"features": GOOD.features, "logits": GOOD.logits, "weight": GOOD.weight}
    with pytest.raises(ValueError, match=message):
        measure(**(good | changes))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be positive"):
        relative_flatness_bound(GOOD.features, GOOD.logits, GOOD.weight, temperature=temperature)


@pytest.mark.parametrize(
    ("features", "logits", "message"),
    [
        (GOOD.features, GOOD.logits, "features must have shape"),
        (torch.ones(6, 3, 4), torch.ones(6, 2, 3), "features must hold two positions"),
        (torch.ones(6, 2, 4), torch.ones(6, 5, 3), "logits must hold two positions"),
        (torch.ones(6, 2, 4), torch.ones(5, 2, 3), "logits has 5 examples"),
    ],
)
def test_the_grokking_value_refuses_anything_but_two_positions(features, logits, message):
    with pytest.raises(ValueError, match=message):
        published_grokking_flatness(features, logits, GOOD.weight)


def test_large_half_precision_sums_are_not_mistaken_for_infinities():
    features = torch.full((64, 64), 60_000.0, dtype=torch.float16)
    value = relative_flatness(features, torch.zeros(64, 3), torch.eye(3, 64))
    assert float(value) == pytest.approx(64 * 60_000.0**2 * 2 / 3, rel=1e-3)


def test_a_bias_of_another_head_is_refused():
    with pytest.raises(ValueError, match="bias has 4 entries but weight has 3 rows"):
        check_bias(torch.zeros(4), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="bias holds 1 NaN"):
        check_bias(torch.tensor([0.0, float("nan")]), torch.zeros(2, 2))


def test_opposite_infinities_do_not_hide_each_other():
    with pytest.raises(ValueError, match="x holds 0 NaN and 2 infinite of 3"):
        check_finite("x", torch.tensor([float("inf"), -float("inf"), 1.0]))


@pytest.mark.parametrize("classes", [1, 0, -3])
def test_one_corner_alone_has_no_angle(classes):
    with pytest.raises(ValueError, match=f"num_classes must be at least 2, got {classes}"):
        simplex_angle(classes)
