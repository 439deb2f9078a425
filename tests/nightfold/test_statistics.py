from collections.abc import Iterator
from math import comb

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.integrate import quad
from scipy.spatial.distance import cdist
from sklearn import metrics
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import KFold, cross_val_predict, cross_val_score
from sklearn.naive_bayes import GaussianNB
from sklearn.utils import Bunch
from threadpoolctl import threadpool_limits

from nightfold import statistics
from nightfold.dataset import Split


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Thousands of small fits: threads would only wait for each other."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def answers(mnist_train: Split) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Labels and out-of-fold probabilities of 600 rows of MNIST."""
    rows = mnist_train.images[:600].reshape(600, -1).astype(np.float64)
    labels = mnist_train.labels[:600]
    found = cross_val_predict(
        GaussianNB(var_smoothing=0.1), rows, labels, cv=3, method="predict_proba"
    )
    return labels, found.astype(np.float32)


Answers = tuple[NDArray[np.int64], NDArray[np.float32]]


def test_metrics_agree_with_scikit_learn(answers: Answers) -> None:
    labels, probabilities = answers
    predicted = probabilities.argmax(axis=1)
    classes = range(10)
    assert statistics.log_loss(labels, probabilities) == pytest.approx(
        metrics.log_loss(labels, probabilities, labels=classes), rel=1e-6
    )
    assert statistics.brier(labels, probabilities) == pytest.approx(
        metrics.brier_score_loss(labels, probabilities, labels=classes), rel=1e-6
    )
    assert statistics.macro_f1(labels, predicted) == pytest.approx(
        metrics.f1_score(labels, predicted, average="macro")
    )


def test_a_certain_mistake_costs_what_scikit_learn_says() -> None:
    for kind in (np.float32, np.float64):
        probabilities = np.array([[1, 0], [0, 1]], kind)
        labels = np.array([1, 1])
        assert statistics.log_loss(labels, probabilities) == pytest.approx(
            metrics.log_loss(labels, probabilities, labels=[0, 1]), rel=1e-6
        )


def test_brier_runs_from_zero_to_two() -> None:
    certain = np.eye(3)
    assert statistics.brier(np.array([0, 1, 2]), certain) == 0
    assert statistics.brier(np.array([1, 2, 0]), certain) == 2
    assert statistics.brier(np.array([0]), np.array([[0.5, 0.3, 0.2]])) == pytest.approx(0.38)


def test_metrics_leave_the_probabilities_as_they_were() -> None:
    probabilities = np.array([[0.25, 0.75]])
    statistics.brier(np.array([1]), probabilities)
    assert probabilities.tolist() == [[0.25, 0.75]]


def test_macro_f1_leaves_out_classes_that_are_neither_true_nor_predicted() -> None:
    labels, predicted = np.array([0, 0, 5, 5]), np.array([0, 7, 5, 5])
    by_hand = (2 / 3 + 1 + 0) / 3
    assert statistics.macro_f1(labels, predicted) == pytest.approx(by_hand)


def test_scores_of_every_class_agree_with_scikit_learn(answers: Answers) -> None:
    labels, probabilities = answers
    predicted = probabilities.argmax(axis=1)
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(labels, predicted)
    found = statistics.class_scores(labels, predicted, 10)
    np.testing.assert_allclose(found, (precision, recall, f1))


def test_a_class_that_is_nowhere_has_no_scores() -> None:
    found = statistics.class_scores(np.array([0, 0]), np.array([0, 1]), 3)
    np.testing.assert_array_equal(found.precision, [1, 0, np.nan])
    np.testing.assert_array_equal(found.recall, [0.5, np.nan, np.nan])
    np.testing.assert_array_equal(found.f1, [2 / 3, 0, np.nan])


def two_class(confidence: list[float], right: list[bool]) -> Answers:
    sure = np.array(confidence)
    return (~np.array(right)).astype(np.int64), np.stack([sure, 1 - sure], axis=1)


