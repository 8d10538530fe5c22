"""Numbers as people read them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from made_study import claims

from grokscope.analysis.claims import ClaimReport, Finding
from grokscope.report.words import (
    answer,
    interval,
    listed,
    number,
    step,
    steps_range,
    tick,
    typeset,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1, "1.00"),
        (0.012345, "0.0123"),
        (-2130.4, "−2,130"),
        (312_345.6, "312,000"),
        (9.996, "10.0"),
        (999.9, "1,000"),
        (9_999_999, "1 × 10⁷"),
        (4.25e-7, "4.25 × 10⁻⁷"),
        (-math.inf, "−∞"),
        (math.nan, "–"),
        (None, "–"),
        ("about 1e4", "about 1e4"),
    ],
)
def test_a_number_has_three_digits_and_a_real_minus(value: object, text: str) -> None:
    assert number(value) == text


def test_a_tick_has_no_zeros_that_say_nothing() -> None:
    assert [tick(each) for each in (0.75, 1.0, 10.0, 1000.0, 0.1)] == [
        "0.75",
        "1",
        "10",
        "1,000",
        "0.1",
    ]


def test_steps_are_exact_and_say_when_they_were_not_reached() -> None:
    assert step(15213.0) == "15,213"
    assert step(math.nan) == "not reached"
    assert steps_range([440, 481, 458]) == "458 (440 to 481)"
    assert steps_range([440, math.nan]) == "440"
    assert steps_range([math.nan]) == "not reached"


def test_an_unknown_interval_is_not_printed() -> None:
    assert interval(math.nan, math.nan) == ""
    assert interval(-2290, -1970) == "−2,290 to −1,970"


def test_lists_read_as_sentences_do() -> None:
    assert [listed(each) for each in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]


def test_the_answer_names_every_claim_once_and_those_that_turn_on_the_measure() -> None:
    first, second = answer(claims())
    assert first == (
        "Of 3 claims tested with 3 seeds: C1 is supported; C2 is contradicted; C15 is undecided."
    )
    assert second == (
        "C2 depends on what is measured: contradicted by exact κ and the bound on κ, "
        "supported by the published value."
    )


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ((3, 3, 3), "Of 3 claims tested with 3 seeds: "),
        ((3, 0, 3), "Of 3 claims tested with 3 seeds: "),
        ((1, 3, 0), "Of 3 claims tested with 1 to 3 seeds: "),
        ((1, 1, 0), "Of 3 claims tested with 1 seed: "),
        ((0, 0, 0), "Of 3 claims tested: "),
    ],
)
def test_the_answer_says_how_many_seeds_each_claim_rests_on(seeds, said) -> None:
    reports = [
        replace(each, headline=replace(each.headline, seeds=own))
        for each, own in zip(claims(), seeds, strict=True)
    ]
    assert answer(reports)[0].startswith(said)


def test_what_rests_on_no_seed_is_no_other_basis() -> None:
    reports = [
        replace(each, others=tuple(replace(other, seeds=0) for other in each.others))
        for each in claims()
    ]
    assert len(answer(reports)) == 1


def test_without_claims_the_answer_says_so() -> None:
    assert answer([]) == ["No claim was tested in this run."]


def test_only_the_minus_of_a_number_is_set():
    text = "by -0.5 (95 % interval -1 to -.25), log-spaced, 1e-3, C1-4, seed -3"
    assert typeset(text) == ("by −0.5 (95 % interval −1 to −.25), log-spaced, 1e-3, C1-4, seed −3")


def test_a_claim_that_compares_arms_turns_on_the_arm() -> None:
    finding = Finding("C14", "kept, at the end", "contradicted", 9.0, (8.0, 10.0), "", 3, (), "")
    other = replace(finding, basis="cap 50", verdict="undecided")
    report = ClaimReport("C14", "S", finding, (other,), compares=True)
    assert answer([report])[1] == (
        "C14 depends on the arm: contradicted in “kept, at the end”; undecided in “cap 50”."
    )
