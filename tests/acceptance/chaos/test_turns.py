"""Two nights at once on one artifacts folder: they take turns, and no lock outlives its night."""

import json
import signal

import pyarrow.parquet as pq
import pytest

from nightfold.lock import LOCK
from nightfold.store import Store
from tests.acceptance.chaos.arena import TIMES, leftovers

pytestmark = pytest.mark.slow


@pytest.fixture
def shared(arena, tmp_path):
    artifacts = tmp_path / "artifacts"
    arena.new_chain(artifacts)
    return artifacts


def begin(arena, artifacts, name, **options):
    """Start a run of that name, once the one before has the folder."""
    return arena.start(artifacts, run=name, notes=artifacts.with_name(name), **options)


def wait_for_turn(attempt, artifacts, name):
    while attempt.wait(0.1) is None:
        if (artifacts / LOCK).exists() and name in (artifacts / LOCK).read_text():
            return
    raise AssertionError(f"{name} ended without a turn")


def test_the_second_waits_the_third_is_refused_and_a_kill_frees_the_folder(arena, shared):
    first = begin(arena, shared, "first", flow="evaluate")
    wait_for_turn(first, shared, "first")
    second = begin(arena, shared, "second", flow="retrain", wait="60")
    third = begin(arena, shared, "third", flow="evaluate", wait="0")
    assert third.wait() == 1
    said = arena.said(shared.with_name("third"))
    assert f"in use by the run first (process {first.process.pid} on " in said
    assert "Traceback" not in said
    assert not Store(shared).run("third").exists()
    first.process.kill()
    wait_for_turn(second, shared, "second")
    second.process.send_signal(signal.SIGSTOP)  # or it may be over before the next one asks
    again = begin(arena, shared, "first", flow="evaluate", wait="60")
    while "waiting up to 60 minutes" not in arena.said(shared.with_name("first")):
        assert again.wait(0.1) is None
    second.process.send_signal(signal.SIGCONT)
    assert second.wait() == 0, arena.said(shared.with_name("second"))
    assert again.wait() == 0, arena.said(shared.with_name("first"))

    for run in ("first", "second"):
        for table in Store(shared).run(run).glob("*.parquet"):
            if table.name != "foldplan.parquet":
                assert set(pq.read_table(table)["run_id"].to_pylist()) == {run}
    scores = [rows_of(shared, run, {"moved", "dropped"}) for run in ("first", "second")]
    assert scores[0] == scores[1]
    assert json.loads((shared / "latest.json").read_text())["run_id"] == "first"
    assert not leftovers(shared)


def rows_of(artifacts, run, candidates):
    rows = pq.read_table(Store(artifacts).run(run) / "scores.parquet").to_pylist()
    kept = [{k: v for k, v in row.items() if k not in TIMES} for row in rows]
    return sorted(
        (row for row in kept if row["candidate"] in candidates),
        key=lambda row: (row["candidate"], row["fold"]),
    )
