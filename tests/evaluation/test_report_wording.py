"""Numbers as a report says them."""

import math

import pytest

from fluxsmith.evaluation.report.markup import Markup, escaped, tag
from fluxsmith.evaluation.report.wording import duration, interval, number, percent


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (12.3456, "12.35"),
        (0.00042, "0.0004200"),
        (-0.00012, "−0.0001200"),
        (1000, "1,000"),
        (0.0, "0.000"),
        (3.2e-9, "3.2e−09"),
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "–"),
        (True, "–"),
        ("3", "–"),
    ],
)
def test_numbers(value, said):
    assert number(value) == said


def test_the_ends_of_an_interval_have_the_decimals_of_its_value():
    assert interval([9.5, 10.75], number, 9.999) == "9.500 to 10.750"
    assert interval([0.9512, 0.9931], percent, 0.97) == "95.1% to 99.3%"
    assert interval(None) == interval([1.0]) == interval([1.0, math.nan]) == "–"


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.973, "97.3%"), (0.9986, "99.86%"), (0.0125, "1.25%"), (0, "0.0%"), (1.0, "100.0%")],
)
def test_shares(value, said):
    assert percent(value) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0.0 s"),
        (0.012, "0.012 s"),
        (41.7, "41.7 s"),
        (99.96, "1 min 40 s"),
        (7260, "2 h 1 min"),
    ],
)
def test_durations(seconds, said):
    assert duration(seconds) == said


def test_text_is_escaped_once_and_markup_never():
    assert escaped('<a href="x">&\'') == "&lt;a href=&quot;x&quot;&gt;&amp;&#x27;"
    assert tag("p", "1 < 2", tag("b", "&"), None) == "<p>1 &lt; 2<b>&amp;</b></p>"
    assert tag("img", alt='"', class_=None) == '<img alt="&quot;">'
    assert isinstance(escaped("a"), Markup)
