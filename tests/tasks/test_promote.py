"""What is not proven is not promoted, and the reason is a sentence."""

import multiprocessing
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from prefect.logging import disable_run_logger

from nightfold.bundle import BundleHandle
from nightfold.registry import Registry
from nightfold.store import Store
from tasks.promote import decide, promote


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(Store(tmp_path))


@pytest.fixture
def add(registry: Registry, add_bundle) -> Callable[..., BundleHandle]:
    """A function that adds a bundle to the registry's folder."""
    return partial(add_bundle, registry.folder)


def test_the_first_model_is_promoted(registry, add):
    facts = decide(add("a", [0.5, 0.6]), registry)
    assert (facts.promoted, facts.champion) == (True, "a")
    assert facts.reason == "The first model: there was no champion to beat."
    assert registry.champion().version == "a"


def test_the_task_answers_for_the_store_it_is_given(registry, add):
    with disable_run_logger():
        facts = promote.fn(add("a", [0.5, 0.6]), str(registry.folder.parent))
    assert facts.promoted
    assert registry.champion().version == "a"


def test_a_more_accurate_challenger_on_the_same_folds_is_promoted(registry, add):
    decide(add("a", [0.98, 0.97]), registry)
    facts = decide(add("b", [0.99, 0.98]), registry)
    assert (facts.promoted, facts.champion) == (True, "b")
    assert facts.reason == (
        "More accurate than the champion a: 98.500% against 97.500% on the same 2 folds."
    )
    assert registry.champion().reason == facts.reason


@pytest.mark.parametrize("accuracies", [[0.97, 0.98], [0.9, 0.9]], ids=["equal", "worse"])
def test_a_challenger_that_is_not_better_is_not_promoted(registry, add, accuracies):
    decide(add("a", [0.98, 0.97]), registry)
    facts = decide(add("b", accuracies), registry)
    assert (facts.promoted, facts.champion) == (False, "a")
    assert facts.reason.startswith("The champion a stays: the challenger has")
    assert registry.champion().version == "a"


def test_scores_of_other_folds_prove_nothing(registry, add):
    decide(add("a", [0.5, 0.6], plan="1"), registry)
    facts = decide(add("b", [0.99, 0.98], plan="2"), registry)
    assert (facts.promoted, facts.champion) == (False, "a")
    assert "it was scored on other folds (plan 111111111111)" in facts.reason


def test_promoting_the_same_bundle_twice_is_one_entry(registry, add):
    challenger = add("a", [0.5, 0.6])
    first = decide(challenger, registry)
    assert decide(challenger, registry) == first
    assert len(registry.history()) == 1


def test_a_broken_champion_stays_until_somebody_decides(registry, add):
    decide(add("a", [0.5, 0.6]), registry)
    (registry.folder / "a" / "model.keras").write_text("altered")
    facts = decide(add("b", [0.99, 0.98]), registry)
    assert (facts.promoted, facts.champion) == (False, "a")
    assert "The champion a cannot be compared" in facts.reason
    assert "model.keras was altered" in facts.reason
    assert "nightfold models promote" in facts.reason


def test_a_champion_with_better_scores_written_into_it_is_not_believed(registry, add):
    decide(add("a", [0.5, 0.6]), registry)
    manifest = registry.folder / "a" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("0.55", "0.99"))
    facts = decide(add("b", [0.8, 0.9]), registry)
    assert not facts.promoted
    assert "manifest.json was altered" in facts.reason


def test_an_altered_challenger_is_not_promoted(registry, add):
    challenger = add("a", [0.5, 0.6])
    (registry.folder / "a" / "golden.npz").write_text("altered")
    facts = decide(challenger, registry)
    assert (facts.promoted, facts.champion) == (False, None)
    assert facts.reason.startswith("The challenger is not sound: ")
    assert registry.champion() is None


def test_an_unreadable_pointer_promotes_nobody(registry, add):
    challenger = add("a", [0.5, 0.6])
    registry.pointer_path.write_text("{")
    facts = decide(challenger, registry)
    assert (facts.promoted, facts.champion) == (False, None)
    assert "champion.json was altered" in facts.reason
    assert registry.pointer_path.read_text() == "{"


def _decide_at_once(root: str, handles: list[BundleHandle], barrier) -> None:
    barrier.wait()
    for handle in handles:
        decide(handle, Registry(Store(root)))


@pytest.mark.slow
def test_of_challengers_that_come_at_once_the_best_remains(registry, add):
    """Each is judged against the champion of its own moment, never against an older one."""
    handles = [add(f"v{i:02}", [i / 40, i / 40]) for i in range(40)]
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    root = str(registry.folder.parent)
    processes = [
        context.Process(target=_decide_at_once, args=(root, handles[i::3][::-1], barrier))
        for i in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert registry.champion().version == "v39"
    order = [entry.version for entry in registry.history()]
    assert order == sorted(order)
