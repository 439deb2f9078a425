"""What is read from a run's tables: where its time went, and when it began to train."""

import json
import os
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest

from benchmarks.nightly import Night
from benchmarks.orchestration import PARTS, take_apart

START = datetime(2026, 11, 21, 2, 0, tzinfo=UTC)


def tell(folder, time, message, fold):
    line = {"time": time.isoformat(), "message": message, "fold": fold}
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps({**line, "candidate": "deep repeat", "repeat": 1}) + "\n")


@pytest.fixture
def night(tmp_path):
    """Three folds on two workers, 40 s: the third begins 1 s after the first has ended."""

    def at(seconds):
        return START + timedelta(seconds=seconds)

    folds = pd.DataFrame(
        {
            "candidate": "deep repeat",  # a name that looks like part of a label
            "repeat": 1,
            "fold": [1, 2, 3],
            "train_seconds": [8.0, 12.0, 9.0],
        }
    )
    tell(tmp_path, at(10), "fold started", fold=1)
    tell(tmp_path, at(10), "fold started", fold=2)
    tell(tmp_path, at(20), "fold finished", fold=1)
    tell(tmp_path, at(21), "fold started", fold=3)
    tell(tmp_path, at(24), "fold finished", fold=2)
    tell(tmp_path, at(32), "fold finished", fold=3)
    folds.to_parquet(tmp_path / "scores.parquet")
    histories = folds.assign(epoch=1, seconds=folds.train_seconds)
    histories.to_parquet(tmp_path / "histories.parquet")
    jobs = []
    for fold, ended in ((1, 19.5), (2, 23.5), (3, 31)):
        folder = tmp_path / f"fold-{fold}"
        folder.mkdir()
        (folder / "progress.json").write_text("{}")
        os.utime(folder / "progress.json", (at(ended).timestamp(),) * 2)
        jobs.append({"label": f"deep repeat repeat 1 fold {fold}", "folder": str(folder)})
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    return Night(tmp_path, 40.0, START)


def test_the_first_step_is_the_first_epochs_start(night):
    assert night.first_step == pytest.approx(11.5)


def test_training_is_from_the_first_folds_start_to_the_last_ones_end(night):
    assert night.training_seconds == 22.0


def test_all_that_is_not_training_is_named_and_sums_up(night):
    parts = take_apart(night, workers=2)
    assert parts["overhead"] == 40 - (8 + 12 + 9) / 2
    assert sum(parts[name] for name in PARTS) == pytest.approx(parts["overhead"])
    assert {name: parts[name] for name in PARTS} == pytest.approx(
        {"before": 10, "in_folds": 3, "late": 0, "between": 0.5, "idle": 4, "after": 8}
    )
    assert parts["per_fold"] == pytest.approx(7 / 3)


def test_a_fold_that_was_put_aside_occupied_a_worker_twice(tmp_path):
    ends = [("fold started", 1), ("fold put aside", 3), ("fold started", 7), ("fold finished", 9)]
    for message, seconds in ends:
        tell(tmp_path, START + timedelta(seconds=seconds), message, fold=1)
    stretches = Night(tmp_path, 40.0, START).stretches
    assert (stretches.end - stretches.start).dt.total_seconds().to_list() == [2.0, 2.0]
