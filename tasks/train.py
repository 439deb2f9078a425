"""Train one candidate on one fold.

The numbers come from `nightfold.foldresult`; here is what Prefect needs: names, tags, retries and
the cache key.
"""

from __future__ import annotations

from typing import Any

from prefect import Task, get_run_logger, task
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext

from nightfold.errors import DeviceFailed, NightfoldError
from nightfold.foldresult import FoldHandle, FoldJob
from nightfold.store import sha256_json


def is_transient(_task: Task[Any, Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether trying again can help: a user's mistake stays one."""
    error = state.result(raise_on_failure=False)
    mistakes = NightfoldError | ValueError | TypeError | ImportError
    return isinstance(error, DeviceFailed) or not isinstance(error, mistakes)


def cache_key(_context: TaskRunContext, parameters: dict[str, Any]) -> str:
    """Everything that decides the fold's numbers, the candidate's name, and where the result lives.

    The record holds a handle with the name in it: a recipe that runs under another name tonight
    finds its fold on the disk instead. Prefect makes a file's name of it, which has 255 bytes.
    """
    job: FoldJob = parameters["job"]
    return sha256_json([job.key, job.candidate.name, str(job.folder)])


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
