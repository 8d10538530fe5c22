"""Measures: pure functions of tensors, differentiable unless they say otherwise; torch alone.

Axes everywhere: ``examples`` (n), ``classes`` (C), ``width`` (d). A head has features
``[examples, width]``, logits ``[examples, classes]`` (bias included) and a weight
``[classes, width]``.
"""

from grokscope.measures.class_distances import ncc
from grokscope.measures.collapse import nc1_pinv, nc4_agreement, neural_collapse, simplex_angle
from grokscope.measures.confidence import entropy, gini, logit_scale, margin
from grokscope.measures.curvature import (
    Eigenvalue,
    Estimate,
    estimate_relative_flatness,
    hessian_trace,
    layer_loss,
    top_eigenvalue,
)
from grokscope.measures.flatness import (
    published_grokking_flatness,
    relative_flatness,
    relative_flatness_bound,
)
from grokscope.measures.gap import (
    GapDecomposition,
    decompose_gap,
    representativeness,
    representativeness_kde,
)
from grokscope.measures.matched import matched_temperature, relative_flatness_at_temperature
from grokscope.measures.moments import ClassMoments
from grokscope.measures.record import Batch, Measure, record_of, records
from grokscope.measures.robustness import feature_robustness, kernel_robustness, natural_delta
from grokscope.measures.theory import (
    CollapseAssumptions,
    collapse_assumptions,
    collapse_flatness_bound,
    collapsed_relative_flatness,
)

__all__ = [
    "Batch",
    "ClassMoments",
    "CollapseAssumptions",
    "Eigenvalue",
    "Estimate",
    "GapDecomposition",
    "Measure",
    "collapse_assumptions",
    "collapse_flatness_bound",
    "collapsed_relative_flatness",
    "decompose_gap",
    "entropy",
    "estimate_relative_flatness",
    "feature_robustness",
    "gini",
    "hessian_trace",
    "kernel_robustness",
    "layer_loss",
    "logit_scale",
    "margin",
    "matched_temperature",
    "natural_delta",
    "nc1_pinv",
    "nc4_agreement",
    "ncc",
    "neural_collapse",
    "published_grokking_flatness",
    "record_of",
    "records",
    "relative_flatness",
    "relative_flatness_at_temperature",
    "relative_flatness_bound",
    "representativeness",
    "representativeness_kde",
    "simplex_angle",
    "top_eigenvalue",
]


def __dir__() -> list[str]:
    return __all__
