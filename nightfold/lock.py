"""Lock: one night at a time on an artifacts folder.

The kernel keeps the lock with the open file and releases it when its holder dies, however it dies,
so none is left behind. Fold workers do not have it: Python opens files so that programs started
from a process do not inherit them, and workers are copied from a program that was started, not
from the flow. What is in the file only tells people who holds it. Readers, and writers of single
files, need no lock: see `nightfold.store`.
"""

from __future__ import annotations

import fcntl
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from nightfold.errors import Busy, UsageError
from nightfold.store import Store, make_folder, writing

LOCK = ".night.lock"
_POLL_SECONDS = 0.25


class Holder(BaseModel):
    """Who has the lock: what people need to find the process."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    pid: int
    host: str
    since: datetime

    def __str__(self) -> str:
        return (
            f"the run {self.run_id} (process {self.pid} on {self.host}, since "
            f"{self.since:%Y-%m-%d %H:%M:%S} UTC)"
        )


@contextmanager
def alone(
    store: Store, run_id: str, *, minutes: float, tell: Callable[[str], None], advice: str = ""
) -> Iterator[None]:
    """Have an artifacts folder for one run alone while the block lasts.

    Parameters
    ----------
    store : Store
    run_id : str
        Told to others who want the folder.
    minutes : float
        How long to wait for another run to end; 0 waits for none.
    tell : callable
        Given a sentence for people if there is something to wait for.
    advice : str
        What else can be done than to run again later, the end of a sentence.

    Raises
    ------
    Busy
        If another run still has the folder by then.
    NotWritten
        If the lock's file cannot be written.
    UsageError
        If the file system knows no locks.
    """
    make_folder(store.root)
    path = store.root / LOCK
    with writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _wait(descriptor, store, minutes, tell, advice)
        holder = Holder(
            run_id=run_id, pid=os.getpid(), host=platform.node(), since=datetime.now(UTC)
        )
        with writing(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, holder.model_dump_json().encode(), 0)
        try:
            yield
        finally:
            with suppress(OSError):  # A disk that has turned read-only must not hide the error.
                os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _wait(
    descriptor: int, store: Store, minutes: float, tell: Callable[[str], None], advice: str
) -> None:
    deadline = time.monotonic() + 60 * minutes
    told_so = False
    while not _taken(descriptor, store):
        if time.monotonic() >= deadline:
            after = f" after {minutes:g} minutes" if minutes else ""
            raise Busy(
                f"The artifacts folder {store.root} is still in use{after} by "
                f"{_holder(store)}: run again when that has ended{advice}."
            )
        if not told_so:
            tell(
                f"The artifacts folder {store.root} is in use by {_holder(store)}; waiting up to "
                f"{minutes:g} minutes for it."
            )
            told_so = True
        time.sleep(_POLL_SECONDS)


def _taken(descriptor: int, store: Store) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UsageError(
            f"The file system of {store.root} cannot lock files ({error.strerror}): choose a "
            "folder on a local disk, or on a network disk with locks (--artifacts)."
        ) from error
    return True


def _holder(store: Store) -> str:
    try:
        return str(Holder.model_validate_json(Path(store.root, LOCK).read_text()))
    except (OSError, ValidationError):
        return "another run"
