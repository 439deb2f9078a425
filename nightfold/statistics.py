"""Statistics of scores: metrics of one model, intervals, and whether one recipe beats another.

Pure functions on arrays; nothing here reads a file or decides what is promoted. The assumptions
behind each, and what none of them can tell, are in ``docs/statistics.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BINS = 15
"""Bins of equal width on the confidence, for calibration."""

EDGES = np.linspace(0, 1, BINS + 1)
"""Ends of these bins, shape (16,)."""

LEVEL = 0.95
"""Of every confidence and credible interval."""

NO_SPREAD = 1e-12
"""Differences of scores (of the order of one) closer than this differ by rounding alone."""

HALF_A_ROW = 0.5
"""Over the rows of a fold: accuracies closer than this are as many right answers.

Folds differ by a row in size, and so one right answer more in each of them is not quite the same
difference everywhere. That is no spread to judge by: it would make a coincidence a certainty.
"""

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]


def log_loss(labels: Labels, probabilities: Floats) -> float:
    r"""Mean cross-entropy of the probabilities, in nats.

    .. math:: -\frac{1}{n} \sum_i \log p_{i, y_i}

    Parameters
    ----------
    labels : ndarray of int, shape (n,)
        True class indices.
    probabilities : ndarray of float, shape (n, n_classes)
        Clipped to [eps, 1 - eps], eps being that of their dtype, as scikit-learn does.

    Returns
    -------
    float
        0 is best; a single certain mistake in float32 counts 15.9.

    Examples
    --------
    >>> round(log_loss(np.array([0, 1]), np.array([[0.5, 0.5], [0.75, 0.25]])), 4)
    1.0397
    """
    eps = np.finfo(probabilities.dtype).eps
    of_truth = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.clip(of_truth, eps, 1 - eps, dtype=np.float64)).mean())


def brier(labels: Labels, probabilities: Floats) -> float:
    r"""Brier score summed over classes.

    .. math:: \frac{1}{n} \sum_i \sum_c (p_{ic} - [y_i = c])^2

    Parameters
    ----------
    labels : ndarray of int, shape (n,)
    probabilities : ndarray of float, shape (n, n_classes)

    Returns
    -------
    float
        0 (certain and right) to 2 (certain and wrong). For two classes it is twice the score that
        is defined on the positive class alone.

    References
    ----------
    Brier, G. W. (1950). Verification of forecasts expressed in terms of probability. Monthly
    Weather Review 78 (1), 1-3.

    Examples
    --------
    >>> brier(np.array([0, 1]), np.array([[1.0, 0.0], [1.0, 0.0]]))
    1.0
    """
    error = probabilities.astype(np.float64)
    error[np.arange(len(labels)), labels] -= 1
    return float((error**2).sum(axis=1).mean())


@dataclass(frozen=True, eq=False)
class Reliability:
    """How often predictions are right at each level of confidence; one entry a bin.

    Attributes
    ----------
    confidence : ndarray of float64, shape (15,)
        Mean probability of the predicted class in the bin; NaN where the bin is empty.
    accuracy : ndarray of float64, shape (15,)
        Fraction of right predictions in the bin; NaN where the bin is empty.
    count : ndarray of int64, shape (15,)
        Number of rows in the bin.
    """

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    count: NDArray[np.int64]


def reliability_curve(labels: Labels, probabilities: Floats) -> Reliability:
    """Accuracy against confidence, in bins of equal width.

    The confidence is the largest probability of a row. Bin m of 15, from 0, covers
    [m/15, (m+1)/15); the last one includes 1.

    Parameters
    ----------
    labels : ndarray of int, shape (n,)
    probabilities : ndarray of float, shape (n, n_classes)

    References
    ----------
    Guo, C., Pleiss, G., Sun, Y., Weinberger, K. Q. (2017). On calibration of modern neural
    networks. ICML, 1321-1330.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    # A NaN sorts above every edge: it marks the last bin instead of vanishing.
    place = np.minimum(np.searchsorted(EDGES, confidence, side="right") - 1, BINS - 1)
    count = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):
        return Reliability(
            np.bincount(place, confidence, minlength=BINS) / count,
            np.bincount(place, right, minlength=BINS) / count,
            count,
        )


