"""The statistics agree with SciPy's, with simulation, and with what they promise: studies of equal
arms see nothing, and a difference of twice the stated smallest one is found."""

import math

import numpy as np
import pytest
from scipy import stats

from fluxsmith.evaluation.evaluator import Score
from fluxsmith.evaluation.report import percent
from fluxsmith.studies.analysis import (
    MOST_SEEDS,
    compare,
    mean,
    paired,
    power,
    seeds_needed,
    smallest_visible,
)
from fluxsmith.studies.verdicts import amount, verdict

ACCURACY = Score(("accuracy",), "higher", percent)
DISTANCE = Score(("value",), "lower")


def simulated(draw, gaps, seeds=5, noise=0.02, between=0.05):
    """A figure of arms that lie `gaps` above the baseline; seeds move all arms alike."""
    common = 0.8 + between * draw.standard_normal(seeds)
    arms = {"baseline": 0.0, **{f"arm {i}": gap for i, gap in enumerate(gaps)}}
    return {
        arm: dict(enumerate(common + gap + noise * draw.standard_normal(seeds)))
        for arm, gap in arms.items()
    }


def test_the_paired_test_is_scipys():
    values = simulated(np.random.default_rng(1), [0.03], seeds=7)
    found = paired(values["arm 0"], values["baseline"], 0.05)
    a, b = (list(values[arm].values()) for arm in ("arm 0", "baseline"))
    expected = stats.ttest_rel(a, b)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.mean == pytest.approx(np.mean(a) - np.mean(b))
    low, high = stats.t.interval(0.9, 6, loc=np.mean(a), scale=stats.sem(a))
    assert mean(a, 0.1).interval == pytest.approx((low, high))


def test_seeds_are_paired_and_those_of_one_arm_alone_left_out():
    found = paired({0: 1.0, 1: 2.5, 2: 9.0}, {2: 8.0, 0: 0.5, 7: 100.0}, 0.05)
    assert (found.seeds, found.mean) == (2, pytest.approx(0.75))
    assert paired({0: 1.0, 1: 2.0}, {1: 1.0, 2: 3.0}, 0.05) is None


def test_equal_differences_say_nothing_of_chance():
    same = paired({0: 0.5, 1: 0.7}, {0: 0.5, 1: 0.7}, 0.05)
    assert same.mean == 0
    assert math.isnan(same.p)
    [row] = compare({"f": {"a": {0: 1.0, 1: 1.0}, "b": {0: 1.0, 1: 1.0}}}, "a", 0.05, "f")
    said = verdict(row, ACCURACY, "a", 0.05, 0.01, 1)
    assert said.startswith("the same as a with every seed, without any spread, so that chance")
    shifted = paired({0: 0.6, 1: 0.8}, {0: 0.5, 1: 0.7}, 0.05)
    assert math.isnan(shifted.p)
    [row] = compare({"f": {"a": {0: 0.5, 1: 0.7}, "b": {0: 0.6, 1: 0.8}}}, "a", 0.05, "f")
    assert "chance can't be judged" in verdict(row, ACCURACY, "a", 0.05, 0.01, 1)


@pytest.mark.parametrize(("seeds", "alpha"), [(3, 0.05), (5, 0.05), (5, 0.0125), (12, 0.01)])
def test_power_is_that_of_simulated_tests(seeds, alpha):
    deviation = 0.7
    difference = smallest_visible(deviation, seeds, alpha)
    assert power(difference, deviation, seeds, alpha) == pytest.approx(0.8)
    draw = np.random.default_rng(seeds)
    gaps = difference + deviation * draw.standard_normal((20_000, seeds))
    seen = stats.ttest_1samp(gaps, 0, axis=1)
    share = np.mean((seen.pvalue < alpha) & (seen.statistic > 0))
    assert share == pytest.approx(0.8, abs=0.01)


def test_as_many_seeds_as_are_needed_and_no_more():
    needed = seeds_needed(0.5, 1.0, 0.05)
    assert power(0.5, 1.0, needed, 0.05) >= 0.8 > power(0.5, 1.0, needed - 1, 0.05)
    assert needed == 34  # as tables have it: Cohen 1988, table 2.4.1
    assert smallest_visible(0.0, 5, 0.05) == 0


@pytest.mark.parametrize(("seeds", "alpha"), [(2, 0.3), (5, 0.499), (10, 0.45)])
def test_what_is_visible_is_known_at_any_alpha(seeds, alpha):
    difference = smallest_visible(0.7, seeds, alpha)
    assert power(difference, 0.7, seeds, alpha) == pytest.approx(0.8)


