from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.logging import disable_run_logger
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import NearestCentroid

from nightfold.dataset import Dataset
from nightfold.errors import DataRefused
from nightfold.experiment import PlanChoice
from nightfold.foldplan import FoldPlan
from nightfold.racing import Stop
from nightfold.tables import SCORES, VERDICTS, build_table, predictions_schema, write_table
from tasks.compare import compare, compare_scores


@pytest.fixture(scope="module")
def plan(small_mnist: Dataset) -> FoldPlan:
    return FoldPlan.build(PlanChoice(folds=3, repeats=2), small_mnist)


def score_rows(plan: FoldPlan, accuracies: dict[str, list[float]]) -> list[dict[str, object]]:
    places = [(r, f) for r in range(1, plan.repeats + 1) for f in range(1, plan.folds + 1)]
    filler = {
        field.name: {
            pa.string(): "x",
            pa.date32(): date(2026, 11, 21),
            pa.timestamp("us", tz="UTC"): datetime(2026, 11, 21, tzinfo=UTC),
        }.get(field.type, 1)
        for field in SCORES
    }
    return [
        {
            **filler,
            "run_id": "night",
            "dataset_digest": plan.dataset_digest,
            "plan_digest": plan.digest,
            "candidate": name,
            "repeat": repeat,
            "fold": fold,
            "n_train": len(plan.rows(repeat, fold)[0]),
            "n_test": len(plan.rows(repeat, fold)[1]),
            "accuracy": accuracy,
        }
        for name, of_folds in accuracies.items()
        for (repeat, fold), accuracy in zip(places, of_folds, strict=True)
    ]


def prediction_table(
    plan: FoldPlan, labels: np.ndarray, predicted: dict[str, np.ndarray]
) -> pa.Table:
    """`predicted` of each candidate has the shape (repeats, n_rows)."""
    tables = []
    for name, of_repeats in predicted.items():
        for repeat in range(1, plan.repeats + 1):
            for fold in range(1, plan.folds + 1):
                _, rows = plan.rows(repeat, fold)
                answers = of_repeats[repeat - 1][rows]
                columns = {
                    "run_id": ["night"] * len(rows),
                    "candidate": [name] * len(rows),
                    "repeat": [repeat] * len(rows),
                    "fold": [fold] * len(rows),
                    "row": rows,
                    "row_digest": ["x"] * len(rows),
                    "label": labels[rows],
                    "predicted": answers,
                    "probabilities": list(np.eye(10, dtype=np.float32)[answers]),
                }
                tables.append(build_table(columns, predictions_schema(10)))
    return pa.concat_tables(tables)


def drawn(plan: FoldPlan, **differences: list[float]) -> tuple[pd.DataFrame, pa.Table]:
    """Scores of a baseline and of others that differ from it by so much in each fold."""
    base = np.array([0.90, 0.91, 0.92, 0.915, 0.905, 0.90])
    accuracies = {"baseline": base.tolist()}
    accuracies |= {name: (base + d).tolist() for name, d in differences.items()}
    labels = np.arange(plan.n_rows) % 10
    predicted = {name: np.tile(labels, (plan.repeats, 1)) for name in accuracies}
    scores = build_table(score_rows(plan, accuracies), SCORES).to_pandas()
    return scores, prediction_table(plan, labels, predicted)


def verdict(plan: FoldPlan, differences: list[float]) -> dict[str, object]:
    (row,) = compare_scores(*drawn(plan, deep=differences), plan)
    return row


def test_a_clear_gain_is_better_in_a_sentence_for_a_manager(plan: FoldPlan) -> None:
    row = verdict(plan, [0.031, 0.030, 0.029, 0.030, 0.032, 0.028])
    assert row["verdict"] == "better"
    assert row["sentence"] == (
        "deep is better than baseline: +3.00 points, probability of being better by at least "
        "0.1 point > 99.9 %."
    )


def test_a_clear_loss_is_worse(plan: FoldPlan) -> None:
    row = verdict(plan, [-0.031, -0.030, -0.029, -0.030, -0.032, -0.028])
    assert row["verdict"] == "worse"
    assert str(row["sentence"]).startswith("deep is worse than baseline: -3.00 points, probability")


