"""FoldPlan: which fold scores which row in which repeat, fixed before anything is trained.

A plan is content-addressed: its digest covers the assignment and the data set it was made for, and
results are compared only where the digests are equal. It holds no pixels and trains nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from nightfold.dataset import Dataset
from nightfold.errors import DataRefused, UsageError
from nightfold.experiment import PlanChoice
from nightfold.tables import FOLDPLAN, write_table


class PlanHandle(BaseModel):
    """What tasks pass to each other instead of the assignment.

    Attributes
    ----------
    repeat_digests : tuple of str
        One a repeat: the digest of the plan that has this repeat alone. A plan with a repeat more
        shares those of the others, and so their fold results.
    """

    model_config = ConfigDict(frozen=True)

    path: str
    digest: str
    folds: int
    repeats: int
    n_rows: int
    repeat_digests: tuple[str, ...]

    def open(self) -> FoldPlan:
        """The plan behind the handle, verified.

        Raises
        ------
        DataRefused
            If the file is gone, was altered or is another plan.
        """
        plan = FoldPlan.open(self.path)
        if plan.digest != self.digest:
            raise DataRefused(
                f"The fold plan {self.path} is not the one of this run (digest "
                f"{plan.digest[:12]}, expected {self.digest[:12]}): run again."
            )
        return plan


@dataclass(frozen=True, eq=False)
class FoldPlan:
    """Assignment of the training rows to folds, for every repeat.

    Attributes
    ----------
    scheme : str
        ``kfold`` or ``stratified``.
    folds, repeats, seed : int
        Repeat r, counted from 1, shuffles with random state ``seed + r - 1``.
    duplicates : str
        ``anywhere``, or ``together`` if exact duplicates share a fold.
    dataset_digest : str
        The data set whose rows are assigned.
    assignment : ndarray of int32, shape (repeats, n_rows)
        The fold, from 0, that scores the row; read-only.
    digest : str
        sha256 over `dataset_digest`, the shape of `assignment` and its values.
    """

    scheme: str
    folds: int
    repeats: int
    seed: int
    duplicates: str
    dataset_digest: str
    assignment: NDArray[np.int32]
    digest: str

    @property
    def n_rows(self) -> int:
        """Number of training rows."""
        return int(self.assignment.shape[1])

    @classmethod
    def build(cls, choice: PlanChoice, dataset: Dataset) -> FoldPlan:
        """Assign the training rows of `dataset` to folds.

        The folds are those of scikit-learn's ``KFold`` or ``StratifiedKFold`` with
        ``shuffle=True`` and ``random_state=choice.seed + repeat - 1``, in the same order. With
        ``duplicates="together"`` the distinct images are folded, in order of first appearance and
        with the label of the first, and every copy follows its image.

        Parameters
        ----------
        choice : PlanChoice
        dataset : Dataset
            Sound data: validated before.

        Raises
        ------
        UsageError
            If there are fewer rows than folds, or with ``stratified`` fewer in one class.
        DataRefused
            With ``stratified``, if a label is missing.
        """
        n_rows = len(dataset.train)
        units = unit_of_row = np.arange(n_rows)
        if choice.duplicates == "together":
            units, unit_of_row = _distinct(dataset.train.row_digests)
        _require_enough(choice, dataset, units)
        assignment = np.stack(
            [
                _fold_of_unit(choice, dataset.train.labels[units], repeat)[unit_of_row]
                for repeat in range(1, choice.repeats + 1)
            ]
        )
        assignment.setflags(write=False)
        return cls(
            scheme=choice.scheme,
            folds=choice.folds,
            repeats=choice.repeats,
            seed=choice.seed,
            duplicates=choice.duplicates,
            dataset_digest=dataset.digest,
            assignment=assignment,
            digest=_digest(assignment, dataset.digest),
        )

    def rows(self, repeat: int, fold: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows to train on and rows to score.

        Parameters
        ----------
        repeat, fold : int
            Counted from 1.

        Returns
        -------
        train_rows, test_rows : ndarray of int64
            Positions in the training split, ascending; together every row once.

        Raises
        ------
        ValueError
            If the plan has no such repeat or fold.
        """
        if not (1 <= repeat <= self.repeats and 1 <= fold <= self.folds):
            raise ValueError(
                f"no repeat {repeat}, fold {fold} in a plan of {self.repeats} x {self.folds}"
            )
        scored = self.assignment[repeat - 1] == fold - 1
        return (
            np.flatnonzero(~scored).astype(np.int64, copy=False),
            np.flatnonzero(scored).astype(np.int64, copy=False),
        )

    def check(self, dataset: Dataset) -> None:
        """Make sure that the plan was made for `dataset`.

        Raises
        ------
        DataRefused
            If it was made for another one.
        """
        if dataset.digest != self.dataset_digest:
            raise DataRefused(
                f"The fold plan {self.digest[:12]} was made for the data set "
                f"{self.dataset_digest[:12]}, not for {dataset.digest[:12]} ({dataset.name}): "
                "split this data set anew."
            )

    def save(self, folder: Path) -> Path:
        """Write the plan under `folder`, named by its digest; a plan that is there stays.

        Parameters
        ----------
        folder : Path
            Where plans live (`Store.plans`).

        Returns
        -------
        Path
            The Parquet file.
        """
        path = folder / f"{self.digest[:16]}.parquet"
        if not path.exists():
            repeats, rows = _grid(self.repeats, self.n_rows)
            folds = self.assignment.ravel() + np.int32(1)
            write_table(
                path,
                pa.table([repeats, rows, folds], schema=FOLDPLAN),
                name="foldplan",
                scheme=self.scheme,
                folds=str(self.folds),
                repeats=str(self.repeats),
                seed=str(self.seed),
                duplicates=self.duplicates,
                dataset_digest=self.dataset_digest,
                plan_digest=self.digest,
            )
        return path

    def handle(self, path: Path) -> PlanHandle:
        """Path and digest of the plan saved at `path`, for another task to open."""
        return PlanHandle(
            path=str(path),
            digest=self.digest,
            folds=self.folds,
            repeats=self.repeats,
            n_rows=self.n_rows,
            repeat_digests=tuple(
                _digest(self.assignment[[repeat]], self.dataset_digest)
                for repeat in range(self.repeats)
            ),
        )

    @classmethod
    def open(cls, path: str | Path) -> FoldPlan:
        """Read and verify a saved plan.

        Raises
        ------
        DataRefused
            If the file cannot be read, its digest is not that of its content, a row does not
            appear exactly once per repeat, or a fold is empty.
        """
        try:
            table = pq.ParquetFile(path).read()  # read_table would import pandas
            about = {
                key.decode().removeprefix("nightfold."): value.decode()
                for key, value in (table.schema.metadata or {}).items()
            }
            folds, repeats, seed = (int(about[key]) for key in ("folds", "repeats", "seed"))
            scheme, duplicates = about["scheme"], about["duplicates"]
            dataset_digest, digest = about["dataset_digest"], about["plan_digest"]
            assignment = _assignment(table, repeats, folds)
            if _digest(assignment, dataset_digest) != digest:
                raise ValueError("its content does not match its digest")
        except (OSError, ValueError, KeyError, RuntimeError, pa.ArrowException) as error:
            what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise DataRefused(
                f"The fold plan {path} cannot be used ({what}): delete that file if it is there, "
                "and run the same experiment again."
            ) from error
        return cls(scheme, folds, repeats, seed, duplicates, dataset_digest, assignment, digest)


