"""The Arrow schema of every table that leaves the program, declared once.

Each column carries its meaning and unit in the field's metadata, so a reader of the Parquet file
finds them there; ``docs/tables.md`` is the same text for people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nightfold.store import atomic_file

SCHEMA_VERSION = 2


def _column(name: str, kind: pa.DataType, meaning: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"description": meaning})


_TIME = pa.timestamp("us", tz="UTC")

SCORES = pa.schema(
    [
        _column("run_id", pa.string(), "the run that wrote the row"),
        _column("run_date", pa.date32(), "day the run started, UTC"),
        _column("dataset", pa.string(), "name of the data set"),
        _column("dataset_digest", pa.string(), "sha256 over pixels and labels in order"),
        _column("plan_digest", pa.string(), "sha256 of the fold plan; compare only equal ones"),
        _column("candidate", pa.string(), "name of the candidate in the experiment"),
        _column("candidate_digest", pa.string(), "sha256 of everything that defines it"),
        _column("architecture", pa.string(), "registered name or module:function"),
        _column("scaling", pa.string(), "scaling fitted on the training rows of the fold"),
        _column("repeat", pa.int32(), "repeat of the fold plan, from 1"),
        _column("fold", pa.int32(), "fold within the repeat, from 1"),
        _column("seed", pa.int64(), "seed of initial weights and of the order of rows"),
        _column("n_train", pa.int64(), "rows trained on"),
        _column("n_test", pa.int64(), "rows scored"),
        _column("accuracy", pa.float64(), "fraction of scored rows predicted right, 0 to 1"),
        _column("loss", pa.float64(), "the loss trained on, mean over scored rows, nats"),
        _column("log_loss", pa.float64(), "cross-entropy of the probabilities, nats"),
        _column("brier", pa.float64(), "Brier score summed over classes, 0 to 2"),
        _column("ece", pa.float64(), "expected calibration error, 15 equal-width bins, 0 to 1"),
        _column("macro_f1", pa.float64(), "F1 averaged over classes, 0 to 1"),
        _column("epochs", pa.int32(), "epochs trained; fewer than asked if stopped early"),
        _column("train_seconds", pa.float64(), "seconds in training and per-epoch evaluation"),
        _column("images_per_second", pa.float64(), "training rows times epochs per second"),
        _column("peak_rss_bytes", pa.int64(), "largest resident memory of the process, bytes"),
        _column("parameters", pa.int64(), "trainable parameters"),
        _column(
            "started_at", _TIME, "start of the fold, or of its rest if it was interrupted, UTC"
        ),
        _column("finished_at", _TIME, "end of the fold, UTC"),
        _column("host", pa.string(), "machine that trained the fold"),
        _column("code_version", pa.string(), "Nightfold version"),
        _column("tensorflow_version", pa.string(), "TensorFlow version"),
        _column("keras_version", pa.string(), "Keras version"),
    ]
)

HISTORIES = pa.schema(
    [
        _column("run_id", pa.string(), "the run that wrote the row"),
        _column("candidate", pa.string(), "name of the candidate in the experiment"),
        _column("repeat", pa.int32(), "repeat of the fold plan, from 1"),
        _column("fold", pa.int32(), "fold within the repeat, from 1"),
        _column("epoch", pa.int32(), "epoch, from 1"),
        _column("train_loss", pa.float64(), "mean loss over the epoch's steps, nats"),
        _column("train_accuracy", pa.float64(), "accuracy over the epoch's steps, 0 to 1"),
        _column("validation_loss", pa.float64(), "loss on the fold's scored rows, nats"),
        _column("validation_accuracy", pa.float64(), "accuracy on the fold's scored rows, 0 to 1"),
        _column("learning_rate", pa.float64(), "learning rate of the epoch's last step"),
        _column("seconds", pa.float64(), "seconds of the epoch, evaluation included"),
    ]
)

VERDICTS = pa.schema(
    [
        _column("run_id", pa.string(), "the run that wrote the row"),
        _column("plan_digest", pa.string(), "sha256 of the fold plan both were scored on"),
        _column("candidate_a", pa.string(), "first candidate"),
        _column("candidate_b", pa.string(), "second candidate"),
        _column("metric", pa.string(), "column of scores that is compared"),
        _column("n_pairs", pa.int32(), "folds that both were scored on; all unless stopped"),
        _column(
            "mean_difference",
            pa.float64(),
            "mean of b minus a over pairs; null if one was stopped",
            nullable=True,
        ),
        _column("interval_low", pa.float64(), "low end of the 95 % interval", nullable=True),
        _column("interval_high", pa.float64(), "high end of the 95 % interval", nullable=True),
        _column("t_corrected", pa.float64(), "corrected resampled t", nullable=True),
        _column("p_corrected", pa.float64(), "its two-sided p value", nullable=True),
        _column("p_holm", pa.float64(), "p after Holm's correction", nullable=True),
        _column("rope", pa.float64(), "half width of practical equivalence", nullable=True),
        _column("p_worse", pa.float64(), "posterior probability b is worse", nullable=True),
        _column("p_equivalent", pa.float64(), "posterior probability of equality", nullable=True),
        _column("p_better", pa.float64(), "posterior probability b is better", nullable=True),
        _column("mcnemar_p", pa.float64(), "exact McNemar p on pooled predictions", nullable=True),
        _column("verdict", pa.string(), "better, worse, equivalent, undecided or stopped"),
        _column("sentence", pa.string(), "the verdict in one sentence"),
    ]
)

FOLDPLAN = pa.schema(
    [
        _column("repeat", pa.int32(), "repeat, from 1"),
        _column("row", pa.int64(), "position in the training split, from 0"),
        _column("fold", pa.int32(), "the fold that scores the row in this repeat, from 1"),
    ]
)


def predictions_schema(n_classes: int) -> pa.Schema:
    """Schema of ``predictions.parquet`` for a data set of `n_classes` classes."""
    return pa.schema(
        [
            _column("run_id", pa.string(), "the run that wrote the row"),
            _column("candidate", pa.string(), "name of the candidate in the experiment"),
            _column("repeat", pa.int32(), "repeat of the fold plan, from 1"),
            _column("fold", pa.int32(), "the fold that scored the row, from 1"),
            _column("row", pa.int64(), "position in the training split, from 0"),
            _column("row_digest", pa.string(), "sha256 of the row's pixels"),
            _column("label", pa.int64(), "true class index"),
            _column("predicted", pa.int64(), "class index of the largest probability"),
            _column(
                "probabilities",
                pa.list_(pa.float32(), n_classes),
                "out-of-fold probability of each class",
            ),
        ]
    )


def batch_schema(n_classes: int) -> pa.Schema:
    """Schema of the table that a batch prediction writes, one row an image."""
    return pa.schema(
        [
            _column("run_id", pa.string(), "the run that wrote the row"),
            _column("path", pa.string(), "the image file"),
            _column("model", pa.string(), "version of the model"),
            _column("predicted", pa.int64(), "class index, null if unreadable", nullable=True),
            _column("class_name", pa.string(), "class name, null if unreadable", nullable=True),
            _column("probability", pa.float32(), "its probability, 0 to 1", nullable=True),
            _column("runner_up", pa.string(), "second most probable class", nullable=True),
            _column(
                "runner_up_probability", pa.float32(), "its probability, 0 to 1", nullable=True
            ),
            _column(
                "probabilities",
                pa.list_(pa.float32(), n_classes),
                "probability of each class",
                nullable=True,
            ),
            _column("preparation", pa.string(), "what was done to the image"),
            _column("error", pa.string(), "why the image could not be read", nullable=True),
        ]
    )


def build_table(
    columns: Mapping[str, Sequence[Any]] | list[dict[str, Any]], schema: pa.Schema
) -> pa.Table:
    """Arrow table in `schema` from rows (a list of dictionaries) or from columns."""
    if isinstance(columns, list):
        return pa.Table.from_pylist(columns, schema=schema)
    return pa.Table.from_pydict(dict(columns), schema=schema)


def write_table(path: Path, table: pa.Table, *, name: str, **about: str) -> None:
    """Write `table` as Parquet (zstd), atomically.

    Parameters
    ----------
    path : Path
    table : pyarrow.Table
    name : str
        The table's name, kept in the file's metadata with the schema version and `about`.
    **about : str
        More metadata, for instance ``run_id``.
    """
    facts = {"nightfold.table": name, "nightfold.schema_version": str(SCHEMA_VERSION)}
    facts |= {f"nightfold.{key}": value for key, value in about.items()}
    metadata = {**(table.schema.metadata or {}), **facts}
    with atomic_file(path) as part:
        pq.write_table(table.replace_schema_metadata(metadata), part, compression="zstd")
