"""The penalties of the image experiments on modular addition, where generalisation is late."""

from __future__ import annotations

from grokscope.experiments.catalogue import Preset, compare, offer
from grokscope.experiments.grokking import RUNS
from grokscope.interventions import Penalty
from grokscope.spec import Contrast, Experiment, Run

PRESETS = {
    "default": Preset("the default grokking run, once for each penalty", "not measured"),
    "tiny": Preset("60 steps of a small network", "a minute", smoke_test=True),
}
# What is added to the loss; the published penalty needs a cap, which grokking's weight decay is.
PENALTIES = {
    "flatness suppressed": Penalty(measure="relative_flatness", weight=-1e-3),
    "flatness encouraged": Penalty(measure="relative_flatness", weight=1e-3),
    "published penalty": Penalty(
        measure="relative_flatness_bound", weight=-1e-3, temperature=2.0, normalize_features=True
    ),
    "collapse suppressed": Penalty(measure="ncc", weight=-1e-3),
    "collapse encouraged": Penalty(measure="ncc", weight=1e-3),
}


@offer(PRESETS)
def grokking_penalties(preset: str) -> Experiment:
    """Flatness and collapse pushed both ways while a transformer groks."""
    baseline = RUNS[preset]()

    def arm(penalty: Penalty) -> Run:
        phases = tuple(
            phase.model_copy(update={"penalties": (penalty,)}) for phase in baseline.phases
        )
        return baseline.model_copy(update={"phases": phases})

    return Experiment(
        name="grokking-penalties",
        title="Grokking with flatness and collapse pushed up and down",
        question="Does generalisation come earlier or later when either is pushed up or down?",
        arms={"baseline": baseline, **{name: arm(penalty) for name, penalty in PENALTIES.items()}},
        claims=("C3", "C4", "C7", "C14"),
        contrasts=(
            Contrast(claim="C3", arm="collapse suppressed"),
            Contrast(claim="C4", arm="collapse encouraged"),
            *compare(("C7", "C14"), ("flatness suppressed", "published penalty")),
        ),
        figures=("accuracies", "flatness_by_arm", "collapse_by_arm", "losses_by_arm", "outcomes"),
    )
