"""Fit the final model ahead, beside the folds, once they leave no choice between candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prefect import get_run_logger, task
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner

from nightfold.finaljob import FinalJob
from nightfold.foldresult import FoldHandle
from nightfold.racing import Race
from tasks.train import is_transient


@task(
    name="fit",
    task_run_name="fit {job.candidate.name} on all rows",
    tags=["finalize"],
    retries=2,
    retry_delay_seconds=[1, 10],
    retry_condition_fn=is_transient,
)
def fit(job: FinalJob) -> None:
    """Leave the checkpoint that `tasks.finalize` continues from."""
    epochs = len(job.fit().history)
    get_run_logger().info("%s fitted on all rows, %d epochs", job.candidate.name, epochs)


class Ahead:
    """Begins the fit of the final model as soon as it is certain who will be the best.

    Work that waits for no fold then fills the cores that the last folds leave idle. A repeat of the
    folds that is added later may choose another; then a fit was made for nothing.

    Parameters
    ----------
    runner : TaskRunner
        The one that trains the folds.
    job_of : callable
        The final job of a candidate, by its name.
    """

    def __init__(self, runner: TaskRunner[Any], job_of: Callable[[str], FinalJob]) -> None:
        self._runner, self._job_of = runner, job_of
        self._begun: dict[str, PrefectFuture[None]] = {}

    def look(self, standing: Race, folds: Sequence[FoldHandle]) -> None:
        """Begin the fit if the folds so far leave no choice."""
        scores: dict[str, list[float]] = {name: [] for name in standing.running}
        for fold in folds:
            if fold.candidate in scores:
                scores[fold.candidate].append(fold.accuracy)
        winner = standing.winner(scores)
        if winner is not None and winner not in self._begun:
            self._begun[winner] = self._runner.submit(fit, {"job": self._job_of(winner)})

    def wait(self) -> None:
        """Wait for what was begun.

        Raises
        ------
        Exception
            Whatever a failed fit raised.
        """
        for future in self._begun.values():
            future.result()
