"""Retention: which nights are kept, and what goes with those that are not.

What goes is older than the oldest night kept, and nothing kept refers to it. Whoever refers goes
before what is referred to, and everything leaves its place by one rename, so that a reader never
opens half of it and a prune that was killed is finished by the next one.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from nightfold import lock
from nightfold.errors import BundleRefused, UsageError
from nightfold.manifest import Manifest, read_manifest
from nightfold.registry import Entry, Registry
from nightfold.store import TEMPORARY, Store, bytes_below
from nightfold.summary import Summary

CLOCKS_DIFFER = timedelta(minutes=10)
"""How far ahead of this machine's clock another one's may be."""

TRASH = f"{TEMPORARY}pruned-"
"""Prefix of what has left its place and is being deleted; readers pass over it."""

AREAS = ("runs", "models", "folds", "plans", "datasets")
"""In the order of removal: a run refers to the others, a model to the last two."""


class Pruned(BaseModel):
    """What a prune has removed, or would.

    Attributes
    ----------
    kept : tuple of str
        Run ids, oldest first.
    removed : dict
        Names by area: runs, models, folds, plans, datasets.
    bytes : int
        Their size on the disk.
    left_alone : tuple of str
        Links, which are never followed and never removed.
    """

    model_config = ConfigDict(frozen=True)

    kept: tuple[str, ...]
    removed: dict[str, tuple[str, ...]]
    bytes: int
    left_alone: tuple[str, ...] = ()


def prune(store: Store, keep: int, *, dry_run: bool = False) -> Pruned:
    """Keep the newest runs and everything they refer to; remove what is older.

    The champion stays whatever its age, with its run, its data and its fold plan, and so does every
    model that was champion before, so that a rollback finds it. The score table stays whole, and of
    each run that goes its summary, for `nightfold.history`. Nothing goes before there are more than
    `keep` complete runs.

    Parameters
    ----------
    store : Store
    keep : int
        Complete runs to keep, at least 1.
    dry_run : bool
        Only say what would go.

    Raises
    ------
    UsageError
        If there is no such store or `keep` is below 1.
    BundleRefused
        If the champion's pointer or manifest is not what it was; nothing is removed then.
    Busy
        If a night has the folder: what it is about to refer to must not go.
    """
    if keep < 1:
        raise UsageError(f"--keep {keep} would keep no run: give a number from 1.")
    if not store.root.is_dir():
        raise UsageError(f"There is no artifacts folder {store.root}: check --artifacts.")
    registry = Registry(store)
    with lock.alone(store, "prune", minutes=0, tell=lambda _: None), registry.lock():
        inventory = _Inventory(store, registry, keep)
        for run in inventory.complete[-1:]:
            if run.at > datetime.now(UTC) + CLOCKS_DIFFER:
                raise UsageError(
                    f"{run.path} ended in the future, at {run.at:%Y-%m-%d %H:%M} UTC, so that the "
                    "newest runs cannot be told: set the clock, or move that folder away."
                )
        doomed = {area: list(inventory.doomed(area)) for area in AREAS}
        pruned = Pruned(
            kept=tuple(run.name for run in inventory.kept),
            removed={area: tuple(_name(area, p) for p in paths) for area, paths in doomed.items()},
            bytes=sum(bytes_below(path) for paths in doomed.values() for path in paths),
            left_alone=tuple(sorted(inventory.links())),
        )
        if not dry_run:
            _remove(store, doomed, {run.name: run for run in inventory.runs})
    return pruned


@dataclass(frozen=True)
class _Run:
    """A folder of runs; `summary` is None if it is unfinished, refused, or not a night at all."""

    path: Path
    summary: Summary | None

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def at(self) -> datetime:
        """When it ended, as far as known."""
        return self.summary.finished_at if self.summary else _changed_at(self.path)


@dataclass(frozen=True)
class _Inventory:
    """What there is, and what of it is kept."""

    store: Store
    registry: Registry
    keep: int

    @cached_property
    def runs(self) -> list[_Run]:
        """All of them, oldest first."""
        found = [_Run(path, _summary(path)) for path in self.entries("runs") if path.is_dir()]
        return sorted(found, key=lambda run: (run.at, run.name))

    @cached_property
    def complete(self) -> list[_Run]:
        return [run for run in self.runs if run.summary]

    @cached_property
    def horizon(self) -> datetime | None:
        """Start of the oldest run that is kept for its age; None if there are few enough."""
        newest = [run.summary.started_at for run in self.complete[-self.keep :] if run.summary]
        return min(newest) if len(self.complete) > self.keep else None

    @cached_property
    def kept(self) -> list[_Run]:
        names = {run.name for run in self.complete[-self.keep :]}
        names.add(str(_json(self.store.latest, {}).get("run_id")))
        if self.champion:
            names.add(self.champion.run_id)
        return [
            run
            for run in self.runs
            if run.name in names or (run.summary is None and not self.old(run.at))
        ]

    @cached_property
    def champions(self) -> list[Entry]:
        """All there were, in order."""
        return self.registry.history()

    @cached_property
    def champion(self) -> Manifest | None:
        if not self.champions:
            return None
        entry = self.champions[-1]
        folder = self.registry.folder / entry.version
        return read_manifest(folder, manifest_sha256=entry.manifest_sha256)

    @cached_property
    def referred(self) -> dict[str, set[str]]:
        """Names that what is kept refers to, by area."""
        names: dict[str, set[str]] = {area: set() for area in AREAS}
        names["runs"] = {run.name for run in self.kept}
        names["models"] = names["runs"] | {entry.version for entry in self.champions}
        for run in self.kept:
            jobs = [*_json(run.path / "jobs.json", []), _json(run.path / "final.json", {})]
            folders = [job.get("folder") for job in jobs if isinstance(job, dict)]
            names["folds"] |= {Path(str(folder)).name for folder in folders}
            names["datasets"].add(str(_json(run.path / "validation.json", {}).get("digest"))[:16])
            if run.summary:
                names["datasets"].add(run.summary.dataset.digest[:16])
                names["plans"].add(run.summary.plan.digest[:16])
                if run.summary.final:
                    names["models"].add(run.summary.final.version)
        if self.champion:
            names["datasets"].add(self.champion.dataset_digest[:16])
            names["plans"].add(self.champion.plan_digest[:16])
        return names

    def old(self, at: datetime) -> bool:
        """Whether it is from before the oldest run that is kept for its age."""
        return self.horizon is not None and at < self.horizon

    def doomed(self, area: str) -> Iterator[Path]:
        """What goes."""
        if area == "runs":
            kept = self.referred["runs"]
            yield from (run.path for run in self.runs if run.name not in kept)
            return
        for path in self.entries(area):
            # Beside bundles lie the pointer and its lock; beside snapshots the notes on sources.
            ours = path.is_dir() if area != "plans" else path.suffix == ".parquet"
            if not ours or path.name == "sources" or _name(area, path) in self.referred[area]:
                continue
            if self.old(_created_at(path) if area == "models" else _changed_at(path)):
                yield path

    def entries(self, area: str) -> list[Path]:
        """What is in an area, oldest name first, without links and what is under construction."""
        folder = self.store.root / area
        if folder.is_symlink() or not folder.is_dir():
            return []
        return sorted(
            path
            for path in folder.iterdir()
            if not path.is_symlink() and not path.name.startswith(".")
        )

    def links(self) -> Iterator[str]:
        """Areas and entries that are links, relative to the store."""
        for area in AREAS:
            folder = self.store.root / area
            if folder.is_symlink():
                yield area
            elif folder.is_dir():
                yield from (f"{area}/{path.name}" for path in folder.iterdir() if path.is_symlink())


def _remove(store: Store, doomed: dict[str, list[Path]], runs: dict[str, _Run]) -> None:
    _delete_trash(store)
    for area, paths in doomed.items():
        for path in paths:
            if area == "runs" and (summary := runs[path.name].summary):
                summary.write(store.history / path.name)
            os.rename(path, path.with_name(f"{TRASH}{secrets.token_hex(4)}-{path.name}"))
        _delete_trash(store, area)
    _forget_sources(store)


def _delete_trash(store: Store, *areas: str) -> None:
    for area in areas or AREAS:
        folder = store.root / area
        if folder.is_dir() and not folder.is_symlink():
            for path in folder.glob(f"{TRASH}*"):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def _forget_sources(store: Store) -> None:
    """Remove the notes that lead to a snapshot that is gone."""
    for note in (store.datasets / "sources").glob("[!.]*.json"):
        snapshot = _json(note, {}).get("snapshot")
        if snapshot is None or not (store.datasets / str(snapshot)).exists():
            note.unlink()


def _name(area: str, path: Path) -> str:
    """What refers to an entry: only plans are files, called by their digest."""
    return path.stem if area == "plans" else path.name


def _summary(path: Path) -> Summary | None:
    try:
        return Summary.read(path)
    except (OSError, UsageError):
        return None


def _json(path: Path, otherwise: Any) -> Any:
    """The document at `path`, or `otherwise` unless there is one of the same kind."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return otherwise
    return document if isinstance(document, type(otherwise)) else otherwise


def _created_at(bundle: Path) -> datetime:
    try:
        return read_manifest(bundle).created_at
    except BundleRefused:
        return _changed_at(bundle)


def _changed_at(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)
