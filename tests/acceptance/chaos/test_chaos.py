"""A dozen kills: a night ends as if nobody had disturbed it. `make chaos` has hundreds."""

import signal

import pytest

from tests.acceptance.chaos.arena import (
    RUN,
    differences,
    faults_at_any_moment,
    ledger,
    leftovers,
    repeated_epochs,
)

pytestmark = pytest.mark.slow

INSIDE_WRITES = [
    ("flow rename datasets/*#1", "self"),
    ("flow fsync plans/.part-*#1", "torn"),
    ("worker fsync folds/*/.part-checkpoint.npz#1", "torn"),
    ("worker rename folds/*/checkpoint.npz#1", "self"),
    ("worker remove folds/*/checkpoint.npz#1", "group"),
    ("flow fsync scores/*/.part-night.parquet#1", "torn"),
    ("worker rename models/night#1", "group"),
    # The night's look at the champion was counted, in the same file, before.
    ("flow rename models/champion.json#1", "self"),
    ("flow rename latest.json#1", "group"),
]
"""Where a night is most easily lost, in its order."""


def test_a_night_that_was_killed_a_dozen_times_ends_as_if_it_had_not_been(arena, tmp_path):
    artifacts, kills = tmp_path / "artifacts", 0
    arena.new_chain(artifacts)
    for write, how in INSIDE_WRITES:
        attempt = arena.start(artifacts, write, how)
        assert attempt.wait_until_fired(), write + arena.said(artifacts)
        kills += 1
        if write.startswith("worker") and how != "group":
            attempt.process.kill()  # or a new pool would go on
            kills += 1
        assert attempt.wait() == -signal.SIGKILL, write + arena.said(artifacts)
        assert not faults_at_any_moment(artifacts), write
    attempt = arena.start(artifacts)
    while attempt.wait(0.1) is None and not attempt.workers():
        continue
    attempt.workers()[0].kill()
    assert attempt.wait() == 0, arena.said(artifacts)
    assert kills + 1 >= 12
    assert not differences(artifacts, arena.calm, RUN)
    assert not leftovers(artifacts)
    most, _ = repeated_epochs(ledger(artifacts))
    assert most <= 1
