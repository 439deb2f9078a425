"""The final fit may begin before all folds are done, as of whoever leads."""

import pytest

from nightfold.finaljob import Ahead
from nightfold.foldresult import FoldHandle
from nightfold.racing import Race

RACE = Race(rule=None, runners=("slow", "swift"), total=3)


@pytest.fixture
def begun():
    return set()


@pytest.fixture
def ahead(begun):
    return Ahead(RACE, lambda name: f"fit {name}", begun)


def folds(**accuracies):
    """Of each candidate, in the order of the plan; None for a fold that is missing."""
    return [
        FoldHandle.model_construct(candidate=name, repeat=1, fold=fold, accuracy=accuracy)
        for name, of_folds in accuracies.items()
        for fold, accuracy in enumerate(of_folds, start=1)
        if accuracy is not None
    ]


def test_it_is_certain_once_no_missing_fold_can_change_the_choice(ahead):
    assert ahead.next(folds(slow=[0.98], swift=[0.99, 0.99, 0.99])) == ("fit swift", False)
    assert ahead.next(folds(slow=[0.98, 0.98], swift=[0.99, 0.99, 0.99])) == ("fit swift", True)


def test_who_leads_is_judged_on_folds_that_all_have(ahead):
    hard_one_missing = folds(slow=[None, 0.99, 0.99], swift=[0.5, 0.995, None])
    assert ahead.next(hard_one_missing) == ("fit swift", False)
    assert ahead.next(folds(slow=[None, 0.9], swift=[0.9, None])) is None
    assert ahead.next([]) is None


def test_a_guest_is_never_the_final_model(ahead):
    assert ahead.next(folds(champion=[1, 1, 1], slow=[0.98], swift=[0.99]))[0] == "fit swift"


def test_a_repeat_that_is_added_may_choose_another(ahead, begun):
    first = folds(slow=[0.99, 0.99, 0.99], swift=[0.98, 0.98, 0.98])
    assert ahead.next(first) == ("fit slow", True)
    begun.add("slow")
    assert ahead.next(first) is None
    more = Ahead(RACE.model_copy(update={"total": 4}), ahead.job_of, begun)
    turned = folds(slow=[0.99, 0.99, 0.99, 0.1], swift=[0.98, 0.98, 0.98, 0.98])
    assert more.next(turned) == ("fit swift", True)


def test_a_candidate_without_a_rival_is_certain_before_the_first_fold():
    alone = Ahead(Race(rule=None, runners=("slow",), total=3), lambda name: name, set())
    assert alone.next([]) == ("slow", True)
