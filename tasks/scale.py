"""Fit the scalers: for each scaling and each fold, on the fold's training rows and nothing else.

The pixels are read once a repeat: a fold's training histogram is that of all rows less that of the
rows it scores, exact because both are counts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from prefect import task
from pydantic import BaseModel, ConfigDict

from nightfold.dataset import Dataset, DatasetHandle
from nightfold.foldplan import FoldPlan, PlanHandle
from nightfold.scaling import Scaler, pixel_histogram
from nightfold.store import write_json


class FittedScalers(BaseModel):
    """All fitted scalers of a run.

    Attributes
    ----------
    folds : dict
        By ``(scaling, repeat, fold)``, written ``"normalize 1 3"``.
    final : dict
        By scaling, fitted on the whole training split, for the final model.
    """

    model_config = ConfigDict(frozen=True)

    folds: dict[str, Scaler]
    final: dict[str, Scaler]

    def of(self, scaling: str, repeat: int, fold: int) -> Scaler:
        """The scaler for one fold, `repeat` and `fold` from 1."""
        return self.folds[f"{scaling} {repeat} {fold}"]


def fit_scalers(dataset: Dataset, plan: FoldPlan, scalings: list[str]) -> FittedScalers:
    """Fit every scaling in `scalings` on every fold's training rows."""
    folds: dict[str, Scaler] = {}
    total: NDArray[np.int64] = np.zeros(256, np.int64)
    for repeat in range(1, plan.repeats + 1):
        scored = [
            pixel_histogram(dataset.train.images, plan.rows(repeat, fold)[1])
            for fold in range(1, plan.folds + 1)
        ]
        total = np.sum(scored, axis=0)
        for fold, held_back in enumerate(scored, start=1):
            for name in scalings:
                folds[f"{name} {repeat} {fold}"] = Scaler.fit(name, total - held_back)
    return FittedScalers(folds=folds, final={name: Scaler.fit(name, total) for name in scalings})


@task(name="scale", task_run_name="scale {handle.name}")
def scale(
    handle: DatasetHandle, plan: PlanHandle, scalings: list[str], run_folder: str
) -> FittedScalers:
    """Fit the scalers of a run and write them to ``scalers.json`` in its folder."""
    fitted = fit_scalers(handle.open(), plan.open(), sorted(set(scalings)))
    write_json(Path(run_folder) / "scalers.json", fitted.model_dump(mode="json"))
    return fitted
