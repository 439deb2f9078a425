"""Whatever is given to a reader ends in data or in one sentence, in bounded memory.

The corpus is `tests.hostile.corpus`; `python -m tests.hostile` prints what became of it as a table.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.corpus import CASES
from tests.hostile.examine import READERS, Result
from tests.hostile.report import examined

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def results() -> dict[str, Result]:
    """What became of every case; each was read in a process of its own."""
    return {result.key: result for result in examined()}


@pytest.mark.parametrize("key", CASES)
def test_hostile_input_is_refused_in_a_sentence_or_read(
    key: str, results: dict[str, Result]
) -> None:
    case, result = CASES[key], results[key]
    assert result.outcome == ("refused" if case.refused else "accepted"), result.sentence
    for words in case.refused:
        assert words in result.sentence
    assert result.sentence.isprintable()
    assert len(result.sentence) < 1500
    assert result.left == []
    assert result.memory < case.memory


def test_every_reader_has_a_sound_input_that_it_accepts() -> None:
    for reader in ("idx", "npz", "parquet", "folder", "image", "experiment", "snapshot"):
        assert not CASES[f"{reader}: sound (control)"].refused
    assert {case.reader for case in CASES.values()} == READERS.keys()


def command(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from flows.cli import main; main()", *map(os.fspath, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("key", "arguments", "exit_code"),
    [
        ("idx: bomb: 1 MB that unfolds to 1 GB and says so", ["ingest"], 3),
        ("npz: header of minus signs", ["ingest"], 3),
        ("folder: an image that is a pipe", ["ingest"], 3),
        ("folder: a line break in a name", ["ingest"], 3),
        ("folder: a class whose name cannot be decoded", ["ingest"], 3),
        ("folder: path: longer than any path", ["ingest"], 2),
        ("parquet: images: bytes that are text", ["ingest"], 3),
        ("experiment: arrays 30,000 deep", ["evaluate"], 2),
        ("experiment: a learning rate that is no number", ["evaluate"], 2),
        ("experiment: path: home of nobody", ["evaluate"], 2),
        ("pointer: half of it", ["predict", "--model", "champion", __file__, "--artifacts"], 1),
        ("latest: no byte", ["report", "latest", "--artifacts"], 2),
    ],
)
def test_the_command_says_the_sentence_and_no_more(
    key: str, arguments: list[str], exit_code: int, tmp_path: Path
) -> None:
    case = CASES[key]
    (tmp_path / "given").mkdir()
    (tmp_path / "here").mkdir()
    goal = case.make(tmp_path / "given")
    done = command(*arguments, goal, cwd=tmp_path / "here")
    assert done.returncode == exit_code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("nightfold: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    for words in case.refused:
        assert words in done.stderr
    assert list((tmp_path / "here").iterdir()) == []


def test_a_model_whose_name_looks_like_markup_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "models" / "a[/b]"
    path.mkdir(parents=True)
    (path / "manifest.json").write_text("{}")
    done = command("models", "list", "--artifacts", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "/models" in done.stdout


def test_the_table_of_the_page_counts_the_corpus_as_it_is() -> None:
    page = Path(__file__).parents[2] / "docs" / "robustness.md"
    for reader in READERS:
        n = sum(case.reader == reader and bool(case.refused) for case in CASES.values())
        assert f"| {reader} | {n} | {n} | 0 |" in page.read_text()
