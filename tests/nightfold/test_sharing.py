"""Folds are shared among workers so that all end nearly together."""

from itertools import chain, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightfold.sharing import Whole, in_two, plan


@given(
    seconds=st.lists(st.integers(0, 100), min_size=3, max_size=3),
    folds=st.integers(1, 5),
    free=st.tuples(st.integers(0, 100), st.integers(0, 100)),
)
def test_two_workers_get_the_best_plan_there_is(seconds, folds, free):
    every = list(map(sum, product(*([each * n for n in range(folds + 1)] for each in seconds))))
    total = folds * sum(seconds)
    best = min(max(free[0] + mine, free[1] + total - mine) for mine in every)
    planned = plan(free, seconds * folds)
    assert sorted(chain(*planned)) == sorted(seconds * folds)
    ends = [start + sum(own) for start, own in zip(free, planned, strict=True)]
    assert max(ends) <= best + (3 * folds) * total / 2 / 500


def ends_in_two(free, shares, folds, fold, n):
    """When workers end if a fold of one that ends last is parted; of several such, the best."""
    found = []
    whole = folds[fold]
    for last in (worker for worker, share in enumerate(shares) if whole.seconds in share):
        ends = [start + sum(share) for start, share in zip(free, shares, strict=True)]
        ends[last] -= whole.seconds
        begun = whole.seconds * n / whole.epochs
        other = min(range(1, len(ends)), key=ends.__getitem__)
        ends[other] = max(ends[other], free[0] + begun) + whole.seconds - begun + whole.rebuild
        ends[0] += begun
        found.append(sorted(ends))
    return min(found, key=max)


@given(
    folds=st.lists(
        st.builds(Whole, st.integers(1, 100), st.integers(1, 10), st.just(2)), max_size=4
    ),
    free=st.lists(st.integers(0, 100), min_size=1, max_size=4).map(sorted),
)
def test_a_fold_in_two_parts_never_ends_the_run_later(folds, free):
    shares = plan(free, [fold.seconds for fold in folds])
    found = in_two(free, shares, folds)
    if found is not None:
        fold, n = found
        assert 0 < n < folds[fold].epochs
        whole = max(start + sum(share) for start, share in zip(free, shares, strict=True))
        assert max(ends_in_two(free, shares, folds, fold, n)) <= whole


@pytest.mark.parametrize("epochs", [4, 10, 11])
def test_two_workers_end_together_but_for_an_epoch(epochs):
    """Two folds of a minute are left, and one of the workers is busy for another one."""
    free, folds = [0, 60], [Whole(60, epochs, 2)] * 2
    shares = plan(free, [60, 60])
    first, last = ends_in_two(free, shares, folds, *in_two(free, shares, folds))
    assert last - first <= 60 / epochs + 2
    assert last <= 90 + 60 / epochs / 2 + 2


def test_where_two_workers_end_last_one_of_them_can_end_sooner():
    """Another fold may be parted for the other one."""
    free, folds = [0, 0, 40], [Whole(40, 10, 2)] * 4
    shares = [[40, 40], [40], [40]]
    before = sorted(start + sum(share) for start, share in zip(free, shares, strict=True))
    after = ends_in_two(free, shares, folds, *in_two(free, shares, folds))
    assert before == [40, 80, 80]
    assert after[-1] == 80
    assert after[1] < 70


def test_a_fold_of_a_worker_that_does_not_end_last_stays_whole():
    assert in_two([0, 0, 100], [[40], [40, 40], []], [Whole(40, 10, 2)] * 3) is None


@pytest.mark.parametrize(
    ("free", "fold"),
    [
        ([0], Whole(60, 10, 2)),
        ([0, 60], Whole(60, 1, 2)),
        ([0, 60], Whole(60, 10, 20)),
        ([0, 5], Whole(5, 10, 2)),
    ],
    ids=["one worker", "one epoch", "nothing gained", "little gained"],
)
def test_some_folds_stay_whole(free, fold):
    folds = [fold] * 2
    assert in_two(free, plan(free, [fold.seconds] * 2), folds) is None
