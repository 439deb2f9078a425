"""A full disk, a read-only folder, a rename that fails: one sentence, nothing half published."""

import re
import shlex
import shutil

import pytest

from nightfold.store import TEMPORARY
from tests.acceptance.chaos.arena import (
    RUN,
    Arena,
    Server,
    champion_of,
    differences,
    faults_at_any_moment,
)
from tests.acceptance.chaos.disk import Disk

pytestmark = [pytest.mark.slow, pytest.mark.long]

FULL = {
    "flow open datasets/.part-*/train_images.npy#1": "datasets/",
    "worker open folds/*/.part-checkpoint.npz#1": "checkpoint.npz",
    "worker open folds/*/.part-result.json#1": "result.json",
    "flow open runs/night/.part-predictions.parquet#1": "predictions.parquet",
    "worker open models/.part-night/model.keras#1": "models/night",
    # The night's look at the champion was counted, in the same file, by the attempt before.
    "flow open models/.part-champion.json#1": "champion.json",
    "flow open runs/night/.part-report.html#1": "report.html",
    "flow open .part-latest.json#1": "latest.json",
}
"""The write before which the disk is filled, and what the sentence must name."""

IN_FOLDS = ("checkpoint.npz", "result.json")
"""Written by two workers at a time, so it is the other one that may be told of."""


class Night:
    """A night on a disk of its own, beside what the night before has left there."""

    def __init__(self, arena, disk, notes):
        self.arena, self.disk, self.notes = arena, disk, notes
        self.folder = disk.inside / "artifacts"
        self.there = disk.seen(self.folder)
        shutil.copytree(arena.before, self.there)

    def run(self, at="", how="", through=(), **options):
        """Run it to its end: exit code and what it said."""
        enter = [*self.disk.enter, *through]
        attempt = self.arena.start(self.folder, at, how, enter=enter, notes=self.notes, **options)
        return attempt.wait(), self.arena.said(self.notes)

    @property
    def artifacts(self):
        """A copy of the folder as it is now: what is inside the disk resolves to names outside."""
        copy = self.notes.with_name("copy")
        shutil.rmtree(copy, ignore_errors=True)
        return shutil.copytree(self.there, copy)

    def fails(self, *at_how, **options):
        """The one sentence that it fails with, leaving no trace."""
        code, said = self.run(*at_how, **options)
        assert code == 1, said
        assert "Traceback" not in said
        artifacts = self.artifacts
        assert not [*artifacts.rglob(f"{TEMPORARY}*")]
        assert not faults_at_any_moment(artifacts)
        (sentence,) = [line for line in said.splitlines() if line.startswith("nightfold: ")]
        return sentence

    def ends_as_if_nothing_had_been(self):
        code, said = self.run()
        assert code == 0, said
        assert not differences(self.artifacts, self.arena.calm, RUN)


@pytest.fixture
def disk(tmp_path):
    disk = Disk(tmp_path / "disk", megabytes=200)
    if not disk.possible:
        disk.end()
        pytest.skip(f"this system lets a user mount no file system: {disk.answer}")
    yield disk
    disk.end()


@pytest.fixture
def night(arena, disk, tmp_path):
    return Night(arena, disk, tmp_path / "night")


def test_a_full_disk(night, disk):
    """Full at one write, freed, full at a later one; in the end the night is whole."""
    fill = f"mountpoint -q {disk.inside} && dd if=/dev/zero of={disk.inside}/ballast bs=4k"
    for write, name in FULL.items():
        sentence = night.fails(write, fill)
        assert name in sentence or (name in IN_FOLDS and "/folds/" in sentence)
        assert "No space left on device" in sentence or "only a part" in sentence
        assert "free some space" in sentence
        if "report" not in write and "latest" not in write:
            assert champion_of(night.artifacts) == "before"
        disk.empty()
    night.ends_as_if_nothing_had_been()


def test_a_folder_that_turns_read_only_and_a_limit_on_files(night, disk):
    disk.run("mount", "-o", "remount,ro", disk.inside)
    assert "Read-only file system" in night.fails()
    disk.run("mount", "-o", "remount,rw", disk.inside)
    sentence = night.fails(through=["prlimit", "--fsize=600000"])
    assert "checkpoint.npz" in sentence
    assert "raise the limit" in sentence
    run = night.folder / "runs" / "night"
    turn = f"mount --bind {run} {run} && mount -o remount,bind,ro {run}"
    sentence = night.fails("flow open runs/night/.part-scores.parquet#1", turn)
    assert "make the folder writable" in sentence
    disk.run("umount", run)
    assert champion_of(night.artifacts) == "before"
    night.ends_as_if_nothing_had_been()


def test_a_rename_that_fails(night, disk):
    for name in ("runs/night/scores.parquet", "latest.json"):
        target = night.there / name
        kept = target.read_bytes() if target.exists() else None
        target.unlink(missing_ok=True)
        (target / "in the way").mkdir(parents=True)
        sentence = night.fails()
        assert name in sentence
        assert "move away what is in its place" in sentence
        shutil.rmtree(target)
        if kept:
            target.write_bytes(kept)
    mounted = night.folder / "latest.json"
    disk.run("mount", "--bind", mounted, mounted)
    assert "Device or resource busy" in night.fails()
    disk.run("umount", mounted)
    night.ends_as_if_nothing_had_been()


def test_a_server_that_is_killed_or_whose_disk_is_full(arena, disk, tmp_path):
    """The command ends with one sentence; when the server is back, so does the night."""
    fill = shlex.join([*disk.enter, "dd", "if=/dev/zero", f"of={disk.inside}/ballast", "bs=4k"])
    server = Server.anywhere(disk.inside / "prefect")
    server.start(disk.enter)
    try:
        another = Arena(arena.folder, server)
        artifacts = tmp_path / "artifacts"
        shutil.copytree(arena.before, artifacts)
        # The second time every fold may be there already; tables are written anew in any case.
        for write, how, said in (
            ("worker open folds/*/.part-checkpoint.npz#1", fill, "whether the disk"),
            (
                "flow open runs/night/.part-scores.parquet#1",
                f"kill -9 -{server.process.pid}",
                "no longer answers",
            ),
        ):
            attempt = another.start(artifacts, write, how)
            assert attempt.wait() == 1, another.said(artifacts)
            lines = another.said(artifacts).splitlines()
            # Prefect's own lines, which end in no line break, may come before it.
            (sentence,) = re.findall(r"nightfold: .*", "\n".join(lines))
            assert f"The Prefect server at {server.url} " in sentence
            assert said in sentence
            disk.empty()
        server.start(disk.enter)
        assert another.start(artifacts).wait() == 0, another.said(artifacts)
        assert not differences(artifacts, arena.calm, RUN)
    finally:
        server.kill()
