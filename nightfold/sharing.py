"""Sharing folds among workers, so that the last one ends early; at need one in two parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


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
    Longest first ends at most a third later than the best plan if all workers are free at once
    (Graham 1969), but five folds each of a few candidates are seldom shared evenly by it. So the
    folds of the worker that ends last and of another one are put together and parted again as
    evenly as they can be, for as long as that helps. Sums that differ by less than a part in 500 of
    a worker's load are taken for equal, so with two workers this is nearly the best plan there is.
    The worker that is free first always gets a fold.

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
            mine, rest = _parted(both, share, unit)
            if max(free[last] + sum(mine), free[other] + sum(rest)) < ended - unit:
                workers[last], workers[other] = mine, rest
                helped = True
                break
    return workers


def _parted(seconds: Sequence[float], share: float, unit: float) -> tuple[list[float], list[float]]:
    """Part folds in two, the first part as near to `share` as can be; near sums count as equal."""
    sums: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for index, each in enumerate(seconds):
        longer = [(total + each, (index, *chosen)) for total, chosen in sums.values()]
        sums = {round(total / unit): (total, chosen) for total, chosen in longer} | sums
    _, chosen = min(sums.values(), key=lambda found: abs(found[0] - share))
    parts: tuple[list[float], list[float]] = [], []
    for index, each in enumerate(seconds):
        parts[index not in chosen].append(each)
    return parts


class Whole(NamedTuple):
    """A fold that was not begun yet.

    Attributes
    ----------
    seconds : float
        How long it takes.
    epochs : int
        Of its training; 1 keeps it whole.
    rebuild : float
        Seconds it takes longer if it is trained in two parts.
    """

    seconds: float
    epochs: int
    rebuild: float


def in_two(
    free: Sequence[float], shares: Sequence[Sequence[float]], folds: Sequence[Whole]
) -> tuple[int, int] | None:
    """Which fold to train in two parts, so that a worker which ends last by a plan ends sooner.

    Its first epochs come before all else of the worker that is free first, the rest behind all of
    another one, and not before the first part has ended.

    Parameters
    ----------
    free, shares
        A plan: of each worker, when it is free and the seconds of its folds.
    folds : sequence of Whole
        Those in the plan that may be begun.

    Returns
    -------
    tuple of int or None
        The position of the fold in `folds`, and how many of its epochs to train first; None if all
        that would gain less time than it takes to build a network again.

    Notes
    -----
    If jobs may be interrupted and continued elsewhere, workers can always end together (McNaughton
    1959). With two workers one fold in two parts is enough; with more, one is parted after another.

    References
    ----------
    McNaughton, R. (1959). Scheduling with deadlines and loss functions. Management Science 6 (1),
    1-12.

    Examples
    --------
    >>> in_two([0, 60], [[60], [60]], [Whole(60, 10, 2), Whole(60, 10, 2)])
    (0, 5)
    """
    ends = [start + sum(share) for start, share in zip(free, shares, strict=True)]
    workers = range(len(ends))
    found: tuple[tuple[float, float], tuple[int, int]] | None = None
    for fold, (seconds, epochs, rebuild) in enumerate(folds):
        for last in (w for w in workers if seconds in shares[w] and ends[w] >= max(ends) - rebuild):
            without = [end - seconds * (worker == last) for worker, end in enumerate(ends)]
            other = min(workers[1:], key=without.__getitem__, default=0)
            for n in range(1, epochs if other else 1):
                begun = seconds * n / epochs
                after = list(without)
                after[0] += begun
                rest_begins = max(without[other], free[0] + begun)
                after[other] = rest_begins + seconds - begun + rebuild
                sooner = max(after[0], after[last], after[other])
                rank = max(after), sooner
                if sooner < ends[last] - rebuild and (found is None or rank < found[0]):
                    found = rank, (fold, n)
    return found and found[1]
