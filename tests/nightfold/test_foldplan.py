import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import KFold, StratifiedKFold

from nightfold.dataset import Dataset, Split
from nightfold.errors import DataRefused, UsageError
from nightfold.experiment import PlanChoice
from nightfold.foldplan import FoldPlan
from nightfold.tables import FOLDPLAN


def snapshot(folder: Path, rows: np.ndarray, labels: np.ndarray | None = None) -> Dataset:
    digits = load_digits()
    images = digits.images.astype(np.uint8)[..., None]
    return Dataset.write(
        folder,
        name="digits",
        origin="digits",
        class_names=tuple("0123456789"),
        train=Split(images[rows], digits.target[rows] if labels is None else labels),
        test=Split(images[:0], digits.target[:0]),
    )


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return snapshot(tmp_path_factory.mktemp("datasets"), np.arange(500))


def test_kfold_is_the_one_of_scikit_learn_in_the_same_order(digits: Dataset) -> None:
    plan = FoldPlan.build(PlanChoice(folds=5, seed=1), digits)
    reference = KFold(5, shuffle=True, random_state=1).split(np.zeros(500))
    for fold, (train, test) in enumerate(reference, start=1):
        train_rows, test_rows = plan.rows(1, fold)
        np.testing.assert_array_equal(train_rows, train)
        np.testing.assert_array_equal(test_rows, test)
        assert train_rows.dtype == test_rows.dtype == np.int64


def test_repeat_r_of_stratified_uses_seed_plus_r_minus_one(digits: Dataset) -> None:
    choice = PlanChoice(scheme="stratified", folds=4, repeats=3, seed=7)
    plan = FoldPlan.build(choice, digits)
    for repeat in (1, 2, 3):
        splitter = StratifiedKFold(4, shuffle=True, random_state=7 + repeat - 1)
        reference = splitter.split(np.zeros(500), digits.train.labels)
        for fold, (train, test) in enumerate(reference, start=1):
            np.testing.assert_array_equal(plan.rows(repeat, fold)[0], train)
            np.testing.assert_array_equal(plan.rows(repeat, fold)[1], test)


def test_rows_are_counted_from_one(digits: Dataset) -> None:
    plan = FoldPlan.build(PlanChoice(folds=5, repeats=2), digits)
    for repeat, fold in ((0, 1), (1, 0), (3, 1), (1, 6)):
        with pytest.raises(ValueError, match="no repeat"):
            plan.rows(repeat, fold)


def test_exact_duplicates_share_a_fold(tmp_path: Path) -> None:
    rows = np.random.default_rng(3).permutation(np.r_[np.arange(60), np.arange(20), np.arange(20)])
    dataset = snapshot(tmp_path, rows)
    for scheme in ("kfold", "stratified"):
        choice = PlanChoice(scheme=scheme, folds=3, repeats=2, duplicates="together")
        plan = FoldPlan.build(choice, dataset)
        for assignment in plan.assignment:
            for original in range(20):
                assert len(set(assignment[rows == original])) == 1
    anywhere = FoldPlan.build(PlanChoice(folds=3), dataset).assignment[0]
    assert any(len(set(anywhere[rows == original])) > 1 for original in range(20))


def test_without_duplicates_together_changes_nothing(digits: Dataset) -> None:
    anywhere = FoldPlan.build(PlanChoice(), digits)
    together = FoldPlan.build(PlanChoice(duplicates="together"), digits)
    assert anywhere.digest == together.digest


def test_digest_depends_on_assignment_and_data_set(digits: Dataset, tmp_path: Path) -> None:
    other = snapshot(tmp_path, np.arange(500, 1000))
    digests = {
        FoldPlan.build(choice, dataset).digest
        for choice in (PlanChoice(seed=1), PlanChoice(seed=2), PlanChoice(repeats=2))
        for dataset in (digits, other)
    }
    assert len(digests) == 6
    again = FoldPlan.build(PlanChoice(seed=1), digits)
    assert again.digest in digests


def test_a_saved_plan_opens_as_it_was(digits: Dataset, tmp_path: Path) -> None:
    choice = PlanChoice(scheme="stratified", folds=3, repeats=2, seed=9, duplicates="together")
    plan = FoldPlan.build(choice, digits)
    path = plan.save(tmp_path)
    written = path.stat().st_mtime_ns
    assert plan.save(tmp_path) == path == tmp_path / f"{plan.digest[:16]}.parquet"
    assert path.stat().st_mtime_ns == written
    opened = plan.handle(path).open()
    np.testing.assert_array_equal(opened.assignment, plan.assignment)
    for field in ("scheme", "folds", "repeats", "seed", "duplicates", "dataset_digest", "digest"):
        assert getattr(opened, field) == getattr(plan, field)
    assert pq.read_schema(path).equals(FOLDPLAN)