def _distinct(digests: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First row of each distinct digest, and for each row the position of its digest therein."""
    unit_of_digest: dict[str, int] = {}
    # setdefault sees the length before it inserts: the next free position.
    unit_of_row = np.array([unit_of_digest.setdefault(d, len(unit_of_digest)) for d in digests])
    return np.unique(unit_of_row, return_index=True)[1], unit_of_row


def _require_enough(choice: PlanChoice, dataset: Dataset, units: NDArray[np.int64]) -> None:
    what = "distinct images" if choice.duplicates == "together" else "rows"
    if len(units) < choice.folds:
        raise UsageError(
            f"The training split of {dataset.name} has {len(units)} {what}, too few for "
            f"{choice.folds} folds: ask for fewer folds or give more rows."
        )
    if choice.scheme != "stratified":
        return
    if not np.issubdtype(dataset.train.labels.dtype, np.integer):
        raise DataRefused(
            f"The training labels of {dataset.name} are not whole numbers, so rows cannot be "
            "stratified by class: run 'nightfold validate' to see which labels are missing."
        )
    classes, counts = np.unique(dataset.train.labels[units], return_counts=True)
    if counts.min() < choice.folds:
        rarest = int(classes[counts.argmin()])
        raise UsageError(
            f"Class {dataset.class_names[rarest]!r} of {dataset.name} has {counts.min()} training "
            f"{what}, too few for {choice.folds} stratified folds: ask for fewer folds, add rows "
            "of that class or use the scheme 'kfold'."
        )


def _fold_of_unit(choice: PlanChoice, labels: NDArray[np.int64], repeat: int) -> NDArray[np.int32]:
    """Fold, from 0, that scores each of the rows labelled `labels`; int32, shape (n,)."""
    from sklearn.model_selection import KFold, StratifiedKFold

    splitter = {"kfold": KFold, "stratified": StratifiedKFold}[choice.scheme](
        choice.folds, shuffle=True, random_state=choice.seed + repeat - 1
    )
    fold_of_unit = np.empty(len(labels), np.int32)
    for fold, (_, scored) in enumerate(splitter.split(labels, labels)):
        fold_of_unit[scored] = fold
    return fold_of_unit


def _grid(repeats: int, n_rows: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Columns `repeat` and `row` of a saved plan, in the order they are written."""
    return (
        np.repeat(np.arange(1, repeats + 1, dtype=np.int32), n_rows),
        np.tile(np.arange(n_rows, dtype=np.int64), repeats),
    )


def _assignment(table: pa.Table, repeats: int, folds: int) -> NDArray[np.int32]:
    """Fold of each row in each repeat, from the columns of a saved plan."""
    if not table.schema.equals(FOLDPLAN) or not 1 <= repeats <= len(table) or len(table) % repeats:
        raise ValueError("it is not a table of repeat, row and fold")
    n_rows = len(table) // repeats
    if not 1 <= folds <= n_rows:
        raise ValueError(f"its {n_rows} rows cannot be {folds} folds")
    # As to_numpy does, which would import pandas for it.
    repeat, row, fold = (
        np.from_dlpack(table[name].combine_chunks()) for name in ("repeat", "row", "fold")
    )
    repeat_column, row_column = _grid(repeats, n_rows)
    if not (np.array_equal(repeat, repeat_column) and np.array_equal(row, row_column)):
        raise ValueError("not every row appears once per repeat")
    assignment = fold.astype(np.int32).reshape(repeats, n_rows) - np.int32(1)
    if not all(np.array_equal(np.unique(folds_), np.arange(folds)) for folds_ in assignment):
        raise ValueError(f"not every one of its {folds} folds has rows")
    assignment.setflags(write=False)
    return assignment


def _digest(assignment: NDArray[np.int32], dataset_digest: str) -> str:
    """sha256 of the data set's digest, the shape and the folds as little-endian int32."""
    whole = hashlib.sha256(f"{dataset_digest} {assignment.shape}".encode())
    whole.update(assignment.astype("<i4").tobytes())
    return whole.hexdigest()
