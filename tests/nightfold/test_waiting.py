"""Folds are taken in the order that leaves no core idle while the last ones run."""

import heapq
import json
import math
from itertools import count
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightfold.experiment import Candidate
from nightfold.finaljob import Ahead, FinalJob
from nightfold.foldresult import FirstEpochs, FoldHandle, FoldJob
from nightfold.racing import Race
from nightfold.store import Store
from nightfold.training import Epoch
from nightfold.waiting import REBUILD, Waiting, seconds_before

SHORT = Candidate(name="short", architecture="dense", epochs=2)
LONG = Candidate(name="long", architecture="dense", epochs=3)
DEEP = Candidate(name="deep", architecture="deep", epochs=1)
TEN = Candidate(name="ten", architecture="deep", epochs=10)


def done(job, seconds, accuracy=0.9):
    return FoldHandle.model_construct(
        candidate=job.candidate.name,
        candidate_digest=job.candidate.digest,
        repeat=job.repeat,
        fold=job.fold,
        accuracy=accuracy,
        train_seconds=float(seconds),
    )


def remember(artifacts, date, **seconds):
    """Scores of an earlier night: seconds of a fold by candidate."""
    folder = Store(artifacts).scores / f"run_date={date}"
    folder.mkdir(parents=True)
    digests = {c.name: c.digest for c in (SHORT, LONG, DEEP, TEN)}
    table = {
        "candidate_digest": [digests[name] for name in seconds],
        "train_seconds": list(seconds.values()),
    }
    pq.write_table(pa.table(table), folder / "run.parquet")


def names(waiting):
    """Candidates of all folds that are due, in the order in which they are taken."""
    found = []
    while (job := waiting.take()) is not None:
        found.append(job.candidate.name)
    return found


def run(waiting, workers, clock, seconds, accuracy=None):
    """Do all jobs on so many workers: what began when, and when it ended."""
    queue, training, ran, order, begun = [], [], [], count(), {}
    while True:
        while (job := waiting.take()) is not None:
            queue.append(job)
        while queue and len(training) < workers:
            job = queue.pop(0)
            if isinstance(job, FirstEpochs):
                begun[job.job.label] = job.share
                took, name = seconds[job.job.candidate.name] * job.share, job.label
            else:
                took, name = seconds[job.candidate.name], job.candidate.name
                if isinstance(job, FinalJob):
                    took, name = took * job.plan.folds / (job.plan.folds - 1), job.label
                elif job.label in begun:
                    took, name = took * (1 - begun[job.label]) + REBUILD, f"rest of {job.label}"
            heapq.heappush(training, (clock.now + took, next(order), job))
            ran.append((name, clock.now, clock.now + took))
        if not training:
            return ran
        clock.now, _, job = heapq.heappop(training)
        fold = None
        if isinstance(job, FoldJob):
            fold = done(job, seconds[job.candidate.name], (accuracy or {}).get(job.label, 0.9))
        waiting.ended(job.label, fold)


def last_end(ran):
    return max(end for *_, end in ran)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_without_an_earlier_night_a_fold_of_each_candidate_goes_first_then_most_epochs(
    tmp_path, fold_jobs
):
    waiting = Waiting(fold_jobs(tmp_path, DEEP, SHORT, LONG))
    assert names(waiting) == ["long", "short", "deep", "long", "short", "deep"]


def test_candidates_take_as_long_as_in_earlier_nights(tmp_path, fold_jobs):
    remember(tmp_path, "2024-01-01", short=9.0, long=1.0)
    assert names(Waiting(fold_jobs(tmp_path, SHORT, LONG))) == ["short", "short", "long", "long"]


def test_what_was_never_timed_may_be_the_longest(tmp_path, fold_jobs):
    remember(tmp_path, "2024-01-01", short=9.0, long=1.0)
    assert names(Waiting(fold_jobs(tmp_path, SHORT, LONG, DEEP)))[:2] == ["deep", "deep"]


def test_a_fold_of_this_run_says_more_than_earlier_nights(tmp_path, fold_jobs):
    remember(tmp_path, "2024-01-01", short=9.0, long=1.0)
    waiting = Waiting(fold_jobs(tmp_path, SHORT, LONG, folds=3), at_once=1)
    first, second = waiting.take(), waiting.take()
    assert [job.candidate.name for job in (first, second)] == ["short", "short"]
    waiting.ended(first.label, done(first, seconds=0.5))
    assert names(waiting) == ["long"]


def test_folds_of_an_earlier_round_have_been_timed(tmp_path, fold_jobs):
    due = fold_jobs(tmp_path, SHORT, LONG, DEEP)
    earlier = [done(due[0], 1), done(due[2], 2), done(due[4], 3)]
    assert names(Waiting(due[1::2], earlier)) == ["deep", "long", "short"]


