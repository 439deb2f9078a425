"""Ingest: read a source and write its snapshot. Whether the data is sound is not judged here."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from nightfold import __version__, sources
from nightfold.dataset import Dataset, DatasetHandle
from nightfold.experiment import DatasetChoice
from nightfold.store import Store, sha256_json, write_json


@task(name="ingest", task_run_name="ingest {choice.source}", retries=0, cache_policy=NO_CACHE)
def ingest(choice: DatasetChoice, artifacts: str) -> DatasetHandle:
    """Read the chosen source and write its snapshot; nothing is written if nothing changed.

    Parameters
    ----------
    choice : DatasetChoice
    artifacts : str
        The artifacts folder.

    Returns
    -------
    DatasetHandle
        Of the snapshot, limited if the choice says so.

    Raises
    ------
    UsageError
        If there is no such source or a value of the choice has no effect on it.
    DataRefused
        If the source cannot be read, or the snapshot there was altered.
    """
    dataset = snapshot(choice, Store(artifacts))
    shape = "x".join(map(str, dataset.image_shape))
    get_run_logger().info(
        "%s: %s rows to learn from, %s held out, %s of %s classes, digest %s",
        dataset.origin,
        f"{len(dataset.train):,}",
        f"{len(dataset.test):,}",
        shape,
        dataset.n_classes,
        dataset.digest[:12],
    )
    return dataset.handle


def snapshot(choice: DatasetChoice, store: Store) -> Dataset:
    """The verified snapshot of the chosen source.

    Beside the snapshots, ``datasets/sources/`` remembers which snapshot the files of a source led
    to, by the sha256 of every file. A source whose files are the same is not decoded again.

    Raises
    ------
    UsageError, DataRefused
        As `ingest`.
    """
    before = _key(choice)
    note = store.datasets / "sources" / f"{before}.json"
    dataset = _remembered(note, store) if before else None
    if dataset is None:
        dataset = _written(choice, store)
        # A file that changed while it was read must not be remembered as its old content.
        if before and _key(choice) == before:
            write_json(note, {"source": dataset.origin, "snapshot": dataset.path.name})
    dataset.verify()
    if choice.limit is not None:
        dataset = dataset.limited(store.datasets, choice.limit, choice.holdout_seed)
        dataset.verify()
    return dataset


def take_in(choice: DatasetChoice, artifacts: str, name: str | None = None) -> Dataset:
    """What ``nightfold ingest`` does: the snapshot and, with a name, the native form.

    Parameters
    ----------
    choice : DatasetChoice
    artifacts : str
        The artifacts folder.
    name : str, optional
        Also write ``data/NAME`` under the current folder, so that the source `name` finds it.

    Raises
    ------
    UsageError
        As `ingest`, if `name` is not a plain name, or if it is taken by another data set.
    DataRefused
        As `ingest`, or if the native form cannot hold the data.
    """
    folder = None if name is None else sources.named(name)
    dataset = snapshot(choice, Store(artifacts))
    if folder is not None:
        sources.write_native(folder, dataset)
    return dataset


def _written(choice: DatasetChoice, store: Store) -> Dataset:
    # A function of its own, so that the pixels read leave memory before those written are mapped.
    source = sources.read(
        choice.source,
        size=choice.size,
        channels=choice.channels,
        holdout=choice.holdout,
        holdout_seed=choice.holdout_seed,
    )
    return Dataset.write(
        store.datasets,
        name=source.name,
        origin=source.origin,
        class_names=source.class_names,
        train=source.train,
        test=source.test,
    )


def _key(choice: DatasetChoice) -> str | None:
    files = sources.fingerprint(choice.source)
    if files is None:
        return None
    made_by = [__version__, version("pillow"), version("scikit-learn")]
    return sha256_json([made_by, files, choice.model_dump(mode="json", exclude={"limit"})])


def _remembered(note: Path, store: Store) -> Dataset | None:
    if not note.exists():
        return None
    try:
        name = str(json.loads(note.read_bytes())["snapshot"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None  # A damaged note costs a second reading, nothing more.
    if Path(name).name != name:
        return None
    path = store.datasets / name
    return Dataset.open(path) if path.exists() else None
