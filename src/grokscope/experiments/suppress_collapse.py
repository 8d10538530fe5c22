"""Figures 2, 3, 5, 6, 7: class-distance normalised variance as a penalty of either sign."""

from __future__ import annotations

from grokscope.experiments.catalogue import compare, compare_roles, offer
from grokscope.experiments.vision import PLAIN, SCALES, Scale, presets
from grokscope.interventions import Penalty
from grokscope.spec import Contrast, Experiment, PaperValue, Phase, Run

PRESETS = presets(small="about 15 minutes")
EPOCHS = 250
FIGURES = ("accuracies", "collapse_by_arm", "flatness_by_arm", "losses_by_arm", "outcomes")


def penalty(weight: float, memory: float = 0.0) -> Penalty:
    """NCC of the batch, maximised where the weight is negative."""
    return Penalty(measure="ncc", weight=weight, memory=memory)


def _arm(scale: Scale, *penalties: Penalty, **task: object) -> Run:
    phase = Phase(until=scale.steps(EPOCHS), optimizer=PLAIN, penalties=penalties)
    return scale.run(phase, **task)


@offer(PRESETS)
def suppress_collapse(preset: str) -> Experiment:
    """Collapse suppressed as published, and with a memory that small batches lack."""
    scale = SCALES[preset]
    return Experiment(
        name="suppress-collapse",
        title="Does a network that may not collapse generalise?",
        question=(
            "A penalty drives up the NCC of each batch: what happens to validation accuracy, to "
            "flatness, and to the angles between class means?"
        ),
        arms={
            "baseline": _arm(scale),
            "suppressed": _arm(scale, penalty(-1e-3)),
            "suppressed, memory": _arm(scale, penalty(-1e-3, memory=0.9)),
        },
        seeds=scale.seeds,
        claims=("C3", "C5", "C14"),
        contrasts=compare(("C3", "C5", "C14"), ("suppressed", "suppressed, memory")),
        figures=FIGURES,
        paper=(
            PaperValue(
                what="training accuracy, suppressed",
                value="1.00",
                measured="last train/accuracy of suppressed",
            ),
            PaperValue(
                what="validation accuracy, suppressed",
                value="0.78 to 0.79",
                measured="last validation/accuracy of suppressed",
            ),
            PaperValue(
                what="validation accuracy, baseline",
                value="0.78 to 0.79",
                measured="last validation/accuracy of baseline",
            ),
        ),
    )


@offer(PRESETS)
def suppress_collapse_strength(preset: str) -> Experiment:
    """Figure 6: strengths from 1e-2 to 1e-6."""
    scale = SCALES[preset]
    roles = {"0.01": "fails", **dict.fromkeys(("0.001", "0.0001", "1e-05", "1e-06"), "unchanged")}
    arms = {strength: _arm(scale, penalty(-float(strength))) for strength in roles}
    return Experiment(
        name="suppress-collapse-strength",
        title="How strongly collapse is suppressed",
        question="At which strength does the penalty on collapse begin to change what is learnt?",
        arms={"baseline": _arm(scale), **arms},
        seeds=scale.few_seeds,
        claims=("C12", "C3"),
        contrasts=(*compare_roles("C12", roles), *compare(("C3",), roles)),
        figures=FIGURES,
    )


@offer(PRESETS)
def suppress_collapse_augmented(preset: str) -> Experiment:
    """Figure 7: with random crops and flips, and without."""
    scale = SCALES[preset]
    augmented = {"crop_padding": 4 if preset != "tiny" else 1, "flip": True}
    # The paper's augmented network keeps the image large: on two cores, 14 times the work.
    network = {"stem": "cifar", "normalisation": "cifar10"} if preset == "paper" else {}
    strengths = (1e-2, 1e-3, 1e-4) if preset == "paper" else (1e-2, 1e-3)
    arms = {"baseline": _arm(scale, **network), "augmented": _arm(scale, **network, **augmented)}
    contrasts = []
    for strength in strengths:
        plain, both = f"{strength:g}", f"{strength:g}, augmented"
        arms[plain] = _arm(scale, penalty(-strength), **network)
        arms[both] = _arm(scale, penalty(-strength), **network, **augmented)
        contrasts += [
            Contrast(claim="C6", arm=plain, role="plain"),
            Contrast(claim="C6", arm=both, against="augmented", role="augmented"),
            Contrast(claim="C3", arm=both, against="augmented"),
        ]
    return Experiment(
        name="suppress-collapse-augmented",
        title="Suppressing collapse under augmentation",
        question="Do random crops and flips weaken the penalty on collapse?",
        arms=arms,
        seeds=scale.few_seeds,
        claims=("C6", "C3"),
        contrasts=tuple(contrasts),
        figures=FIGURES,
        paper=(
            PaperValue(
                what="validation accuracy, augmented",
                value="about 0.94",
                measured="last validation/accuracy of augmented",
            ),
        ),
    )


@offer(PRESETS)
def encourage_collapse(preset: str) -> Experiment:
    """The other sign."""
    scale = SCALES[preset]
    arms = {
        f"encouraged, {weight:g}": _arm(scale, penalty(weight)) for weight in (1e-3, 1e-2, 1e-1)
    }
    return Experiment(
        name="encourage-collapse",
        title="Does a network that is made to collapse generalise better?",
        question="A penalty drives down the NCC of each batch: does generalisation follow?",
        arms={"baseline": _arm(scale), **arms},
        seeds=scale.seeds,
        claims=("C4",),
        contrasts=compare(("C4",), arms),
        figures=FIGURES,
    )
