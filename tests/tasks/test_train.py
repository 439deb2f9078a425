"""Which failures of a training are worth another attempt, and which name its record has."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect.states import Failed

from nightfold.errors import DeviceFailed, NightfoldError, UsageError
from nightfold.experiment import Candidate
from tasks.train import cache_key, is_transient, train


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (OSError("the disk"), True),
        (DeviceFailed("The GPU ran out of memory."), True),
        (NightfoldError("The training diverged."), False),
        (UsageError("There is no such architecture."), False),
        (ValueError("rows to score are among the rows to train on"), False),
    ],
)
def test_a_mistake_stays_one_and_a_device_may_recover(error: Exception, again: bool) -> None:
    assert is_transient(train, None, Failed(data=error)) is again  # type: ignore[arg-type]


def test_every_fold_has_a_record_of_its_own_however_long_the_path_to_it(fold_jobs) -> None:
    artifacts = [Path("/", *["folder" * 10] * 4), Path("/", *["folder" * 10] * 5)]
    named = [Candidate(name=name * 64, architecture="dense") for name in "ab"]
    jobs = [job for path in artifacts for job in fold_jobs(path, *named)]
    records = {cache_key(None, {"job": job}) for job in jobs}  # type: ignore[arg-type]
    assert len(records) == len(jobs) == 8
    assert all(len(record.encode()) <= 255 and "/" not in record for record in records)
