"""Final job: the chosen candidate to be fitted on all training rows, in handles.

The fitted model is its checkpoint, found again by everything that decides its numbers; testing and
sealing it are the business of `tasks.finalize`.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict

from nightfold.dataset import DatasetHandle
from nightfold.experiment import Candidate
from nightfold.foldplan import PlanHandle
from nightfold.foldresult import result_key
from nightfold.runlog import RunLog
from nightfold.scaling import Scaler
from nightfold.store import Store, make_folder, write_json

if TYPE_CHECKING:
    from nightfold.training import Epoch, Trained


class FinalJob(BaseModel):
    """Everything that decides the final model.

    Attributes
    ----------
    scaler : Scaler
        Fitted on all training rows.
    h5 : bool
        Also seal the model in Keras's older format.
    log : RunLog, optional
        Of the run; decides nothing.
    """

    model_config = ConfigDict(frozen=True)

    candidate: Candidate
    dataset: DatasetHandle
    plan: PlanHandle
    scaler: Scaler
    seed: int
    run_id: str
    artifacts: str
    h5: bool = False
    log: RunLog | None = None

    @cached_property
    def folder(self) -> Path:
        """Where the checkpoint is."""
        key = result_key(self.candidate, self.dataset.digest, {"final": True, "seed": self.seed})
        return Store(self.artifacts).folds / f"final-{key[:32]}"

    def fit(self) -> Trained:
        """Fit on all training rows, or continue, or find it done.

        The checkpoint stays: a night in which nothing changed need not fit the model again.

        Raises
        ------
        UsageError
            If the architecture cannot be built.
        """
        from nightfold.training import train

        dataset = self.dataset.open()
        rows = np.arange(len(dataset.train))
        make_folder(self.folder)
        # The run's reference to the checkpoint: what no kept run refers to may be pruned.
        note = Store(self.artifacts).run(self.run_id) / "final.json"
        write_json(note, {"folder": str(self.folder)})
        return train(
            self.candidate,
            dataset,
            rows,
            rows[:0],
            scaler=self.scaler,
            seed=self.seed,
            checkpoint=self.folder / "checkpoint.npz",
            on_epoch=self._tell_progress,
        )

    def _tell_progress(self, epoch: Epoch) -> None:
        figures = epoch.model_dump(mode="json")
        write_json(self.folder / "progress.json", figures)
        if self.log is not None:
            task = f"fit {self.candidate.name} on all rows"
            self.log.write("epoch finished", task=task, candidate=self.candidate.name, **figures)
