"""Train one candidate on one fold, and map that over all folds of a run.

The numbers come from `nightfold.foldresult`; here is what Prefect needs: names, tags, retries, the
cache key, and progress that the UI shows.
"""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import Task, get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.futures import PrefectFuture, as_completed
from prefect.task_runners import TaskRunner

from nightfold.errors import NightfoldError
from nightfold.foldresult import FoldHandle, FoldJob
from nightfold.store import Store, write_json


def is_transient(_task: Task[Any, Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether trying again can help: a user's mistake stays one."""
    error = state.result(raise_on_failure=False)
    return not isinstance(error, NightfoldError | ValueError | TypeError | ImportError)


def cache_key(_context: TaskRunContext, parameters: dict[str, Any]) -> str:
    """Everything that decides the fold's numbers, the candidate's name, and where the result lives.

    The record holds a handle with the name in it: a recipe that runs under another name tonight
    finds its fold on the disk instead.
    """
    job: FoldJob = parameters["job"]
    return f"{job.key}-{job.candidate.name}-{job.folder}".replace("/", "-")


@task(
    name="train",
    task_run_name="train {job.label}",
    tags=["train"],
    retries=2,
    retry_delay_seconds=[1, 10],
    retry_condition_fn=is_transient,
    cache_key_fn=cache_key,
    persist_result=True,
    result_serializer="json",
)
def train(job: FoldJob) -> FoldHandle:
    """Train and score one fold; continue where an earlier attempt stopped."""
    handle = job.run()
    get_run_logger().info("%s: accuracy %.3f %%", job.label, 100 * handle.accuracy)
    return handle


def announce(jobs: list[FoldJob], run_folder: Path) -> None:
    """Write ``jobs.json``, so that anyone can watch the progress of a run's folds."""
    watch = [
        {"label": job.label, "folder": str(job.folder), "epochs": job.candidate.total_epochs}
        for job in jobs
    ]
    write_json(run_folder / "jobs.json", watch)


def map_folds(runner: TaskRunner[Any], jobs: list[FoldJob]) -> list[PrefectFuture[FoldHandle]]:
    """Submit every fold to a started task runner.

    A fold whose result is intact on disk may come from Prefect's cache; any other is trained,
    whatever the cache says: its record says only that the result was there once.

    Parameters
    ----------
    runner : TaskRunner
    jobs : list of FoldJob
        In the order of the plan; the longest are started first.

    Returns
    -------
    list of PrefectFuture
        In the order of `jobs`.
    """
    futures: dict[str, PrefectFuture[FoldHandle]] = {}
    for job in longest_first(jobs):
        # Tags belong to the task: a process pool keeps the context of its first submission. And a
        # stale record must not hide that the files behind it are gone.
        step = train.with_options(
            tags=["train", f"candidate:{job.candidate.name}"], refresh_cache=job.done() is None
        )
        futures[job.label] = runner.submit(step, {"job": job})
    return [futures[job.label] for job in jobs]


def longest_first(jobs: list[FoldJob]) -> list[FoldJob]:
    """The jobs in the order in which they leave no core idle at the end.

    A candidate takes as long as it did in earlier nights; one without an earlier night comes
    first, as it may be the longest, and among several the one of most epochs.
    """
    if not jobs:
        return []
    seconds = seconds_before(Store(jobs[0].artifacts).scores)
    return sorted(
        jobs,
        key=lambda job: (
            -seconds.get(job.candidate.digest, math.inf),
            -job.candidate.total_epochs,
        ),
    )


def seconds_before(scores: Path, nights: int = 30) -> dict[str, float]:
    """Mean training seconds of a fold, by candidate digest, over the last days with scores."""
    import pyarrow.lib
    import pyarrow.parquet as pq

    columns = ["candidate_digest", "train_seconds"]
    days = sorted(scores.glob("run_date=*"))[-nights:]
    spent = defaultdict(list)
    for file in (file for day in days for file in day.glob("[!.]*.parquet")):
        try:
            table = pq.read_table(file, columns=columns, partitioning=None).drop_null()
        except (OSError, pyarrow.lib.ArrowException):
            continue  # a file that is damaged tells nothing; folds can be trained in any order
        if table.column_names != columns:
            continue
        for digest, seconds in zip(*(column.to_pylist() for column in table.columns), strict=True):
            spent[digest].append(seconds)
    return {digest: sum(each) / len(each) for digest, each in spent.items()}


def collect_folds(
    futures: list[PrefectFuture[FoldHandle]], before: int = 0, total: int | None = None
) -> list[FoldHandle]:
    """Wait for all folds, telling Prefect's progress artifact, and return their handles.

    Parameters
    ----------
    futures : list of PrefectFuture
    before : int
        Folds that earlier rounds have left.
    total : int, optional
        Folds of all rounds; by default there is no other.

    Raises
    ------
    Exception
        Whatever the first failed fold raised.
    """
    progress = create_progress_artifact(
        progress=0.0, key="folds", description="folds trained and scored"
    )
    assert isinstance(progress, UUID)
    for n_done, future in enumerate(as_completed(list(futures)), start=before + 1):
        future.result()
        update_progress_artifact(progress, progress=100 * n_done / (total or len(futures)))
    return [future.result() for future in futures]
