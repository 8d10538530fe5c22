"""Figures 4a, 8 to 12: flatness suppressed, then released; sweeps, and the other sign."""

from __future__ import annotations

from grokscope.experiments.catalogue import compare, compare_roles, offer
from grokscope.experiments.vision import (
    PLAIN,
    PUBLISHED_END,
    SCALES,
    Scale,
    cap,
    presets,
    published_penalty,
)
from grokscope.interventions import Penalty, SharpnessAware
from grokscope.spec import Contrast, Experiment, PaperValue, Phase, Run

PRESETS = presets(small="30 to 40 minutes")
EPOCHS = 400
FIGURES = ("accuracies", "flatness_by_arm", "outcomes", "collapse_by_arm", "losses_by_arm")
# With a fifth of the epochs a cap of 50 swamps the loss before the training data are fitted.
CAPS = {"small": 20.0, "paper": 50.0, "tiny": 20.0}


def forks(scale: Scale, height: float, removal: float) -> dict[str, Run]:
    """The ways to continue after the removal, forked from two states.

    Args:
        scale: How much of the experiment is run.
        height: Cap on the head's Frobenius norm; it is kept to the end.
        removal: The paper's epoch at which the penalty is removed.
    """
    at, end = scale.steps(removal), scale.steps(EPOCHS)
    plain = Phase(until=at, optimizer=PLAIN)
    pushed = suppressing(at, height)
    capped = Phase(until=end, constraints=(cap(height),))
    ways = {
        "baseline": (plain, Phase(until=end)),
        "kept": (pushed, capped.model_copy(update={"penalties": (published_penalty(),)})),
        "removed": (pushed, capped),
    }
    return {
        f"{name}{suffix}": scale.run(start, then.model_copy(update={"optimizer": optimizer}))
        for name, (start, then) in ways.items()
        for suffix, optimizer in (("", PLAIN), (" + optimiser", PUBLISHED_END))
    }


def suppressing(until: int, height: float, weight: float = 0.01) -> Phase:
    """A phase under the published penalty and cap."""
    return Phase(
        until=until,
        optimizer=PLAIN,
        penalties=(published_penalty(weight),),
        constraints=(cap(height),),
    )


@offer(PRESETS)
def suppress_flatness(preset: str) -> Experiment:
    """The published penalty, removed half-way as published, with controls for its effect."""
    title = "Does a network that may not be flat generalise?"
    return _suppress_flatness("suppress-flatness", preset, title, removal=200)


@offer(PRESETS)
def suppress_flatness_early(preset: str) -> Experiment:
    """The same, removed after a quarter (the paper's first version)."""
    title = "Does a network that may not be flat generalise? Released early"
    return _suppress_flatness("suppress-flatness-early", preset, title, removal=100)


def _suppress_flatness(name: str, preset: str, title: str, removal: float) -> Experiment:
    scale = SCALES[preset]
    return Experiment(
        name=name,
        title=title,
        question=(
            "The published penalty drives flatness up and is then removed: does generalisation "
            "wait for flatness, for the removal, or for the optimiser that was changed with it?"
        ),
        arms=forks(scale, CAPS[preset], removal),
        seeds=scale.seeds,
        claims=("C7", "C8", "C14"),
        contrasts=(
            Contrast(claim="C7", arm="kept", phase=0, label="at the removal"),
            Contrast(claim="C7", arm="kept", label="at the end"),
            *compare(("C8",), ("removed + optimiser", "removed", "kept + optimiser")),
            Contrast(claim="C8", arm="removed + optimiser", against="baseline + optimiser"),
            Contrast(claim="C14", arm="kept", phase=0, label="at the removal"),
            Contrast(claim="C14", arm="kept", label="at the end"),
            Contrast(claim="C14", arm="kept + optimiser", against="baseline + optimiser"),
        ),
        figures=FIGURES,
        paper=(
            PaperValue(
                what="validation accuracy before the removal",
                value="about 0.60",
                measured="before validation/accuracy of removed + optimiser",
            ),
            PaperValue(
                what="validation accuracy at the end",
                value="about 0.78, the baseline's",
                measured="last validation/accuracy of removed + optimiser",
            ),
            PaperValue(
                what="validation accuracy of the baseline",
                value="about 0.78",
                measured="last validation/accuracy of baseline",
            ),
            PaperValue(
                what="flatness value before the removal (ceiling: 0.9 times the cap squared)",
                value="2209.94 of 2250",
                measured="before train/published_penalty of removed + optimiser",
            ),
            PaperValue(
                what="flatness value at the end (with other temperature and features)",
                value="1.91",
                measured="last train/published_penalty of removed + optimiser",
            ),
        ),
    )


@offer(PRESETS)
def suppress_flatness_strength(preset: str) -> Experiment:
    """Figure 11: strengths 0.5, 0.1, 1e-3 and 1e-4."""
    scale = SCALES[preset]
    roles = {"0.5": "fails", "0.1": "fails", "0.001": "unchanged", "0.0001": "unchanged"}
    until = scale.steps(300)
    arms = {
        strength: scale.run(suppressing(until, CAPS[preset], float(strength))) for strength in roles
    }
    return Experiment(
        name="suppress-flatness-strength",
        title="How strongly flatness is suppressed",
        question="At which strength does the published penalty begin to change what is learnt?",
        arms={"baseline": scale.run(Phase(until=until, optimizer=PLAIN)), **arms},
        seeds=scale.few_seeds,
        claims=("C12", "C14"),
        contrasts=(*compare_roles("C12", roles), *compare(("C14",), roles)),
        figures=FIGURES,
    )