def test_a_difference_that_no_study_shows_is_not_promised():
    said = verdict(row(0.03, 0.05), ACCURACY, "b", 0.05, 1e-9, 1)
    assert f"more than {MOST_SEEDS:,} seeds would do" in said


def test_what_is_visible_is_of_the_tests_that_are_corrected_together():
    draw = np.random.default_rng(0)
    figures = {
        name: {arm: dict(enumerate(draw.standard_normal(5))) for arm in "abc"}
        for name in ("main", "one", "other")
    }
    for found in compare(figures, "a", 0.05, "main"):
        tests = 2 if found["primary"] else 4
        visible = smallest_visible(found["deviation"], 5, 0.05 / tests)
        assert found["visible"] == pytest.approx(visible)


def test_p_values_are_corrected_for_their_number():
    draw = np.random.default_rng(0)
    figures = {"first": simulated(draw, [0.05, 0.03]), "second": simulated(draw, [0.0, 0.02])}
    rows = compare(figures, "baseline", 0.05, "first")
    primary = sorted((r for r in rows if r["primary"]), key=lambda r: r["p"])
    assert [r["p_adjusted"] for r in primary] == pytest.approx(
        [2 * primary[0]["p"], max(2 * primary[0]["p"], primary[1]["p"])]
    )
    others = [r for r in rows if not r["primary"]]
    assert min(r["p_adjusted"] for r in others) == pytest.approx(2 * min(r["p"] for r in others))


@pytest.mark.parametrize("arms", [1, 3])
def test_equal_arms_show_no_difference_in_19_of_20_studies(arms):
    draw = np.random.default_rng(arms)
    studies = [
        compare({"f": simulated(draw, [0.0] * arms)}, "baseline", 0.05, "f") for _ in range(200)
    ]
    wrong = sum(any(row["p_adjusted"] < 0.05 for row in rows) for rows in studies)
    assert wrong <= 200 / 20 + 3 * math.sqrt(
        200 * 0.05 * 0.95
    )  # three standard deviations of chance


def test_twice_the_stated_smallest_difference_is_found_in_9_of_10_studies():
    draw, found = np.random.default_rng(3), 0
    for _ in range(200):
        [row] = compare({"f": simulated(draw, [0.0])}, "baseline", 0.05, "f")
        planted = simulated(draw, [2 * row["visible"]])
        [row] = compare({"f": planted}, "baseline", 0.05, "f")
        said = verdict(row, ACCURACY, "baseline", 0.05, 1e-6, 1)
        found += said.startswith("better by")
    assert found >= 180


def row(mean, deviation, seeds=5, alpha=0.05):
    gaps = mean + deviation * np.array([-1.0, -0.5, 0.0, 0.5, 1.0])[:seeds] / 0.7905694
    values = {"b": dict.fromkeys(range(seeds), 0.5), "a": dict(enumerate(0.5 + gaps))}
    [found] = compare({"f": values}, "b", alpha, "f")
    return found


@pytest.mark.parametrize(
    ("mean", "deviation", "score", "said"),
    [
        (0.012, 0.003, ACCURACY, "better by 1.20 points (0.83 to 1.57), p = 0.00086"),
        (-0.02, 0.003, ACCURACY, "worse by 2.00 points (1.63 to 2.37), p = 0.00012"),
        (-2.0, 0.5, DISTANCE, "better by 2.000 (1.379 to 2.621), p = 0.00086"),
        (0.002, 0.0005, ACCURACY, "which is less than the 1.00 points that matter"),
        (0.0005, 0.003, ACCURACY, "no difference seen (−0.32 to +0.42 points, p = 0.73); one of"),
        (0.03, 0.05, ACCURACY, "too noisy for its question: no difference seen"),
    ],
)
def test_verdicts_are_sentences(mean, deviation, score, said):
    assert said in verdict(row(mean, deviation), score, "b", 0.05, 0.01, 1)


def test_a_noisy_study_says_how_many_seeds_would_do():
    said = verdict(row(0.03, 0.05), ACCURACY, "b", 0.05, 0.01, 1)
    needed = seeds_needed(0.01, 0.05, 0.05)
    assert f"about {needed} seeds would do" in said
    assert "1.00 points matter" in said
    assert verdict({"arm": "a"}, ACCURACY, "b", 0.05, 0.01, 1).startswith("no answer")


def test_differences_have_a_sign_and_a_unit():
    assert amount(ACCURACY, -0.012, 0.034, sign=True) == "−1.20 to +3.40 points"
    assert amount(DISTANCE, 1.5, sign=True) == "+1.500"
