"""Fold results: one candidate trained on one fold, from the job to what is kept of it.

A result lives in a folder named by everything that decides its numbers, so a rerun finds what is
there, continues what was interrupted and trains only what is missing. The folder is whole exactly
if its ``result.json`` is there and the probabilities beside it have the digest written in it.
"""

from __future__ import annotations

import io
import json
import os
import platform
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nightfold import __version__, gpu
from nightfold.dataset import DatasetHandle
from nightfold.experiment import Candidate
from nightfold.foldplan import PlanHandle
from nightfold.runlog import RunLog
from nightfold.scaling import Scaler
from nightfold.store import (
    Store,
    atomic_file,
    make_folder,
    sha256_file,
    sha256_json,
    write_json,
)
from nightfold.training import ENGINE, Epoch, checkpoint_of
from nightfold.zoo import fingerprint, require_source

CHECKPOINT = "checkpoint.npz"


class _PutAside(Exception):
    """Ends the training of a fold behind an epoch; its checkpoint is safe."""


class Scores(BaseModel):
    """Figures of one fold; meanings and units as in `nightfold.tables.SCORES`."""

    model_config = ConfigDict(frozen=True)

    seed: int
    n_train: int
    n_test: int
    accuracy: float
    loss: float
    log_loss: float
    brier: float
    ece: float
    macro_f1: float
    epochs: int
    train_seconds: float
    images_per_second: float
    peak_rss_bytes: int
    parameters: int
    started_at: datetime
    finished_at: datetime
    host: str
    code_version: str
    tensorflow_version: str
    keras_version: str


class FoldHandle(BaseModel):
    """What the train task passes on: where the result is, and its headline."""

    model_config = ConfigDict(frozen=True)

    path: str
    digest: str
    candidate: str
    candidate_digest: str
    repeat: int
    fold: int
    accuracy: float
    train_seconds: float

    def open(self) -> FoldResult:
        """The result behind the handle.

        Raises
        ------
        FileNotFoundError
            If it is gone or altered.
        """
        result = FoldResult.read(Path(self.path))
        if result is None:
            raise FileNotFoundError(f"the fold result {self.path} is gone or altered")
        return result


class FoldResult(BaseModel):
    """Scores, history and digest of the out-of-fold probabilities."""

    model_config = ConfigDict(frozen=True)

    key: str
    scores: Scores
    history: tuple[Epoch, ...]
    probabilities_sha256: str

    @classmethod
    def read(cls, folder: Path) -> FoldResult | None:
        """The result in `folder`, or None unless it is whole."""
        try:
            result = cls.model_validate_json((folder / "result.json").read_bytes())
            found = sha256_file(folder / "probabilities.npy")
        except (OSError, ValidationError):
            return None
        return result if found == result.probabilities_sha256 else None


def source_of(job: dict[str, Any]) -> str:
    """Digest of the source of the architecture of a job that is being made."""
    return fingerprint(job["candidate"].architecture)


