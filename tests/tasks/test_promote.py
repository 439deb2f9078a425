"""The pointer moves only where the gate says so, and never on evidence of another champion."""

import multiprocessing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prefect.logging import disable_run_logger

from nightfold.experiment import load_experiment
from nightfold.gate import Comparison
from nightfold.manifest import BundleHandle, HoldoutScores
from nightfold.registry import Registry
from nightfold.store import Store
from nightfold.summary import PromotionFacts
from tasks.challenge import Contest
from tasks.promote import promote, settle

POLICY = load_experiment("night").policy
RECALLS = {str(digit): 0.9 for digit in range(10)}
BETTER = Comparison(mean_difference=0.01, p_worse=0.0, p_equivalent=0.001, p_better=0.999)
EQUAL = Comparison(mean_difference=0.0005, p_worse=0.1, p_equivalent=0.6, p_better=0.3)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(Store(tmp_path))


@pytest.fixture
def add(registry: Registry, add_bundle) -> Callable[..., BundleHandle]:
    """A function that adds a bundle to the registry's folder."""
    return partial(add_bundle, registry.folder)


def against(champion: str | None, comparison: Comparison | None = BETTER, **changes: Any):
    recalls = {"recalls": RECALLS, "champion_recalls": RECALLS if champion else {}}
    found = comparison if champion else None
    return Contest(**{"champion": champion, "comparison": found, **recalls, **changes})


def tried(
    challenger: BundleHandle, registry: Registry, contest: Contest, **changes: Any
) -> PromotionFacts:
    asked = {"milliseconds": 3.0, "policy": POLICY, **changes}
    return settle(challenger, contest=contest, registry=registry, **asked)


def test_the_first_model_is_promoted(registry, add):
    facts = tried(add("a"), registry, against(None))
    assert (facts.promoted, facts.champion, facts.outcome) == (True, "a", "promote")
    assert facts.reason.startswith("The first model: there was no champion to beat")
    assert facts.checks
    assert all(check.passed for check in facts.checks)
    assert registry.champion().reason == facts.reason


def test_the_task_answers_for_the_store_it_is_given(registry, add):
    with disable_run_logger():
        facts = promote.fn(add("a"), 3.0, against(None), POLICY, str(registry.folder.parent))
    assert facts.promoted
    assert registry.champion().version == "a"


def test_a_proven_challenger_takes_the_place(registry, add):
    tried(add("a"), registry, against(None))
    facts = tried(add("b"), registry, against("a"))
    assert (facts.promoted, facts.champion) == (True, "b")
    assert facts.reason.startswith("dense is better than the champion a: +1.00 points")
    assert registry.champion().reason == facts.reason


def test_a_copy_with_a_little_more_in_the_mean_does_not(registry, add):
    tried(add("a", [0.9, 0.91]), registry, against(None))
    facts = tried(add("b", [0.9005, 0.9105]), registry, against("a", EQUAL))
    assert (facts.promoted, facts.champion, facts.outcome) == (False, "a", "undecided")
    assert registry.champion().version == "a"


def test_the_final_model_must_hold_what_its_recipe_promised(registry, add):
    tried(add("a"), registry, against(None))
    broken = HoldoutScores(rows=200, accuracy=0.4, log_loss=2.0, brier=0.9, ece=0.05)
    facts = tried(add("b", holdout=broken), registry, against("a"))
    assert (facts.outcome, facts.champion) == ("refuse", "a")
    assert "hold-out accuracy: 40.00 %, asked at least 50.00 %" in facts.reason


def test_what_was_not_measured_keeps_no_limit(registry, add):
    facts = tried(add("a"), registry, against(None), milliseconds=None)
    assert "time for one image: nan" in facts.reason


def test_without_a_policy_nothing_is_promoted_not_even_the_first(registry, add):
    facts = tried(add("a"), registry, against(None), policy=None)
    assert (facts.outcome, facts.champion) == ("refuse", None)
    assert registry.champion() is None


