"""Begin a fold whose rest is trained later, for the workers to end together."""

from __future__ import annotations

from prefect import get_run_logger, task

from nightfold.foldresult import FirstEpochs
from tasks.train import is_transient


@task(
    name="begin",
    task_run_name="begin {job.label}",
    tags=["train"],
    retries=2,
    retry_delay_seconds=[1, 10],
    retry_condition_fn=is_transient,
)
def begin(job: FirstEpochs) -> None:
    """Leave the checkpoint that `tasks.train` continues from."""
    job.job.begin(job.epochs, get_run_logger().warning)
