"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest

from grokscope.report.words import (
    correlation,
    interval,
    listed,
    name_of,
    number,
    numeral,
    share,
    signed,
    step,
    steps_range,
    tick,
    times,
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


def test_only_the_minus_of_a_number_is_set():
    text = "by -0.5 (95 % interval -1 to -.25), log-spaced, 1e-3, C1-4, seed -3"
    assert typeset(text) == ("by −0.5 (95 % interval −1 to −.25), log-spaced, 1e-3, C1-4, seed −3")


def test_differences_have_signs_and_no_zeros_that_say_nothing() -> None:
    assert [signed(each) for each in (0.003, -0.0141, 1150.4, math.nan)] == [
        "+0.003", "−0.014", "+1,150", "–",
    ]  # fmt: skip
    assert [share(each) for each in (0.4751, 1.0, math.nan)] == ["0.475", "1.000", "–"]
    assert (times(917.3), correlation(-0.974)) == ("917×", "−0.97")
    assert interval(-0.014, 0.02, signed) == "−0.014 to +0.020"


def test_small_counts_are_words() -> None:
    assert [numeral(each, "seed") for each in (1, 5, 12)] == ["one seed", "five seeds", "12 seeds"]


def test_a_measure_that_nobody_named_is_called_by_its_name() -> None:
    assert name_of("my_sparsity", "validation") == "my sparsity (held out)"
    assert name_of("ncc (held out)") == "NCC (held out)"
    assert name_of("memorised") == "training data memorised"
