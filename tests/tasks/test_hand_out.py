"""Folds are handed to a task runner as its workers have room for them."""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from nightfold.experiment import Candidate
from nightfold.finaljob import Ahead, FinalJob
from nightfold.foldresult import FirstEpochs, FoldHandle, FoldJob
from nightfold.racing import Race
from nightfold.waiting import Waiting
from tasks.hand_out import hand_out

SHORT = Candidate(name="short", architecture="dense", epochs=2)
LONG = Candidate(name="long", architecture="dense", epochs=3)
DEEP = Candidate(name="deep", architecture="deep", epochs=1)


def fold(job, seconds):
    return FoldHandle(
        path="f",
        digest="f" * 64,
        candidate=job.candidate.name,
        candidate_digest=job.candidate.digest,
        repeat=job.repeat,
        fold=job.fold,
        accuracy=0.9,
        train_seconds=seconds,
    )


class Pool(ThreadPoolExecutor):
    """Takes folds as a task runner does; a fold takes as many hundredths of a second as said.

    None of them ends before so many were handed out.
    """

    def __init__(self, workers, before=1, unfit=None, **hundredths):
        super().__init__(workers)
        self.unfit = unfit
        self.hundredths, self.began = hundredths, []
        self.futures, self.unfinished = [], []
        self.before, self.enough = before, Event()

    def submit(self, step, parameters):
        names = {FinalJob: "fit", FirstEpochs: "begin", FoldJob: "train"}
        assert step.name == names[type(parameters["job"])]
        self.unfinished.append(sum(not future.done() for future in self.futures))
        self.futures.append(super().submit(self.pretend, parameters["job"]))
        if len(self.futures) == self.before:
            self.enough.set()
        return self.futures[-1]

    def pretend(self, job):
        if isinstance(job, FinalJob):
            self.began.append(job.label)
            if job.candidate.name == self.unfit:
                raise RuntimeError("unfit")
            return None
        if isinstance(job, FirstEpochs):
            self.began.append(job.label)
            return None
        self.began.append(job.candidate.name)
        self.enough.wait(10)
        seconds = self.hundredths[job.candidate.name] / 100
        if not seconds:
            raise RuntimeError("broken")
        time.sleep(seconds)
        return fold(job, seconds)


def test_the_longest_folds_do_not_come_last_once_they_were_timed(tmp_path, fold_jobs):
    asked = [*fold_jobs(tmp_path, SHORT), *fold_jobs(tmp_path, LONG), *fold_jobs(tmp_path, DEEP)]
    with Pool(1, short=1, long=5, deep=20) as pool:
        ended = dict(hand_out(pool, Waiting(asked, at_once=1)))
    assert sorted(ended) == sorted(job.label for job in asked)
    # One of each, and one more that was handed out before the last of them was timed.
    assert sorted(pool.began[:3]) == ["deep", "long", "short"]
    assert pool.began[-1] == "short"


def test_one_fold_more_than_there_are_workers_is_handed_out(tmp_path, fold_jobs):
    with Pool(2, before=3, short=10, long=10) as pool:
        list(hand_out(pool, Waiting(fold_jobs(tmp_path, SHORT, LONG), at_once=2)))
    assert pool.unfinished[:3] == [0, 1, 2]
    assert pool.unfinished[3] < 3


def test_a_fold_that_ended_is_replaced_before_anything_is_made_of_it(tmp_path, fold_jobs):
    with Pool(1, short=1, long=1) as pool:
        handed_out = [
            len(pool.futures)
            for _ in hand_out(pool, Waiting(fold_jobs(tmp_path, SHORT, LONG), at_once=1))
        ]
    assert handed_out[0] >= 3  # the one that ended, the one that runs and the one behind it


def test_the_first_epochs_of_a_fold_are_a_job_of_their_own(tmp_path, fold_jobs, monkeypatch):
    monkeypatch.setattr("nightfold.waiting.REBUILD", 0.01)
    asked = fold_jobs(tmp_path, LONG, folds=5)
    with Pool(2, before=3, long=60) as pool:
        ended = dict(hand_out(pool, Waiting(asked, at_once=2)))
    assert sorted(ended) == sorted(job.label for job in asked)
    [begun] = [label for label in pool.began if "to epoch" in label]
    assert begun.rpartition(" to epoch ")[0] in ended


def test_a_scheduler_with_workers_of_its_own_gets_all_folds_at_once(tmp_path, fold_jobs):
    with Pool(1, before=4, short=1, long=1) as pool:
        list(hand_out(pool, Waiting(fold_jobs(tmp_path, SHORT, LONG))))
    assert pool.unfinished == [0, 1, 2, 3]


def test_behind_a_fold_that_failed_nothing_is_handed_out(tmp_path, fold_jobs):
    many = [job for _ in range(5) for job in fold_jobs(tmp_path, SHORT)]
    with Pool(1, short=0) as pool, pytest.raises(RuntimeError, match="broken"):
        list(hand_out(pool, Waiting(many, at_once=1)))
    assert len(pool.began) == 2


def test_one_recipe_under_two_names_has_folds_under_both(tmp_path, fold_jobs):
    asked = fold_jobs(tmp_path, SHORT, SHORT.model_copy(update={"name": "twin"}))
    with Pool(2, short=1, twin=1) as pool:
        ended = dict(hand_out(pool, Waiting(asked, at_once=2)))
    assert {label: handle.candidate for label, handle in ended.items()} == {
        job.label: job.candidate.name for job in asked
    }


def ahead(jobs):
    """The final fit of whoever leads; all have the same accuracy, so the first one does."""
    of = {job.candidate.name: job for job in jobs}
    keep = {"candidate", "dataset", "plan", "scaler", "seed", "artifacts"}

    def job_of(name):
        return FinalJob(run_id="r", **{key: getattr(of[name], key) for key in keep})

    return Ahead(Race(rule=None, runners=tuple(of), total=2), job_of, set())


def test_the_final_fit_is_handed_out_among_the_folds_and_waited_for(tmp_path, fold_jobs):
    asked = fold_jobs(tmp_path, SHORT, LONG)
    with Pool(2, short=1, long=5) as pool:
        ended = dict(hand_out(pool, Waiting(asked, at_once=2, final=ahead(asked))))
    assert sorted(ended) == sorted(job.label for job in asked)
    assert pool.began.count("fit short on all rows") == 1


def test_a_fit_that_failed_is_told(tmp_path, fold_jobs):
    asked = fold_jobs(tmp_path, SHORT)
    waiting = Waiting(asked, at_once=1, final=ahead(asked))
    with Pool(1, unfit="short", short=1) as pool, pytest.raises(RuntimeError, match="unfit"):
        list(hand_out(pool, waiting))
