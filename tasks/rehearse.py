"""Rehearse the sealing of a network of the user's own, before any fold of it is trained."""

from __future__ import annotations

from prefect import get_run_logger, task

from nightfold.finaljob import FinalJob
from tasks.train import is_transient


@task(
    name="rehearse",
    task_run_name="rehearse {job.candidate.name}",
    tags=["finalize"],
    retries=2,
    retry_delay_seconds=[1, 10],
    retry_condition_fn=is_transient,
)
def rehearse(job: FinalJob, beside: list[str]) -> None:
    """Build, save and load it untrained.

    Parameters
    ----------
    job : FinalJob
    beside : list of str
        As in `nightfold.finaljob.FinalJob.rehearse`.

    Raises
    ------
    UsageError
        If it cannot be built, or not be sealed.
    """
    job.rehearse(beside)
    get_run_logger().info("%s can be built and sealed", job.candidate.name)