def test_one_fold_more_than_are_trained_at_once_is_due(tmp_path, fold_jobs):
    waiting = Waiting(fold_jobs(tmp_path, SHORT, LONG, DEEP), at_once=2)
    first, *rest = (waiting.take() for _ in range(3))
    assert len(rest) == 2
    assert waiting.take() is None
    waiting.ended(first.label, done(first, 1))
    assert len(names(waiting)) == 1


def test_a_fold_may_overtake_the_one_handed_out_before_it(tmp_path, fold_jobs):
    """Prefect submits from several threads, so the third may run before the second."""
    waiting = Waiting(fold_jobs(tmp_path, SHORT, LONG, DEEP), at_once=2)
    first, second, third = (waiting.take() for _ in range(3))
    waiting.ended(third.label, done(third, 1))
    waiting.ended(second.label, done(second, 1))
    waiting.ended(first.label, done(first, 1))
    assert len(names(waiting)) == 3


def test_folds_whose_results_are_on_the_disk_take_no_time_and_time_their_candidate(
    tmp_path, fold_jobs, leave_fold
):
    due = fold_jobs(tmp_path, SHORT, LONG, DEEP)
    for job, seconds in ((due[0], 9.0), (due[3], 2.0), (due[5], 5.0)):
        leave_fold(Store(tmp_path), job.key, seconds=seconds, n_train=8, n_test=2)
    waiting = Waiting(due)
    taken = [waiting.take().label for _ in due]
    assert taken[:3] == [due[0].label, due[3].label, due[5].label]
    assert taken[3:] == [due[1].label, due[4].label, due[2].label]


def test_of_very_many_folds_the_longest_go_first(tmp_path, fold_jobs, clock, monkeypatch):
    remember(tmp_path, "2024-01-01", long=7.0, short=5.0)
    due = [*fold_jobs(tmp_path, SHORT, folds=3), *fold_jobs(tmp_path, LONG, folds=2)]
    assert Waiting(due, at_once=2, clock=clock).take().candidate.name == "short"
    monkeypatch.setattr("nightfold.waiting.PLANNED", 4)
    assert Waiting(due, at_once=2, clock=clock).take().candidate.name == "long"


def test_folds_that_longest_first_would_not_halve_evenly_end_together(tmp_path, fold_jobs, clock):
    """Two of 7 and three of 5 with longest first: 7 + 5 + 5 and 7 + 5, a worker idle for 5."""
    remember(tmp_path, "2024-01-01", long=7.0, short=5.0)
    due = [*fold_jobs(tmp_path, LONG, folds=2), *fold_jobs(tmp_path, SHORT, folds=3)]
    ran = run(Waiting(due, at_once=2, clock=clock), 2, clock, {"long": 7, "short": 5})
    assert sorted(end for *_, end in ran)[-2:] == [14, 15]


def test_the_tutorials_folds_leave_hardly_a_core_idle(tmp_path, fold_jobs, clock):
    """Longest first would end at 388 of 375 (seconds of two workers, as they were measured)."""
    remember(tmp_path, "2024-01-01", short=36.0, long=44.0, deep=70.0)
    due = fold_jobs(tmp_path, SHORT, LONG, DEEP, folds=5)
    of = {"short": 36, "long": 44, "deep": 70}
    assert last_end(run(Waiting(due, at_once=2, clock=clock), 2, clock, of)) <= 380


def test_of_equally_good_ones_the_longest_goes_first(tmp_path, fold_jobs, clock):
    """Whatever is not as expected is then made up for by the short ones that are left."""
    remember(tmp_path, "2024-01-01", short=1.0, long=4.0)
    waiting = Waiting(fold_jobs(tmp_path, SHORT, LONG, folds=4), at_once=1, clock=clock)
    began = [name for name, *_ in run(waiting, 1, clock, {"short": 1, "long": 4})]
    assert began == ["long"] * 4 + ["short"] * 4


@given(
    seconds=st.lists(st.integers(1, 100), min_size=3, max_size=3),
    folds=st.integers(1, 6),
    workers=st.integers(1, 4),
)
def test_it_is_as_good_as_longest_first_when_folds_take_what_they_took(
    tmp_path_factory, fold_jobs, seconds, folds, workers
):
    artifacts, clock = tmp_path_factory.mktemp("a"), Clock()
    of = dict(zip(("short", "long", "deep"), map(float, seconds), strict=True))
    remember(artifacts, "2024-01-01", **of)
    due = fold_jobs(artifacts, SHORT, LONG, DEEP, folds=folds)
    waiting = Waiting(due, at_once=workers, clock=clock)
    ends = [0.0] * workers
    for each in sorted((each for each in of.values() for _ in range(folds)), reverse=True):
        heapq.heapreplace(ends, ends[0] + each)
    last = last_end(run(waiting, workers, clock, of))
    assert last <= max(ends) + sum(ends) / workers / 500


