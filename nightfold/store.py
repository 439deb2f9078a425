"""Where artifacts live, and the only way a file gets there: complete or not at all.

A file is written beside its target under a temporary name, flushed to the disk and renamed; a
folder likewise. Whoever reads sees the old content or the new, never a part. A name under
construction is locked by its writer, so what a killed process has left can be told from what is
being written, and swept away. What cannot be written is said in one sentence.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nightfold.errors import NotWritten, UsageError
from nightfold.files import given

TEMPORARY = ".part-"
"""Prefix of names under construction; one that no process has locked is safe to delete."""

_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space"),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS), "make the folder writable, or choose another one"
    ),
    **dict.fromkeys(
        (errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY, errno.EXDEV),
        "move away what is in its place",
    ),
    errno.EFBIG: "raise the limit on the size of files",
    errno.EIO: "look after the disk",
}


_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
"""A run's id becomes the version of its model, so it must do for one."""


class Store:
    """The artifacts folder and the names in it.

    Parameters
    ----------
    root : path-like
        The folder; made on first use.

    Examples
    --------
    >>> store = Store("artifacts")
    >>> store.run("20261121-020000-1a2b3c").name
    '20261121-020000-1a2b3c'
    """

    def __init__(self, root: str | Path) -> None:
        self.root = given(root).resolve()
        if not str(self.root).isprintable():
            raise UsageError(
                f"The artifacts folder {self.root} has bytes in its name that no table can hold: "
                "choose another one."
            )

    @property
    def datasets(self) -> Path:
        """Snapshots, one folder a digest."""
        return self.root / "datasets"

    @property
    def folds(self) -> Path:
        """Fold results and checkpoints, one folder a key; shared by all runs."""
        return self.root / "folds"

    @property
    def plans(self) -> Path:
        """Fold plans, one file a digest; shared by all runs."""
        return self.root / "plans"

    @property
    def runs(self) -> Path:
        """What people and programs read, one folder a run."""
        return self.root / "runs"

    @property
    def scores(self) -> Path:
        """The score rows of every run, partitioned by date."""
        return self.root / "scores"

    @property
    def history(self) -> Path:
        """Summaries of the runs that were pruned, one folder a run."""
        return self.root / "history"

    @property
    def models(self) -> Path:
        """Bundles, one folder a version, and the champion pointer."""
        return self.root / "models"

    @property
    def latest(self) -> Path:
        """The pointer to the newest complete run."""
        return self.root / "latest.json"

    def run(self, run_id: str) -> Path:
        """Folder of one run.

        Raises
        ------
        UsageError
            If `run_id` is not a plain name.
        """
        if not _RUN_ID.fullmatch(run_id) or run_id.endswith((".json", ".parquet")):
            raise UsageError(
                f"The run id {run_id[:200]!r} is not a plain name: use letters, digits and dashes."
            )
        if run_id in {"latest", "champion"}:
            raise UsageError(f"The run id {run_id!r} already means another run: choose another.")
        return self.runs / run_id

    def find_run(self, run_id: str) -> Path:
        """Folder of a complete run; ``latest`` names the newest.

        Raises
        ------
        UsageError
            If there is no such run.
        """
        if run_id == "latest":
            if not self.latest.exists():
                raise UsageError(
                    f"There is no complete run under {self.root} yet: start one with "
                    "'nightfold evaluate' or 'nightfold retrain'."
                )
            try:
                run_id = str(json.loads(self.latest.read_bytes())["run_id"])
                self.run(run_id)
            except (OSError, ValueError, KeyError, TypeError, RecursionError, UsageError) as error:
                raise UsageError(
                    f"{self.latest} does not name a run: name it, as in 'nightfold report RUN_ID'."
                ) from error
        folder = self.run(run_id)
        if not (folder / "summary.json").exists():
            known = sorted(p.parent.name for p in self.runs.glob("[!.]*/summary.json"))[-5:]
            raise UsageError(
                f"There is no complete run {run_id!r} under {self.runs}; the newest are: "
                f"{', '.join(known) or 'none'}."
            )
        return folder

    def sweep(self) -> list[Path]:
        """Remove what killed processes have left under construction; return what it was.

        What a living process still writes stays: it holds a lock on it, which the kernel releases
        when it dies. Where files cannot be locked, everything stays.
        """
        swept = []
        for folder, folders, files in os.walk(self.root):
            unfinished = [n for n in (*folders, *files) if n.startswith(TEMPORARY)]
            swept += [Path(folder, name) for name in unfinished if _remove_dead(Path(folder, name))]
            folders[:] = [name for name in folders if not name.startswith(TEMPORARY)]
        return swept