def test_calibration_error_by_hand() -> None:
    # Bins of 1/15: 0.6 to 0.667 holds three rows, 0.933 to 1 holds two, 1 among them.
    labels, probabilities = two_class(
        [0.61, 0.62, 0.66, 0.95, 1.0], [True, False, True, True, False]
    )
    low, high = abs(2 / 3 - 0.63), abs(1 / 2 - 0.975)
    assert statistics.expected_calibration_error(labels, probabilities) == pytest.approx(
        3 / 5 * low + 2 / 5 * high
    )


def test_an_edge_belongs_to_the_bin_above_it_and_one_to_the_last() -> None:
    curve = statistics.reliability_curve(*two_class([0.6, 0.8, 1.0], [True, True, True]))
    assert np.flatnonzero(curve.count).tolist() == [9, 12, 14]
    assert np.isnan(curve.confidence[0])
    assert np.isnan(curve.accuracy[0])


def test_reliability_curve_holds_every_row_once(answers: Answers) -> None:
    labels, probabilities = answers
    curve = statistics.reliability_curve(labels, probabilities)
    filled = curve.count > 0
    assert curve.count.sum() == len(labels)
    right = (probabilities.argmax(axis=1) == labels).mean()
    assert np.average(curve.accuracy[filled], weights=curve.count[filled]) == pytest.approx(right)


def test_a_diverged_model_is_not_called_calibrated() -> None:
    labels, probabilities = np.array([0, 1]), np.array([[0.9, 0.1], [np.nan, np.nan]])
    assert np.isnan(statistics.expected_calibration_error(labels, probabilities))
    assert np.isnan(statistics.log_loss(labels, probabilities))
    assert np.isnan(statistics.brier(labels, probabilities))


DIFFERENCES = np.array([0.004, -0.001, 0.003, 0.002, 0.005, 0.001, 0.0, 0.004, 0.003, -0.002])


def test_without_scored_rows_the_corrected_test_is_the_paired_t_test() -> None:
    found = statistics.corrected_resampled_t(DIFFERENCES, n_train=80, n_test=0)
    reference = stats.ttest_1samp(DIFFERENCES, 0)
    interval = reference.confidence_interval(0.95)
    assert (found.t, found.p) == pytest.approx((reference.statistic, reference.pvalue))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_corrected_t_by_hand() -> None:
    # m = 2, s2 = 1, J = 3, n_test / n_train = 1/4: t = 2 / sqrt(1/3 + 1/4). For two degrees of
    # freedom the distribution function is 1/2 + t / (2 sqrt(2 + t^2)).
    found = statistics.corrected_resampled_t(np.array([1.0, 2.0, 3.0]), n_train=80, n_test=20)
    t = 2 / np.sqrt(7 / 12)
    assert found.t == pytest.approx(t)
    assert found.p == pytest.approx(1 - t / np.sqrt(2 + t * t))


def test_the_correction_widens_the_interval() -> None:
    plain = statistics.corrected_resampled_t(DIFFERENCES, n_train=80, n_test=0)
    corrected = statistics.corrected_resampled_t(DIFFERENCES, n_train=80, n_test=20)
    assert corrected.low < plain.low < plain.mean < plain.high < corrected.high
    assert corrected.p > plain.p


UNPAIRED = {"n_train": (80, 60), "n_test": (20, 30)}


def test_without_correction_unpaired_scores_get_welch_test() -> None:
    a, b = np.array([0.91, 0.93, 0.92]), np.array([0.94, 0.97, 0.93, 0.95, 0.99])
    found = statistics.corrected_unpaired_t(a, b, n_train=(80, 80), n_test=(0, 0))
    reference = stats.ttest_ind(b, a, equal_var=False)
    interval = reference.confidence_interval(0.95)
    assert found.mean == pytest.approx(b.mean() - a.mean())
    assert (found.t, found.p) == pytest.approx((reference.statistic, reference.pvalue))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_each_side_of_unpaired_scores_is_corrected_by_its_own_folds() -> None:
    # s2 = 1 on both sides: v = 1/3 + 20/80 and 1/3 + 30/60.
    a, b = np.array([1.0, 2.0, 3.0]), np.array([5.0, 6.0, 7.0])
    found = statistics.corrected_unpaired_t(a, b, **UNPAIRED)
    assert found.t == pytest.approx(4 / np.sqrt(1 / 3 + 1 / 4 + 1 / 3 + 1 / 2))


