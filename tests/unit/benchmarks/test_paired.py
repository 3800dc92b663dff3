from __future__ import annotations

import math

import numpy as np
import pytest
from paired import compare_pairs, holm, least_pairs, smallest_seen
from scipy import stats


@pytest.mark.parametrize("seed", range(5))
def test_the_test_agrees_with_scipys(seed: int) -> None:
    values = np.random.default_rng(seed).normal(loc=0.4, size=9)
    found = compare_pairs(values.tolist(), threshold=0.1)
    assert found.p_different == pytest.approx(stats.wilcoxon(values, method="exact").pvalue)
    above = stats.wilcoxon(values - 0.1, alternative="greater", method="exact").pvalue
    assert found.p_above == pytest.approx(above)


def test_ties_and_zeros_are_counted_by_shared_ranks() -> None:
    values = [1.0, 1.0, -1.0, 2.0, 0.0]
    # Without the zero: ranks 2, 2, 2, 4. Sums of 8 or more of the 10: {2,2,4} three times and all four: 4 of 16.
    assert compare_pairs(values).p_above == pytest.approx(4 / 16)
    assert compare_pairs([0.0, 0.0, 0.0]).p_different == 1.0


def test_the_interval_of_six_pairs_reaches_from_the_smallest_to_the_largest() -> None:
    # 2/64 of all signs are as lopsided as all six on one side: that is below 0.05, and nothing else is.
    found = compare_pairs([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).interval
    assert (found.low, found.mid, found.high) == (1.0, 3.5, 6.0)
    few = compare_pairs([1.0, 2.0, 3.0, 4.0, 5.0]).interval
    assert (few.low, few.mid, few.high) == (-math.inf, 3.0, math.inf)


def test_the_interval_holds_the_true_shift_as_often_as_it_says() -> None:
    random = np.random.default_rng(3)
    found = [compare_pairs((random.standard_t(3, size=10) + 2).tolist()).interval for _ in range(400)]
    assert 0.93 <= np.mean([one.low <= 2 <= one.high for one in found]) <= 1.0


def test_one_wild_pair_moves_the_estimate_little() -> None:
    calm = [1.0, 1.1, 0.9, 1.05, 0.95, 1.02, 0.98, 1.01]
    assert compare_pairs([*calm, 500.0]).interval.mid == pytest.approx(1.0, abs=0.05)


def test_many_tests_need_smaller_chances() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_fewer_pairs_than_needed_can_never_be_significant() -> None:
    for num_tests in (1, 8, 30):
        enough = least_pairs(num_tests)
        assert compare_pairs([1.0 + 0.1 * i for i in range(enough)]).p_different * num_tests <= 0.05
        assert compare_pairs([1.0 + 0.1 * i for i in range(enough - 1)]).p_different * num_tests > 0.05


def test_a_shift_as_small_as_could_be_seen_is_seen_four_times_out_of_five() -> None:
    random = np.random.default_rng(4)
    shift = smallest_seen(1.0, 12, num_tests=5)
    seen = [compare_pairs((random.normal(size=12) + shift).tolist()).p_different * 5 <= 0.05 for _ in range(400)]
    assert 0.65 <= np.mean(seen) <= 0.92
