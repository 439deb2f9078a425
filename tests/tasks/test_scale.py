"""Scalers are fitted on each fold's training rows and nothing else."""

from dataclasses import replace

import numpy as np
import pytest

from nightfold.dataset import Split
from nightfold.experiment import PlanChoice
from nightfold.foldplan import FoldPlan
from nightfold.scaling import SCALERS
from tasks.scale import fit_scalers


@pytest.fixture
def plan(small_mnist):
    return FoldPlan.build(PlanChoice(folds=3, repeats=2), small_mnist)


def test_scaler_never_sees_the_test_fold(small_mnist, plan):
    """Poison the rows one fold scores: that fold's scalers must not move, the others must."""
    _, scored = plan.rows(1, 2)
    images = np.array(small_mnist.train.images)
    images[scored] = 255 - images[scored]
    poisoned = replace(small_mnist, train=Split(images, small_mnist.train.labels))

    before = fit_scalers(small_mnist, plan, ["standardize"])
    after = fit_scalers(poisoned, plan, ["standardize"])

    assert after.of("standardize", 1, 2) == before.of("standardize", 1, 2)
    assert after.of("standardize", 1, 1) != before.of("standardize", 1, 1)
    assert after.final["standardize"] != before.final["standardize"]


def test_mean_and_deviation_are_numpys_over_the_training_rows(small_mnist, plan):
    rows, _ = plan.rows(2, 3)
    pixels = small_mnist.train.images[rows].astype("float64")
    scaler = fit_scalers(small_mnist, plan, ["standardize"]).of("standardize", 2, 3)
    assert scaler.scale == pytest.approx(1 / pixels.std())
    assert scaler.offset == pytest.approx(-pixels.mean() / pixels.std())


def test_every_scaling_has_a_scaler_for_every_fold_and_for_the_final_model(small_mnist, plan):
    fitted = fit_scalers(small_mnist, plan, sorted(SCALERS))
    assert len(fitted.folds) == len(SCALERS) * 2 * 3
    assert set(fitted.final) == set(SCALERS)