class FoldJob(BaseModel):
    """One fold to train: everything that decides its numbers, in handles.

    Attributes
    ----------
    scaler : Scaler
        Fitted on the fold's training rows.
    repeat, fold : int
        From 1.
    source : str
        Digest of the source of its architecture when the job was made; no other is trained.
    seed : int
        The experiment's; every fold derives its own from it, equal for all candidates so that
        they are compared on equal terms.
    log : RunLog, optional
        Of the run that trains it; decides nothing.
    """

    model_config = ConfigDict(frozen=True)

    candidate: Candidate
    dataset: DatasetHandle
    plan: PlanHandle
    scaler: Scaler
    repeat: int
    fold: int
    seed: int
    artifacts: str
    source: str = Field(default_factory=source_of)
    log: RunLog | None = None

    @property
    def fold_seed(self) -> int:
        """Seed of this fold, 0 to 2**31 - 1."""
        state = np.random.SeedSequence([self.seed, self.repeat, self.fold])
        return int(state.generate_state(1)[0] >> 1)

    @cached_property
    def key(self) -> str:
        """sha256 of everything that decides the numbers, versions included."""
        return fold_key(
            self.candidate,
            self.dataset.digest,
            self.plan,
            self.repeat,
            self.fold,
            self.seed,
            {"architecture_source": self.source, **code_versions()},
        )

    @property
    def folder(self) -> Path:
        """Where checkpoint, progress and result are."""
        return folder_of(Store(self.artifacts), self.key)

    @property
    def place(self) -> int:
        """Position of the fold in the plan, from 1, over all repeats."""
        return (self.repeat - 1) * self.plan.folds + self.fold

    @property
    def label(self) -> str:
        """``deep repeat 1 fold 3``."""
        return f"{self.candidate.name} repeat {self.repeat} fold {self.fold}"

    def done(self) -> FoldHandle | None:
        """Handle of the finished result, or None.

        A checkpoint beside it is of no more use and goes; a process that was killed when it had
        just written the result has left one.
        """
        result = FoldResult.read(self.folder)
        if result is None or result.key != self.key:
            return None
        for network in range(self.candidate.ensemble):
            checkpoint_of(self.folder / CHECKPOINT, network).unlink(missing_ok=True)
        return FoldHandle(
            path=str(self.folder),
            digest=sha256_file(self.folder / "result.json"),
            candidate=self.candidate.name,
            candidate_digest=self.candidate.digest,
            repeat=self.repeat,
            fold=self.fold,
            accuracy=result.scores.accuracy,
            train_seconds=result.scores.train_seconds,
        )

    def run(self, on_note: Callable[[str], None] | None = None) -> FoldHandle:
        """Train and score the fold, or continue, or find it done.

        Parameters
        ----------
        on_note : callable, optional
            As in `nightfold.training.train`; what it is called with is in the run's log as well.

        Returns
        -------
        FoldHandle
            Of a result that is completely written.
        """
        if (handle := self.done()) is not None:
            self._tell("fold was there already", accuracy=handle.accuracy)
            return handle
        return self._train_and_tell(on_note, self._tell_progress)

    def begin(self, epochs: int, on_note: Callable[[str], None] | None = None) -> None:
        """Train the fold up to an epoch and put it aside; `run` continues behind its checkpoint.

        Its numbers are those of a fold trained in one go. One that ends sooner is finished.

        Parameters
        ----------
        epochs : int
        on_note : callable, optional
            As in `run`.
        """

        def tell(epoch: Epoch) -> None:
            self._tell_progress(epoch)
            if epoch.epoch >= epochs:
                raise _PutAside

        if self.done() is None:
            with suppress(_PutAside):
                self._train_and_tell(on_note, tell)

    def _train_and_tell(
        self, on_note: Callable[[str], None] | None, on_epoch: Callable[[Epoch], None]
    ) -> FoldHandle:
        """Train, and tell the run's log how that begins and ends."""
        self._tell("fold started")
        try:
            handle = self._train(on_note, on_epoch)
        except _PutAside:
            self._tell("fold put aside")
            raise
        except Exception as error:
            self._tell("fold failed", level="ERROR", error=f"{type(error).__name__}: {error}")
            raise
        self._tell("fold finished", accuracy=handle.accuracy, train_seconds=handle.train_seconds)
        return handle

    def _train(
        self, on_note: Callable[[str], None] | None, on_epoch: Callable[[Epoch], None]
    ) -> FoldHandle:
        from nightfold.training import train

        def note(sentence: str) -> None:
            self._tell(sentence, level="WARNING")
            if on_note is not None:
                on_note(sentence)

        started_at = datetime.now(UTC)
        require_source(self.candidate.architecture, self.source)
        dataset = self.dataset.open()
        plan = self.plan.open()
        plan.check(dataset)
        train_rows, scored_rows = plan.rows(self.repeat, self.fold)
        make_folder(self.folder)
        trained = train(
            self.candidate,
            dataset,
            train_rows,
            scored_rows,
            scaler=self.scaler,
            seed=self.fold_seed,
            checkpoint=self.folder / CHECKPOINT,
            on_epoch=on_epoch,
            on_note=note,
        )
        labels = dataset.train.labels[scored_rows]
        scores = _score(
            labels,
            trained.probabilities,
            loss=trained.loss or 0.0,
            history=trained.history,
            parameters=sum(int(np.prod(v.shape)) for v in trained.model.trainable_variables),
            n_train=len(train_rows),
            networks=self.candidate.ensemble,
            seed=self.fold_seed,
            started_at=started_at,
        )
        self._write(scores, trained.history, trained.probabilities)
        handle = self.done()
        assert handle is not None
        return handle

    def progress(self) -> Epoch | None:
        """The last finished epoch of a fold in flight or done, or None before the first."""
        try:
            return Epoch.model_validate_json((self.folder / "progress.json").read_bytes())
        except (OSError, ValidationError):
            return None

    def _tell_progress(self, epoch: Epoch) -> None:
        write_json(self.folder / "progress.json", epoch.model_dump(mode="json"))
        self._tell("epoch finished", **epoch.model_dump(mode="json"))

    def _tell(self, message: str, level: str = "INFO", **figures: Any) -> None:
        if self.log is None:
            return
        self.log.write(
            message,
            level=level,
            task=f"train {self.label}",
            candidate=self.candidate.name,
            repeat=self.repeat,
            fold=self.fold,
            **figures,
        )

    def _write(
        self, scores: Scores, history: list[Epoch], probabilities: NDArray[np.float32]
    ) -> None:
        """Probabilities first, the result that names their digest last."""
        buffer = io.BytesIO()
        np.save(buffer, probabilities, allow_pickle=False)
        with atomic_file(self.folder / "probabilities.npy") as part:
            part.write_bytes(buffer.getvalue())
        result = FoldResult(
            key=self.key,
            scores=scores,
            history=tuple(history),
            probabilities_sha256=sha256_file(self.folder / "probabilities.npy"),
        )
        write_json(self.folder / "result.json", json.loads(result.model_dump_json()))


