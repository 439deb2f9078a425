"""Final job: the chosen candidate to be fitted on all training rows, in handles.

The fitted model is its checkpoint, found again by everything that decides its numbers; testing and
sealing it are the business of `tasks.finalize`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from nightfold.dataset import DatasetHandle
from nightfold.errors import BundleRefused, UsageError
from nightfold.experiment import Candidate
from nightfold.foldplan import PlanHandle
from nightfold.foldresult import CHECKPOINT, FoldHandle, code_versions, result_key, source_of
from nightfold.racing import Race
from nightfold.runlog import RunLog
from nightfold.scaling import Scaler
from nightfold.store import Store, make_folder, write_json
from nightfold.zoo import find, require_source

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
    source: str = Field(default_factory=source_of)
    h5: bool = False
    log: RunLog | None = None

    @property
    def label(self) -> str:
        """``fit swift on all rows``."""
        return f"fit {self.candidate.name} on all rows"

    @cached_property
    def folder(self) -> Path:
        """Where the checkpoint is."""
        key = result_key(
            self.candidate,
            self.dataset.digest,
            {"final": True, "seed": self.seed},
            {"architecture_source": self.source, **code_versions()},
        )
        return Store(self.artifacts).folds / f"final-{key[:32]}"

    def rehearse(self, beside: Sequence[str] = ()) -> None:
        """Build, save and load the network untrained: no night is spent on what cannot be sealed.

        Parameters
        ----------
        beside : sequence of str
            Architectures of the same night that are the user's own; they must go together.

        Raises
        ------
        UsageError
            If it cannot be built, or not be sealed, or if architectures exclude each other.
        """
        from nightfold import backend
        from nightfold.bundle import rehearse
        from nightfold.model import build_model

        backend.start()
        require_source(self.candidate.architecture, self.source)
        for architecture in beside:
            find(architecture)
        dataset = self.dataset.open()
        model = build_model(self.candidate, self.scaler, dataset, self.seed)
        try:
            rehearse(model, np.asarray(dataset.train.images[:2]), h5=self.h5)
        except BundleRefused as refused:
            raise UsageError(
                f"The architecture {self.candidate.architecture!r} could not be published after "
                f"its training: {refused}"
            ) from refused

    def fit(self) -> Trained:
        """Fit on all training rows, or continue, or find it done.

        The checkpoint stays: a night in which nothing changed need not fit the model again.

        Raises
        ------
        UsageError
            If the architecture cannot be built.
        """
        from nightfold.training import train

        require_source(self.candidate.architecture, self.source)
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
            checkpoint=self.folder / CHECKPOINT,
            on_epoch=self._tell_progress,
        )

    def _tell_progress(self, epoch: Epoch) -> None:
        figures = epoch.model_dump(mode="json")
        write_json(self.folder / "progress.json", figures)
        if self.log is not None:
            self.log.write(
                "epoch finished", task=self.label, candidate=self.candidate.name, **figures
            )


@dataclass(frozen=True)
class Ahead:
    """The final fit, as one more job for workers that the last folds leave idle.

    A fold that is still missing, or a repeat that is added later, may choose another candidate;
    then that one is fitted too, and the first fit was made for nothing.

    Attributes
    ----------
    race : Race
        In its last round.
    job_of : callable
        The final job of a candidate, by its name.
    begun : set of str
        Candidates whose fit was begun, in this repeat or an earlier one.
    """

    race: Race
    job_of: Callable[[str], FinalJob]
    begun: set[str]

    def next(self, folds: Iterable[FoldHandle]) -> tuple[FinalJob, bool] | None:
        """The fit of whoever leads after these folds, and whether it is certain who will.

        None if nobody does yet or if that fit was begun.
        """
        scores: dict[str, dict[tuple[int, int], float]] = {name: {} for name in self.race.running}
        for fold in folds:
            if fold.candidate in scores:
                scores[fold.candidate][fold.repeat, fold.fold] = fold.accuracy
        winner = self.race.winner({name: [*of.values()] for name, of in scores.items()})
        name = winner or self.race.leader(scores)
        if name is None or name in self.begun:
            return None
        return self.job_of(name), winner is not None
