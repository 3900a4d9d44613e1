"""Intervals over bases, orders and problems: hand-computed cases, and how often they hold the truth."""

import math

import numpy as np
import pytest
from intervals import Interval, crossing, difference, mean, percent, positive_mean, reach, share, slip, verdict


def drawn(rng, bases=3, orders=3, problems=100, of_base=0.1, of_order=0.1, of_problem=1.0):
    """Runs with the mean 0: each level adds its own noise, and problems are the same for all runs."""
    shared = rng.normal(0, of_problem, problems)
    runs = {}
    for base in range(bases):
        shift = rng.normal(0, of_base)
        for order in "abcdef"[:orders]:
            runs[base, order] = shift + rng.normal(0, of_order) + shared + rng.normal(0, 0.3, problems)
    return runs


def test_the_mean_is_over_bases_first_so_that_one_with_more_orders_does_not_count_more():
    runs = {(1, "a"): np.array([1.0, 3.0]), (1, "b"): np.array([3.0, 5.0]), (2, "a"): np.array([10.0, 12.0])}
    found = mean(runs)
    assert found.mean == pytest.approx((3.0 + 11.0) / 2)
    assert (found.bases, found.orders, found.problems, found.lacks) == (2, 3, 2, ())


def test_the_interval_of_equal_problems_is_student_s_on_the_means_of_the_bases():
    runs = {(base, order): np.full(50, value) for base, value in ((1, 1.0), (2, 2.0), (3, 4.0)) for order in "ab"}
    found = mean(runs)
    half = 4.3027 * math.sqrt(7 / 3 / 3)  # variance 7/3 of 1, 2, 4; two degrees of freedom
    assert found.mean == pytest.approx(7 / 3)
    assert found.high - found.mean == pytest.approx(half, rel=0.05)


def test_the_interval_of_what_is_positive_holds_no_negative_number_and_that_of_a_share_none_above_one():
    runs = {(base, "a"): np.full(50, value) for base, value in ((1, 0.1), (2, 0.9), (3, 0.98))}
    wide, positive, cut = mean(runs), positive_mean(runs), share(runs)
    assert wide.low < 0 and wide.high > 1
    assert positive.mean == pytest.approx(wide.mean) and 0 < positive.low < positive.mean < positive.high
    assert math.log(positive.mean / positive.low) == pytest.approx(math.log(positive.high / positive.mean))
    assert (cut.low, cut.mean, cut.high) == (0, wide.mean, 1)


def test_differences_are_paired_by_base_order_and_problem():
    rng = np.random.default_rng(0)
    ntp = drawn(rng, of_base=5.0)
    arm = {key: values - 0.5 for key, values in ntp.items()} | {(9, "z"): np.zeros(100)}
    found = difference(arm, ntp)
    assert (found.mean, found.low, found.high) == pytest.approx((-0.5, -0.5, -0.5))
    assert found.orders == 9


def test_the_ratio_of_two_arms_in_percent():
    ntp = {(base, order): np.array([1.0, 2.0, 3.0]) * base for base in (1, 2, 3) for order in "ab"}
    found = percent({key: 0.8 * values for key, values in ntp.items()}, ntp)
    assert (found.mean, found.low, found.high) == pytest.approx((-20, -20, -20))


def test_the_same_seed_gives_the_same_interval():
    runs = drawn(np.random.default_rng(1))
    assert mean(runs, seed=3) == mean(runs, seed=3)


@pytest.mark.parametrize(("bases", "orders", "lacks"), [(1, 3, ("bases",)), (1, 1, ("bases", "data orders"))])
def test_an_interval_says_what_variation_it_does_not_hold(bases, orders, lacks):
    found = mean(drawn(np.random.default_rng(2), bases=bases, orders=orders))
    assert found.lacks == lacks and " and ".join(lacks) in found.basis()
    assert found.low < found.high


def test_arms_that_share_no_run_are_refused():
    with pytest.raises(ValueError, match="in common"):
        difference({(1, "a"): np.ones(3)}, {(2, "a"): np.ones(3)})
    with pytest.raises(ValueError, match="different numbers"):
        difference({(1, "a"): np.ones(3)}, {(1, "a"): np.ones(4)})


