"""Compare every pair of candidates of a run, on the same folds, and say what can be said.

Refuses to compare what was not scored alike; a difference is called better or worse only where its
posterior probability says so.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from prefect import task
from pydantic import BaseModel, ConfigDict

from nightfold import statistics
from nightfold.errors import DataRefused
from nightfold.store import sha256_file
from nightfold.tables import VERDICTS, build_table, write_table

if TYPE_CHECKING:
    import pandas as pd

ROPE = 0.001
"""Differences within a tenth of a point of accuracy are practically none."""

REQUIRED_PROBABILITY = 0.95


class VerdictsHandle(BaseModel):
    """Where the verdicts are, and their sentences."""

    model_config = ConfigDict(frozen=True)

    path: str
    digest: str
    sentences: tuple[str, ...]


@task(name="compare", task_run_name="compare candidates")
def compare(run_folder: str) -> VerdictsHandle:
    """Write ``verdicts.parquet`` from the scores and predictions of a run."""
    import pandas as pd

    folder = Path(run_folder)
    scores = pd.read_parquet(folder / "scores.parquet")
    columns = ["candidate", "repeat", "row", "label", "predicted"]
    predictions = pd.read_parquet(folder / "predictions.parquet", columns=columns)
    rows = compare_scores(scores, predictions)
    path = folder / "verdicts.parquet"
    table = build_table(rows, VERDICTS)
    write_table(path, table, name="verdicts", run_id=str(scores["run_id"].iloc[0]))
    sentences = tuple(row["sentence"] for row in rows)
    return VerdictsHandle(path=str(path), digest=sha256_file(path), sentences=sentences)


def compare_scores(scores: pd.DataFrame, predictions: pd.DataFrame) -> list[dict[str, Any]]:
    """Verdict on every pair of candidates, in their order of appearance.

    Parameters
    ----------
    scores : DataFrame
        Rows of `nightfold.tables.SCORES` of one run.
    predictions : DataFrame
        Columns candidate, repeat, row, label and predicted of its predictions.

    Returns
    -------
    list of dict
        Rows of `nightfold.tables.VERDICTS`; none for a single candidate.

    Raises
    ------
    DataRefused
        If plans or data sets differ or a fold is missing; the message says which.
    """
    _require_alike(scores)
    names = list(dict.fromkeys(scores["candidate"]))
    rows = [_pair(scores, predictions, a, b) for a, b in combinations(names, 2)]
    adjusted = statistics.holm([row["p_corrected"] for row in rows]) if rows else []
    for row, p in zip(rows, adjusted, strict=True):
        row["p_holm"] = float(p)
    return rows


def _require_alike(scores: pd.DataFrame) -> None:
    for column, what in (("plan_digest", "fold plans"), ("dataset_digest", "data sets")):
        digests = scores.groupby(column, sort=False)["candidate"].unique()
        if len(digests) > 1:
            groups = "; ".join(f"{d[:12]}: {', '.join(names)}" for d, names in digests.items())
            raise DataRefused(f"These candidates were scored on different {what} ({groups}).")
    places = {name: _places(rows) for name, rows in scores.groupby("candidate", sort=False)}
    every = sorted(set().union(*places.values()))
    for name, there in places.items():
        missing = [place for place in every if place not in there]
        if missing:
            repeat, fold = missing[0]
            raise DataRefused(
                f"{name} has no score for repeat {repeat} fold {fold} ({len(missing)} missing): "
                "run the same command again to train what is missing."
            )


def _places(rows: pd.DataFrame) -> set[tuple[int, int]]:
    return {(int(r), int(f)) for r, f in zip(rows["repeat"], rows["fold"], strict=True)}


def _pair(scores: pd.DataFrame, predictions: pd.DataFrame, a: str, b: str) -> dict[str, Any]:
    by_fold = scores.pivot(index=["repeat", "fold"], columns="candidate", values="accuracy")
    differences = (by_fold[b] - by_fold[a]).to_numpy()
    n_train, n_test = int(scores["n_train"].mean()), int(scores["n_test"].mean())
    test = statistics.corrected_resampled_t(differences, n_train, n_test)
    posterior = statistics.bayesian_correlated_t(differences, n_train, n_test, ROPE)
    first = scores.iloc[0]
    verdict = _verdict(posterior)
    return {
        "run_id": first["run_id"],
        "plan_digest": first["plan_digest"],
        "candidate_a": a,
        "candidate_b": b,
        "metric": "accuracy",
        "n_pairs": len(differences),
        "mean_difference": test.mean,
        "interval_low": test.low,
        "interval_high": test.high,
        "t_corrected": test.t,
        "p_corrected": test.p,
        "rope": ROPE,
        "p_worse": posterior.p_worse,
        "p_equivalent": posterior.p_equivalent,
        "p_better": posterior.p_better,
        "mcnemar_p": _mcnemar(predictions, a, b),
        "verdict": verdict,
        "sentence": _sentence(a, b, test.mean, posterior, verdict),
    }


def _mcnemar(predictions: pd.DataFrame, a: str, b: str) -> float:
    """Over the pooled out-of-fold predictions of the first repeat: each row counts once."""
    once = predictions[predictions["repeat"] == 1]
    right = {
        name: (rows["predicted"] == rows["label"]).to_numpy()[np.argsort(rows["row"].to_numpy())]
        for name, rows in once[once["candidate"].isin([a, b])].groupby("candidate")
    }
    return statistics.mcnemar_exact(right[a], right[b])


def _verdict(posterior: statistics.BayesianT) -> str:
    if posterior.p_better >= REQUIRED_PROBABILITY:
        return "better"
    if posterior.p_worse >= REQUIRED_PROBABILITY:
        return "worse"
    if posterior.p_equivalent >= REQUIRED_PROBABILITY:
        return "equivalent"
    return "undecided"


def _sentence(a: str, b: str, mean: float, posterior: statistics.BayesianT, verdict: str) -> str:
    points = f"{100 * mean:+.2f} points"
    margin = f"{100 * ROPE:.1f} point"
    if verdict in ("better", "worse"):
        chance = posterior.p_better if verdict == "better" else posterior.p_worse
        return (
            f"{b} is {verdict} than {a}: {points}, probability of being {verdict} by at least "
            f"{margin} {_percent(chance)}."
        )
    if verdict == "equivalent":
        return (
            f"{b} and {a} are equivalent: {points}, probability of differing by less than "
            f"{margin} {_percent(posterior.p_equivalent)}."
        )
    return (
        f"It is undecided whether {b} is better than {a}: {points}, probability of being better "
        f"by at least {margin} {_percent(posterior.p_better)}, of being worse by as much "
        f"{_percent(posterior.p_worse)}."
    )


def _percent(probability: float) -> str:
    """Percent with one decimal; never 100 for what is not certain."""
    if 0.9995 <= probability < 1:
        return "above 99.9 %"
    if 0 < probability < 0.0005:
        return "below 0.1 %"
    return f"{100 * probability:.1f} %"