class TestAFoldInTwoParts:
    """Folds of ten epochs and 40 s, on workers that none of the others can fill."""

    @pytest.fixture
    def night(self, tmp_path, fold_jobs, clock):
        remember(tmp_path, "2024-01-01", ten=40.0)

        def night(folds, workers, seconds=40.0):
            clock.now = 0.0
            due = fold_jobs(tmp_path, TEN, folds=folds)
            return run(Waiting(due, at_once=workers, clock=clock), workers, clock, {"ten": seconds})

        return night

    def test_five_folds_on_two_workers_take_as_long_as_two_and_a_half(self, night):
        """The rest of the fifth, beside the last epochs of the fourth, is built a second time."""
        ran = night(folds=5, workers=2)
        assert last_end(ran) <= 2.5 * 40 + REBUILD
        [first] = [each for each in ran if "to epoch" in each[0]]
        [rest] = [each for each in ran if "rest of" in each[0]]
        assert first[0].startswith(rest[0].removeprefix("rest of "))
        assert first[2] <= rest[1]

    @pytest.mark.parametrize(
        ("folds", "workers", "at_most"), [(3, 2, 1.5), (5, 4, 1.5), (7, 3, 2.6)]
    )
    def test_so_do_others_that_workers_cannot_share(self, night, folds, workers, at_most):
        assert last_end(night(folds, workers)) <= at_most * 40 + REBUILD

    @pytest.mark.parametrize(("folds", "workers"), [(4, 2), (5, 1), (1, 2), (6, 3)])
    def test_whole_folds_are_preferred_where_nothing_is_gained(self, night, folds, workers):
        assert {name for name, *_ in night(folds, workers)} == {"ten"}

    def test_a_first_part_keeps_its_worker_no_longer_than_it_takes(
        self, tmp_path, fold_jobs, clock
    ):
        """Four workers could share these folds in 89 s."""
        remember(tmp_path, "2024-01-01", ten=40.0, long=25.0)
        due = [*fold_jobs(tmp_path, TEN, folds=7), *fold_jobs(tmp_path, LONG, folds=3)]
        ran = run(Waiting(due, at_once=4, clock=clock), 4, clock, {"ten": 40.0, "long": 25.0})
        assert last_end(ran) <= 95

    def test_a_fold_is_not_parted_for_less_than_it_costs(self, tmp_path, fold_jobs, clock):
        remember(tmp_path, "2024-01-01", ten=REBUILD * 3)
        due = fold_jobs(tmp_path, TEN, folds=5)
        ran = run(Waiting(due, at_once=2, clock=clock), 2, clock, {"ten": REBUILD * 3})
        assert {name for name, *_ in ran} == {"ten"}

    @pytest.mark.parametrize(
        "recipe",
        [
            Candidate(name="ten", architecture="deep", epochs=10, early_stopping={"patience": 1}),
            Candidate(name="ten", architecture="mine:network", epochs=10),
            Candidate(name="ten", architecture="deep", epochs=10, ensemble=9),
        ],
        ids=["may end early", "may keep something in Python", "nine networks to build again"],
    )
    def test_some_folds_are_not_parted(self, tmp_path, fold_jobs, clock, recipe):
        due = fold_jobs(tmp_path, recipe, folds=5)
        ran = run(Waiting(due, at_once=2, clock=clock), 2, clock, {"ten": 40.0})
        assert {name for name, *_ in ran} == {"ten"}

    def test_what_was_begun_before_takes_what_is_left_of_it(self, tmp_path, fold_jobs, clock):
        remember(tmp_path, "2024-01-01", ten=40.0, long=30.0)
        due = [*fold_jobs(tmp_path, TEN, folds=1), *fold_jobs(tmp_path, LONG, folds=2)]
        epoch = {**dict.fromkeys(Epoch.model_fields, 0.5), "epoch": 9}
        due[0].folder.mkdir(parents=True)
        (due[0].folder / "progress.json").write_text(json.dumps(epoch))
        assert names(Waiting(due))[0] == "ten"
        (due[0].folder / "checkpoint.npz").touch()
        assert names(Waiting(due))[-1] == "ten"

    def test_the_first_night_knows_it_as_soon_as_a_fold_was_timed(self, tmp_path, fold_jobs, clock):
        due = fold_jobs(tmp_path, TEN, folds=5)
        ran = run(Waiting(due, at_once=2, clock=clock), 2, clock, {"ten": 40.0})
        assert last_end(ran) <= 2.5 * 40 + REBUILD

    def test_folds_that_take_longer_than_before_are_all_trained(self, night):
        assert sum(end - start for _, start, end in night(5, 2, seconds=90.0)) >= 5 * 90.0


