"""Test the fitted candidate once on the hold-out and seal it as a bundle.

Fitting comes first, or finds what `tasks.fit` has left.
"""

from __future__ import annotations

from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prefect import get_run_logger, task
from pydantic import BaseModel, ConfigDict

from nightfold import statistics
from nightfold.bundle import seal
from nightfold.dataset import Dataset
from nightfold.finaljob import FinalJob
from nightfold.manifest import BundleHandle, FoldScores, HoldoutScores, ModelFacts
from nightfold.store import Store
from nightfold.summary import FinalFacts
from tasks.train import is_transient

GOLDEN_IMAGES = 16


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
def finalize(job: FinalJob, fold_accuracies: tuple[float, ...]) -> Finalized:
    """Fit, test and seal the final model of a run.

    Parameters
    ----------
    job : FinalJob
    fold_accuracies : tuple of float
        Cross-validated accuracies of the candidate, in the order of the plan, for the manifest.
    """
    done = fit_and_seal(job, fold_accuracies)
    get_run_logger().info("hold-out accuracy %.3f %%", 100 * done.facts.holdout_accuracy)
    return done


def fit_and_seal(job: FinalJob, fold_accuracies: tuple[float, ...]) -> Finalized:
    """Fit, test and seal the final model of a run.

    Raises
    ------
    UsageError
        If the architecture cannot be built.
    """
    trained = job.fit()
    dataset = job.dataset.open()
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
            cross_validated=FoldScores.of(list(fold_accuracies)),
            holdout=holdout,
            n_train=len(dataset.train),
            architecture_source=job.source,
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
        milliseconds=_milliseconds(trained.model, dataset.test.images[:1]),
    )
    return Finalized(bundle=bundle, facts=facts)


def _milliseconds(model: Any, image: NDArray[np.uint8]) -> float:
    """Median time to answer one image, asked as a bundle is; the first answers only warm up."""
    spent = []
    for _ in range(25):
        start = perf_counter()
        np.asarray(model(image, training=False))
        spent.append(1000 * (perf_counter() - start))
    return median(spent[5:])


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
