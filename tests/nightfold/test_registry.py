"""The champion pointer: always whole, never pointing at what does not verify, with its history.

The registry reads checksums, and models only before a rollback: elsewhere the bundles here hold no
real one.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from nightfold.errors import BundleRefused, UsageError
from nightfold.registry import Registry
from nightfold.store import Store


@pytest.fixture
def registry(tmp_path: Path, add_bundle) -> Registry:
    registry = Registry(Store(tmp_path))
    for version in "abc":
        add_bundle(registry.folder, version, candidate_digest=version * 64)
    return registry


@pytest.fixture
def real_registry(tmp_path: Path, add_bundle, store) -> Registry:
    """The same with a model that knows its digits in every bundle."""
    registry = Registry(Store(tmp_path / "real"))
    for version in "abc":
        add_bundle(registry.folder, version, like=store.models / "night-1")
    return registry


def names(registry: Registry) -> list[str]:
    return [entry.version for entry in registry.history()]


def edit_pointer(registry: Registry, **changes) -> None:
    document = json.loads(registry.pointer_path.read_text())
    registry.pointer_path.write_text(json.dumps(document | changes))


def test_there_is_no_champion_at_first(registry):
    assert registry.champion() is None
    assert registry.history() == []
    with pytest.raises(UsageError, match="there are: a, b, c"):
        registry.resolve("champion")


def test_promotion_keeps_the_history_oldest_first(registry):
    for version in "abc":
        registry.promote(version, f"because {version}")
    champion = registry.champion()
    assert (champion.version, champion.reason) == ("c", "because c")
    document = json.loads(registry.pointer_path.read_text())
    assert (document["format"], document["version"]) == (1, "c")
    assert [entry["version"] for entry in document["history"]] == ["a", "b"]
    assert registry.resolve("champion") == registry.folder / "c"


def test_promoting_the_champion_again_changes_nothing(registry):
    first = registry.promote("a", "better")
    before = registry.pointer_path.read_bytes()
    assert registry.promote("a", "again") == first
    assert registry.pointer_path.read_bytes() == before


def test_an_altered_bundle_is_never_pointed_to(registry):
    registry.promote("a", "first")
    (registry.folder / "b" / "model.keras").write_text("model.keras of x")
    with pytest.raises(BundleRefused, match=r"b/model\.keras was altered"):
        registry.promote("b", "better")
    assert names(registry) == ["a"]


def test_a_bundle_in_the_folder_of_another_version_is_refused(registry):
    (registry.folder / "b").rename(registry.folder / "d")
    with pytest.raises(BundleRefused, match="says that it is version b"):
        registry.promote("d", "better")


@pytest.mark.slow
def test_rollback_gives_the_place_back_and_goes_on_backwards(real_registry):
    registry = real_registry
    for version in "abc":
        registry.promote(version, "better")
    assert registry.rollback().version == "b"
    assert registry.rollback().version == "a"
    with pytest.raises(UsageError, match="no earlier champion before it"):
        registry.rollback()
    registry.promote("c", "on second thought")
    assert registry.rollback().version == "a"
    assert names(registry) == ["a", "b", "c", "b", "a", "c", "a"]


@pytest.mark.slow
def test_a_rollback_remembers_which_recipes_are_not_wanted(tmp_path, add_bundle, store):
    registry = Registry(Store(tmp_path / "recipes"))
    for version, recipe in {"a": "1", "b": "2", "c": "3", "c2": "3"}.items():
        add_bundle(
            registry.folder,
            version,
            like=store.models / "night-1",
            candidate_digest=recipe * 64,
        )
    for version in "abc":
        registry.promote(version, "better")
    assert registry.rollback("a").deposed == ("3" * 64,)
    assert registry.promote("b", "by hand").deposed == ("3" * 64,)
    assert registry.rollback("a").deposed == ("3" * 64, "2" * 64)
    assert registry.promote("c2", "by hand").deposed == ("2" * 64,)
    assert registry.rollback("c").deposed == ("2" * 64,)


def test_looks_at_a_recipe_outlive_its_reign(registry, add_bundle):
    add_bundle(registry.folder, "a2", candidate_digest="1" * 64)
    add_bundle(registry.folder, "a1", candidate_digest="1" * 64)
    add_bundle(registry.folder, "d", candidate_digest="4" * 64)
    registry.promote("a1", "first")
    looks = [registry.look("a1", digit * 64) for digit in "789"]
    assert looks == [1, 2, 3]
    registry.promote("d", "better")
    assert registry.look("d", "7" * 64) == 1
    registry.promote("a2", "a new fit")
    assert registry.look("a2", "0" * 64) == 4


def test_rollback_to_a_named_champion(real_registry):
    registry = real_registry
    registry.promote("a", "better")
    registry.promote("b", "better")
    with pytest.raises(UsageError, match="called 'c'; earlier ones: a"):
        registry.rollback("c")
    entry = registry.rollback("a")
    assert (entry.version, entry.action) == ("a", "rollback")
    assert "from b" in entry.reason


def test_rollback_refuses_a_bundle_that_is_not_what_it_was(registry):
    registry.promote("a", "better")
    registry.promote("b", "better")
    manifest = registry.folder / "a" / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    with pytest.raises(BundleRefused, match=r"a/manifest\.json was altered"):
        registry.rollback()
    assert registry.champion().version == "b"


@pytest.mark.slow
def test_rollback_refuses_a_model_that_gives_other_answers_than_when_it_was_sealed(
    real_registry, add_bundle, store, champion
):
    """Every checksum is right, and yet it is not the model that was promoted."""
    registry, sealed = real_registry, store.models / "night-1"
    other = registry.folder.parent / "other"
    shutil.copytree(sealed, other)
    golden = 1 - champion.predict(champion.golden_images)
    np.savez(other / "golden.npz", images=champion.golden_images, probabilities=golden)
    add_bundle(registry.folder, "x", like=other)
    registry.promote("x", "better")
    registry.promote("a", "better")
    with pytest.raises(BundleRefused, match="no longer gives the answers it was sealed with"):
        registry.rollback()
    assert registry.champion().version == "a"


def test_every_new_piece_of_evidence_is_a_look_and_the_same_one_is_not(registry):
    registry.promote("a", "first")
    one, two = "1" * 64, "2" * 64
    assert [registry.look("a", e) for e in (one, two, one, two)] == [1, 2, 1, 2]
    assert registry.champion().looks == (one, two)
    registry.promote("b", "better")
    assert registry.look("b", two) == 1
    assert [entry.looks for entry in registry.history()] == [(one, two), (two,)]
    assert registry.look("a", two) == 2


def test_only_looks_at_a_champion_are_counted(registry):
    with pytest.raises(UsageError, match="a never was champion"):
        registry.look("a", "1" * 64)


@pytest.mark.slow
def test_a_champion_that_comes_back_brings_its_looks_along(real_registry):
    real_registry.promote("a", "first")
    real_registry.look("a", "1" * 64)
    real_registry.promote("b", "better")
    real_registry.rollback()
    assert real_registry.look("a", "2" * 64) == 2


@pytest.mark.slow
def test_it_brings_looks_at_later_fits_of_its_recipe_along_too(tmp_path, add_bundle, store):
    registry, real = Registry(Store(tmp_path / "real")), store.models / "night-1"
    for version, digit in (("a", "1"), ("b", "2"), ("a2", "1")):
        add_bundle(registry.folder, version, like=real, candidate_digest=digit * 64)
    registry.promote("a", "first")
    registry.look("a", "6" * 64)
    registry.promote("b", "better")
    registry.promote("a2", "the first recipe, fitted anew")
    assert [registry.look("a2", digit * 64) for digit in "789"] == [2, 3, 4]
    registry.promote("b", "by hand")
    registry.rollback("a")
    assert registry.look("a", "0" * 64) == 5


def test_rollback_without_champion_says_so(registry):
    with pytest.raises(UsageError, match="no champion yet"):
        registry.rollback()


def test_the_champion_with_another_manifest_is_refused(registry):
    registry.promote("a", "better")
    manifest = registry.folder / "a" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"run-1"', '"run-2"'))
    with pytest.raises(BundleRefused, match=r"manifest\.json was altered"):
        registry.resolve("champion")


@pytest.mark.parametrize("version", ["../../etc", "/etc", "a/../b", ".part-x", ""])
def test_a_pointer_that_leads_elsewhere_is_refused(registry, version):
    registry.promote("a", "better")
    edit_pointer(registry, version=version)
    with pytest.raises(BundleRefused, match="was altered"):
        registry.champion()
    edit_pointer(registry, version="a", history=[{"version": version}])
    with pytest.raises(BundleRefused, match="was altered"):
        registry.resolve("champion")


@pytest.mark.timeout(10)
def test_a_pipe_in_place_of_the_pointer_is_refused_and_not_waited_for(registry):
    os.mkfifo(registry.pointer_path)
    with pytest.raises(BundleRefused, match=r"champion\.json is not a plain file but a pipe"):
        registry.champion()


@pytest.mark.parametrize("content", ["", "{}", "[]", "half a docu", '{"format": 2}'])
def test_an_unreadable_pointer_is_refused_and_kept(registry, content):
    registry.pointer_path.write_text(content)
    with pytest.raises(BundleRefused, match=r"champion\.json was altered"):
        registry.promote("a", "better")
    assert registry.pointer_path.read_text() == content
    assert [version.champion for version in registry.versions()] == [False] * 3


def test_versions_are_listed_with_the_broken_one_last(registry):
    registry.promote("c", "better")
    (registry.folder / "a" / "manifest.json").write_text("{")
    (registry.folder / ".part-1234-x").mkdir()
    found = registry.versions()
    assert [version.version for version in found] == ["b", "c", "a"]
    assert [version.champion for version in found] == [False, True, False]
    assert found[0].manifest.cross_validated.n == 2
    assert found[2].manifest is None
    assert "manifest.json" in found[2].error


def test_a_model_is_a_version_or_a_path_and_else_the_versions_are_named(
    registry, tmp_path, add_bundle
):
    assert registry.resolve("b") == registry.folder / "b"
    elsewhere = Path(add_bundle(tmp_path / "elsewhere", "z").path)
    assert registry.resolve(str(elsewhere)) == elsewhere
    for unknown in ("zebra", "../models/zebra", ""):
        with pytest.raises(UsageError, match="a, b, c"):
            registry.resolve(unknown)


@pytest.mark.parametrize("use", ["by version", "by path", "promote"])
def test_an_earlier_champion_must_be_what_it_was_however_it_is_named(registry, use, add_bundle):
    """Somebody has sealed another model in its place; its own checksums fit."""
    registry.promote("a", "first")
    registry.promote("b", "better")
    shutil.rmtree(registry.folder / "a")
    add_bundle(registry.folder, "a", accuracies=(0.99, 0.99))
    with pytest.raises(BundleRefused, match=r"a/manifest\.json was altered"):
        if use == "promote":
            registry.promote("a", "again")
        else:
            registry.load("a" if use == "by version" else str(registry.folder / "a"))
    assert registry.champion().version == "b"


@pytest.mark.parametrize("name", ["model.h5", "model.keras", "saved_model", "."])
def test_a_bare_model_file_is_never_loaded(registry, tmp_path, name):
    (tmp_path / "model.h5").write_bytes(b"\x89HDF")
    (tmp_path / "model.keras").write_bytes(b"PK")
    (tmp_path / "saved_model").mkdir()
    with pytest.raises(UsageError, match="There is no model"):
        registry.load(str(tmp_path / name))


def test_readers_always_see_a_whole_pointer(registry):
    registry.promote("a", "first")
    done = threading.Event()
    seen: set[str] = set()
    errors: list[Exception] = []

    def read() -> None:
        while not done.is_set():
            try:
                seen.add(registry.champion().version)
            except Exception as error:
                errors.append(error)
                return

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    writer = Registry(Store(registry.folder.parent))
    for turn in range(200):
        writer.promote("ba"[turn % 2], f"turn {turn}")
    done.set()
    for reader in readers:
        reader.join()
    assert errors == []
    assert seen == {"a", "b"}
    assert len(registry.history()) == 201


def test_writers_in_many_processes_lose_no_entry(registry):
    script = (
        "import sys\n"
        "from nightfold.registry import Registry\n"
        "from nightfold.store import Store\n"
        "registry = Registry(Store(sys.argv[1]))\n"
        "for turn in range(20):\n"
        "    with registry.lock():\n"
        "        other = 'b' if registry.champion().version == 'a' else 'a'\n"
        "        registry.promote(other, 'in turn')\n"
    )
    registry.promote("a", "first")
    arguments = [sys.executable, "-c", script, str(registry.folder.parent)]
    writers = [subprocess.Popen(arguments) for _ in range(3)]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    assert names(registry) == ["a", *["b", "a"] * 30]


def test_a_killed_holder_leaves_no_lock(registry):
    script = (
        "import sys, time\n"
        "from nightfold.registry import Registry\n"
        "from nightfold.store import Store\n"
        "with Registry(Store(sys.argv[1])).lock():\n"
        "    print('locked', flush=True)\n"
        "    time.sleep(600)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(registry.folder.parent)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "locked\n"
    promotion = threading.Thread(target=registry.promote, args=("a", "better"), daemon=True)
    promotion.start()
    promotion.join(timeout=0.5)
    assert promotion.is_alive(), "the lock does not keep a second writer out"
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    promotion.join(timeout=10)
    assert registry.champion().version == "a"