def test_proof_against_another_champion_proves_nothing(registry, add):
    challenger = add("c")
    contest = against("a")
    tried(add("a"), registry, against(None))
    registry.promote(add("b").version, "by hand")
    facts = tried(challenger, registry, contest)
    assert (facts.outcome, facts.champion) == ("refuse", "b")
    assert facts.reason.startswith(
        "The champion is now b, and tonight's challenger was compared with a"
    )


def test_a_champion_that_is_gone_was_not_beaten(registry, add):
    facts = tried(add("b"), registry, against("a"))
    assert (facts.outcome, facts.champion) == ("refuse", None)
    assert facts.reason.startswith("There is no champion any more, and tonight's challenger")


def test_no_night_undoes_a_rollback_but_people_may(registry, add):
    tried(add("a", candidate_digest="a" * 64), registry, against(None))
    tried(add("b", candidate_digest="b" * 64), registry, against("a"))
    deposed = registry.champion().model_copy(update={"version": "a", "deposed": ("b" * 64,)})
    registry._write([deposed.model_copy(update={"recipe": "a" * 64})])
    again = add("b2", candidate_digest="b" * 64)
    facts = tried(again, registry, against("a"))
    assert (facts.outcome, facts.champion) == ("refuse", "a")
    assert "was rolled back from" in facts.reason
    assert "nightfold models promote b2" in facts.reason
    other = tried(add("c", candidate_digest="c" * 64), registry, against("a"))
    assert other.champion == "c"
    assert registry.promote("b2", "mended").deposed == ()


def test_promoting_the_same_bundle_twice_is_one_entry(registry, add):
    challenger = add("a")
    first = tried(challenger, registry, against(None))
    assert tried(challenger, registry, against(None)) == first
    assert len(registry.history()) == 1


def test_a_champion_that_cannot_be_compared_stays_until_somebody_decides(registry, add):
    tried(add("a"), registry, against(None))
    facts = tried(add("b"), registry, against("a", None, problem="model.keras was altered."))
    assert (facts.promoted, facts.champion) == (False, "a")
    assert "cannot be compared: model.keras was altered." in facts.reason
    assert "nightfold models promote" in facts.reason


def test_nothing_takes_the_place_of_a_champion_that_cannot_be_read(registry, add):
    facts = tried(add("a"), registry, against(None, problem="champion.json is damaged."))
    assert (facts.promoted, facts.champion, facts.outcome) == (False, None, "refuse")
    assert facts.reason == "Nothing is promoted: champion.json is damaged."
    assert registry.champion() is None


def test_an_altered_challenger_is_not_promoted(registry, add):
    challenger = add("a")
    (registry.folder / "a" / "golden.npz").write_text("altered")
    facts = tried(challenger, registry, against(None))
    assert (facts.promoted, facts.champion) == (False, None)
    assert facts.reason.startswith("The challenger is not sound: ")
    assert registry.champion() is None


def test_an_unreadable_pointer_promotes_nobody(registry, add):
    challenger = add("a")
    registry.pointer_path.write_text("{")
    facts = tried(challenger, registry, against(None))
    assert (facts.promoted, facts.champion) == (False, None)
    assert "champion.json was altered" in facts.reason
    assert registry.pointer_path.read_text() == "{"


def _settle_at_once(root: str, handles: list[BundleHandle], barrier) -> None:
    barrier.wait()
    for handle in handles:
        tried(handle, Registry(Store(root)), against("first"))


@pytest.mark.slow
def test_of_challengers_that_come_at_once_one_takes_the_place(registry, add):
    """The others have proven something about a champion that is no more."""
    tried(add("first"), registry, against(None))
    handles = [add(f"v{i:02}") for i in range(12)]
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    root = str(registry.folder.parent)
    processes = [
        context.Process(target=_settle_at_once, args=(root, handles[i::3], barrier))
        for i in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(registry.history()) == 2
