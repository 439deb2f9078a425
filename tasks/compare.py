"""Compare: for every pair of candidates, say whether one is better, and how sure that is.

The tests themselves are in `nightfold.statistics`; here the scores are checked to be comparable,
paired by fold and put into words.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from nightfold import statistics
from nightfold.errors import DataRefused
from nightfold.experiment import ROPE, SURE
from nightfold.figures import percent
from nightfold.foldplan import FoldPlan
from nightfold.racing import Stop
from nightfold.statistics import CorrelatedPosterior
from nightfold.tables import VERDICTS, build_table, write_table

if TYPE_CHECKING:
    import pandas as pd


@task(name="compare", task_run_name="compare candidates", cache_policy=NO_CACHE)
def compare(
    run_folder: str, rope: float = ROPE, sure: float = SURE, stops: tuple[Stop, ...] = ()
) -> None:
    """Write ``verdicts.parquet`` from the other tables of a run, and its sentences to the log.

    A single candidate gives an empty table.

    Parameters
    ----------
    run_folder : str
        Holds ``scores.parquet``, ``predictions.parquet`` and ``foldplan.parquet``.
    rope, sure, stops
        See `compare_scores`.

    Raises
    ------
    DataRefused
        If a table cannot be read, or the scores cannot be compared.
    """
    folder = Path(run_folder)
    plan = FoldPlan.open(folder / "foldplan.parquet")
    scores, predictions = _read(folder)
    rows = compare_scores(scores, predictions, plan, rope, sure, stops)
    about = {"run_id": str(scores["run_id"].iloc[0]), "plan_digest": plan.digest}
    table = build_table(rows, VERDICTS)
    write_table(folder / "verdicts.parquet", table, name="verdicts", **about)
    for row in rows:
        get_run_logger().info(row["sentence"])


def _read(folder: Path) -> tuple[pd.DataFrame, pa.Table]:
    """Scores, and of the predictions what a comparison needs."""
    try:
        scores = pq.read_table(folder / "scores.parquet").to_pandas()
        predictions = pq.read_table(
            folder / "predictions.parquet",
            columns=["candidate", "repeat", "row", "label", "predicted"],
            filters=[("repeat", "=", 1)],
        )
    except (OSError, pa.ArrowException) as error:
        raise DataRefused(
            f"The tables of the run {folder.name} cannot be read ({error}): run the same "
            "experiment again; finished folds are not trained anew."
        ) from error
    return scores, predictions


def compare_scores(
    scores: pd.DataFrame,
    predictions: pa.Table,
    plan: FoldPlan,
    rope: float = ROPE,
    sure: float = SURE,
    stops: tuple[Stop, ...] = (),
) -> list[dict[str, Any]]:
    """Judge the accuracy of every pair of candidates, a before b in the order of `scores`.

    Parameters
    ----------
    scores : DataFrame
        Rows of `nightfold.tables.SCORES`; every candidate on every fold of `plan`, but for those
        in `stops`.
    predictions : pyarrow.Table
        Columns candidate, repeat, row, label and predicted of the predictions. Only repeat 1 is
        used: a row that counts twice would feign certainty.
    plan : FoldPlan
        The one that all of them were scored on.
    rope : float
        Half width of practical equivalence, a fraction of accuracy.
    sure : float
        Posterior probability from which on a verdict is given.
    stops : tuple of Stop
        Candidates that were raced out, on the first folds of `plan` only. A pair with one of them
        is `stopped`: no difference is told and no test is made.

    Returns
    -------
    list of dict
        Rows of `nightfold.tables.VERDICTS`.

    Raises
    ------
    DataRefused
        If a candidate was scored on another plan or data set, lacks a fold that it must have, has
        one twice or one too many, was not scored on all of its rows, or has an accuracy that is
        not a number.

    Notes
    -----
    b is better (worse, equivalent) if the posterior probability of that is at least `sure`;
    otherwise the pair is undecided. Pairs without a p value count in Holm's correction.
    """
    names, stopped = list(dict.fromkeys(scores["candidate"])), {s.candidate: s for s in stops}
    accuracies = {
        name: _accuracies(scores[scores["candidate"] == name], plan, stopped.get(name))
        for name in names
    }
    right = {name: _right(predictions, name, plan) for name in names if name not in stopped}
    about = {
        "run_id": scores["run_id"].iloc[0],
        "plan_digest": plan.digest,
        "metric": "accuracy",
        "rope": rope,
    }
    whole = scores[~scores["candidate"].isin(stopped)]
    sizes = {size: float(whole[size].mean()) for size in ("n_train", "n_test")}
    rows = []
    for a, b in combinations(names, 2):
        if ended := [stopped[name] for name in (a, b) if name in stopped]:
            rows.append({**about, **_unjudged(a, b, ended)})
            continue
        found = _judge(a, b, accuracies[b] - accuracies[a], sizes, rope, sure)
        rows.append({**about, **found, "mcnemar_p": statistics.mcnemar_exact(right[a], right[b])})
    p_values = [1.0 if row["p_corrected"] is None else row["p_corrected"] for row in rows]
    for row, p_holm in zip(rows, statistics.holm(np.array(p_values)), strict=True):
        row["p_holm"] = None if row["p_corrected"] is None else float(p_holm)
    return rows


def _judge(
    a: str,
    b: str,
    differences: NDArray[np.float64],
    sizes: dict[str, float],
    rope: float,
    sure: float,
) -> dict[str, Any]:
    """Columns of a verdict that follow from the differences, b minus a, one a fold."""
    sizes = {**sizes, "resolution": statistics.HALF_A_ROW / sizes["n_test"]}
    test = statistics.corrected_resampled_t(differences, **sizes)
    posterior = statistics.bayesian_correlated_t(differences, rope=rope, **sizes)
    verdict = _verdict(posterior, sure)
    return {
        "candidate_a": a,
        "candidate_b": b,
        "n_pairs": len(differences),
        "mean_difference": test.mean,
        "interval_low": test.low,
        "interval_high": test.high,
        "t_corrected": test.t,
        "p_corrected": test.p,
        "p_worse": posterior.p_worse,
        "p_equivalent": posterior.p_equivalent,
        "p_better": posterior.p_better,
        "verdict": verdict,
        "sentence": _sentence(a, b, verdict, test.mean, posterior, rope),
    }


def _unjudged(a: str, b: str, ended: list[Stop]) -> dict[str, Any]:
    """Columns of the verdict on a pair that a stop has left without one."""
    reasons = "; ".join(f"{stop.candidate} was {stop.reason}" for stop in ended)
    return {
        "candidate_a": a,
        "candidate_b": b,
        "n_pairs": min(stop.folds for stop in ended),
        "p_corrected": None,
        "verdict": "stopped",
        "sentence": f"No verdict on {b} against {a}: {reasons}.",
    }


def _accuracies(
    scores: pd.DataFrame, plan: FoldPlan, stop: Stop | None = None
) -> NDArray[np.float64]:
    """Accuracies of one candidate in the order of the plan; refuses what is not all of it.

    Of one that was stopped all are the folds before its stop.
    """
    name = scores["candidate"].iloc[0]
    for column, what, expected in (
        ("plan_digest", "fold plan", plan.digest),
        ("dataset_digest", "data set", plan.dataset_digest),
    ):
        for found in scores.loc[scores[column] != expected, column].unique():
            raise DataRefused(
                f"{name} was scored on the {what} {found[:12]}, not on {expected[:12]}: compare "
                "only what was scored on the same folds of the same data; train it on these."
            )
    places = list(zip(scores["repeat"], scores["fold"], strict=True))
    every = [(r, f) for r in range(1, plan.repeats + 1) for f in range(1, plan.folds + 1)]
    due = every[: stop.folds] if stop else every
    for repeat, fold in every:
        wanted = int((repeat, fold) in due)
        if (times := places.count((repeat, fold))) != wanted:
            raise DataRefused(
                f"{name} has {times} scores for repeat {repeat}, fold {fold} where it must have "
                f"{'one' if wanted else 'none'}: run the same experiment again; finished folds are "
                "not trained anew."
            )
    for repeat, fold in sorted(set(places) - set(every)):
        raise DataRefused(
            f"{name} has a score for repeat {repeat}, fold {fold}, which the plan has not: run the "
            "same experiment again; finished folds are not trained anew."
        )
    for repeat, fold in scores.loc[~np.isfinite(scores["accuracy"]), ["repeat", "fold"]].to_numpy():
        raise DataRefused(
            f"The accuracy of {name} in repeat {repeat}, fold {fold} is not a number: run the same "
            "experiment again under another run id."
        )
    by_place = scores.set_index(["repeat", "fold"])
    n_scored = by_place["n_test"].loc[due].to_numpy(np.int64)
    for (repeat, fold), scored in zip(due, n_scored, strict=True):
        planned = len(plan.rows(repeat, fold)[1])
        if scored != planned:
            raise DataRefused(
                f"{name} was scored on {scored} of {planned} rows in repeat {repeat}, fold {fold}: "
                "a truncated fold proves nothing; run the same experiment again."
            )
    return by_place["accuracy"].loc[due].to_numpy(np.float64)


def _right(predictions: pa.Table, name: str, plan: FoldPlan) -> NDArray[np.bool_]:
    """Whether each row was predicted right in repeat 1; shape (n_rows,)."""
    candidate, repeat = (predictions[c].to_numpy() for c in ("candidate", "repeat"))
    wanted = (candidate == name) & (repeat == 1)
    row, label, predicted = (
        predictions[c].to_numpy()[wanted] for c in ("row", "label", "predicted")
    )
    order = np.argsort(row)
    if not np.array_equal(row[order], np.arange(plan.n_rows)):
        raise DataRefused(
            f"The predictions of {name} in repeat 1 do not hold each of the {plan.n_rows} rows "
            "once: run the same experiment again; finished folds are not trained anew."
        )
    right: NDArray[np.bool_] = (label == predicted)[order]
    return right


def _verdict(posterior: CorrelatedPosterior, sure: float) -> str:
    chances = {
        "better": posterior.p_better,
        "worse": posterior.p_worse,
        "equivalent": posterior.p_equivalent,
    }
    # No posterior, no verdict: without spread nothing tells how sure the difference is.
    return next((v for v, p in chances.items() if p is not None and p >= sure), "undecided")


def _sentence(
    a: str, b: str, verdict: str, mean: float, posterior: CorrelatedPosterior, rope: float
) -> str:
    points, margin = f"{100 * mean:+.2f} points", f"{100 * rope:g} point"
    worse, equivalent, better, *_ = posterior
    if worse is None or equivalent is None or better is None:
        return (
            f"Whether {b} is better than {a} is undecided: {points} in every fold alike, so there "
            "is no spread to judge by."
        )
    if verdict == "equivalent":
        return (
            f"{b} and {a} are equivalent: {points}, probability of differing by less than "
            f"{margin} {percent(equivalent)}."
        )
    if verdict == "undecided":
        return (
            f"Whether {b} is better than {a} is undecided: {points}, probability of being better "
            f"by at least {margin} {percent(better)}, worse {percent(worse)}, equivalent "
            f"{percent(equivalent)}."
        )
    return (
        f"{b} is {verdict} than {a}: {points}, probability of being {verdict} by at least "
        f"{margin} {percent(better if verdict == 'better' else worse)}."
    )
