"""The words that a page uses, explained."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """A word and what it means; it is shown where the page has it."""

    word: str
    meaning: str
    pattern: str


TERMS = (
    Term(
        "Arm", "One way of training, run once for each seed. The arm that others are compared with "
        "is the reference: the one called baseline, or the first.", r"\barms?\b",
    ),
    Term(
        "Seed", "The number from which all chance in a run follows: the first weights, the order "
        "of the batches and, unless it is fixed, the data that are held out.", r"\bseeds?\b",
    ),
    Term(
        "Held out", "Data that training never saw (validation data).", r"held[ -]out",
    ),
    Term(
        "Look", "A step at which the network was measured, in evaluation mode, on a fixed part of "
        "the training data and of the held-out data.", r"\blooks?\b",
    ),
    Term(
        "Memorised, generalised", "Memorised: the network answers the training data right. "
        "Generalised: it answers held-out data right, too. Where the second comes long after the "
        "first, the network groks.", r"memoris|generalised",
    ),
    Term(
        "κ (kappa), relative flatness", "How fast the loss rises when the weights of the last "
        "layer are moved, relative to their size. Low is flat, high is sharp. Exact κ is computed "
        "in closed form; the bound on κ lies above it.", "κ|kappa",
    ),
    Term(
        "Matched loss", "κ falls merely because a network becomes more confident. At matched loss "
        "the logits are first divided by a temperature that brings every network to the same "
        "training loss, so that confidence is the same in all of them.", "matched",
    ),
    Term(
        "Published value, published penalty", "What has been published under the name of relative "
        "flatness. Computed from tempered logits and normalised features, it measures how unsure "
        "the network is times the size of its last layer; it is not κ.",
        "[Pp]ublished (value|penalty)",
    ),
    Term(
        "NCC, neural collapse", "Class-distance normalised variance: how far the features of a "
        "class lie apart, compared with the distance between classes. Low is collapsed: each class "
        "has become a point. NC1 to NC4 are four signs of full collapse.", r"NCC|NC\d|[Cc]ollaps",
    ),
    Term(
        "Logit scale", "How large the outputs of the network are before the softmax: how confident "
        "it is.", "[Ll]ogit scale",
    ),
    Term(
        "Representativeness", "How well the features of the training data stand for those of new "
        "data: the part of the generalisation gap that is not explained by how the loss rises "
        "around the training features.", "[Rr]epresentativ",
    ),
    Term(
        "95 % interval", "Where the effect lies in 95 % of repetitions with other seeds. One seed "
        "has none. An effect is counted where its interval excludes zero (or 1, for a ratio).",
        "95 %",
    ),
    Term(
        "Supported, contradicted, undecided", "Supported or contradicted: the whole interval lies "
        "on one side of a margin that was fixed before. Undecided: anything else.",
        "supported|contradicted|undecided",
    ),
)  # fmt: skip


def glossary(text: str) -> list[Term]:
    """The terms that a text uses."""
    return [term for term in TERMS if re.search(term.pattern, text)]
