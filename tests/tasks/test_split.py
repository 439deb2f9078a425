from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from nightfold.dataset import Dataset, DatasetHandle, Split
from nightfold.errors import DataRefused, UsageError
from nightfold.experiment import PlanChoice
from nightfold.store import Store
from tasks.split import split


@pytest.fixture
def handle(tmp_path: Path) -> DatasetHandle:
    digits = load_digits()
    images = digits.images.astype(np.uint8)[..., None]
    return Dataset.write(
        Store(tmp_path).datasets,
        name="digits",
        origin="digits",
        class_names=tuple("0123456789"),
        train=Split(images[:300], digits.target[:300]),
        test=Split(images[300:400], digits.target[300:400]),
    ).handle


def test_the_plan_lies_in_the_store_and_belongs_to_the_data(
    handle: DatasetHandle, tmp_path: Path
) -> None:
    found = split.fn(handle, PlanChoice(folds=3, repeats=2), str(tmp_path))
    assert Path(found.path).parent == Store(tmp_path).plans
    assert (found.folds, found.repeats, found.n_rows) == (3, 2, 300)
    plan = found.open()
    plan.check(handle.open())
    assert plan.digest == found.digest


def test_splitting_again_gives_the_same_file(handle: DatasetHandle, tmp_path: Path) -> None:
    first = split.fn(handle, PlanChoice(), str(tmp_path))
    assert split.fn(handle, PlanChoice(), str(tmp_path)) == first
    assert len(list(Store(tmp_path).plans.iterdir())) == 1


def test_a_refused_plan_leaves_nothing_behind(handle: DatasetHandle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="too few for 301 folds"):
        split.fn(handle, PlanChoice(folds=301), str(tmp_path))
    assert not Store(tmp_path).plans.exists()


def test_a_snapshot_that_is_gone_is_refused(handle: DatasetHandle, tmp_path: Path) -> None:
    gone = handle.model_copy(update={"path": str(tmp_path / "gone")})
    with pytest.raises(DataRefused, match="cannot be read"):
        split.fn(gone, PlanChoice(), str(tmp_path))
