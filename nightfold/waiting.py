"""Waiting folds: which one to train next, so that no core is idle while there is work left."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from nightfold.finaljob import Ahead, FinalJob
from nightfold.foldresult import CHECKPOINT, FirstEpochs, FoldHandle, FoldJob
from nightfold.sharing import Whole, in_two, plan
from nightfold.store import Store
from nightfold.zoo import is_own

# Planned ahead, which then takes some 10 ms a fold; the order in which many more are begun does not
# yet decide how the last ones end.
PLANNED = 60

REBUILD = 2.0
"""Seconds to build and trace a network once more, for a fold that is trained in two parts."""

Job = FoldJob | FirstEpochs | FinalJob


class Waiting:
    """Folds that wait for a worker, in the order in which they are best handed out.

    Folds whose results are on the disk take no time and go first. Any other takes as long as those
    of its candidate did in this run, or else in earlier nights. A candidate that was never timed
    may be the longest and goes before the others: of several such a fold each, so that all are
    timed early, then those of most epochs. Once all are timed, the rest is planned so that all
    workers end as nearly together as they can, and of what the worker that is free first is to
    train, the longest is taken. After each fold it is planned anew. Of very many folds the longest
    go first and the last 60 are planned.

    Of five equal folds on two workers one has to be trained in two parts, or a worker is idle while
    the last one runs: its first epochs beside the folds before, the rest beside the last one. That
    is planned once there are no more folds than workers.

    The final fit is planned with them, as of whoever leads. If it is certain who will, it is a job
    like the others; else it is taken by a worker that has no fold left to train.

    Parameters
    ----------
    jobs : list of FoldJob
    earlier : iterable of FoldHandle
        Folds of this run that are done.
    at_once : int, optional
        Folds that are trained at once. One more is handed out, so that no worker waits. By default
        all are due at once, the longest first.
    final : Ahead, optional
        The final fit, if the same workers make it.
    clock : callable
        Seconds from some start.
    """

    def __init__(
        self,
        jobs: list[FoldJob],
        earlier: Iterable[FoldHandle] = (),
        at_once: int | None = None,
        final: Ahead | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._jobs = list(jobs)
        self._at_once = at_once
        self._final = final
        self._clock = clock
        self._digests = {job.candidate.name: job.candidate.digest for job in jobs}
        self._before = seconds_before(Store(jobs[0].artifacts).scores) if jobs else {}
        self._ended = list(earlier)
        on_disk = {job.label: fold for job in jobs if (fold := job.done()) is not None}
        self._on_disk = frozenset(on_disk)
        self._timed: defaultdict[str, list[float]] = defaultdict(list)
        for fold in (*earlier, *on_disk.values()):
            self._timed[fold.candidate_digest].append(fold.train_seconds)
        self._taken: set[str] = set()  # digests
        self._left = {  # of folds that were begun, 0 to 1, by label
            job.label: 1 - epoch.epoch / job.candidate.total_epochs
            for job in jobs
            if (job.folder / CHECKPOINT).exists() and (epoch := job.progress()) is not None
        }
        self._aside: dict[str, FoldJob] = {}  # by the label of their first part, until it ends
        self._training: dict[str, tuple[Job, float]] = {}  # with its start, by label
        self._next: dict[str, Job] = {}  # handed out, but no worker is free for it

    def take(self) -> Job | None:
        """What to hand out now, if anything."""
        job = None if self._next else self._best()
        if job is None:
            return None
        if isinstance(job, FoldJob):
            self._jobs.remove(job)
            self._taken.add(self._digests[job.candidate.name])
        elif isinstance(job, FirstEpochs):
            self._jobs.remove(job.job)
            self._left[job.job.label] = 1 - job.share
            self._aside[job.label] = job.job
        elif self._final is not None:
            self._final.begun.add(job.candidate.name)
        self._next[job.label] = job
        self._start()
        return job

    def ended(self, label: str, fold: FoldHandle | None) -> None:
        """Make room for another job; remember what came of a fold and how long it took."""
        if self._training.pop(label, None) is None:
            del self._next[label]  # it overtook another one
        if (begun := self._aside.pop(label, None)) is not None:
            self._jobs.append(begun)
        if fold is not None:
            self._ended.append(fold)
            self._timed[fold.candidate_digest].append(fold.train_seconds)
        self._start()

    def _start(self) -> None:
        """Suppose that workers take what was handed out in that order; Prefect mostly does."""
        while self._next and (self._at_once is None or len(self._training) < self._at_once):
            label = next(iter(self._next))
            self._training[label] = self._next.pop(label), self._clock()

    def _best(self) -> Job | None:
        fit, certain = (self._final and self._final.next(self._ended)) or (None, False)
        seconds = [self._seconds(job) for job in self._jobs]
        if 0.0 in seconds:
            return self._jobs[seconds.index(0.0)]
        if self._at_once is None or math.inf in seconds or len(seconds) > PLANNED:
            if certain:
                return fit
            ranked = zip(self._jobs, seconds, strict=True)
            return min(ranked, key=lambda each: self._rank(*each), default=(None,))[0]
        return self._planned(seconds, self._at_once, fit, certain)

    def _planned(
        self, seconds: list[float], workers: int, fit: FinalJob | None, certain: bool
    ) -> Job | None:
        """What the worker that is free first begins with, for all to end nearly together."""
        last = [] if fit is None else [self._seconds(fit)]
        aside = [self._seconds(job) for job in self._aside.values()]
        free = self._free(workers)
        shares = plan(free, [*seconds, *aside, *last])
        if len(seconds) <= workers:
            folds = [self._parts(*each) for each in zip(self._jobs, seconds, strict=True)]
            if (found := in_two(free, shares, folds)) is not None:
                return FirstEpochs(job=self._jobs[found[0]], epochs=found[1])
        own = shares[0]
        for each in aside:  # which cannot be taken yet
            if each in own and each not in seconds:
                own.remove(each)
        if fit is not None and last[0] in own:
            own.remove(last[0])
            if certain or (not own and len(self._training) < workers):
                return fit
        longest = max(own or (seconds if aside else ()), default=None)
        return None if longest is None else self._jobs[seconds.index(longest)]

    def _parts(self, job: FoldJob, seconds: float) -> Whole:
        """A fold as it may be trained in two parts, or not.

        Not if it may end early, whenever that is; nor if the network is the user's own, which may
        keep something in Python that no checkpoint holds.
        """
        candidate = job.candidate
        whole = (
            job.label in self._left
            or candidate.early_stopping is not None
            or is_own(candidate.architecture)
        )
        epochs = 1 if whole else candidate.total_epochs
        return Whole(seconds, epochs, REBUILD * candidate.ensemble)

    def _rank(self, job: FoldJob, seconds: float) -> tuple[float, bool, int]:
        taken = self._digests[job.candidate.name] in self._taken
        return -seconds, taken, -job.candidate.total_epochs

    def _seconds(self, job: Job) -> float:
        """How long the job will take, as far as that is known."""
        if isinstance(job, FirstEpochs):
            return self._whole(job.job) * job.share
        if not (left := self._left.get(job.label, 1.0)):
            return 0.0
        again = REBUILD * job.candidate.ensemble if left < 1 else 0.0
        return self._whole(job) * left + again

    def _whole(self, job: FoldJob | FinalJob) -> float:
        """The same of all its epochs."""
        if job.label in self._on_disk:
            return 0.0
        digest = self._digests.get(job.candidate.name) or job.candidate.digest
        timed = self._timed.get(digest)
        fold = sum(timed) / len(timed) if timed else self._before.get(digest, math.inf)
        # A fold is trained on all folds but one.
        return fold * job.plan.folds / (job.plan.folds - 1) if isinstance(job, FinalJob) else fold

    def _free(self, workers: int) -> list[float]:
        """Seconds until each worker is free, the first to be so first."""
        now = self._clock()
        left = [
            max(0.0, self._seconds(job) + started - now) for job, started in self._training.values()
        ]
        return sorted([*left, *[0.0] * (workers - len(left))])


def seconds_before(scores: Path, nights: int = 30) -> dict[str, float]:
    """Mean training seconds of a fold, by candidate digest, over the last days with scores."""
    import pyarrow.lib
    import pyarrow.parquet as pq

    columns = ["candidate_digest", "train_seconds"]
    days = sorted(scores.glob("run_date=*"))[-nights:]
    spent = defaultdict(list)
    for file in (file for day in days for file in day.glob("[!.]*.parquet")):
        try:
            table = pq.read_table(file, columns=columns, partitioning=None).drop_null()
        except (OSError, pyarrow.lib.ArrowException):
            continue  # a file that is damaged tells nothing; folds can be trained in any order
        if table.column_names != columns:
            continue
        for digest, seconds in zip(*(column.to_pylist() for column in table.columns), strict=True):
            if 0 <= seconds < math.inf:
                spent[digest].append(seconds)
    return {digest: sum(each) / len(each) for digest, each in spent.items()}