def test_a_curve_crosses_between_two_points():
    x = np.array([100.0, 200.0, 300.0])
    assert crossing(x, np.array([4.0, 3.0, 1.0]), 2.0) == 250.0
    assert crossing(x, np.array([1.0, 1.0, 1.0]), 2.0) == 100.0
    assert math.isnan(crossing(x, np.array([4.0, 3.0, 2.5]), 2.0))


def test_tokens_to_reach_the_end_of_another_arm():
    tokens = np.array([100.0, 200.0, 300.0])
    ntp = {(b, o): np.outer([4.0, 3.0, 2.0], [1.0, 1.0]) for b in (1, 2, 3) for o in "ab"}
    fast = {key: np.outer([4.0, 2.0, 1.0], [1.0, 1.0]) for key in ntp}
    assert reach(fast, ntp, tokens).mean == 200.0
    assert reach(ntp, ntp, tokens).mean == 300.0
    slow = {key: np.outer([4.0, 3.9, 3.8], [1.0, 1.0]) for key in ntp}
    never = reach(slow, ntp, tokens)
    assert math.isnan(never.mean) and never.high == math.inf
    # On base 3 it does not arrive: a draw of that base alone has no crossing.
    some = {key: (slow if key[0] == 3 else fast)[key] for key in ntp}
    assert reach(some, ntp, tokens).high == math.inf


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-19.2, -8.1, "below NTP by 8 to 19 %"),
        (3.0, 7.9, "above NTP by 3 to 8 %"),
        (-4.4, -0.6, "below NTP by 0.6 to 4.4 %"),
        (2.1, 2.3, "above NTP by 2.1 to 2.3 %"),
        (-3.0, 5.0, "not distinguishable from NTP (interval -3 to +5 %)"),
        (math.nan, math.nan, "not comparable with NTP"),
    ],
)
def test_the_words_follow_from_the_interval(low, high, words):
    assert verdict(Interval((low + high) / 2, low, high, 3, 9, 400, ()), "NTP") == words


def test_the_slip_of_the_weighted_optimum_by_hand():
    assert slip(0.3, 1.0, 1.0) == pytest.approx(0.3)
    assert slip(0.3, 0.8, 1.2) == pytest.approx(0.24 / 1.08)
    # It is the minimum of the weighted loss.
    p = np.linspace(0.001, 0.999, 9981)
    loss = -0.3 * 0.8 * np.log(p) - 0.7 * 1.2 * np.log(1 - p)
    assert p[loss.argmin()] == pytest.approx(slip(0.3, 0.8, 1.2), abs=2e-4)


COVERAGE = {
    "problems": (0.02, 0.02, 1.0),
    "all alike": (0.1, 0.1, 1.0),
    "bases": (0.3, 0.1, 0.3),
    "orders": (0.0, 0.4, 0.3),
}
"""Standard deviations over bases, orders and problems in the simulated runs."""


def held(spreads, times, interval):
    """The share of intervals that hold the truth, over simulated runs on 3 bases x 3 orders."""
    rng, count = np.random.default_rng(5), 0
    for _ in range(times):
        low, high = interval(drawn(rng, of_base=spreads[0], of_order=spreads[1], of_problem=spreads[2]))
        count += low <= 0 <= high
    return count / times


@pytest.mark.parametrize("kind", COVERAGE)
def test_the_interval_holds_the_truth_as_often_as_it_says(kind):
    def ends(runs):
        found = mean(runs)
        return found.low, found.high

    assert 0.88 <= held(COVERAGE[kind], 120, ends) <= 0.99


def percentiles(runs):
    """The plain hierarchical bootstrap: bases, orders within them and problems drawn anew; its percentiles."""
    rng = np.random.default_rng(0)
    cube = np.stack([[runs[base, order] for order in "abc"] for base in range(3)])
    found = []
    for _ in range(300):
        orders = rng.integers(0, 3, (3, 3))
        rows = [cube[base][orders[at]].mean(0) for at, base in enumerate(rng.integers(0, 3, 3))]
        found.append(np.mean(rows, 0)[rng.integers(0, cube.shape[-1], cube.shape[-1])].mean())
    return np.quantile(found, (0.025, 0.975))


def test_percentiles_of_three_bases_are_too_narrow():
    """Why the interval is not that of the plain hierarchical bootstrap."""
    assert held(COVERAGE["bases"], 60, percentiles) < 0.88
