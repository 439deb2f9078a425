"""Train one candidate on one fold, and hand all folds of a run to workers.

The numbers come from `nightfold.foldresult`; here is what Prefect needs: names, tags, retries, the
cache key, and progress that the UI shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from uuid import UUID

from prefect import Task, get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner

from nightfold.errors import NightfoldError
from nightfold.foldresult import FoldHandle, FoldJob
from nightfold.store import write_json
from nightfold.waiting import Waiting


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
    logger = get_run_logger()
    handle = job.run(logger.warning)
    logger.info("%s: accuracy %.3f %%", job.label, 100 * handle.accuracy)
    return handle


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
    on_fold: Callable[[Sequence[FoldHandle]], None] | None = None,
) -> list[FoldHandle]:
    """Train folds on a started task runner and tell Prefect's progress artifact.

    Parameters
    ----------
    runner : TaskRunner
    jobs : list of FoldJob
    at_once : int, optional
        Folds that the runner trains at once, as in `nightfold.waiting.Waiting`.
    earlier : sequence of FoldHandle
        Folds that earlier rounds of the run have left.
    total : int, optional
        Folds of all rounds; by default there is no other.
    on_fold : callable, optional
        Called with all folds that are done, before the first of `jobs` and after each but the last.

    Returns
    -------
    list of FoldHandle
        In the order of `jobs`.

    Raises
    ------
    Exception
        Whatever the first failed fold raised.
    """
    progress = create_progress_artifact(
        progress=0.0, key="folds", description="folds trained and scored"
    )
    assert isinstance(progress, UUID)
    done: dict[str, FoldHandle] = {}
    if on_fold is not None and jobs:
        on_fold(earlier)
    for label, fold in hand_out(runner, Waiting(jobs, earlier, at_once)):
        done[label] = fold
        if on_fold is not None and len(done) < len(jobs):
            on_fold([*earlier, *done.values()])
        share = (len(earlier) + len(done)) / (total or len(jobs))
        update_progress_artifact(progress, progress=100 * share)
    return [done[job.label] for job in jobs]


def hand_out(runner: TaskRunner[Any], waiting: Waiting) -> Iterator[tuple[str, FoldHandle]]:
    """Hand waiting folds to a task runner; each one's label and handle as it ends.

    A fold whose result is intact on disk may come from Prefect's cache; any other is trained,
    whatever the cache says: its record says only that the result was there once.

    Parameters
    ----------
    runner : TaskRunner
    waiting : Waiting
        Says when a fold is due, and which.

    Raises
    ------
    Exception
        Whatever the first failed fold raised; folds that were not handed out yet are not trained.
    """
    running: dict[PrefectFuture[FoldHandle], str] = {}
    ended: SimpleQueue[PrefectFuture[FoldHandle]] = SimpleQueue()
    folds: list[tuple[str, FoldHandle]] = []
    while True:
        while waiting.due:
            job = waiting.take()
            # Tags belong to the task: a process pool keeps the context of its first submission.
            # And a stale record must not hide that the files behind it are gone.
            step = train.with_options(
                tags=["train", f"candidate:{job.candidate.name}"], refresh_cache=job.done() is None
            )
            future = runner.submit(step, {"job": job})
            running[future] = job.label
            future.add_done_callback(ended.put)
        yield from folds  # no worker waits for what is made of them
        if not running:
            return
        ready = [ended.get()]
        while not ended.empty():
            ready.append(ended.get())
        folds = [(running.pop(future), future.result()) for future in ready]
        for label, fold in folds:
            waiting.ended(label, fold)