class FirstEpochs(BaseModel):
    """The first epochs of a fold, for a worker that has no time for all of them.

    Attributes
    ----------
    job : FoldJob
        Whose rest is trained later, maybe by another worker.
    epochs : int
        Fewer than the fold has.
    """

    model_config = ConfigDict(frozen=True)

    job: FoldJob
    epochs: int

    @property
    def label(self) -> str:
        """``deep repeat 1 fold 3 to epoch 5``."""
        return f"{self.job.label} to epoch {self.epochs}"

    @property
    def share(self) -> float:
        """Of the fold's epochs, 0 to 1."""
        return self.epochs / self.job.candidate.total_epochs


def code_versions() -> dict[str, str | int]:
    """Versions of all code that decides numbers, as they are part of every key.

    So is the GPU, if folds train on one: it rounds otherwise than a processor or another GPU.
    """
    versions: dict[str, str | int] = {
        "engine": ENGINE,
        "code": __version__,
        "tensorflow": version("tensorflow"),
        "keras": version("keras"),
    }
    return versions if gpu.name() is None else {**versions, "gpu": str(gpu.name())}


def code_behind(candidate: Candidate) -> dict[str, str | int]:
    """Those versions, and the digest of the source of its architecture."""
    return {"architecture_source": fingerprint(candidate.architecture), **code_versions()}


def fold_key(
    candidate: Candidate,
    dataset_digest: str,
    plan: PlanHandle,
    repeat: int,
    fold: int,
    seed: int,
    code: dict[str, str | int],
) -> str:
    """Key of one fold's result under `code`, which need not be that of today."""
    place: dict[str, str | int] = {
        "plan": plan.repeat_digests[repeat - 1],
        "repeat": repeat,
        "fold": fold,
        "seed": seed,
    }
    return result_key(candidate, dataset_digest, place, code)


def folder_of(store: Store, key: str) -> Path:
    """Folder of the fold result called `key`."""
    return store.folds / key[:32]


def result_key(
    candidate: Candidate,
    dataset_digest: str,
    rest: dict[str, str | int],
    code: dict[str, str | int],
) -> str:
    """sha256 of everything that decides what training gives."""
    return sha256_json(
        {
            "candidate": candidate.digest,
            "dataset": dataset_digest,
            **rest,
            **code,
        }
    )


def read_probabilities(handle: FoldHandle) -> NDArray[np.float32]:
    """Out-of-fold probabilities, shape (n_scored, n_classes), in ascending order of rows."""
    array: NDArray[np.float32] = np.load(
        Path(handle.path) / "probabilities.npy", mmap_mode="r", allow_pickle=False
    )
    return array


def _score(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    *,
    loss: float,
    history: list[Epoch],
    parameters: int,
    n_train: int,
    networks: int,
    seed: int,
    started_at: datetime,
) -> Scores:
    from nightfold import statistics

    seconds = sum(epoch.seconds for epoch in history)
    return Scores(
        seed=seed,
        n_train=n_train,
        n_test=len(labels),
        accuracy=float((probabilities.argmax(axis=1) == labels).mean()),
        loss=loss,
        log_loss=statistics.log_loss(labels, probabilities),
        brier=statistics.brier(labels, probabilities),
        ece=statistics.expected_calibration_error(labels, probabilities),
        macro_f1=statistics.macro_f1(labels, probabilities.argmax(axis=1)),
        epochs=len(history),
        train_seconds=seconds,
        images_per_second=n_train * len(history) * networks / seconds,
        peak_rss_bytes=_peak_rss_bytes(),
        parameters=parameters,
        started_at=started_at,
        finished_at=datetime.now(UTC),
        host=platform.node() or os.uname().sysname,
        code_version=__version__,
        tensorflow_version=version("tensorflow"),
        keras_version=version("keras"),
    )


def _peak_rss_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
