"""What the person who started a run is told of its folds."""

import json
import os

import pytest

from flows.progress import STEPS, FoldProgress, read_progress, watch


@pytest.fixture
def run_folder(tmp_path):
    jobs = [
        {"label": f"a repeat 1 fold {n}", "folder": str(tmp_path / str(n)), "epochs": 2}
        for n in (1, 2, 3)
    ]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    for n in (1, 2, 3):
        (tmp_path / str(n)).mkdir()
    return tmp_path


def write(file, content):
    file.write_text(json.dumps(content))


def test_a_fold_has_its_last_epochs_accuracy_until_it_is_done_and_then_its_own(run_folder):
    write(run_folder / "1/progress.json", {"epoch": 2, "validation_accuracy": 0.5})
    write(run_folder / "2/progress.json", {"epoch": 1, "validation_accuracy": 0.25})
    write(run_folder / "1/result.json", {"scores": {"accuracy": 0.75}})
    assert read_progress(run_folder) == [
        FoldProgress("a repeat 1 fold 1", 2, 2, 0.75, True),
        FoldProgress("a repeat 1 fold 2", 1, 2, 0.25, False),
        FoldProgress("a repeat 1 fold 3", 0, 2, None, False),
    ]


def test_a_fold_is_done_once_its_result_is_whole(run_folder):
    (run_folder / "1/result.json").write_text('{"scores": {"accu')
    assert not read_progress(run_folder)[0].done
    write(run_folder / "1/result.json", {"scores": {"accuracy": 0.75}})
    assert read_progress(run_folder)[0].done


def test_before_the_folds_are_planned_there_is_nothing_to_tell(tmp_path):
    assert read_progress(tmp_path) == []


def test_what_an_earlier_run_of_that_name_has_left_is_no_progress(tmp_path, capsys):
    (tmp_path / "validation.json").write_text("{}")
    (tmp_path / "jobs.json").write_text("[]")
    os.utime(tmp_path / "validation.json", (0, 0))  # clocks of file systems are coarse
    with watch(tmp_path, "again"):
        (tmp_path / "validation.json").write_text("{} ")
    said = capsys.readouterr().err
    assert STEPS["validation.json"] in said
    assert STEPS["jobs.json"] not in said
