"""Rivals: the tutorial's folds and network, so that what is compared is the same work."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from benchmarks import digits
from benchmarks.contestants.protocol import folds, folds_digest
from benchmarks.measure import ROOT
from nightfold.experiment import PlanChoice
from nightfold.foldplan import FoldPlan

no_torch = pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed")


def test_rivals_have_the_folds_of_the_plan(small_mnist):
    plan = FoldPlan.build(PlanChoice(), small_mnist)
    fold_of_row = np.empty(len(small_mnist.train), np.int64)
    for fold, (train, test) in enumerate(folds(len(small_mnist.train))):
        assert np.array_equal(train, plan.rows(1, fold + 1)[0])
        fold_of_row[test] = fold
    assert folds_digest(fold_of_row) == folds_digest(plan.assignment[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", ["sequential", "scikit", pytest.param("pytorch", marks=no_torch)]
)
def test_a_rival_trains_all_folds_and_hands_back_what_it_saw(script, tmp_path):
    data, result = digits.write_archive(tmp_path / "mnist.npz", 1000), tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.contestants.{script}", data, "baseline", "3", result],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(result.read_text())
    assert len(found["accuracies"]) == 5
    # One epoch of so few rows stays below: losing the epochs on the way would show.
    assert np.mean(found["accuracies"]) > 0.8
    fold_of_row = np.empty(1000, np.int64)
    for fold, (_, test) in enumerate(folds(1000)):
        fold_of_row[test] = fold
    assert found["folds"] == folds_digest(fold_of_row)
