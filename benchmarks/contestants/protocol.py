"""What all rivals share: the digits, the tutorial's folds, and how a result is handed back.

No rival's own work is here; networks and training loops are in the scripts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import KFold


@dataclass(frozen=True)
class Task:
    """What a rival is asked for.

    Attributes
    ----------
    data : Path
        NumPy archive with x_train, uint8 (n, 28, 28), and y_train, (n,).
    architecture : str
        ``baseline`` or ``deep``.
    epochs : int
    result : Path
        Where the JSON document goes.
    """

    data: Path
    architecture: str
    epochs: int
    result: Path

    @classmethod
    def from_command_line(cls) -> Task:
        """Read the four arguments that every rival takes."""
        parser = argparse.ArgumentParser()
        parser.add_argument("data", type=Path)
        parser.add_argument("architecture", choices=["baseline", "deep"])
        parser.add_argument("epochs", type=int)
        parser.add_argument("result", type=Path)
        return cls(**vars(parser.parse_args()))

    def load(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images, uint8 (n, 28, 28), and labels, int64 (n,)."""
        with np.load(self.data, allow_pickle=False) as archive:
            return archive["x_train"], archive["y_train"].astype(np.int64)


def splitter() -> KFold:
    """The tutorial's folds."""
    return KFold(5, shuffle=True, random_state=1)


def folds(n_rows: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows to train on and rows to score, for each fold."""
    return list(splitter().split(np.empty(n_rows)))


def folds_digest(fold_of_row: NDArray[Any]) -> str:
    """sha256 of the fold, from 0, that scores each row, as little-endian int32."""
    return hashlib.sha256(fold_of_row.astype("<i4").tobytes()).hexdigest()


def hand_back(
    task: Task,
    accuracies: list[float],
    scored_rows: list[NDArray[np.int64]],
    first_start: float,
    last_end: float,
) -> None:
    """Write what was measured.

    Parameters
    ----------
    task : Task
    accuracies : list of float
        Of each fold, 0 to 1.
    scored_rows : list of ndarray of int64
        Rows that each fold scored, as the rival saw them.
    first_start, last_end : float
        Start of the first fold and end of the last, seconds on one clock.
    """
    fold_of_row = np.full(sum(map(len, scored_rows)), -1)
    for fold, rows in enumerate(scored_rows):
        fold_of_row[rows] = fold
    result = {
        "training_seconds": last_end - first_start,
        "accuracies": accuracies,
        "folds": folds_digest(fold_of_row),
    }
    task.result.write_text(json.dumps(result))
