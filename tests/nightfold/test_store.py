"""Files appear complete or not at all."""

import json
from datetime import UTC, datetime

import pytest

from nightfold.errors import UsageError
from nightfold.store import TEMPORARY, Store, atomic_file, atomic_folder, new_run_id, write_json


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


def test_latest_without_a_run_says_how_to_start_one(tmp_path):
    with pytest.raises(UsageError, match="nightfold retrain"):
        Store(tmp_path).find_run("latest")


def test_run_ids_sort_by_time():
    early, late = (new_run_id(datetime(2026, 1, d, tzinfo=UTC)) for d in (9, 10))
    assert early < late
