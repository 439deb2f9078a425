"""Predict: classify every image below a folder and leave a Parquet table.

What a model says of one image is `nightfold.prediction`; here are the batch, its table and what
Prefect shows of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import pyarrow.parquet as pq
from prefect import get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict

from nightfold.bundle import Bundle
from nightfold.errors import DataRefused, UsageError
from nightfold.files import as_text
from nightfold.images import ENDINGS, ImageReading
from nightfold.prediction import classify_readings, prepare
from nightfold.registry import Registry
from nightfold.store import Store, atomic_file, make_folder
from nightfold.tables import SCHEMA_VERSION, batch_schema, build_table

_BATCH = 256


class Predicted(BaseModel):
    """The finished table.

    Attributes
    ----------
    path : str
        ``classified.parquet``, schema `nightfold.tables.batch_schema`.
    model : str
        Version of the model.
    n_images, n_errors : int
        Rows, and those of them that could not be read.
    counts : dict
        Images of each class, zeros included.
    """

    model_config = ConfigDict(frozen=True)

    path: str
    model: str
    n_images: int
    n_errors: int
    counts: dict[str, int]


@task(name="predict", task_run_name="predict {folder}", cache_policy=NO_CACHE)
def predict(folder: str, model: str, artifacts: str, run_folder: str, run_id: str) -> Predicted:
    """Classify every image below `folder` and show the counts per class.

    Parameters
    ----------
    folder : str
    model : str
        ``champion``, a version, or the path of a bundle.
    artifacts : str
        Root of the store.
    run_folder, run_id : str
        Where ``classified.parquet`` is written, and the run in its rows.

    Returns
    -------
    Predicted

    Raises
    ------
    UsageError
        If there is no such folder, no image in it, or no such model.
    BundleRefused
        If the model's bundle is incomplete or altered.
    """
    paths = images_below(Path(folder))
    bundle = Registry(Store(artifacts)).load(model)
    make_folder(Path(run_folder))
    done = classify_folder(paths, bundle, Path(run_folder) / "classified.parquet", run_id)
    get_run_logger().info(
        "%d images classified by %s, %d unreadable", done.n_images, done.model, done.n_errors
    )
    rows = [{"class": name, "images": count} for name, count in done.counts.items()]
    create_table_artifact(
        [*rows, {"class": "(unreadable)", "images": done.n_errors}],
        key="predictions",
        description=f"{done.n_images} images below `{folder}`, model {done.model}: {done.path}",
    )
    return done


def images_below(folder: Path) -> list[Path]:
    """Every file below `folder` with an image's ending, in the order of their paths.

    Raises
    ------
    UsageError
        If there is no such folder or no image in it.
    DataRefused
        If a folder below it may not be listed.
    """
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}: check the path.")
    paths = sorted(
        path
        for place, _, names in os.walk(folder, onerror=_refuse)
        for path in (Path(place, name) for name in names)
        if path.suffix.lower() in ENDINGS
    )
    if not paths:
        raise UsageError(
            f"There is no image below {folder}: the endings are {', '.join(sorted(ENDINGS))}."
        )
    return paths


def _refuse(error: OSError) -> NoReturn:
    raise DataRefused(f"{error.filename} cannot be listed ({error.strerror}): check it.") from error


def classify_folder(paths: Iterable[Path], bundle: Bundle, table: Path, run_id: str) -> Predicted:
    """Classify `paths` batch by batch into the Parquet file `table`; whole or not at all.

    An image that cannot be read becomes a row that says why. Memory holds one batch.

    Parameters
    ----------
    paths : iterable of Path
    bundle : Bundle
    table : Path
    run_id : str
        For the rows and the file's metadata.
    """
    names = bundle.manifest.class_names
    schema = batch_schema(len(names)).with_metadata(
        {
            "nightfold.table": "classified",
            "nightfold.schema_version": str(SCHEMA_VERSION),
            "nightfold.run_id": run_id,
        }
    )
    counts = dict.fromkeys(names, 0)
    n_images = n_errors = 0
    with (
        atomic_file(table) as part,
        pq.ParquetWriter(part, schema, compression="zstd") as writer,
    ):
        remaining = iter(paths)
        while batch := list(islice(remaining, _BATCH)):
            rows = _rows(batch, bundle, run_id)
            n_images += len(rows)
            for row in rows:
                if row["class_name"] is None:
                    n_errors += 1
                else:
                    counts[row["class_name"]] += 1
            writer.write_table(build_table(rows, schema))
    return Predicted(
        path=str(table),
        model=bundle.manifest.version,
        n_images=n_images,
        n_errors=n_errors,
        counts=counts,
    )


def _rows(batch: list[Path], bundle: Bundle, run_id: str) -> list[dict[str, Any]]:
    readings: dict[Path, ImageReading] = {}
    errors: dict[Path, str] = {}
    for path in batch:
        try:
            readings[path] = prepare(path, bundle)
        except DataRefused as refused:
            errors[path] = str(refused)
    answers = {
        a.path: a for a in classify_readings(list(readings), list(readings.values()), bundle)
    }
    empty = dict.fromkeys(batch_schema(len(bundle.manifest.class_names)).names)
    return [
        {
            **empty,
            "path": as_text(path),
            "model": bundle.manifest.version,
            "preparation": "",
            **(
                answers[as_text(path)].model_dump() if path in readings else {"error": errors[path]}
            ),
            "run_id": run_id,
        }
        for path in batch
    ]
