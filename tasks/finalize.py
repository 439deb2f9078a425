"""Fit the chosen candidate on all training rows, test it once on the hold-out, seal the bundle."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prefect import get_run_logger, task
from pydantic import BaseModel, ConfigDict

from nightfold import statistics
from nightfold.bundle import BundleHandle, FoldScores, HoldoutScores, ModelFacts, seal
from nightfold.dataset import Dataset, DatasetHandle
from nightfold.experiment import Candidate
from nightfold.foldplan import PlanHandle
from nightfold.foldresult import result_key
from nightfold.scaling import Scaler
from nightfold.store import Store, write_json
from nightfold.summary import FinalFacts
from tasks.train import is_transient

GOLDEN_IMAGES = 16


class FinalJob(BaseModel):
    """Everything that decides the final model, in handles."""

    model_config = ConfigDict(frozen=True)

    candidate: Candidate
    dataset: DatasetHandle
    plan: PlanHandle
    scaler: Scaler
    seed: int
    fold_accuracies: tuple[float, ...]
    run_id: str
    artifacts: str
    h5: bool = False

    @cached_property
    def folder(self) -> Path:
        """Where the checkpoint is while the model is fitted."""
        key = result_key(self.candidate, self.dataset.digest, {"final": True, "seed": self.seed})
        return Store(self.artifacts).folds / f"final-{key[:32]}"


class Finalized(BaseModel):
    """The sealed bundle and what the report says of it."""

    model_config = ConfigDict(frozen=True)

    bundle: BundleHandle
    facts: FinalFacts


@task(
    name="finalize",
    task_run_name="finalize {job.candidate.name}",
    tags=["finalize"],
    retries=2,
    retry_delay_seconds=[1, 10],
    retry_condition_fn=is_transient,
)
def finalize(job: FinalJob) -> Finalized:
    """Fit, test and seal the final model of a run."""
    done = fit_and_seal(job)
    get_run_logger().info("hold-out accuracy %.3f %%", 100 * done.facts.holdout_accuracy)
    return done


def fit_and_seal(job: FinalJob) -> Finalized:
    """Fit, test and seal the final model of a run.

    Raises
    ------
    UsageError
        If the architecture cannot be built.
    """
    from nightfold.training import train

    dataset = job.dataset.open()
    rows = np.arange(len(dataset.train))
    # It stays when the model is sealed: a night in which nothing changed need not fit it again.
    checkpoint = job.folder / "checkpoint.npz"
    job.folder.mkdir(parents=True, exist_ok=True)
    trained = train(
        job.candidate,
        dataset,
        rows,
        rows[:0],
        scaler=job.scaler,
        seed=job.seed,
        checkpoint=checkpoint,
        on_epoch=lambda epoch: write_json(
            job.folder / "progress.json", epoch.model_dump(mode="json")
        ),
    )
    holdout = _test(trained.model, dataset)
    bundle = seal(
        trained.model,
        Store(job.artifacts).models,
        ModelFacts(
            version=job.run_id,
            run_id=job.run_id,
            dataset=dataset.name,
            dataset_digest=dataset.digest,
            plan_digest=job.plan.digest,
            class_names=dataset.class_names,
            scaling=job.scaler.model_dump(mode="json"),
            candidate=job.candidate.model_dump(mode="json"),
            candidate_digest=job.candidate.digest,
            cross_validated=FoldScores.of(list(job.fold_accuracies)),
            holdout=holdout,
        ),
        np.asarray(dataset.test.images[:GOLDEN_IMAGES]),
        h5=job.h5,
    )
    facts = FinalFacts(
        candidate=job.candidate.name,
        version=bundle.version,
        path=bundle.path,
        holdout_rows=holdout.rows,
        holdout_accuracy=holdout.accuracy,
        holdout_log_loss=holdout.log_loss,
        train_seconds=sum(epoch.seconds for epoch in trained.history),
    )
    return Finalized(bundle=bundle, facts=facts)


def _test(model: Any, dataset: Dataset) -> HoldoutScores:
    """Scores of the final model on the rows that nothing before has looked at."""
    labels: NDArray[np.int64] = np.asarray(dataset.test.labels)
    images = dataset.test.images
    parts = [
        np.asarray(model(images[start : start + 1000], training=False))
        for start in range(0, len(labels), 1000)
    ]
    probabilities = np.concatenate(parts)
    return HoldoutScores(
        rows=len(labels),
        accuracy=float((probabilities.argmax(axis=1) == labels).mean()),
        log_loss=statistics.log_loss(labels, probabilities),
        brier=statistics.brier(labels, probabilities),
        ece=statistics.expected_calibration_error(labels, probabilities),
    )