class TestFinalFit:
    """Beside folds of 8 s and 4 s, five each; the fit of the first takes 10 s, of the second 5."""

    SECONDS: ClassVar = {"long": 8.0, "short": 4.0}

    @pytest.fixture
    def night(self, tmp_path, fold_jobs, clock):
        remember(tmp_path, "2024-01-01", **self.SECONDS)

        def night(*candidates, workers=2, begun=(), **accuracy):
            clock.now = 0.0
            due = fold_jobs(tmp_path, *candidates, folds=5)
            names = tuple(candidate.name for candidate in candidates)
            final = Ahead(Race(rule=None, runners=names, total=5), job_of(due), {*begun})
            waiting = Waiting(due, at_once=workers, final=final, clock=clock)
            of = {
                job.label: accuracy.get(f"{job.candidate.name}_{job.fold}")
                or accuracy.get(job.candidate.name, 0.9)
                for job in due
            }
            ran = run(waiting, workers, clock, self.SECONDS, of)
            return {name: (start, end) for name, start, end in ran if "fit" in name}, last_end(ran)

        return night

    def test_it_fills_the_core_that_the_last_folds_leave(self, night):
        """60 s of folds and 10 s of the fit are 35 s on two cores, and not 30 s and then 10 s."""
        assert night(LONG, SHORT, long=0.99) == ({"fit long on all rows": (24, 34)}, 36)

    def test_it_begins_at_once_if_there_is_but_one_candidate(self, night):
        assert night(LONG) == ({"fit long on all rows": (0, 10)}, 26)

    def test_on_one_core_it_waits_until_it_is_certain_who_leads(self, night):
        close = night(LONG, SHORT, workers=1, long=0.99, short=0.9899)
        assert close == ({"fit long on all rows": (60, 70)}, 70)
        clear = night(LONG, SHORT, workers=1, long=0.99, short=0.5)
        assert clear == ({"fit long on all rows": (48, 58)}, 70)

    def test_if_the_last_folds_choose_another_that_one_is_fitted_too(self, night):
        fits, _ = night(LONG, SHORT, long=0.99, short=0.9899, short_5=0.9999)
        assert list(fits) == ["fit long on all rows", "fit short on all rows"]

    def test_it_is_not_begun_before_a_core_is_idle(self, night):
        """On one core the last fold is known by then, and what it chooses is fitted alone."""
        fits, _ = night(LONG, SHORT, workers=1, long=0.99, short=0.9899, short_5=0.9999)
        assert list(fits) == ["fit short on all rows"]

    def test_a_scheduler_with_workers_of_its_own_gets_it_once_it_is_certain(
        self, tmp_path, fold_jobs
    ):
        due = fold_jobs(tmp_path, LONG)
        final = Ahead(Race(rule=None, runners=("long",), total=2), job_of(due), set())
        waiting = Waiting(due, final=final)
        assert waiting.take().label == "fit long on all rows"
        assert names(waiting) == ["long", "long"]

    def test_what_was_begun_before_is_not_begun_again(self, night):
        assert night(LONG, SHORT, begun=["long"], long=0.99) == ({}, 32)


def job_of(due):
    """The final job of a candidate, with what decides its place."""
    of = {job.candidate.name: job for job in due}

    return lambda name: FinalJob.model_construct(candidate=of[name].candidate, plan=of[name].plan)


def test_only_the_last_days_count(tmp_path):
    remember(tmp_path, "2024-01-01", short=100.0)
    remember(tmp_path, "2024-01-02", short=2.0)
    remember(tmp_path, "2024-01-03", short=4.0)
    assert seconds_before(Store(tmp_path).scores, nights=2) == {SHORT.digest: 3.0}


def test_a_score_file_that_is_damaged_does_not_stop_the_night(tmp_path):
    remember(tmp_path, "2024-01-01", short=4.0)
    day = Store(tmp_path).scores / "run_date=2024-01-01"
    (day / "torn.parquet").write_bytes(b"PAR1junk")
    (day / ".part-torn.parquet").write_bytes(b"")
    pq.write_table(pa.table({"other": [1]}), day / "other.parquet")
    no_times = pa.array([None, math.nan, -1.0, math.inf], pa.float64())
    nothing = pa.table({"candidate_digest": [SHORT.digest] * 4, "train_seconds": no_times})
    pq.write_table(nothing, day / "nothing.parquet")
    assert seconds_before(Store(tmp_path).scores) == {SHORT.digest: 4.0}