def test_a_difference_within_the_region_of_practical_equivalence_is_equivalence(
    plan: FoldPlan,
) -> None:
    tables = drawn(plan, deep=[0.005, -0.005, 0.01, 0.0, 0.005, -0.01])
    (row,) = compare_scores(*tables, plan, rope=0.05)
    assert row["verdict"] == "equivalent"
    assert "deep and baseline are equivalent" in str(row["sentence"])


def test_noise_is_undecided_and_says_all_three_chances(plan: FoldPlan) -> None:
    row = verdict(plan, [0.02, -0.015, 0.03, -0.01, 0.01, -0.02])
    assert row["verdict"] == "undecided"
    assert row["p_worse"] + row["p_equivalent"] + row["p_better"] == pytest.approx(1)  # type: ignore[operator]
    assert str(row["sentence"]).count(" %") == 3


def test_the_same_scores_are_equivalent(plan: FoldPlan) -> None:
    row = verdict(plan, [0.0] * 6)
    assert (row["verdict"], row["p_equivalent"], row["p_corrected"]) == ("equivalent", 1.0, 1.0)


def test_a_constant_gain_proves_nothing(plan: FoldPlan) -> None:
    row = verdict(plan, [0.1] * 6)
    assert row["verdict"] == "undecided"
    assert row["t_corrected"] is row["p_corrected"] is row["p_holm"] is row["p_better"] is None
    assert "no spread to judge by" in str(row["sentence"])
    build_table([row], VERDICTS)


def test_a_truncated_fold_is_refused_and_named(plan: FoldPlan) -> None:
    scores, predictions = drawn(plan, deep=[0.01, 0.02, 0.0, 0.01, 0.03, 0.0])
    short = (scores["candidate"] == "deep") & (scores["repeat"] == 2) & (scores["fold"] == 3)
    scores.loc[short, "n_test"] -= 50
    with pytest.raises(DataRefused, match="deep was scored on 150 of 200 rows in repeat 2, fold 3"):
        compare_scores(scores, predictions, plan)


def test_pairs_keep_the_order_of_the_experiment(plan: FoldPlan) -> None:
    noise = [0.01, 0.02, 0.0, 0.01, 0.03, 0.0]
    rows = compare_scores(*drawn(plan, zeta=noise, alpha=[0.1] * 6), plan)
    pairs = [(row["candidate_a"], row["candidate_b"]) for row in rows]
    assert pairs == [("baseline", "zeta"), ("baseline", "alpha"), ("zeta", "alpha")]


def test_holm_counts_every_pair(plan: FoldPlan) -> None:
    wide = [0.03, 0.01, 0.03, 0.02, 0.04, 0.01]
    rows = compare_scores(*drawn(plan, zeta=wide, alpha=[0.1] * 6), plan)
    tested = [row for row in rows if row["p_corrected"] is not None]
    assert len(tested) == 2
    smallest = min(tested, key=lambda row: row["p_corrected"])
    assert smallest["p_holm"] == pytest.approx(min(1, 3 * smallest["p_corrected"]))


def test_folds_are_paired_whatever_the_order_of_rows(plan: FoldPlan) -> None:
    noise = [0.01, 0.02, 0.0, 0.01, 0.03, 0.0]
    scores, predictions = drawn(plan, deep=noise)
    deep_last = np.r_[0:6, np.random.default_rng(1).permutation(6) + 6]
    shuffled = predictions.take(np.random.default_rng(2).permutation(len(predictions)))
    assert compare_scores(scores.iloc[deep_last], shuffled, plan) == compare_scores(
        scores, predictions, plan
    )


@pytest.mark.parametrize("column", ["plan_digest", "dataset_digest"])
def test_other_folds_or_other_data_are_refused_by_name(plan: FoldPlan, column: str) -> None:
    scores, predictions = drawn(plan, deep=[0.01] * 6)
    scores.loc[scores["candidate"] == "deep", column] = "f00d" * 16
    with pytest.raises(DataRefused, match=r"^deep was scored on the .* f00df00df00d, not on"):
        compare_scores(scores, predictions, plan)


def test_a_missing_fold_is_refused_by_name(plan: FoldPlan) -> None:
    scores, predictions = drawn(plan, deep=[0.01] * 6)
    missing = (scores["candidate"] == "deep") & (scores["repeat"] == 2) & (scores["fold"] == 3)
    with pytest.raises(DataRefused, match=r"^deep has 0 scores for repeat 2, fold 3"):
        compare_scores(scores[~missing], predictions, plan)