def test_unpaired_scores_without_spread_prove_nothing() -> None:
    same, more = np.full(3, 0.3), np.full(4, 0.1 + 0.2)
    assert statistics.corrected_unpaired_t(same, more, **UNPAIRED) == (0, 0, 1, 0, 0)
    test = statistics.corrected_unpaired_t(same, more + 0.1, **UNPAIRED)
    assert test == (pytest.approx(0.1), None, None, None, None)


def test_bayesian_posterior_agrees_with_direct_integration() -> None:
    k, rope = 5, 0.001
    rho, degrees = 1 / k, len(DIFFERENCES) - 1
    scale = np.sqrt((1 / len(DIFFERENCES) + rho / (1 - rho)) * DIFFERENCES.var(ddof=1))

    def density(x: float) -> float:
        z = (x - DIFFERENCES.mean()) / scale
        return float((1 + z * z / degrees) ** (-(degrees + 1) / 2))

    far = 400 * scale
    parts = [
        quad(density, low, high, limit=500, epsabs=1e-14)[0]
        for low, high in ((-far, -rope), (-rope, rope), (rope, far))
    ]
    found = statistics.bayesian_correlated_t(DIFFERENCES, n_train=80, n_test=20, rope=rope)
    assert found[:3] == pytest.approx(np.array(parts) / sum(parts), abs=1e-6)


def test_better_and_worse_swap_with_the_sign() -> None:
    one = statistics.bayesian_correlated_t(DIFFERENCES, n_train=4, n_test=1, rope=0.001)
    other = statistics.bayesian_correlated_t(-DIFFERENCES, n_train=4, n_test=1, rope=0.001)
    assert one.p_better == pytest.approx(other.p_worse)
    assert one.p_better > 0.5 > one.p_worse
    assert one.low == pytest.approx(-other.high)


def test_credible_and_confidence_interval_coincide() -> None:
    test = statistics.corrected_resampled_t(DIFFERENCES, n_train=80, n_test=20)
    posterior = statistics.bayesian_correlated_t(DIFFERENCES, n_train=80, n_test=20, rope=0)
    assert (posterior.low, posterior.high) == pytest.approx((test.low, test.high))
    assert posterior.p_worse == pytest.approx(test.p / 2)


def test_no_difference_in_any_fold_is_equivalence() -> None:
    same = np.zeros(5)
    assert statistics.corrected_resampled_t(same, n_train=4, n_test=1) == (0, 0, 1, 0, 0)
    posterior = statistics.bayesian_correlated_t(same, n_train=4, n_test=1, rope=0.001)
    assert posterior == (0, 1, 0, 0, 0)


def test_a_constant_difference_proves_nothing() -> None:
    # Not exactly constant, as differences of decimal fractions are.
    constant = np.array([0.3, 0.4, 0.5]) - np.array([0.2, 0.3, 0.4])
    assert np.ptp(constant) > 0
    test = statistics.corrected_resampled_t(constant, n_train=4, n_test=1)
    assert test == (pytest.approx(0.1), None, None, None, None)
    posterior = statistics.bayesian_correlated_t(constant, n_train=4, n_test=1, rope=0.001)
    assert posterior == (None,) * 5


def test_one_row_more_in_folds_of_uneven_size_proves_nothing() -> None:
    ahead = 1 / np.array([101, 101, 101, 100, 100])
    sizes = {"n_train": 402.4, "n_test": 100.6, "resolution": statistics.HALF_A_ROW / 100.6}
    assert statistics.corrected_resampled_t(ahead, **sizes)[1:] == (None,) * 4
    assert statistics.bayesian_correlated_t(ahead, rope=0.001, **sizes) == (None,) * 5
    two_here = ahead + np.array([1 / 101, 0, 0, 0, 0])
    assert statistics.corrected_resampled_t(two_here, **sizes).p is not None


