"""Whether two sides that were measured in turns differ: exact statistics of paired differences.

The unit is one process of each side, measured one right after the other. Test: Wilcoxon's signed-rank test, exact;
estimate and interval: Hodges and Lehmann's median of all pairwise means, and those of them that the test does not
reject (Hollander, Wolfe, Chicken, "Nonparametric Statistical Methods", 2014, chapter 3). Neither assumes a
distribution, and one wild process out of ten moves neither by much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from harness.intervals import Interval

POWER = 0.8
"""The chance with which a difference of `smallest` is seen."""
_EFFICIENCY = 3 / math.pi
"""Of the signed-rank test beside the t-test, where the differences are normally distributed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Paired:
    """What the differences of pairs say."""

    interval: Interval
    """Of the shift: the estimate and its bounds; infinite where the pairs are too few for the confidence."""
    p_different: float
    """Two-sided: the chance of differences at least as lopsided if there were none."""
    p_above: float
    """One-sided: the same for differences above `threshold`."""
    sd: float
    """Standard deviation of one pair's difference, from the quartiles where they are further apart than zero."""


def compare_pairs(differences: Sequence[float], *, threshold: float = 0.0, confidence: float = 0.95) -> Paired:
    """Test and estimate the shift between two sides.

    Args:
        differences: New minus base, one for each pair; at least two.
        threshold: What `p_above` is held against.
        confidence: Of the interval.
    """
    values = np.asarray(differences, dtype=np.float64)
    means = np.sort(((values[:, None] + values[None, :]) / 2)[np.triu_indices(len(values))])
    cut = _cut(len(values), 1 - confidence)
    low, high = (means[cut - 1], means[-cut]) if cut else (-math.inf, math.inf)
    above, below = _tail(values, 0.0), _tail(-values, 0.0)
    return Paired(
        interval=Interval(low=float(low), mid=float(np.median(means)), high=float(high), confidence=confidence),
        p_different=min(1.0, 2 * min(above, below)),
        p_above=_tail(values, threshold),
        sd=_spread(values),
    )


def least_pairs(num_tests: int, *, alpha: float = 0.05) -> int:
    """Pairs without which no difference, however large, is significant among so many tests."""
    return math.ceil(math.log2(2 * num_tests / alpha))


def smallest_seen(sd: float, num_pairs: int, *, num_tests: int, alpha: float = 0.05) -> float:
    """The shift that is found significant with a chance of `POWER`, among so many tests (Bonferroni's bound).

    Args:
        sd: Standard deviation of one pair's difference.
        num_pairs: At least two.
        num_tests: That are corrected for.
        alpha: The chance of one false alarm among all of them.
    """
    freedom = num_pairs - 1
    quantiles = stats.t.ppf(1 - alpha / num_tests / 2, freedom) + stats.t.ppf(POWER, freedom)
    return float(quantiles) * sd / math.sqrt(num_pairs * _EFFICIENCY)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, so that one false alarm among all has the chance alpha (Holm 1979)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p_values[index]))
        corrected[index] = running
    return corrected


def _tail(values: npt.NDArray[np.float64], threshold: float) -> float:
    """The chance that the ranks of the differences above the threshold sum to as much as they do."""
    shifted = values - threshold
    shifted = shifted[shifted != 0]
    if not len(shifted):
        return 1.0
    doubled = np.rint(2 * _ranks(np.abs(shifted))).astype(int)  # ties share a rank: halves
    chances = _sums(doubled.tolist())
    return float(chances[doubled[shifted > 0].sum() :].sum())


def _ranks(sizes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    _, group, count = np.unique(sizes, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    ranks: npt.NDArray[np.float64] = (last - (count - 1) / 2)[group]
    return ranks


def _sums(ranks: Sequence[int]) -> npt.NDArray[np.float64]:
    """The chance of each sum when every rank is in it or not by the toss of a coin."""
    chances = np.array([1.0])
    for rank in ranks:
        longer = np.zeros(len(chances) + rank)
        longer[: len(chances)] += chances / 2
        longer[rank:] += chances / 2
        chances = longer
    return chances


def _cut(num_pairs: int, alpha: float) -> int:
    """How many of the smallest pairwise means the test rejects; as many of the largest."""
    cumulated = np.cumsum(_sums(range(1, num_pairs + 1)))
    return int((cumulated <= alpha / 2).sum())


def _spread(values: npt.NDArray[np.float64]) -> float:
    quartiles = np.quantile(values, [0.25, 0.75])
    by_quartiles = float(quartiles[1] - quartiles[0]) / 1.349
    return by_quartiles or float(values.std(ddof=1))