def expected_calibration_error(labels: Labels, probabilities: Floats) -> float:
    r"""Mean gap between confidence and accuracy over bins, weighted by their rows.

    .. math:: \sum_m \frac{n_m}{n} | acc_m - conf_m |

    The value depends on the binning, which is that of `reliability_curve`.

    Parameters
    ----------
    labels : ndarray of int, shape (n,)
    probabilities : ndarray of float, shape (n, n_classes)

    Returns
    -------
    float
        0 (calibrated) to 1; NaN if a probability is.

    References
    ----------
    Naeini, M. P., Cooper, G. F., Hauskrecht, M. (2015). Obtaining well calibrated probabilities
    using Bayesian binning. AAAI, 2901-2907; Guo et al. (2017), see `reliability_curve`.
    """
    curve = reliability_curve(labels, probabilities)
    filled = curve.count > 0
    gaps = np.abs(curve.accuracy[filled] - curve.confidence[filled])
    return float(np.average(gaps, weights=curve.count[filled]))


class ClassScores(NamedTuple):
    """Outcome of `class_scores`; arrays of float64, shape (n_classes,).

    Attributes
    ----------
    precision : ndarray
        Part of the predictions of the class that are right; NaN for a class never predicted.
    recall : ndarray
        Part of the rows of the class that are predicted right; NaN for a class without rows.
    f1 : ndarray
        Harmonic mean of both; NaN for a class that is neither true nor predicted.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]


def class_scores(labels: Labels, predicted: Labels, n_classes: int) -> ClassScores:
    r"""Precision, recall and F1 of every class.

    .. math:: P_c = \frac{TP_c}{|\{i: \hat y_i = c\}|}, \quad
              R_c = \frac{TP_c}{|\{i: y_i = c\}|}, \quad
              F_c = \frac{2 TP_c}{|\{i: y_i = c\}| + |\{i: \hat y_i = c\}|}

    Parameters
    ----------
    labels, predicted : ndarray of int, shape (n,)
        Class indices below `n_classes`.
    n_classes : int

    Examples
    --------
    >>> class_scores(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).recall.tolist()
    [0.5, 1.0]
    """
    hits = np.bincount(labels[labels == predicted], minlength=n_classes)
    of_class = np.bincount(labels, minlength=n_classes)
    of_prediction = np.bincount(predicted, minlength=n_classes)
    with np.errstate(invalid="ignore"):
        return ClassScores(
            hits / of_prediction, hits / of_class, 2 * hits / (of_class + of_prediction)
        )


def macro_f1(labels: Labels, predicted: Labels) -> float:
    r"""F1 score averaged over the classes that are true or predicted at least once.

    .. math:: F_c = \frac{2 TP_c}{|\{i: y_i = c\}| + |\{i: \hat y_i = c\}|}

    Parameters
    ----------
    labels, predicted : ndarray of int, shape (n,)
        Class indices.

    Returns
    -------
    float
        0 to 1; every class counts the same, however rare.
    """
    n_classes = int(max(labels.max(), predicted.max())) + 1
    return float(np.nanmean(class_scores(labels, predicted, n_classes).f1))


class CorrectedT(NamedTuple):
    """Outcome of `corrected_resampled_t` and of `corrected_unpaired_t`.

    Attributes
    ----------
    mean : float
        Mean difference.
    t, p : float or None
        Statistic and two-sided p value; None if the differences have no spread but are not zero.
    low, high : float or None
        Confidence interval of the mean difference; None likewise.
    """

    mean: float
    t: float | None
    p: float | None
    low: float | None
    high: float | None


def corrected_resampled_t(
    differences: Floats, *, n_train: float, n_test: float, resolution: float = NO_SPREAD
) -> CorrectedT:
    r"""Corrected resampled t-test of paired differences over folds and repeats.

    .. math:: t = \frac{m}{\sqrt{(1/J + n_{test}/n_{train})\, s^2}}

    with J - 1 degrees of freedom, m the mean and s^2 the sample variance (ddof=1) of the J
    differences. The second summand stands for the correlation that shared training rows cause; the
    ordinary paired t-test leaves it out and finds differences where there are none.

    If all differences are zero, t is 0 and p is 1. If they are all the same but not zero, their
    spread cannot be estimated and neither t nor p is defined.

    Parameters
    ----------
    differences : ndarray of float, shape (J,)
        Score of b minus score of a, one a fold and repeat; at least two.
    n_train, n_test : float
        Rows trained on and rows scored in a fold; means if folds differ by a row.
    resolution : float
        Differences that lie no further apart are all the same: `HALF_A_ROW` / n_test for
        accuracies.

    Raises
    ------
    ValueError
        If there are fewer than two differences.

    References
    ----------
    Nadeau, C., Bengio, Y. (2003). Inference for the generalization error. Machine Learning 52,
    239-281.
    """
    from scipy.special import stdtr, stdtrit

    mean, scale, freedom = _location_and_scale(differences, n_train, n_test, resolution)
    if not scale:
        return CorrectedT(mean, *((None,) * 4 if mean else (0.0, 1.0, 0.0, 0.0)))
    statistic = mean / scale
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * scale
    p = 2 * float(stdtr(freedom, -abs(statistic)))
    return CorrectedT(mean, statistic, p, mean - half, mean + half)


def corrected_unpaired_t(
    a: Floats,
    b: Floats,
    *,
    n_train: tuple[float, float],
    n_test: tuple[float, float],
    resolution: tuple[float, float] = (NO_SPREAD, NO_SPREAD),
) -> CorrectedT:
    r"""Welch's t-test of two cross-validated scores of different rows, each mean corrected.

    .. math:: t = \frac{m_b - m_a}{\sqrt{v_a + v_b}}, \quad
              v = (1/J + n_{test}/n_{train})\, s^2, \quad
              \nu = \frac{(v_a + v_b)^2}{v_a^2 / (J_a - 1) + v_b^2 / (J_b - 1)}

    with J, m and s the number, mean and sample standard deviation (ddof=1) of the scores of one
    side. It takes the two sides as independent, so rows that both share make it wider than need
    be. Where neither side has spread it answers as `corrected_resampled_t`.

    Parameters
    ----------
    a, b : ndarray of float, shape (J_a,) and (J_b,)
        Scores, one a fold and repeat; at least two on either side.
    n_train, n_test : tuple of float
        Rows trained on and rows scored in a fold, of a and of b.
    resolution : tuple of float
        As for `corrected_resampled_t`, of a and of b.

    Raises
    ------
    ValueError
        If a side has fewer than two scores.

    References
    ----------
    Nadeau and Bengio (2003), see `corrected_resampled_t`; Welch, B. L. (1947). The generalization
    of 'Student's' problem when several different population variances are involved. Biometrika 34,
    28-35.
    """
    from scipy.special import stdtr, stdtrit

    sides = [
        _location_and_scale(scores, *sizes)
        for scores, *sizes in zip((a, b), n_train, n_test, resolution, strict=True)
    ]
    (mean_a, error_a, freedom_a), (mean_b, error_b, freedom_b) = sides
    mean, variance = mean_b - mean_a, error_a**2 + error_b**2
    if not variance:
        constant = mean if abs(mean) > NO_SPREAD else 0.0
        return CorrectedT(constant, *((None,) * 4 if constant else (0.0, 1.0, 0.0, 0.0)))
    freedom = variance**2 / (error_a**4 / freedom_a + error_b**4 / freedom_b)
    scale = float(np.sqrt(variance))
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * scale
    p = 2 * float(stdtr(freedom, -abs(mean / scale)))
    return CorrectedT(mean, mean / scale, p, mean - half, mean + half)


class CorrelatedPosterior(NamedTuple):
    """Outcome of `bayesian_correlated_t`.

    Attributes
    ----------
    p_worse, p_equivalent, p_better : float or None
        Posterior probabilities that the mean difference lies below, within and above the region
        of practical equivalence; they sum to 1. None if the differences have no spread but are
        not zero.
    low, high : float or None
        Credible interval of the mean difference; None likewise.
    """

    p_worse: float | None
    p_equivalent: float | None
    p_better: float | None
    low: float | None
    high: float | None


def bayesian_correlated_t(
    differences: Floats,
    *,
    n_train: float,
    n_test: float,
    rope: float,
    resolution: float = NO_SPREAD,
) -> CorrelatedPosterior:
    r"""Bayesian correlated t-test of paired differences over folds and repeats.

    The posterior of the mean difference is Student with J - 1 degrees of freedom,

    .. math:: \mu \sim St(J - 1;\; m,\; (1/J + \rho/(1 - \rho))\, s^2),
              \quad \rho = n_{test} / (n_{train} + n_{test})

    so that rho is 1/k in k-fold cross-validation. Its credible interval has the same ends as the
    confidence interval of `corrected_resampled_t`.

    If all differences are zero, they are equivalent with probability 1. If they are all the same
    but not zero, their spread cannot be estimated and the posterior is not defined.

    Parameters
    ----------
    differences : ndarray of float, shape (J,)
        Score of b minus score of a, one a fold and repeat; at least two.
    n_train, n_test : float
        Rows trained on and rows scored in a fold; means if folds differ by a row.
    rope : float
        Half width of the region of practical equivalence, in the unit of the score.
    resolution : float
        Differences that lie no further apart are all the same: `HALF_A_ROW` / n_test for
        accuracies.

    Raises
    ------
    ValueError
        If there are fewer than two differences.

    References
    ----------
    Benavoli, A., Corani, G., Demsar, J., Zaffalon, M. (2017). Time for a change: a tutorial for
    comparing multiple classifiers through Bayesian analysis. JMLR 18 (77), 1-36.
    """
    from scipy.special import stdtr, stdtrit

    mean, scale, freedom = _location_and_scale(differences, n_train, n_test, resolution)
    if not scale:
        return CorrelatedPosterior(*((None,) * 5 if mean else (0.0, 1.0, 0.0, 0.0, 0.0)))
    worse = float(stdtr(freedom, (-rope - mean) / scale))
    better = float(stdtr(freedom, (mean - rope) / scale))
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * scale
    equivalent = max(0.0, 1 - worse - better)
    return CorrelatedPosterior(worse, equivalent, better, mean - half, mean + half)


def _location_and_scale(
    differences: Floats, n_train: float, n_test: float, resolution: float
) -> tuple[float, float, int]:
    """Mean, its standard error with the correction (0 without spread), degrees of freedom."""
    d = np.asarray(differences, np.float64)
    if len(d) < 2:
        raise ValueError("a comparison needs at least two paired differences")
    if np.ptp(d) <= resolution:
        constant = float(d.mean())
        return (constant if abs(constant) > NO_SPREAD else 0.0), 0.0, len(d) - 1
    variance = (1 / len(d) + n_test / n_train) * d.var(ddof=1)
    return float(d.mean()), float(np.sqrt(variance)), len(d) - 1


def detectable_difference(
    deviation: float,
    n_pairs: float,
    *,
    n_train: float,
    n_test: float,
    rope: float,
    sure: float,
    power: float,
) -> float:
    r"""Smallest true mean difference that `bayesian_correlated_t` calls better often enough.

    With s the deviation and :math:`se^2 = (1/J + n_{test}/n_{train})\, s^2`, b is called better
    where (m - rope) / se exceeds the quantile t of Student's distribution with J - 1 degrees of
    freedom at `sure`. If the differences are normal and equally correlated, as both tests assume,
    that ratio follows the noncentral t distribution, so that the difference is

    .. math:: rope + \delta\, se, \quad
              \delta:\; P[T_{J-1}(\delta) > t_{J-1,\,sure}] = power

    Parameters
    ----------
    deviation : float
        Sample standard deviation (ddof=1) of the differences between folds, in the unit of the
        score.
    n_pairs : float
        J, folds times repeats, at least two; ``math.inf`` for what no number of repeats goes below.
    n_train, n_test : float
        Rows trained on and rows scored in a fold.
    rope : float
        Half width of the region of practical equivalence, in the unit of the score.
    sure : float
        Posterior probability from which on b is called better.
    power : float
        How often such a difference is to be found, 0 to 1.

    Returns
    -------
    float
        In the unit of the score; more than `rope`.

    References
    ----------
    Nadeau and Bengio (2003), see `corrected_resampled_t`; Benavoli et al. (2017), see
    `bayesian_correlated_t`; Johnson, N. L., Welch, B. L. (1940). Applications of the non-central
    t-distribution. Biometrika 31, 362-389.

    Examples
    --------
    >>> plan = {"n_train": 48_000, "n_test": 12_000, "rope": 0.001, "sure": 0.95, "power": 0.8}
    >>> round(detectable_difference(0.0012, 5, **plan), 4)
    0.0034
    """
    from scipy.optimize import brentq
    from scipy.stats import nct, norm
    from scipy.stats import t as student

    error = deviation * np.sqrt(1 / n_pairs + n_test / n_train)
    if np.isinf(n_pairs):
        return float(rope + error * (norm.ppf(sure) + norm.ppf(power)))
    threshold = student.ppf(sure, n_pairs - 1)

    def lack(delta: float) -> float:
        return float(nct.sf(threshold, n_pairs - 1, delta)) - power

    return float(rope + error * brentq(lack, -10, 10 * (threshold + 1)))


def mcnemar_exact(right_a: NDArray[np.bool_], right_b: NDArray[np.bool_]) -> float:
    r"""Two-sided p value of McNemar's test, by the exact binomial distribution.

    With n rows on which exactly one of the two is right, k of them a,

    .. math:: p = \min(1,\; 2\, P[X \le \min(k, n - k)]), \quad X \sim Bin(n, 1/2)

    Its answer is about these trained models on these rows, not about the recipes: it knows nothing
    of what other training rows or seeds would have given.

    Parameters
    ----------
    right_a, right_b : ndarray of bool, shape (n,)
        Whether each row is predicted right; every row once, in the same order.

    Returns
    -------
    float
        1 if the two never disagree.

    References
    ----------
    McNemar, Q. (1947). Note on the sampling error of the difference between correlated
    proportions or percentages. Psychometrika 12, 153-157.

    Examples
    --------
    >>> mcnemar_exact(np.array([True, True, True, False]), np.array([True, False, False, False]))
    0.5
    """
    from scipy.stats import binomtest

    only_a = int((right_a & ~right_b).sum())
    disagreements = int((right_a ^ right_b).sum())
    return float(binomtest(only_a, disagreements).pvalue) if disagreements else 1.0


class Interval(NamedTuple):
    """A mean and the ends of its interval."""

    mean: float
    low: float
    high: float


def score_interval(row_scores: Floats | NDArray[np.bool_]) -> Interval:
    r"""Confidence interval of a cross-validated score, from its out-of-fold rows.

    .. math:: m \pm z_{0.975}\, s / \sqrt{n}

    with m the mean and s the standard deviation (ddof=0) over all rows, each scored by the model
    that did not see it. The interval is about the average error of the k trained models; it does
    not cover what another seed would have given, and it is too narrow for few rows or for a score
    that all rows share. It leaves out what no score can be, below 0 and above 1.

    Parameters
    ----------
    row_scores : ndarray of float or bool, shape (n,)
        Score of each row from 0 to 1, for instance whether it was predicted right; every row once.

    References
    ----------
    Bayle, P., Bayle, A., Janson, L., Mackey, L. (2020). Cross-validation confidence intervals for
    test error. NeurIPS 33, 16339-16350.
    """
    from scipy.stats import norm

    values = np.asarray(row_scores, np.float64)
    mean = float(values.mean())
    half = float(norm.ppf((1 + LEVEL) / 2) * values.std() / np.sqrt(len(values)))
    return Interval(mean, max(0.0, mean - half), min(1.0, mean + half))


def mean_over_repeats(rows: Labels, row_scores: Floats | NDArray[np.bool_]) -> NDArray[np.float64]:
    """Score of each row, its mean over the repeats that scored it, for `score_interval`.

    Parameters
    ----------
    rows : ndarray of int, shape (n,)
        Position of the row behind each score.
    row_scores : ndarray of float or bool, shape (n,)

    Returns
    -------
    ndarray of float64, shape (n_rows,)
        Each row once, in ascending position.

    Examples
    --------
    >>> mean_over_repeats(np.array([4, 2, 4]), np.array([True, True, False])).tolist()
    [1.0, 0.5]
    """
    _, which, times = np.unique(rows, return_inverse=True, return_counts=True)
    means: NDArray[np.float64] = np.bincount(which, row_scores) / times
    return means


def holm(p_values: Floats) -> NDArray[np.float64]:
    r"""P values after Holm's step-down correction for several tests.

    For the p values in ascending order,

    .. math:: \tilde p_{(i)} = \max_{j \le i} \min(1,\; (m - j + 1)\, p_{(j)})

    Parameters
    ----------
    p_values : ndarray of float, shape (m,)

    Returns
    -------
    ndarray of float64, shape (m,)
        In the order given.

    References
    ----------
    Holm, S. (1979). A simple sequentially rejective multiple test procedure. Scandinavian Journal
    of Statistics 6 (2), 65-70.

    Examples
    --------
    >>> holm(np.array([0.04, 0.01, 0.03])).round(2).tolist()
    [0.06, 0.03, 0.06]
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted
