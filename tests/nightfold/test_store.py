"""Files appear complete or not at all."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from nightfold.errors import NotWritten, UsageError
from nightfold.experiment import shipped
from nightfold.store import (
    TEMPORARY,
    Store,
    atomic_file,
    atomic_folder,
    make_folder,
    new_run_id,
    write_json,
)


def leftovers(folder):
    return [p for p in folder.rglob("*") if p.name.startswith(TEMPORARY)]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.json"
    write_json(target, {"old": 1})
    with pytest.raises(RuntimeError), atomic_file(target) as part:
        part.write_text("half")
        raise RuntimeError
    assert json.loads(target.read_text()) == {"old": 1}
    assert not leftovers(tmp_path)


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.json"
    write_json(target, 1)
    with pytest.raises(ValueError, match="JSON"):
        write_json(target, float("nan"))
    assert target.read_text() == "1\n"


def test_a_failed_folder_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "d") as part:
        (part / "x").write_text("x")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_the_quicker_of_two_writers_of_a_folder_wins(tmp_path):
    with atomic_folder(tmp_path / "d") as slow:
        (slow / "x").write_text("slow")
        with atomic_folder(tmp_path / "d") as quick:
            (quick / "x").write_text("quick")
    assert (tmp_path / "d" / "x").read_text() == "quick"
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("name", ["", "..", "a/b", "../x", ".hidden"])
def test_a_run_id_cannot_leave_the_folder(tmp_path, name):
    with pytest.raises(UsageError):
        Store(tmp_path).run(name)


@pytest.mark.parametrize("name", ["night.parquet", "champion.json", "latest", "champion"])
def test_a_run_id_that_means_something_else_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match=repr(name)):
        Store(tmp_path).run(name)


def test_latest_without_a_run_says_how_to_start_one(tmp_path):
    with pytest.raises(UsageError, match="nightfold retrain"):
        Store(tmp_path).find_run("latest")


def test_run_ids_sort_by_time():
    early, late = (new_run_id(datetime(2026, 1, d, tzinfo=UTC)) for d in (9, 10))
    assert early < late


WRITER = """
import sys, time
from pathlib import Path
from nightfold.store import atomic_file, atomic_folder
with atomic_folder(Path(sys.argv[1], "folder")) as folder, atomic_file(folder / "a") as file:
    file.write_text("half")
    with atomic_file(Path(sys.argv[1], "sub", "b")):
        print("ready", flush=True)
        time.sleep(60)
"""


@pytest.fixture
def writer(tmp_path):
    """A process in the middle of three writes."""
    environment = {**os.environ, "PYTHONPATH": str(shipped())}
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_what_a_killed_process_has_left_is_swept(tmp_path, writer):
    writer.kill()
    writer.wait()
    assert len(leftovers(tmp_path)) == 3
    Store(tmp_path).sweep()
    assert not leftovers(tmp_path)


def test_what_a_living_process_writes_is_not_swept(tmp_path, writer):
    assert not Store(tmp_path).sweep()
    assert len(leftovers(tmp_path)) == 3


def test_finished_files_are_not_swept(tmp_path):
    write_json(tmp_path / "a.json", 1)
    with atomic_folder(tmp_path / "d") as part:
        write_json(part / "b.json", 2)
    assert not Store(tmp_path).sweep()
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.json", "b.json", "d"]


def test_what_is_in_the_way_is_named_and_stays(tmp_path):
    """A rename that fails: the target is a folder that is not empty."""
    (tmp_path / "latest.json" / "something").mkdir(parents=True)
    with pytest.raises(NotWritten, match=r"latest\.json cannot be written .*move away"):
        write_json(tmp_path / "latest.json", 1)
    assert (tmp_path / "latest.json" / "something").is_dir()
    assert not leftovers(tmp_path)


def test_a_file_where_a_folder_should_be_is_named(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(NotWritten, match="move away"):
        write_json(tmp_path / "runs" / "a" / "b.json", 1)
    with pytest.raises(NotWritten, match="move away"):
        make_folder(tmp_path / "runs" / "a")


def test_an_error_that_is_not_about_writing_stays_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "a") as part:
        shutil.copyfile(tmp_path / "no such file", part)


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from nightfold.errors import NotWritten
from nightfold.store import atomic_file

resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
noise = np.random.default_rng(1).random(50_000)
writers = {
    "bytes": lambda part: part.write_bytes(noise.tobytes()),
    "npy": lambda part: np.save(part, noise),
    "npz": lambda part: np.savez(part, noise=noise),
    "parquet": lambda part: pq.write_table(pa.table({"noise": noise}), part),
}
for name, write in writers.items():
    try:
        with atomic_file(Path(sys.argv[1], f"a.{name}")) as part:
            write(part)
    except NotWritten as error:
        print(error)
"""


def test_a_short_write_is_told_whoever_writes(tmp_path):
    """The kernel takes 50,000 bytes of each file and no more."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(shipped())},
        capture_output=True,
        text=True,
        check=True,
    )
    said = done.stdout.splitlines()
    assert [line.split(" cannot be written ")[0] for line in said] == [
        str(tmp_path / f"a.{name}") for name in ("bytes", "npy", "npz", "parquet")
    ]
    assert not list(tmp_path.iterdir())
