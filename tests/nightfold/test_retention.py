"""Pruning: old nights go, and nothing that a kept one or the champion needs ever does."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightfold import lock, retention
from nightfold.errors import BundleRefused, Busy, UsageError
from nightfold.experiment import Candidate
from nightfold.history import History
from nightfold.manifest import verify
from nightfold.registry import Registry
from nightfold.retention import AREAS, prune
from nightfold.store import TEMPORARY, Store, write_json
from nightfold.summary import PromotionFacts, Summary

FIRST = datetime(2024, 1, 1, 2, tzinfo=UTC)
DEEP = Candidate(name="deep", architecture="deep")


class Nights:
    """Leaves what nights leave, a day apart, small and quick."""

    def __init__(self, folder, write_night, add_bundle):
        self.store = Store(folder)
        self.write_night, self.add_bundle = write_night, add_bundle
        self.day = 0

    def stamp(self, path):
        """As if it had been written in the middle of this night."""
        at = (FIRST + timedelta(days=self.day, minutes=5)).timestamp()
        os.utime(path, (at, at))

    def fold(self, name):
        folder = self.store.folds / name
        if not folder.exists():
            folder.mkdir(parents=True)
            (folder / "result.json").write_text("x" * 1000)
            self.stamp(folder)
        return {"label": name, "folder": str(folder), "epochs": 1}

    def night(self, data="a", promote=True, folds=("shared",), finished=True):
        """A night on the data of this digit; unfinished, it has left no summary."""
        store, started_at = self.store, FIRST + timedelta(days=self.day)
        version = f"{started_at:%Y%m%d-%H%M%S}-1a2b3c"
        for path in (store.datasets / (data * 16), store.datasets / "sources"):
            path.mkdir(parents=True, exist_ok=True)
        (store.datasets / (data * 16) / "dataset.json").write_text("{}")
        write_json(store.datasets / "sources" / f"{data}.json", {"snapshot": data * 16})
        plan = store.plans / f"{data * 16}.parquet"
        plan.parent.mkdir(exist_ok=True)
        plan.write_text("plan")
        run = store.run(version)
        jobs = [self.fold(name) for name in (*folds, f"own-{self.day}")]
        write_json(run / "jobs.json", jobs)
        if finished:
            champion = Registry(store).champion()
            current = version if promote else champion and champion.version
            outcome = PromotionFacts(promoted=promote, reason="why", champion=current)
            self.write_night(store, started_at, {DEEP: 0.99}, outcome, data=data)
            facts = {"run_id": version, "candidate_digest": DEEP.digest}
            self.add_bundle(store.models, version, dataset_digest=data * 64, plan=data, **facts)
            manifest = store.models / version / "manifest.json"
            document = json.loads(manifest.read_text())
            manifest.write_text(json.dumps({**document, "created_at": started_at.isoformat()}))
            write_json(store.latest, {"run_id": version})
            if promote:
                Registry(store).promote(version, "better")
        for path in (store.datasets / (data * 16), plan, run):
            self.stamp(path)
        self.day += 1
        return version

    def there(self):
        """Names in every area."""
        return {
            area: {p.name.removesuffix(".parquet") for p in (self.store.root / area).glob("[!.]*")}
            - {"sources", "champion.json"}
            for area in AREAS
        }


@pytest.fixture
def nights(tmp_path, write_night, add_bundle):
    return Nights(tmp_path / "artifacts", write_night, add_bundle)


def assert_sound(store):
    """The champion verifies; whatever a run that is there refers to is there."""
    registry = Registry(store)
    entries = registry.history()
    if entries:
        last = entries[-1]
        manifest = verify(store.models / last.version, manifest_sha256=last.manifest_sha256)
        assert (store.datasets / manifest.dataset_digest[:16]).is_dir()
        assert (store.plans / f"{manifest.plan_digest[:16]}.parquet").is_file()
        assert (store.run(manifest.run_id) / "summary.json").is_file()
    for entry in entries:
        verify(store.models / entry.version, manifest_sha256=entry.manifest_sha256)
    for run in store.runs.glob("[!.]*"):
        for job in json.loads((run / "jobs.json").read_text()):
            assert (Path(job["folder"]) / "result.json").is_file()
        if (run / "summary.json").exists():
            summary = Summary.read(run)
            assert (store.datasets / summary.dataset.digest[:16]).is_dir()
            assert (store.plans / f"{summary.plan.digest[:16]}.parquet").is_file()
            assert (store.models / summary.final.version).is_dir()
    if store.latest.exists():
        store.find_run("latest")


def test_the_newest_runs_stay_and_what_only_older_ones_had_goes(nights):
    old = [nights.night(data="a", promote=False) for _ in range(2)]
    new = [nights.night(data="b") for _ in range(3)]
    pruned = prune(nights.store, 3)
    assert pruned.kept == tuple(new)
    assert nights.there() == {
        "runs": set(new),
        "models": set(new),
        "folds": {"shared", "own-2", "own-3", "own-4"},
        "plans": {"b" * 16},
        "datasets": {"b" * 16},
    }
    assert pruned.removed["runs"] == tuple(old)
    assert pruned.bytes > 2000
    assert [p.name for p in (nights.store.datasets / "sources").iterdir()] == ["b.json"]
    assert_sound(nights.store)


def test_nothing_goes_before_there_are_more_runs_than_are_kept(nights):
    nights.night()
    nights.add_bundle(nights.store.models, "copied-here-by-hand")
    nights.fold("of-nobody")
    assert prune(nights.store, 1).removed == dict.fromkeys(AREAS, ())
    assert "copied-here-by-hand" in nights.there()["models"]


def test_a_dry_run_says_the_same_and_removes_nothing(nights):
    for _ in range(3):
        nights.night()
    before = nights.there()
    said = prune(nights.store, 1, dry_run=True)
    assert nights.there() == before
    assert not nights.store.history.exists()
    assert prune(nights.store, 1) == said
    assert nights.there() != before


def test_every_champion_there_was_stays_and_the_one_in_use_with_its_run(nights):
    first = nights.night(data="a")
    second = nights.night(data="b")
    for _ in range(3):
        newest = nights.night(data="c", promote=False)
    pruned = prune(nights.store, 1)
    assert pruned.kept == (second, newest)
    assert nights.there()["models"] == {first, second, newest}
    assert nights.there()["datasets"] == {"b" * 16, "c" * 16}
    assert "own-1" in nights.there()["folds"]
    assert_sound(nights.store)


def test_the_history_and_the_scores_of_pruned_nights_stay(nights):
    for data in "abc":
        nights.night(data=data)
    day = nights.store.scores / "run_date=2024-01-01"
    day.mkdir(parents=True)
    (day / "old.parquet").write_text("scores")
    before = History.read(nights.store)
    prune(nights.store, 1)
    assert History.read(nights.store) == before
    assert len(before.nights) == 3
    assert (day / "old.parquet").exists()


def test_an_unfinished_run_goes_with_the_nights_of_its_time(nights):
    killed_long_ago = nights.night(finished=False)
    nights.night(promote=False)
    kept = nights.night()
    killed_last_night = nights.night(finished=False)
    assert set(prune(nights.store, 1).kept) == {kept, killed_last_night}
    there = nights.there()
    assert killed_long_ago not in there["runs"]
    assert {"own-2", "own-3"} <= there["folds"]
    assert not {"own-0", "own-1"} & there["folds"]


def test_a_run_whose_summary_is_damaged_counts_as_unfinished(nights):
    damaged = nights.night()
    nights.night()
    kept = nights.night()
    (nights.store.run(damaged) / "summary.json").write_text('{"run_id": "')
    assert prune(nights.store, 1).kept == (kept,)
    assert damaged not in nights.there()["runs"]


def test_links_are_neither_followed_nor_removed(nights, tmp_path):
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "thesis.txt").write_text("years of work")
    for _ in range(3):
        nights.night(promote=False)
    store = nights.store
    (store.runs / "elsewhere").symlink_to(outside)
    (next(store.runs.glob("2024*")) / "figures").symlink_to(outside)
    os.rename(store.folds, tmp_path / "big-disk")
    store.folds.symlink_to(tmp_path / "big-disk")
    pruned = prune(store, 1)
    assert pruned.left_alone == ("folds", "runs/elsewhere")
    assert len(pruned.removed["runs"]) == 2
    assert (outside / "deep" / "thesis.txt").read_text() == "years of work"
    assert (store.runs / "elsewhere").is_symlink()
    assert len(list((tmp_path / "big-disk").iterdir())) == 4


@pytest.mark.parametrize("damage", ["pointer", "manifest", "bundle"])
def test_a_champion_that_cannot_be_read_stops_it_before_anything_goes(nights, damage):
    version = nights.night()
    for _ in range(2):
        nights.night(promote=False)
    if damage == "pointer":
        Registry(nights.store).pointer_path.write_text("{}")
    elif damage == "manifest":
        (nights.store.models / version / "manifest.json").write_text("{}")
    else:
        os.rename(nights.store.models / version, nights.store.root / "away")
    before = nights.there()
    with pytest.raises(BundleRefused):
        prune(nights.store, 1)
    assert nights.there() == before


@pytest.mark.parametrize("keep", [0, -3])
def test_keeping_no_run_is_refused(nights, keep):
    with pytest.raises(UsageError, match="--keep"):
        prune(nights.store, keep)


def test_a_store_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(UsageError, match="no artifacts folder"):
        prune(Store(tmp_path / "none"), 1)
    assert not (tmp_path / "none").exists()


def test_a_run_from_the_future_stops_it_before_anything_goes(nights, monkeypatch):
    for _ in range(3):
        nights.night()
    ended = max(run.finished_at for run in map(Summary.read, nights.store.runs.iterdir()))

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return ended - timedelta(hours=1)

    before = nights.there()
    monkeypatch.setattr(retention, "datetime", Clock)
    with pytest.raises(UsageError, match="ended in the future"):
        prune(nights.store, 1)
    assert nights.there() == before


def test_documents_too_deep_to_read_do_not_stop_it(nights):
    for _ in range(3):
        nights.night()
    nights.store.latest.write_text("[" * 200_000)
    oldest, *_, newest = sorted(nights.store.runs.iterdir())
    (oldest / "jobs.json").write_text("[" * 200_000)
    assert prune(nights.store, 1).kept == (newest.name,)


class Killed(BaseException):
    """In place of SIGKILL: nothing in the product catches it."""


def killed_at(step, monkeypatch):
    """Let the process die before its `step`-th rename or deletion."""
    left = [step]

    def counted(action):
        def run(*arguments):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return action(*arguments)

        return run

    monkeypatch.setattr(retention.os, "rename", counted(os.rename))
    monkeypatch.setattr(retention.shutil, "rmtree", counted(retention.shutil.rmtree))


NIGHTS = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.booleans(),
        st.sampled_from([("shared",), ("other",), ()]),
        st.sampled_from([True, True, True, False]),
        st.integers(0, 9),
    ),
    max_size=7,
)


@settings(max_examples=25, deadline=None)
@given(nights=NIGHTS, keep=st.integers(1, 5), step=st.integers(0, 25))
def test_whatever_happened_before_and_wherever_it_is_killed(
    write_night, add_bundle, nights, keep, step
):
    """At no moment does the champion or a run that is there miss anything it refers to."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
        made = Nights(folder, write_night, add_bundle)
        versions = []
        for data, promote, folds, finished, again in nights:
            version = made.night(data, promote, folds, finished)
            versions += [version] if finished else []
            if again < len(versions) and again < 3:
                Registry(made.store).promote(versions[again], "on second thought")
        before = History.read(made.store).nights
        assert_sound(made.store)
        killed_at(step, monkeypatch)
        with suppress(Killed):
            prune(made.store, keep)
        assert_sound(made.store)
        monkeypatch.undo()
        prune(made.store, keep)
        assert_sound(made.store)
        assert History.read(made.store).nights == before
        assert set(versions[-keep:]) <= made.there()["runs"]
        assert not list(Path(folder).rglob(f"{TEMPORARY}*"))
        assert prune(made.store, keep).removed == dict.fromkeys(AREAS, ())


def test_a_prune_that_is_really_killed_is_finished_by_the_next(nights):
    for number in range(25):
        nights.night(promote=number == 0, folds=[f"{number}-{fold}" for fold in range(10)])
    script = (
        "import sys\n"
        "from nightfold.retention import prune\n"
        "from nightfold.store import Store\n"
        "print('go', flush=True)\n"
        "prune(Store(sys.argv[1]), 2)\n"
    )
    arguments = [sys.executable, "-c", script, str(nights.store.root)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "go\n"
    deadline = time.monotonic() + 30
    while len(nights.there()["runs"]) > 18 and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 3 < len(nights.there()["runs"]) < 25
    assert_sound(nights.store)
    prune(nights.store, 2)
    assert_sound(nights.store)
    assert {area: len(names) for area, names in nights.there().items()} == {
        "runs": 3,
        "models": 3,
        "folds": 33,
        "plans": 1,
        "datasets": 1,
    }


def test_nothing_is_pruned_beside_a_night(tmp_path):
    """What the night is about to refer to would go."""
    store = Store(tmp_path)
    with (
        lock.alone(store, "tonight", minutes=0, tell=print),
        pytest.raises(Busy, match="tonight"),
    ):
        prune(store, 1)
