"""Waiting folds: which one to train next, so that no core is idle while the last ones run."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from nightfold.foldresult import FoldHandle, FoldJob
from nightfold.store import Store

# Planned ahead, which then takes some 10 ms a fold; the order in which many more are begun does not
# yet decide how the last ones end.
PLANNED = 60


class Waiting:
    """Folds that wait for a worker, in the order in which they are best handed out.

    A fold takes as long as those of its candidate did in this run, or else in earlier nights. A
    candidate that was never timed may be the longest and goes before the others: of several such a
    fold each, so that all are timed early, then those of most epochs. Once all are timed, the rest
    is planned so that all workers end as nearly together as they can, and of what the worker that
    is free first is to train, the longest is taken. After each fold it is planned anew. Of very
    many folds the longest go first and the last 60 are planned.

    Parameters
    ----------
    jobs : list of FoldJob
    earlier : iterable of FoldHandle
        Folds of this run that are done.
    at_once : int, optional
        Folds that are trained at once. One more is handed out, so that no worker waits. By default
        all are due at once, the longest first.
    clock : callable
        Seconds from some start.
    """

    def __init__(
        self,
        jobs: list[FoldJob],
        earlier: Iterable[FoldHandle] = (),
        at_once: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._jobs = [(job.candidate.digest, job) for job in jobs]
        self._before = seconds_before(Store(jobs[0].artifacts).scores) if jobs else {}
        self._at_once = at_once
        self._clock = clock
        self._training: dict[str, tuple[str, float]] = {}  # digest and start, by label
        self._next: dict[str, str] = {}  # handed out, but no worker is free: digest by label
        self._timed: defaultdict[str, list[float]] = defaultdict(list)
        self._taken: set[str] = set()
        for fold in earlier:
            self._timed[fold.candidate_digest].append(fold.train_seconds)

    @property
    def due(self) -> bool:
        """Whether there is a fold to hand out now."""
        return bool(self._jobs) and (self._at_once is None or not self._next)

    def take(self) -> FoldJob:
        """The fold to hand out next."""
        digest, job = self._jobs.pop(self._best())
        self._taken.add(digest)
        self._next[job.label] = digest
        self._start()
        return job

    def ended(self, label: str, fold: FoldHandle) -> None:
        """Make room for another fold and remember how long this one took."""
        del self._training[label]
        self._timed[fold.candidate_digest].append(fold.train_seconds)
        self._start()

    def _start(self) -> None:
        """Workers take what was handed out in that order."""
        while self._next and (self._at_once is None or len(self._training) < self._at_once):
            label = next(iter(self._next))
            self._training[label] = self._next.pop(label), self._clock()

    def _best(self) -> int:
        """Index of the job to take."""
        seconds = [self._seconds(digest) for digest, _ in self._jobs]
        if self._at_once is None or math.inf in seconds or len(seconds) > PLANNED:
            return min(range(len(self._jobs)), key=lambda i: self._rank(seconds[i], *self._jobs[i]))
        planned = plan(self._free(self._at_once), seconds)[0] or [max(seconds)]
        return seconds.index(max(planned))

    def _rank(self, seconds: float, digest: str, job: FoldJob) -> tuple[float, bool, int]:
        return -seconds, digest in self._taken, -job.candidate.total_epochs

    def _seconds(self, digest: str) -> float:
        timed = self._timed.get(digest)
        return sum(timed) / len(timed) if timed else self._before.get(digest, math.inf)

    def _free(self, workers: int) -> list[float]:
        """Seconds until each worker is free, the first to be so first."""
        now = self._clock()
        left = [
            max(0.0, self._seconds(digest) + started - now)
            for digest, started in self._training.values()
        ]
        return sorted([*left, *[0.0] * (workers - len(left))])


def plan(free: Sequence[float], seconds: Iterable[float]) -> list[list[float]]:
    """Share folds among workers so that the last one ends as early as can be found.

    Parameters
    ----------
    free : sequence of float
        Seconds until each worker is free.
    seconds : iterable of float
        How long each fold takes.

    Returns
    -------
    list of list of float
        Seconds of the folds of each worker.

    Notes
    -----
    Longest first ends at most a third later than the best plan (Graham 1969), but five folds each
    of a few candidates are seldom shared evenly by it. So the folds of the worker that ends last
    and of another one are put together and parted again as evenly as they can be, for as long as
    that helps. With two workers this is the best plan, but for the rounding of seconds to a part in
    500 of a worker's load.

    References
    ----------
    Graham, R. L. (1969). Bounds on multiprocessing timing anomalies. SIAM Journal on Applied
    Mathematics 17 (2), 416-429.

    Examples
    --------
    >>> plan([0, 0], [7, 7, 5, 5, 5])
    [[5, 5, 5], [7, 7]]
    """
    workers: list[list[float]] = [[] for _ in free]

    def end(worker: int) -> float:
        return free[worker] + sum(workers[worker])

    for each in sorted(seconds, reverse=True):
        workers[min(range(len(free)), key=end)].append(each)
    unit = sum(map(sum, workers)) / len(free) / 500 or 1.0
    helped = True
    while helped:
        *others, last = sorted(range(len(free)), key=end)
        helped = False
        for other in others:
            ended = end(last)
            both = sorted(workers[last] + workers[other], reverse=True)
            share = (free[other] - free[last] + sum(both)) / 2
            mine, rest = _part(both, share, unit)
            if max(free[last] + sum(mine), free[other] + sum(rest)) < ended - unit:
                workers[last], workers[other] = mine, rest
                helped = True
                break
    return workers


def _part(seconds: Sequence[float], share: float, unit: float) -> tuple[list[float], list[float]]:
    """Part folds in two, the first part as near to `share` as can be; sums are rounded to units."""
    sums: dict[int, tuple[int, ...]] = {0: ()}
    for index, each in enumerate(seconds):
        step = round(each / unit)
        sums = {total + step: (index, *chosen) for total, chosen in sums.items()} | sums
    chosen = set(sums[min(sums, key=lambda total: abs(total * unit - share))])
    parts: tuple[list[float], list[float]] = [], []
    for index, each in enumerate(seconds):
        parts[index not in chosen].append(each)
    return parts


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
            spent[digest].append(seconds)
    return {digest: sum(each) / len(each) for digest, each in spent.items()}