def rewritten(path: Path, column: str, values: list[int]) -> Path:
    table = pq.read_table(path)
    position = table.schema.get_field_index(column)
    field = table.schema.field(column)
    pq.write_table(table.set_column(position, field, pa.array(values, field.type)), path)
    return path


def test_an_altered_plan_is_refused(digits: Dataset, tmp_path: Path) -> None:
    plan = FoldPlan.build(PlanChoice(folds=2), digits)
    folds = (plan.assignment.ravel() + 1).tolist()

    path = plan.save(tmp_path / "swapped")
    swapped = [3 - fold for fold in folds]
    with pytest.raises(DataRefused, match="does not match its digest"):
        FoldPlan.open(rewritten(path, "fold", swapped))

    path = plan.save(tmp_path / "twice")
    with pytest.raises(DataRefused, match="not every row appears once"):
        FoldPlan.open(rewritten(path, "row", [0, 0, *range(2, 500)]))

    path = plan.save(tmp_path / "empty")
    with pytest.raises(DataRefused, match="2 folds has rows"):
        FoldPlan.open(rewritten(path, "fold", [1] * 500))


def test_what_is_not_a_plan_is_refused_in_one_sentence(tmp_path: Path) -> None:
    text = tmp_path / "text.parquet"
    text.write_text("no Parquet")
    foreign = tmp_path / "foreign.parquet"
    pq.write_table(pa.table({"x": [1]}), foreign)
    for path in (text, foreign, tmp_path / "missing.parquet"):
        with pytest.raises(DataRefused, match="cannot be used") as refused:
            FoldPlan.open(path)
        assert "\n" not in str(refused.value)


def test_a_handle_does_not_open_another_plan(digits: Dataset, tmp_path: Path) -> None:
    one, two = (FoldPlan.build(PlanChoice(seed=seed), digits) for seed in (1, 2))
    with pytest.raises(DataRefused, match="not the one of this run"):
        one.handle(two.save(tmp_path)).open()


def test_a_plan_belongs_to_one_data_set(digits: Dataset, tmp_path: Path) -> None:
    plan = FoldPlan.build(PlanChoice(), digits)
    plan.check(digits)
    other = snapshot(tmp_path, np.arange(500, 1000))
    with pytest.raises(DataRefused) as refused:
        plan.check(other)
    assert digits.digest[:12] in str(refused.value)
    assert other.digest[:12] in str(refused.value)


def test_too_few_rows_are_refused(tmp_path: Path) -> None:
    few = snapshot(tmp_path, np.arange(4))
    with pytest.raises(UsageError, match="has 4 rows, too few for 5 folds"):
        FoldPlan.build(PlanChoice(folds=5), few)
    copies = snapshot(tmp_path, np.zeros(9, int))
    with pytest.raises(UsageError, match="has 1 distinct images, too few"):
        FoldPlan.build(PlanChoice(folds=2, duplicates="together"), copies)


def test_a_rare_class_cannot_be_stratified(tmp_path: Path) -> None:
    target = load_digits().target
    rows = np.r_[np.flatnonzero(target != 8)[:200], np.flatnonzero(target == 8)[:3]]
    dataset = snapshot(tmp_path, rows)
    with pytest.raises(UsageError, match="Class '8' of digits has 3 training rows"):
        FoldPlan.build(PlanChoice(scheme="stratified", folds=5), dataset)
    FoldPlan.build(PlanChoice(scheme="stratified", folds=3), dataset)


def test_missing_labels_cannot_be_stratified(tmp_path: Path) -> None:
    labels = np.full(50, 1.0)
    labels[3] = np.nan
    dataset = snapshot(tmp_path, np.arange(50), labels)
    with pytest.raises(DataRefused, match="not whole numbers"):
        FoldPlan.build(PlanChoice(scheme="stratified"), dataset)


def test_a_worker_reads_a_plan_without_pandas(digits: Dataset, tmp_path: Path) -> None:
    path = FoldPlan.build(PlanChoice(folds=5, seed=1), digits).save(tmp_path)
    code = (
        "import sys\nfrom nightfold.foldplan import FoldPlan\n"
        "print(FoldPlan.open(sys.argv[1]).folds, 'pandas' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "5 False\n"