@pytest.mark.parametrize("rows", [100, 103])
def test_equal_recipes_pass_a_late_look_no_oftener_in_folds_of_uneven_size(rows: int) -> None:
    rng = np.random.default_rng(7)
    n = np.bincount(np.arange(rows) % 5)
    disagree = rng.binomial(n, 0.05, (20_000, 5))
    gains = (2 * rng.binomial(disagree, 0.5) - disagree) / n
    sizes = {"n_train": 0.8 * rows, "n_test": 0.2 * rows}
    resolution = statistics.HALF_A_ROW / sizes["n_test"]
    found = [
        statistics.bayesian_correlated_t(gain, rope=0.001, resolution=resolution, **sizes).p_better
        for gain in gains
    ]
    # What a gate asks at its tenth look, 1 - 0.05 / (10 * 11), errs in 1 of 2,200 at most.
    assert np.mean([p is not None and p >= 1 - 0.05 / 110 for p in found]) < 0.05 / 110


def test_one_pair_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="at least two"):
        statistics.corrected_resampled_t(np.array([0.1]), n_train=4, n_test=1)


@pytest.mark.parametrize(("only_a", "only_b"), [(1, 8), (8, 1), (0, 5), (6, 6), (40, 61)])
def test_mcnemar_is_the_binomial_sum(only_a: int, only_b: int) -> None:
    n = only_a + only_b
    tail = sum(comb(n, i) for i in range(min(only_a, only_b) + 1)) / 2**n
    right_a = np.r_[np.ones(only_a, bool), np.zeros(only_b, bool), np.ones(30, bool)]
    right_b = np.r_[np.zeros(only_a, bool), np.ones(only_b, bool), np.ones(30, bool)]
    assert statistics.mcnemar_exact(right_a, right_b) == pytest.approx(min(1, 2 * tail))


def test_mcnemar_without_disagreement_is_one() -> None:
    right = np.array([True, False])
    assert statistics.mcnemar_exact(right, right) == 1


def test_score_interval_by_hand() -> None:
    right = np.r_[np.ones(80, bool), np.zeros(20, bool)]
    half = 1.959964 * 0.4 / 10
    assert statistics.score_interval(right) == pytest.approx((0.8, 0.8 - half, 0.8 + half))


def test_score_interval_ends_where_an_accuracy_does() -> None:
    right = np.ones(20, bool)
    right[0] = False
    assert statistics.score_interval(right).high == 1
    assert statistics.score_interval(~right).low == 0


def test_score_interval_covers_the_true_score(mnist_train: Split) -> None:
    """Bayle's interval is about the trained models: rows they never saw tell their true score."""
    pixels = mnist_train.images[:20_000, ::4, ::4].reshape(20_000, -1).astype(np.float64)
    labels = mnist_train.labels[:20_000]
    rng = np.random.default_rng(5)
    covered = []
    for _ in range(120):
        rows = rng.permutation(20_000)
        seen, fresh = rows[:500], rows[500:3500]
        right, truths = np.empty(500), []
        for train, test in KFold(5).split(seen):
            model = RidgeClassifier(10.0).fit(pixels[seen[train]], labels[seen[train]])
            right[test] = model.predict(pixels[seen[test]]) == labels[seen[test]]
            truths.append(model.score(pixels[fresh], labels[fresh]))
        _, low, high = statistics.score_interval(right)
        covered.append(low <= np.mean(truths) <= high)
    assert 0.90 <= np.mean(covered) <= 0.99


def test_holm_by_hand() -> None:
    adjusted = statistics.holm(np.array([0.01, 0.04, 0.03, 0.005]))
    np.testing.assert_allclose(adjusted, [0.03, 0.06, 0.06, 0.02])


def test_holm_never_exceeds_one_and_knows_the_empty_family() -> None:
    assert statistics.holm(np.array([0.7, 0.9])).tolist() == [1, 1]
    assert statistics.holm(np.array([])).tolist() == []


