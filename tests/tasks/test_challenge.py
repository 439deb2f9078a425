"""The champion defends its place on tonight's folds, and every look at it is counted."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nightfold.dataset import Dataset
from nightfold.experiment import Candidate, Experiment, PlanChoice, load_experiment
from nightfold.foldplan import FoldPlan, PlanHandle
from nightfold.registry import Registry
from nightfold.store import Store
from nightfold.zoo import fingerprint
from tasks.challenge import hold, may_repeat
from tasks.defend import Defence, enter

NIGHT = load_experiment("night")
BASELINE, SWIFT = NIGHT.candidates
DENSE = Candidate(name="dense", architecture="dense", epochs=7)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(Store(tmp_path))


@pytest.fixture
def crown(registry: Registry, add_bundle) -> Callable[..., str]:
    """A function that makes a candidate the champion."""

    def of(candidate: Candidate, version: str = "night-1", **changes: object) -> str:
        recipe = {
            "candidate": candidate.model_dump(mode="json"),
            "candidate_digest": candidate.digest,
        }
        add_bundle(registry.folder, version, **recipe, **changes)
        return registry.promote(version, "first").version

    return of


def test_without_champion_the_night_is_as_declared(registry, small_mnist):
    assert enter(NIGHT, small_mnist, registry, "tonight") == Defence(experiment=NIGHT)


def test_the_champions_recipe_takes_part_under_a_name_of_its_own(registry, crown, small_mnist):
    crown(DENSE)
    defence = enter(NIGHT, small_mnist, registry, "tonight")
    assert (defence.version, defence.candidate, defence.guest) == ("night-1", "champion", True)
    assert [c.name for c in defence.experiment.candidates] == ["baseline", "swift", "champion"]
    assert defence.experiment.candidate("champion").digest == DENSE.digest
    more = defence.experiment.overridden(repeats=2)
    assert more.candidate("champion").digest == DENSE.digest


def test_a_run_that_goes_on_after_its_own_promotion_is_judged_as_before(
    registry, crown, small_mnist
):
    crown(DENSE)
    crown(SWIFT, "tonight")
    assert enter(NIGHT, small_mnist, registry, "tonight").version == "night-1"
    assert enter(NIGHT, small_mnist, registry, "tomorrow").version == "tonight"


def test_a_recipe_that_runs_anyway_is_not_run_twice(registry, crown, small_mnist):
    crown(SWIFT.model_copy(update={"name": "quick"}))
    defence = enter(NIGHT, small_mnist, registry, "tonight")
    assert (defence.candidate, defence.guest, defence.experiment) == ("swift", False, NIGHT)


def test_the_name_champion_may_be_taken(registry, crown, small_mnist):
    crown(DENSE)
    names = tuple(
        c.model_copy(update={"name": n})
        for c, n in zip(NIGHT.candidates, ("champion", "swift"), strict=True)
    )
    own = NIGHT.model_copy(update={"candidates": names})
    assert enter(own, small_mnist, registry, "tonight").candidate == "night-1"


def test_a_champion_of_another_task_cannot_be_compared(registry, crown, small_mnist):
    crown(DENSE, class_names=("cat", "dog"))
    defence = enter(NIGHT, small_mnist, registry, "tonight")
    assert (defence.version, defence.candidate) == ("night-1", None)
    assert "made for other images or classes (28 x 28 x 1, 2 classes)" in str(defence.problem)


def test_a_champion_that_does_not_verify_cannot_be_compared(registry, crown, small_mnist):
    crown(DENSE)
    manifest = registry.folder / "night-1" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("0.85", "0.99"))
    assert "manifest.json was altered" in str(
        enter(NIGHT, small_mnist, registry, "tonight").problem
    )


def test_a_network_that_is_gone_cannot_be_compared_but_does_not_stop_the_night(
    registry, crown, small_mnist
):
    crown(DENSE.model_copy(update={"architecture": "gone_module:build"}))
    defence = enter(NIGHT, small_mnist, registry, "tonight")
    assert "gone_module" in str(defence.problem)
    assert defence.experiment == NIGHT


def test_a_night_on_a_part_of_the_rows_challenges_nobody(registry, crown, small_mnist):
    rows = len(small_mnist.train)
    crown(DENSE, n_train=2 * rows)
    assert enter(NIGHT, small_mnist, registry, "tonight").problem is None
    crown(DENSE, "night-2", n_train=2 * rows + 1)
    defence = enter(NIGHT, small_mnist, registry, "tonight")
    assert (defence.candidate, defence.experiment) == (None, NIGHT)
    assert f"trained on {2 * rows + 1:,} rows, and tonight has {rows:,}" in str(defence.problem)


def test_a_network_that_was_edited_since_is_not_the_champions(
    registry, crown, small_mnist, tmp_path, monkeypatch
):
    source = tmp_path / "edited_module.py"
    source.write_text("def build(images, n_classes): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("NIGHTFOLD_MODULES", "edited_module")
    own = DENSE.model_copy(update={"architecture": "edited_module:build"})
    crown(own, architecture_source=fingerprint(own.architecture))
    assert enter(NIGHT, small_mnist, registry, "tonight").problem is None
    source.write_text("def build(images, n_classes): return None\n")
    assert "another than the one it was trained with" in str(
        enter(NIGHT, small_mnist, registry, "tonight").problem
    )


def test_no_code_is_imported_because_a_manifest_names_it(
    registry, crown, small_mnist, tmp_path, monkeypatch
):
    (tmp_path / "strangers_module.py").write_text("def build(images, n_classes): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    crown(DENSE.model_copy(update={"architecture": "strangers_module:build"}))
    defence = enter(NIGHT, small_mnist, registry, "tonight")
    assert "name 'strangers_module' in NIGHTFOLD_MODULES" in str(defence.problem)
    assert "strangers_module" not in sys.modules
    monkeypatch.setenv("NIGHTFOLD_MODULES", "strangers_module")
    assert enter(NIGHT, small_mnist, registry, "tonight").problem is None


@pytest.fixture
def plan(small_mnist: Dataset, tmp_path: Path) -> PlanHandle:
    built = FoldPlan.build(PlanChoice(folds=3), small_mnist)
    return built.handle(built.save(tmp_path))


@pytest.fixture
def folder(small_mnist: Dataset, tmp_path: Path) -> Path:
    """The tables of a night in which swift beats baseline, but takes every 7 for a 1."""
    labels = np.asarray(small_mnist.train.labels)
    blind = np.where(labels == 7, 1, labels)
    answers = {"baseline": labels, "swift": blind}
    pq.write_table(
        pa.concat_tables(
            pa.table({"candidate": [name] * len(labels), "label": labels, "predicted": predicted})
            for name, predicted in answers.items()
        ),
        tmp_path / "predictions.parquet",
    )
    verdict = {
        "candidate_a": "baseline",
        "candidate_b": "swift",
        "mean_difference": 0.01,
        "p_worse": 0.01,
        "p_equivalent": 0.03,
        "p_better": 0.96,
    }
    pq.write_table(pa.Table.from_pylist([verdict]), tmp_path / "verdicts.parquet")
    return tmp_path


def defended(candidate: str | None, experiment: Experiment = NIGHT) -> Defence:
    return Defence(experiment=experiment, version="night-1", candidate=candidate)


CLASSES = tuple("0123456789")


def test_the_difference_is_challenger_minus_champion_whichever_came_first(
    registry, crown, folder, plan
):
    crown(BASELINE)
    ahead = hold(folder, "swift", defended("baseline"), CLASSES, plan, registry).comparison
    behind = hold(folder, "baseline", defended("swift"), CLASSES, plan, registry).comparison
    assert (ahead.mean_difference, ahead.p_better, ahead.p_worse) == (0.01, 0.96, 0.01)
    assert (behind.mean_difference, behind.p_better, behind.p_worse) == (-0.01, 0.01, 0.96)


def test_recall_of_every_class_comes_from_rows_that_were_held_out(registry, crown, folder, plan):
    crown(BASELINE)
    contest = hold(folder, "swift", defended("baseline"), CLASSES, plan, registry)
    assert contest.recalls == {c: 0.0 if c == "7" else 1.0 for c in CLASSES}
    assert contest.champion_recalls == dict.fromkeys(CLASSES, 1.0)


def test_the_same_night_again_is_no_new_look_but_another_is(registry, crown, folder, plan):
    crown(BASELINE)

    def look() -> int:
        return hold(folder, "swift", defended("baseline"), CLASSES, plan, registry).comparison.look

    assert [look(), look()] == [1, 1]
    verdict = pq.read_table(folder / "verdicts.parquet").to_pylist()[0]
    other = pa.Table.from_pylist([{**verdict, "mean_difference": 0.011}])
    pq.write_table(other, folder / "verdicts.parquet")
    assert look() == 2
    assert len(registry.champion().looks) == 2


def test_the_champions_own_recipe_proves_nothing_and_is_no_look(registry, crown, folder, plan):
    crown(SWIFT)
    contest = hold(folder, "swift", defended("swift"), CLASSES, plan, registry)
    assert contest.comparison.same_recipe
    assert not contest.undecided
    assert registry.champion().looks == ()


def test_repeats_are_added_only_while_undecided_and_within_the_policy(
    registry, crown, folder, plan
):
    """0.96 would do for a verdict; for the first look at a champion 0.975 is asked."""
    crown(BASELINE)
    contest = hold(folder, "swift", defended("baseline"), CLASSES, plan, registry)
    assert contest.undecided
    assert may_repeat(contest, NIGHT.policy, plan)
    assert not may_repeat(contest, NIGHT.policy, plan.model_copy(update={"repeats": 2}))
    assert not may_repeat(contest.model_copy(update={"undecided": False}), NIGHT.policy, plan)


def test_without_a_policy_nothing_is_compared_or_counted(registry, crown, folder, plan):
    crown(BASELINE)
    lawless = NIGHT.model_copy(update={"policy": None})
    contest = hold(folder, "swift", defended(None, lawless), CLASSES, plan, registry)
    assert (contest.comparison, contest.undecided) == (None, False)
    assert registry.champion().looks == ()
