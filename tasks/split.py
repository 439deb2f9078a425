"""Split: decide which fold scores which row, before anything is trained.

The assignment itself is made by `nightfold.foldplan`; this task saves it where all runs share it.
"""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from nightfold.dataset import DatasetHandle
from nightfold.experiment import PlanChoice
from nightfold.foldplan import FoldPlan, PlanHandle
from nightfold.store import Store


@task(name="split", task_run_name="split {handle.name}", cache_policy=NO_CACHE)
def split(handle: DatasetHandle, choice: PlanChoice, artifacts: str) -> PlanHandle:
    """Build the fold plan of a data set and save it under `artifacts`.

    The same data set and choice give the same file, so a run that starts anew finds its plan.

    Parameters
    ----------
    handle : DatasetHandle
        Validated data.
    choice : PlanChoice
    artifacts : str
        Root of the store.

    Returns
    -------
    PlanHandle

    Raises
    ------
    UsageError
        If there are too few rows for the folds.
    DataRefused
        If the snapshot is another one, or a label is missing under ``stratified``.
    """
    plan = FoldPlan.build(choice, handle.open())
    return plan.handle(plan.save(Store(artifacts).plans))
