"""Aggregate fold results to the tables that leave the program.

Writes a run's ``scores``, ``histories``, ``predictions`` and ``foldplan`` tables and the same score
rows once more under ``artifacts/scores/``, where all nights read as one table.
"""

from __future__ import annotations

import shutil
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from prefect import task

from nightfold.dataset import DatasetHandle
from nightfold.experiment import Candidate, Experiment
from nightfold.foldplan import FoldPlan, PlanHandle
from nightfold.foldresult import FoldHandle, read_probabilities
from nightfold.racing import Stop
from nightfold.statistics import mean_over_repeats, score_interval
from nightfold.store import Store, atomic_file
from nightfold.summary import CandidateFacts, StoppedFacts
from nightfold.tables import HISTORIES, SCORES, build_table, predictions_schema, write_table


@task(name="aggregate", task_run_name="aggregate {run_id}")
def aggregate(
    folds: list[FoldHandle],
    experiment: Experiment,
    dataset: DatasetHandle,
    plan: PlanHandle,
    *,
    run_id: str,
    started_at: datetime,
    artifacts: str,
    stops: tuple[Stop, ...] = (),
) -> tuple[list[CandidateFacts], list[StoppedFacts]]:
    """Write the tables of a run.

    Parameters
    ----------
    folds : list of FoldHandle
        Every fold of every candidate; of those in `stops`, the folds they have.
    experiment : Experiment
    dataset : DatasetHandle
    plan : PlanHandle
    run_id : str
    started_at : datetime
        Start of the run; its UTC day is the partition under ``artifacts/scores``.
    artifacts : str
    stops : tuple of Stop
        Candidates that were raced out; their rows are in the tables as the others are.

    Returns
    -------
    scored : list of CandidateFacts
        One a candidate that has all folds, in the order of the experiment.
    stopped : list of StoppedFacts
        One a candidate that has not, likewise.
    """
    store = Store(artifacts)
    folder = store.run(run_id)
    scores, histories = _rows(folds, experiment, dataset, plan, run_id, started_at)
    score_table = build_table(scores, SCORES)
    about = {"run_id": run_id, "plan_digest": plan.digest, "dataset_digest": dataset.digest}
    write_table(folder / "scores.parquet", score_table, name="scores", **about)
    write_table(
        folder / "histories.parquet", build_table(histories, HISTORIES), name="histories", **about
    )
    predictions = _predictions(folds, dataset, plan.open(), run_id)
    write_table(folder / "predictions.parquet", predictions, name="predictions", **about)
    with atomic_file(folder / "foldplan.parquet") as part:
        shutil.copyfile(plan.path, part)
    day = store.scores / f"run_date={started_at.date().isoformat()}"
    # Readers take a partition's column from the folder's name and refuse it in the file as well.
    partition = score_table.drop_columns(["run_date"])
    write_table(day / f"{run_id}.parquet", partition, name="scores", **about)
    # A run that was killed before midnight and goes on behind it has rows under both days.
    for other in store.scores.glob(f"run_date=*/{run_id}.parquet"):
        if other.parent != day:
            other.unlink()
    answers = predictions.select(["candidate", "row", "label", "predicted"])
    rows_of = {
        candidate.name: [row for row in scores if row["candidate"] == candidate.name]
        for candidate in experiment.candidates
    }
    reasons = {stop.candidate: stop.reason for stop in stops}
    scored = [
        _facts(c, rows_of[c.name], answers.filter(pc.equal(answers["candidate"], c.name)))
        for c in experiment.candidates
        if c.name not in reasons
    ]
    stopped = [
        StoppedFacts(**_recipe(c, rows_of[c.name]), reason=reasons[c.name])
        for c in experiment.candidates
        if c.name in reasons
    ]
    return scored, stopped


def _rows(
    folds: list[FoldHandle],
    experiment: Experiment,
    dataset: DatasetHandle,
    plan: PlanHandle,
    run_id: str,
    started_at: datetime,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of scores and of histories."""
    scores, histories = [], []
    for fold in folds:
        candidate = experiment.candidate(fold.candidate)
        result = fold.open()
        place = {
            "run_id": run_id,
            "candidate": fold.candidate,
            "repeat": fold.repeat,
            "fold": fold.fold,
        }
        scores.append(
            {
                **place,
                "run_date": started_at.date(),
                "dataset": dataset.name,
                "dataset_digest": dataset.digest,
                "plan_digest": plan.digest,
                "candidate_digest": candidate.digest,
                "architecture": candidate.architecture,
                "scaling": candidate.scaling,
                **result.scores.model_dump(),
            }
        )
        histories += [{**place, **epoch.model_dump()} for epoch in result.history]
    return scores, histories


def _predictions(
    folds: list[FoldHandle], dataset: DatasetHandle, plan: FoldPlan, run_id: str
) -> pa.Table:
    """Out-of-fold probabilities of every row, a batch of the table a fold."""
    train = dataset.open().train
    digests = np.array(train.row_digests)
    tables = []
    for fold in folds:
        _, rows = plan.rows(fold.repeat, fold.fold)
        probabilities = np.ascontiguousarray(read_probabilities(fold))
        schema = predictions_schema(probabilities.shape[1])
        n = len(rows)
        columns = {
            "run_id": pa.array([run_id] * n),
            "candidate": pa.array([fold.candidate] * n),
            "repeat": np.full(n, fold.repeat),
            "fold": np.full(n, fold.fold),
            "row": rows,
            "row_digest": digests[rows],
            "label": train.labels[rows],
            "predicted": probabilities.argmax(axis=1),
            "probabilities": pa.FixedSizeListArray.from_arrays(
                pa.array(probabilities.ravel()), probabilities.shape[1]
            ),
        }
        tables.append(
            pa.table([pa.array(columns[f.name]).cast(f.type) for f in schema], schema=schema)
        )
    return pa.concat_tables(tables)


def _recipe(candidate: Candidate, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Fields of `RecipeFacts`."""
    return {
        "name": candidate.name,
        "digest": candidate.digest,
        "architecture": candidate.architecture,
        "scaling": candidate.scaling,
        "epochs": candidate.epochs,
        "n": len(rows),
        "train_seconds": float(np.sum([row["train_seconds"] for row in rows])),
        "parameters": int(rows[0]["parameters"]),
    }


def _facts(candidate: Candidate, rows: list[dict[str, Any]], answers: pa.Table) -> CandidateFacts:
    accuracies = np.array([row["accuracy"] for row in rows])
    row, label, predicted = (answers[c].to_numpy() for c in ("row", "label", "predicted"))
    interval = score_interval(mean_over_repeats(row, label == predicted))
    return CandidateFacts(
        **_recipe(candidate, rows),
        accuracy_mean=float(accuracies.mean()),
        accuracy_std=float(accuracies.std(ddof=1)),
        log_loss_mean=float(np.mean([row["log_loss"] for row in rows])),
        accuracy_low=interval.low,
        accuracy_high=interval.high,
    )
