"""What is known of a file before it is opened, and how its name is shown."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest

from nightfold.errors import DataRefused, UsageError, printable
from nightfold.files import BOMB_BYTES, as_text, given, refuse_bomb, require_plain
from nightfold.store import Store


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Größe 目.png", "Größe 目.png"),
        ("two\nlines", "two\\nlines"),
        ("\x1b[2J", "\\x1b[2J"),
        ("caf\udce9", "caf\\xe9"),
        ("\ud800", "\\ud800"),
        ("right to \u202eleft", "right to \\u202eleft"),
    ],
)
def test_an_error_shows_every_name_on_one_line(name: str, shown: str) -> None:
    assert printable(name) == shown
    assert str(DataRefused(name)) == shown
    # Prefect hands errors from process to process.
    assert str(copy.copy(DataRefused(name))) == shown


@pytest.mark.parametrize("path", ["x" * 5000, "/" + "x" * 300, "~no-such-user/x", "a\0b"])
def test_a_path_that_nobody_can_look_at_is_wrong_usage(path: str) -> None:
    with pytest.raises(UsageError) as refused:
        given(path)
    assert len(str(refused.value)) < 400


def test_a_path_where_nothing_is_is_a_path(tmp_path: Path) -> None:
    assert given(tmp_path / "gone") == tmp_path / "gone"
    (tmp_path / "file").touch()
    assert given(tmp_path / "file" / "below") == tmp_path / "file" / "below"


def test_only_files_of_bytes_that_end_are_plain(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    require_plain(tmp_path / "file")
    require_plain(tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "lost").symlink_to("gone")
    for path, what in (
        (tmp_path / "pipe", "a pipe"),
        (tmp_path, "a folder"),
        (Path("/dev/zero"), "a device"),
        (tmp_path / "lost", "a link that leads nowhere"),
        (tmp_path / "gone", "There is no file"),
    ):
        with pytest.raises(DataRefused, match=what):
            require_plain(path)


def test_a_bomb_is_large_and_far_larger_than_it_looks() -> None:
    refuse_bomb("it", 10, BOMB_BYTES)
    refuse_bomb("it", 10**9, 10**11)
    with pytest.raises(DataRefused, match="it unfolds from 1,000 to 67,108,865 bytes"):
        refuse_bomb("it", 1000, BOMB_BYTES + 1)


def test_a_name_that_cannot_be_decoded_becomes_text_that_tables_hold() -> None:
    path = Path(os.fsdecode(b"caf\xe9 \xe7\x9b\xae.png"))
    assert as_text(path) == "caf\\xe9 目.png"
    as_text(path).encode()


@pytest.mark.parametrize("run_id", ["", ".", "a/b", "../x", "a\nb", "a b", "x" * 129, "-x", "é"])
def test_a_run_id_must_do_for_a_folder_and_a_version(run_id: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a plain name"):
        Store(tmp_path).run(run_id)


def test_an_artifacts_folder_that_no_table_can_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"caf\\xe9"):
        Store(tmp_path / "caf\udce9")
