"""Fit a final model ahead, beside the last folds."""

from __future__ import annotations

from prefect import get_run_logger, task

from nightfold.finaljob import FinalJob
from tasks.train import is_transient


@task(
    name="fit",
    task_run_name="{job.label}",
    tags=["finalize"],
    retries=2,
    retry_delay_seconds=[1, 10],
    retry_condition_fn=is_transient,
)
def fit(job: FinalJob) -> None:
    """Leave the checkpoint that `tasks.finalize` continues from."""
    epochs = len(job.fit().history)
    get_run_logger().info("%s fitted on all rows, %d epochs", job.candidate.name, epochs)