def test_a_fold_that_all_candidates_lack_is_missed_too(plan: FoldPlan) -> None:
    scores, predictions = drawn(plan, deep=[0.01] * 6)
    with pytest.raises(DataRefused, match=r"^baseline has 0 scores for repeat 2, fold 1"):
        compare_scores(scores[scores["repeat"] == 1], predictions, plan)


def test_a_repeat_that_the_plan_has_not_is_refused(plan: FoldPlan) -> None:
    scores, predictions = drawn(plan, deep=[0.01] * 6)
    more = scores.assign(repeat=scores["repeat"] + 1)
    more = pd.concat([scores, more[more["repeat"] > plan.repeats]])
    with pytest.raises(DataRefused, match=r"^baseline has a score for repeat 3, fold 1"):
        compare_scores(more, predictions, plan)


def test_an_accuracy_that_is_no_number_is_refused(plan: FoldPlan) -> None:
    scores, predictions = drawn(plan, deep=[0.01] * 5 + [float("nan")])
    with pytest.raises(DataRefused, match=r"^The accuracy of deep in repeat 2, fold 3 is not a n"):
        compare_scores(scores, predictions, plan)


def test_a_fold_that_counts_twice_is_refused(plan: FoldPlan) -> None:
    scores, predictions = drawn(plan, deep=[0.01] * 6)
    with pytest.raises(DataRefused, match=r"^baseline has 2 scores for repeat 1, fold 1"):
        compare_scores(pd.concat([scores, scores.iloc[:1]]), predictions, plan)


STOPPED = Stop(candidate="deep", leader="baseline", folds=4, difference=0.001, bound=0.025)


def without_last_folds(
    plan: FoldPlan, scores: pd.DataFrame, predictions: pa.Table
) -> tuple[pd.DataFrame, pa.Table]:
    """Scores and predictions of which deep has the first four folds only."""
    late = (scores["candidate"] == "deep") & (scores["repeat"] == 2) & (scores["fold"] > 1)
    return scores[~late], predictions


def test_a_pair_with_a_stopped_candidate_gets_no_number(plan: FoldPlan) -> None:
    noise = [0.01, 0.02, 0.0, 0.01, 0.03, 0.0]
    drawings = drawn(plan, deep=[-0.5] * 6, other=noise)
    rows = compare_scores(*without_last_folds(plan, *drawings), plan, stops=(STOPPED,))
    words = {(row["candidate_a"], row["candidate_b"]): row["verdict"] for row in rows}
    assert words[("baseline", "other")] == "undecided"
    assert words[("baseline", "deep")] == words[("deep", "other")] == "stopped"
    for row in build_table(rows, VERDICTS).to_pylist():
        if row["verdict"] != "stopped":
            continue
        known = {"run_id", "plan_digest", "candidate_a", "candidate_b", "metric", "n_pairs"}
        known |= {"rope", "verdict", "sentence"}
        assert {name for name, value in row.items() if value is not None} == known
        assert row["n_pairs"] == 4
        assert "deep was stopped after 4 folds by the racing rule" in row["sentence"]


def test_a_stop_leaves_the_other_verdicts_as_they_are_but_for_holms_count(plan: FoldPlan) -> None:
    noise = [0.01, 0.02, 0.0, 0.01, 0.03, 0.0]
    drawings = drawn(plan, deep=[-0.5] * 6, other=noise)
    (alone,) = compare_scores(*drawn(plan, other=noise), plan)
    rows = compare_scores(*without_last_folds(plan, *drawings), plan, stops=(STOPPED,))
    (same,) = [row for row in rows if row["verdict"] != "stopped"]
    assert same.pop("p_holm") == pytest.approx(min(1, 3 * alone.pop("p_holm")))
    assert same == alone


