"""Which failures of a training are worth another attempt."""

from __future__ import annotations

import pytest
from prefect.states import Failed

from nightfold.errors import DeviceFailed, NightfoldError, UsageError
from tasks.train import is_transient, train


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
