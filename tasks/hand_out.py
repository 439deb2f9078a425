"""Hand out the folds of a run, and its final fit, to workers; tell how far they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from uuid import UUID

from prefect import Task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner

from nightfold.finaljob import Ahead, FinalJob
from nightfold.foldresult import FirstEpochs, FoldHandle, FoldJob
from nightfold.store import write_json
from nightfold.waiting import Job, Waiting
from tasks.begin import begin
from tasks.fit import fit
from tasks.train import train


def announce(jobs: list[FoldJob], run_folder: Path) -> None:
    """Write ``jobs.json``, so that anyone can watch the progress of a run's folds."""
    watch = [
        {"label": job.label, "folder": str(job.folder), "epochs": job.candidate.total_epochs}
        for job in jobs
    ]
    write_json(run_folder / "jobs.json", watch)


def train_all(
    runner: TaskRunner[Any],
    jobs: list[FoldJob],
    at_once: int | None = None,
    earlier: Sequence[FoldHandle] = (),
    total: int | None = None,
    final: Ahead | None = None,
) -> list[FoldHandle]:
    """Train folds on a started task runner and tell Prefect's progress artifact.

    Parameters
    ----------
    runner : TaskRunner
    jobs : list of FoldJob
    at_once, final
        As in `nightfold.waiting.Waiting`.
    earlier : sequence of FoldHandle
        Folds that earlier rounds of the run have left.
    total : int, optional
        Folds of all rounds; by default there is no other.

    Returns
    -------
    list of FoldHandle
        In the order of `jobs`.

    Raises
    ------
    Exception
        Whatever the first failed fold or fit raised.
    """
    progress = create_progress_artifact(
        progress=0.0, key="folds", description="folds trained and scored"
    )
    assert isinstance(progress, UUID)
    done: dict[str, FoldHandle] = {}
    for label, fold in hand_out(runner, Waiting(jobs, earlier, at_once, final)):
        done[label] = fold
        share = (len(earlier) + len(done)) / (total or len(jobs))
        update_progress_artifact(progress, progress=100 * share)
    return [done[job.label] for job in jobs]


def hand_out(runner: TaskRunner[Any], waiting: Waiting) -> Iterator[tuple[str, FoldHandle]]:
    """Hand what waits to a task runner; each fold's label and handle as it ends.

    Parameters
    ----------
    runner : TaskRunner
    waiting : Waiting
        Says when a job is due, and which.

    Raises
    ------
    Exception
        Whatever the first failed job raised; those that were not handed out yet are not begun.
    """
    running: dict[PrefectFuture[Any], str] = {}
    ended: SimpleQueue[PrefectFuture[Any]] = SimpleQueue()
    folds: list[tuple[str, FoldHandle]] = []
    while True:
        while (job := waiting.take()) is not None:
            future = runner.submit(_step(job), {"job": job})
            running[future] = job.label
            future.add_done_callback(ended.put)
        yield from folds  # no worker waits for what is made of them
        if not running:
            return
        ready = [ended.get()]
        while not ended.empty():
            ready.append(ended.get())
        results = [(running.pop(future), future.result()) for future in ready]
        for label, fold in results:
            waiting.ended(label, fold)
        folds = [(label, fold) for label, fold in results if fold is not None]


def _step(job: Job) -> Task[Any, Any]:
    """The task for a job.

    A fold whose result is intact on disk may come from Prefect's cache; any other is trained,
    whatever the cache says: its record says only that the result was there once.
    """
    if isinstance(job, FinalJob):
        return fit
    # Tags belong to the task: a process pool keeps the context of its first submission.
    if isinstance(job, FirstEpochs):
        return begin.with_options(tags=_tags(job.job))
    return train.with_options(tags=_tags(job), refresh_cache=job.done() is None)


def _tags(job: FoldJob) -> list[str]:
    return ["train", f"candidate:{job.candidate.name}"]