@offer(PRESETS)
def suppress_flatness_cap(preset: str) -> Experiment:
    """Figure 12: other caps on the head's norm, each with the published removal."""
    scale = SCALES[preset]
    paper = {20: "lower", 100: "lower", 150: "fails", 200: "fails"}
    # The paper's 50 is its main experiment; 10 is ours, so there is nothing to compare it with.
    seen = paper if preset == "paper" else {10: "", 20: "lower", 50: "lower"}
    at, end = scale.steps(200), scale.steps(EPOCHS)
    arms = {
        f"cap {height}": scale.run(
            suppressing(at, height),
            Phase(until=end, optimizer=PUBLISHED_END, constraints=(cap(height),)),
        )
        for height in seen
    }
    return Experiment(
        name="suppress-flatness-cap",
        title="How large the head may grow while flatness is suppressed",
        question="What does the cap on the head's norm change, under the penalty and after it?",
        arms={
            "baseline": scale.run(
                Phase(until=at, optimizer=PLAIN), Phase(until=end, optimizer=PUBLISHED_END)
            ),
            **arms,
        },
        seeds=scale.few_seeds,
        claims=("C12", "C7", "C8", "C14"),
        contrasts=tuple(
            Contrast(claim=claim, arm=arm, phase=phase, role=role)
            for height, arm in zip(seen, arms, strict=True)
            for claim, phase, role in (
                ("C12", 0, seen[height]), ("C7", 0, ""), ("C8", -1, ""), ("C14", 0, ""),
            )
            if claim != "C12" or role
        ),
        figures=FIGURES,
        paper=(
            PaperValue(
                what="validation accuracy, cap 20", value="about 0.75",
                measured="before validation/accuracy of cap 20",
            ),
            PaperValue(what="validation accuracy, cap 100", value="about 0.50"),
            PaperValue(what="caps 150 and 200", value="fail to converge"),
        ),
    )  # fmt: skip


@offer(PRESETS)
def suppress_flatness_controls(preset: str) -> Experiment:
    """What could be at work other than flatness: parts of the penalty alone, and its rivals."""
    scale = SCALES[preset]
    height, until = CAPS[preset], scale.steps(200)
    most = 0.01 * height**2  # what the published penalty multiplies the Gini impurity by, at most

    def arm(*penalties: Penalty, capped: bool = True, **phase: object) -> Run:
        constraints = (cap(height),) if capped else ()
        settings = {"until": until, "optimizer": PLAIN, "penalties": penalties}
        return scale.run(Phase(**settings, constraints=constraints, **phase))

    bound = Penalty(measure="relative_flatness_bound", weight=-1e-3)
    rivals = {
        "cap alone": arm(),
        "gini": arm(Penalty(measure="gini", weight=-most), capped=False),
        "entropy": arm(Penalty(measure="entropy", weight=-most / 2), capped=False),
        "label smoothing": arm(capped=False, label_smoothing=0.5),
        "temperature": arm(capped=False, temperature=4.0),
        "logit scale": arm(Penalty(measure="logit_scale", weight=1.0), capped=False),
    }
    flatness = {
        "published": arm(published_penalty()),
        "exact kappa": arm(Penalty(measure="relative_flatness", weight=-1e-3)),
        "bound, raw features": arm(bound),
    }
    return Experiment(
        name="suppress-flatness-controls",
        title="Is it flatness, or confidence?",
        question=(
            "The published penalty is compared with its parts and with penalties on confidence "
            "alone: do those delay generalisation as much?"
        ),
        arms={
            "baseline": scale.run(Phase(until=until, optimizer=PLAIN)), **flatness, **rivals,
        },
        seeds=scale.seeds[:3],
        claims=("C13", "C7", "C14"),
        contrasts=(
            *compare_roles("C13", dict.fromkeys(flatness, "penalty")),
            *compare_roles("C13", dict.fromkeys(rivals, "rival")),
            *compare(("C7", "C14"), flatness | rivals),
        ),
        figures=FIGURES,
    )  # fmt: skip


@offer(PRESETS)
def encourage_flatness(preset: str) -> Experiment:
    """The other sign: FAM, a small bound, and sharpness-aware minimisation."""
    scale = SCALES[preset]
    until = scale.steps(250)

    def arm(*penalties: Penalty, radius: float | None = None) -> Run:
        aware = None if radius is None else SharpnessAware(radius=radius)
        return scale.run(
            Phase(until=until, optimizer=PLAIN, penalties=penalties, sharpness_aware=aware)
        )

    return Experiment(
        name="encourage-flatness",
        title="Does a network that is made flat generalise better?",
        question="What follows when exact flatness, its bound, or the loss nearby is minimised?",
        arms={
            "baseline": arm(),
            "FAM": arm(Penalty(measure="relative_flatness", weight=1e-3)),
            "bound": arm(Penalty(measure="relative_flatness_bound", weight=1e-3)),
            "SAM": arm(radius=0.05),
        },
        seeds=scale.seeds,
        claims=("C14",),
        contrasts=compare(("C14",), ("FAM", "bound", "SAM")),
        figures=FIGURES,
    )