def nearest_neighbour_differences(
    digits: Bunch, rng: np.random.Generator, folds: int, repeats: int
) -> NDArray[np.float64]:
    """Accuracy differences of two recipes that are equally good by construction.

    Each of 100 handwritten digits is mirrored or not by the toss of a coin. One recipe looks at
    the left half, the other at the mirrored right half, so their data follow the same law.
    """
    rows = rng.choice(len(digits.target), 100, replace=False)
    images, labels = digits.images[rows], digits.target[rows]
    images = np.where(rng.random((100, 1, 1)) < 0.5, images[:, :, ::-1], images)
    distances = []
    for half in (images[:, :, :4], images[:, :, :3:-1]):
        distances.append(cdist(half.reshape(100, -1), half.reshape(100, -1)))
    found = []
    for _ in range(repeats):
        fold = rng.permutation(np.arange(100) % folds)
        unseen = fold[:, None] == fold
        right = [labels[np.where(unseen, np.inf, d).argmin(axis=1)] == labels for d in distances]
        gain = right[1].astype(np.float64) - right[0]
        found.append(np.bincount(fold, gain, folds) / np.bincount(fold))
    return np.concatenate(found)


def test_false_alarms_stay_near_five_percent_where_the_naive_test_cries_wolf() -> None:
    digits, rng = load_digits(), np.random.default_rng(1)
    naive, corrected = [], []
    for _ in range(1000):
        differences = nearest_neighbour_differences(digits, rng, folds=5, repeats=10)
        naive.append(stats.ttest_1samp(differences, 0).pvalue < 0.05)
        test = statistics.corrected_resampled_t(differences, n_train=80, n_test=20)
        corrected.append(test.p is not None and test.p < 0.05)
    assert np.mean(naive) > 0.10
    assert 0.03 <= np.mean(corrected) <= 0.07


def test_a_real_difference_is_found() -> None:
    digits = load_digits()
    scores = [
        cross_val_score(
            model, digits.data, digits.target, cv=KFold(10, shuffle=True, random_state=1)
        )
        for model in (GaussianNB(), RidgeClassifier())
    ]
    test = statistics.corrected_resampled_t(scores[1] - scores[0], n_train=1617, n_test=180)
    assert test.p < 0.001
    assert test.mean > 0.05


PLAN = {"n_train": 48_000, "n_test": 12_000, "rope": 0.001}


def share_called_better(difference: float, folds: int, deviation: float) -> float:
    """Part of 1,500 nights with this true difference in which b is called better.

    Differences of folds are normal with the correlation n_test / (n_train + n_test), which is what
    both tests suppose; `deviation` is the one between folds of one night.
    """
    nights, correlation = np.random.default_rng(1), 0.2
    shared = np.sqrt(correlation / (1 - correlation)) * nights.normal(size=(1_500, 1))
    drawn = difference + deviation * (shared + nights.normal(size=(1_500, folds)))
    called = [statistics.bayesian_correlated_t(row, **PLAN).p_better >= 0.95 for row in drawn]
    return float(np.mean(called))


@pytest.mark.parametrize(("folds", "power"), [(5, 0.8), (2, 0.8), (20, 0.5)])
def test_a_detectable_difference_is_called_better_as_often_as_asked(
    folds: int, power: float
) -> None:
    difference = statistics.detectable_difference(0.0012, folds, **PLAN, sure=0.95, power=power)
    # Four standard errors of a share of 1,500.
    assert share_called_better(difference, folds, 0.0012) == pytest.approx(power, abs=0.045)


def test_more_repeats_detect_less_but_never_less_than_the_shared_rows_allow() -> None:
    found = [
        statistics.detectable_difference(0.0012, pairs, **PLAN, sure=0.95, power=0.8)
        for pairs in (5, 10, 50, 5_000, np.inf)
    ]
    assert found == sorted(found, reverse=True)
    assert found[-2] == pytest.approx(found[-1], rel=0.01)
    assert found[-1] == pytest.approx(0.001 + 0.5 * 0.0012 * (1.6449 + 0.8416), rel=1e-4)


def test_without_spread_everything_beyond_equivalence_is_detectable() -> None:
    assert statistics.detectable_difference(0.0, 5, **PLAN, sure=0.95, power=0.8) == 0.001
