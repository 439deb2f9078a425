"""Scores of probabilities, and honest comparison of models scored on the same folds.

Pure functions on arrays; formulas and their sources are in the docstrings, what they do and do not
claim is in docs/statistics.md. Folds share training rows, so differences between folds are not
independent; the tests here allow for that, a plain paired t-test does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Labels = NDArray[np.int64]
Probabilities = NDArray[np.float32] | NDArray[np.float64]

ECE_BINS = 15


def log_loss(labels: Labels, probabilities: Probabilities) -> float:
    """Mean negative logarithm of the probability given to the true class, in nats.

    Parameters
    ----------
    labels : ndarray of int64, shape (n,)
    probabilities : ndarray, shape (n, n_classes)
        Rows are scaled to sum to 1; a probability below 2.2e-16 counts as that.
    """
    p = _normalized(probabilities)
    true = p[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(true, np.finfo(np.float64).eps)).mean())


def brier(labels: Labels, probabilities: Probabilities) -> float:
    """Squared distance to the one-hot label, summed over classes: 0 is perfect, 2 the worst.

    The original, multi-class form of Brier (1950).

    Parameters
    ----------
    labels : ndarray of int64, shape (n,)
    probabilities : ndarray, shape (n, n_classes)
    """
    distance = _normalized(probabilities)
    distance[np.arange(len(labels)), labels] -= 1
    return float((distance**2).sum(axis=1).mean())


@dataclass(frozen=True)
class Reliability:
    """Per bin of confidence: rows, mean confidence, accuracy; NaN where a bin is empty.

    Attributes
    ----------
    edges : ndarray, shape (n_bins + 1,)
    count : ndarray of int64, shape (n_bins,)
    confidence, accuracy : ndarray, shape (n_bins,)
    """

    edges: NDArray[np.float64]
    count: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]


def reliability(
    labels: Labels, probabilities: Probabilities, n_bins: int = ECE_BINS
) -> Reliability:
    """How often predictions of a confidence are right, in `n_bins` equal-width bins of (0, 1].

    Parameters
    ----------
    labels : ndarray of int64, shape (n,)
    probabilities : ndarray, shape (n, n_classes)
    n_bins : int
    """
    p = _normalized(probabilities)
    confidence = p.max(axis=1)
    right = p.argmax(axis=1) == labels
    edges = np.linspace(0, 1, n_bins + 1)
    bins = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, n_bins - 1)
    count = np.bincount(bins, minlength=n_bins)
    with np.errstate(invalid="ignore"):
        return Reliability(
            edges=edges,
            count=count,
            confidence=np.bincount(bins, confidence, n_bins) / count,
            accuracy=np.bincount(bins, right, n_bins) / count,
        )


def expected_calibration_error(
    labels: Labels, probabilities: Probabilities, n_bins: int = ECE_BINS
) -> float:
    """Mean distance of accuracy from confidence over bins, weighted by rows, 0 to 1.

    Guo et al. (2017), equation 3, with equal-width bins.

    Parameters
    ----------
    labels : ndarray of int64, shape (n,)
    probabilities : ndarray, shape (n, n_classes)
    n_bins : int
    """
    bins = reliability(labels, probabilities, n_bins)
    gaps = np.abs(bins.accuracy - bins.confidence)
    return float(np.nansum(gaps * bins.count) / bins.count.sum())


def macro_f1(labels: Labels, predicted: Labels) -> float:
    """F1 of each class, averaged with equal weight over the classes that occur in either.

    F1 is ``2 tp / (2 tp + fp + fn)``.

    Parameters
    ----------
    labels, predicted : ndarray of int64, shape (n,)
    """
    scores = []
    for k in np.union1d(labels, predicted):
        true_positive = int(((predicted == k) & (labels == k)).sum())
        wrong = int(((predicted == k) != (labels == k)).sum())
        scores.append(2 * true_positive / (2 * true_positive + wrong))
    return float(np.mean(scores))


@dataclass(frozen=True)
class CorrectedT:
    """Result of the corrected resampled t-test; the interval is of the mean difference."""

    mean: float
    t: float
    p: float
    low: float
    high: float


def corrected_resampled_t(
    differences: ArrayLike, n_train: int, n_test: int, confidence: float = 0.95
) -> CorrectedT:
    """Two-sided test of a mean difference over resampled folds.

    ``t = m / sqrt((1/J + n_test/n_train) s^2)`` with J - 1 degrees of freedom (Nadeau and Bengio
    2003, section 4), where m and s^2 are mean and sample variance of the J differences.

    Parameters
    ----------
    differences : array-like, shape (J,)
        One a fold and repeat, J at least 2.
    n_train, n_test : int
        Rows trained on and scored in one fold.
    confidence : float
        Of the interval.

    Returns
    -------
    CorrectedT
        With differences that are all equal there is no spread to test against: t is 0 and p is 1
        if they are 0; otherwise t is infinite and p is 0.
    """
    from scipy import stats

    d = np.asarray(differences, dtype=np.float64)
    m, scale = float(d.mean()), _corrected_scale(d, n_test / n_train)
    if scale == 0:
        return CorrectedT(m, float(np.copysign(np.inf, m)) if m else 0.0, float(m == 0), m, m)
    posterior = stats.t(len(d) - 1, m, scale)
    t = m / scale
    p = float(2 * stats.t.sf(abs(t), len(d) - 1))
    low, high = posterior.interval(confidence)
    return CorrectedT(m, t, p, float(low), float(high))


@dataclass(frozen=True)
class BayesianT:
    """Posterior probabilities of the mean difference; they sum to 1."""

    p_worse: float
    p_equivalent: float
    p_better: float


def bayesian_correlated_t(
    differences: ArrayLike, n_train: int, n_test: int, rope: float
) -> BayesianT:
    """Posterior of the mean difference with a region of practical equivalence.

    Student with J - 1 degrees of freedom, location m and scale^2 ``(1/J + rho/(1 - rho)) s^2``,
    where rho is the share of rows scored in a fold (Benavoli et al. 2017, section 2.3). As
    ``rho/(1 - rho) = n_test/n_train``, it is the posterior that belongs to
    `corrected_resampled_t`.

    Parameters
    ----------
    differences : array-like, shape (J,)
        Challenger minus champion, one a fold and repeat.
    n_train, n_test : int
        Rows trained on and scored in one fold.
    rope : float
        Half width of practical equivalence, in the unit of the differences.
    """
    from scipy import stats

    d = np.asarray(differences, dtype=np.float64)
    m, scale = float(d.mean()), _corrected_scale(d, n_test / n_train)
    if scale == 0:
        return BayesianT(float(m < -rope), float(abs(m) <= rope), float(m > rope))
    posterior = stats.t(len(d) - 1, m, scale)
    worse, better = float(posterior.cdf(-rope)), float(posterior.sf(rope))
    return BayesianT(worse, max(0.0, 1 - worse - better), better)


def mcnemar_exact(right_a: ArrayLike, right_b: ArrayLike) -> float:
    """Two-sided exact p value that two models are right equally often on the same rows.

    The rows on which just one of them is right are binomial with one half (McNemar 1947, exact
    form). It speaks about these trained models, not about their recipes.

    Parameters
    ----------
    right_a, right_b : array-like of bool, shape (n,)
    """
    from scipy import stats

    a, b = np.asarray(right_a, dtype=bool), np.asarray(right_b, dtype=bool)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b).pvalue)


def score_interval(row_scores: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Interval for one cross-validated score: ``mean +- z sd / sqrt(n)`` over pooled rows.

    Asymptotically exact for stable learners (Bayle et al. 2020, theorem 1). It does not cover what
    another seed would give.

    Parameters
    ----------
    row_scores : array-like, shape (n,)
        Score of each out-of-fold row, such as 1 where the prediction is right.
    confidence : float
    """
    from scipy import stats

    scores = np.asarray(row_scores, dtype=np.float64)
    half = float(stats.norm.ppf((1 + confidence) / 2) * scores.std(ddof=1) / np.sqrt(len(scores)))
    return float(scores.mean()) - half, float(scores.mean()) + half


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """P values adjusted for their number by Holm's step-down method (1979).

    Parameters
    ----------
    p_values : array-like, shape (m,)

    Returns
    -------
    ndarray of float64, shape (m,)
        In the order given; compare each with the level wanted for all together.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)
    factors = len(p) - np.arange(len(p))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return adjusted


def _corrected_scale(differences: NDArray[np.float64], ratio: float) -> float:
    """Standard error of the mean that allows for shared training rows."""
    variance = float(differences.var(ddof=1))
    # Rounding leaves a trace of variance in differences that are all equal.
    if variance <= (np.finfo(np.float64).eps * max(1.0, float(np.abs(differences).max()))) ** 2:
        return 0.0
    return float(np.sqrt((1 / len(differences) + ratio) * variance))


def _normalized(probabilities: Probabilities) -> NDArray[np.float64]:
    p = np.array(probabilities, dtype=np.float64)
    p /= p.sum(axis=1, keepdims=True)
    return p