def test_only_who_was_stopped_may_lack_folds_and_only_those_after_the_stop(plan: FoldPlan) -> None:
    whole = drawn(plan, deep=[0.01] * 6)
    short = without_last_folds(plan, *whole)
    with pytest.raises(DataRefused, match=r"^deep has 0 scores for repeat 2, fold 2"):
        compare_scores(*short, plan)
    earlier = STOPPED.model_copy(update={"folds": 3})
    with pytest.raises(DataRefused, match=r"deep has 1 scores for repeat 2, fold 1 .* have none"):
        compare_scores(*short, plan, stops=(earlier,))
    with pytest.raises(DataRefused, match=r"^deep has 0 scores for repeat 2, fold 2"):
        later = STOPPED.model_copy(update={"folds": 5})
        compare_scores(*short, plan, stops=(later,))


def test_missing_predictions_are_refused_by_name(plan: FoldPlan) -> None:
    scores, predictions = drawn(plan, deep=[0.01] * 6)
    with pytest.raises(DataRefused, match="predictions of deep in repeat 1 do not hold"):
        compare_scores(scores, predictions.slice(0, 1500), plan)


def cross_validated(folder: Path, dataset: Dataset, plan: FoldPlan, *names: str) -> None:
    """The tables of a run with scikit-learn classifiers on MNIST rows."""
    makers = {"bayes": GaussianNB, "centroid": NearestCentroid}
    x, y = dataset.train.images.reshape(len(dataset.train), -1) / 255.0, dataset.train.labels
    predicted = {name: np.empty((plan.repeats, plan.n_rows), np.int64) for name in names}
    accuracies: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        for repeat in range(1, plan.repeats + 1):
            for fold in range(1, plan.folds + 1):
                train, test = plan.rows(repeat, fold)
                answers = makers[name]().fit(x[train], y[train]).predict(x[test])
                predicted[name][repeat - 1][test] = answers
                accuracies[name].append(float((answers == y[test]).mean()))
    about = {"run_id": "night"}
    scores = build_table(score_rows(plan, accuracies), SCORES)
    write_table(folder / "scores.parquet", scores, name="scores", **about)
    predictions = prediction_table(plan, y, predicted)
    write_table(folder / "predictions.parquet", predictions, name="predictions", **about)
    plan.save(folder).rename(folder / "foldplan.parquet")


def compared(folder: Path) -> pa.Table:
    with disable_run_logger():
        compare.fn(str(folder))
    return pq.read_table(folder / "verdicts.parquet")


@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_")
def test_the_verdicts_of_a_run_on_mnist(
    small_mnist: Dataset, plan: FoldPlan, tmp_path: Path
) -> None:
    cross_validated(tmp_path, small_mnist, plan, "bayes", "centroid")
    table = compared(tmp_path)
    assert table.schema.equals(VERDICTS)
    assert table.schema.metadata[b"nightfold.plan_digest"] == plan.digest.encode()
    (row,) = table.to_pylist()
    assert (row["verdict"], row["n_pairs"], row["run_id"]) == ("better", 6, "night")
    assert row["interval_low"] < row["mean_difference"] < row["interval_high"]
    assert row["mcnemar_p"] < 0.001


def test_mcnemar_counts_each_row_once(plan: FoldPlan) -> None:
    labels = np.arange(plan.n_rows) % 10
    wrong_in_five = np.tile(labels, (2, 1))
    wrong_in_five[:, :5] = (wrong_in_five[:, :5] + 1) % 10
    scores, _ = drawn(plan, deep=[0.01, 0.02, 0.0, 0.01, 0.03, 0.0])
    predicted = {"baseline": wrong_in_five, "deep": np.tile(labels, (2, 1))}
    (row,) = compare_scores(scores, prediction_table(plan, labels, predicted), plan)
    assert row["mcnemar_p"] == pytest.approx(2 / 2**5)


def test_one_candidate_gives_an_empty_table_with_the_schema(
    small_mnist: Dataset, plan: FoldPlan, tmp_path: Path
) -> None:
    cross_validated(tmp_path, small_mnist, plan, "bayes")
    table = compared(tmp_path)
    assert len(table) == 0
    assert table.schema.equals(VERDICTS)


def test_an_incomplete_run_is_refused_in_one_sentence(plan: FoldPlan, tmp_path: Path) -> None:
    plan.save(tmp_path).rename(tmp_path / "foldplan.parquet")
    with pytest.raises(DataRefused, match="cannot be read") as refused:
        compared(tmp_path)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "verdicts.parquet").exists()
