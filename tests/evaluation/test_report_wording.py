"""Numbers as a report says them."""

import math

import pytest

from fluxsmith.evaluation.report.wording import interval, legible, number, percent


@pytest.mark.parametrize(
    ("show", "value", "said"),
    [
        (number, 12.3456, "12.35"),
        (number, -0.00012, "−0.0001200"),
        (number, 1000, "1,000"),
        (number, 0.0, "0.000"),
        (number, 3.2e-9, "3.2e−09"),
        (number, None, "–"),
        (number, math.inf, "–"),
        (percent, 0.973, "97.3%"),
        (percent, 0.9986, "99.86%"),
        (percent, 1.0, "100.0%"),
    ],
)
def test_numbers(show, value, said):
    assert show(value) == said


def test_the_ends_of_an_interval_have_the_decimals_of_its_value():
    assert interval([9.5, 10.75], number, 9.999) == "9.500 to 10.750"
    assert interval([0.9512, 0.9931], percent, 0.97) == "95.1% to 99.3%"


def test_what_no_page_can_hold_is_replaced():
    assert legible("a\x00b\ud800c\n") == "a\ufffdb\ufffdc\n"
