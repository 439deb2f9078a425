"""The final fit begins beside the folds that can no longer change which candidate it is of."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from nightfold.foldresult import FoldHandle
from nightfold.racing import Race
from tasks.fit import Ahead

RACE = Race(rule=None, runners=("slow", "swift"), total=3)


class Pool(ThreadPoolExecutor):
    """Takes jobs as a task runner does and notes them; one called slow fails."""

    def __init__(self):
        super().__init__(1)
        self.jobs = []

    def submit(self, step, parameters):
        assert step.name == "fit"
        self.jobs.append(parameters["job"])
        return super().submit(self.pretend, parameters["job"])

    @staticmethod
    def pretend(job):
        if job == "final slow":
            raise RuntimeError("broken")


@pytest.fixture
def pool():
    with Pool() as pool:
        yield pool


@pytest.fixture
def ahead(pool):
    return Ahead(pool, lambda name: f"final {name}")


def folds(**accuracies):
    return [
        FoldHandle(
            path="f",
            digest="f" * 64,
            candidate=name,
            candidate_digest="c" * 64,
            repeat=1,
            fold=fold,
            accuracy=accuracy,
            train_seconds=1,
        )
        for name, of_folds in accuracies.items()
        for fold, accuracy in enumerate(of_folds, start=1)
    ]


def test_it_begins_with_the_fold_that_settles_the_choice_and_only_once(pool, ahead):
    ahead.look(RACE, folds(slow=[0.98], swift=[0.99, 0.99, 0.99]))
    assert pool.jobs == []
    ahead.look(RACE, folds(slow=[0.98, 0.98], swift=[0.99, 0.99, 0.99]))
    ahead.look(RACE, folds(slow=[0.98, 0.98, 0.98], swift=[0.99, 0.99, 0.99]))
    ahead.wait()
    assert pool.jobs == ["final swift"]


def test_a_guest_is_never_the_final_model(pool, ahead):
    ahead.look(RACE, folds(champion=[1, 1, 1], slow=[0.98, 0.98], swift=[0.99, 0.99, 0.99]))
    assert pool.jobs == ["final swift"]


def test_a_repeat_that_is_added_may_choose_another(pool, ahead):
    ahead.look(RACE, folds(slow=[0.9, 0.9, 0.9], swift=[0.8, 0.8, 0.8]))
    two = RACE.model_copy(update={"total": 4})
    ahead.look(two, folds(slow=[0.9, 0.9, 0.9, 0.1], swift=[0.8, 0.8, 0.8, 0.9]))
    assert pool.jobs == ["final slow", "final swift"]


def test_a_fit_that_failed_is_told(pool, ahead):
    ahead.look(Race(rule=None, runners=("slow",), total=3), [])
    with pytest.raises(RuntimeError, match="broken"):
        ahead.wait()
