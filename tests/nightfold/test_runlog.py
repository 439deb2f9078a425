"""The run's log: whole lines from many writers, and never the reason why a night ends."""

import json
import subprocess
import sys
from datetime import UTC, datetime

from nightfold.runlog import NAME, RunLog


def lines(folder):
    return [json.loads(line) for line in (folder / NAME).read_text().splitlines()]


def test_a_line_says_when_where_and_what(tmp_path):
    folder = tmp_path / "night-1"
    folder.mkdir()
    log = RunLog(folder=str(folder), flow_run_id="0199")
    before = datetime.now(UTC).replace(microsecond=0)
    log.write("fold failed", level="ERROR", task="train deep", candidate="deep", repeat=1, fold=2)
    log.write("two\nlines", accuracy=0.5)
    first, second = lines(folder)
    assert before <= datetime.fromisoformat(first.pop("time")) <= datetime.now(UTC)
    assert first == {
        "level": "ERROR",
        "run_id": "night-1",
        "flow_run_id": "0199",
        "task": "train deep",
        "candidate": "deep",
        "repeat": 1,
        "fold": 2,
        "message": "fold failed",
    }
    assert (second["message"], second["accuracy"], second["fold"]) == ("two\nlines", 0.5, None)


def test_lines_of_many_processes_stay_whole(tmp_path):
    script = (
        "import sys\n"
        "from nightfold.runlog import RunLog\n"
        "log = RunLog(folder=sys.argv[1])\n"
        "for number in range(300):\n"
        "    log.write('x' * 5000, fold=number)\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) for _ in range(3)]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    assert sorted(line["fold"] for line in lines(tmp_path)) == sorted([*range(300)] * 3)


def test_a_log_that_cannot_be_written_ends_nothing_and_makes_no_folder(tmp_path):
    RunLog(folder=str(tmp_path / "none")).write("lost")
    (tmp_path / "file").write_text("")
    RunLog(folder=str(tmp_path / "file")).write("lost")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