def new_run_id(now: datetime | None = None) -> str:
    """Name for a run: start time in UTC and six random hexadecimal digits.

    Examples
    --------
    >>> new_run_id(datetime(2026, 11, 21, 2, tzinfo=UTC))[:15]
    '20261121-020000'
    """
    return f"{now or datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def bytes_below(path: Path) -> int:
    """Size of a file, or of all files in a folder and the folders in it; links count for nothing.

    What vanishes meanwhile is not counted.
    """
    total = 0
    try:
        if not path.is_dir():
            return path.stat().st_size
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    total += bytes_below(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    with suppress(FileNotFoundError):
                        total += entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        pass
    return total


def sha256_file(path: Path) -> str:
    """Hexadecimal sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hexadecimal sha256 of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Give a temporary path beside `target`; rename it there when the block ends well.

    Raises
    ------
    NotWritten
        If the disk is full, the folder is read-only or something else is in the way.

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "note.txt"
    >>> with atomic_file(target) as path:
    ...     _ = path.write_text("whole")
    >>> target.read_text()
    'whole'
    """
    with writing(target), _under_construction(target, Path.touch) as part:
        yield part
        with _own_step():
            _flush(part)
            os.replace(part, target)
            _flush(target.parent)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Give a temporary folder beside `target`; rename it there when the block ends well.

    If `target` exists by then (someone else was quicker with the same content) it stays and the
    new folder is dropped.

    Raises
    ------
    NotWritten
        If the disk is full, the folder is read-only or something else is in the way.
    """
    with writing(target), _under_construction(target, Path.mkdir) as part:
        yield part
        with _own_step():
            for path in sorted(part.rglob("*"), reverse=True):
                _flush(path)
            _flush(part)
            try:
                os.rename(part, target)
            except OSError:
                if not target.is_dir():
                    raise
            _flush(target.parent)


def make_folder(path: Path) -> None:
    """Make the folder `path` and those above it, unless they are there.

    Raises
    ------
    NotWritten
        If that is not possible.
    """
    with writing(path), _own_step():
        path.mkdir(parents=True, exist_ok=True)


def write_json(target: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_file(target) as part:
        part.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


class _StepFailed(OSError):
    """A step of ours on the way to the target, so whatever went wrong is about writing it."""


@contextmanager
def _own_step() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _StepFailed(error.errno, error.strerror) from error


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Say in one sentence that `target` cannot be written, if that is why the block fails.

    Raises
    ------
    NotWritten
        In place of the system's own error. Errors of other kinds, such as a file that the block
        reads and does not find, stay what they are.
    """
    try:
        yield
    except OSError as error:
        ours = isinstance(error, _StepFailed) or error.errno in _REMEDIES or error.errno is None
        if not ours:
            raise
        reason = error.strerror or f"only a part of it went to the disk: {error}"
        remedy = _REMEDIES.get(error.errno or errno.ENOSPC, "look after the disk")
        raise NotWritten(
            f"{target} cannot be written ({reason}): {remedy}, then run the same command again; "
            "what is finished is not repeated."
        ) from error


@contextmanager
def _under_construction(target: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A new name beside `target`, locked while the block lasts and gone behind it."""
    with _own_step():
        target.parent.mkdir(parents=True, exist_ok=True)
        part, descriptor = _claim(target, make)
    try:
        yield part
    finally:
        os.close(descriptor)
        with suppress(OSError):
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


def _claim(target: Path, make: Callable[[Path], None]) -> tuple[Path, int]:
    """Make a temporary name and lock it; the lock ends with the process, however that ends."""
    while True:
        # The suffix stays last: some writers choose a format or add an ending by it.
        part = target.parent / f"{TEMPORARY}{secrets.token_hex(4)}-{target.name}"
        make(part)
        with suppress(FileNotFoundError):
            descriptor = os.open(part, os.O_RDONLY)
            with suppress(OSError):  # Some file systems know no locks; nothing is swept there.
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            # A sweep may have come between its making and its locking.
            if part.exists():
                return part, descriptor
            os.close(descriptor)


def _remove_dead(part: Path) -> bool:
    """Remove a temporary file or folder unless its writer lives."""
    try:
        descriptor = os.open(part, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(part) if part.is_dir() else part.unlink()
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
