"""Race: after a round of folds, stop the candidates that can hardly become the best any more.

The rule is in `nightfold.racing`; here it is given the scores of whole rounds, and says whom it
stopped. Nothing in flight is ended: the next round is not begun for them.
"""

from __future__ import annotations

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from nightfold.foldplan import PlanHandle
from nightfold.foldresult import FoldHandle
from nightfold.racing import Race


@task(name="race", task_run_name="race after {standing.until} folds", cache_policy=NO_CACHE)
def race(standing: Race, folds: list[FoldHandle], plan: PlanHandle) -> Race:
    """Ask the rule of `standing` after its round.

    Parameters
    ----------
    standing : Race
    folds : list of FoldHandle
        Every fold so far, in any order.
    plan : PlanHandle

    Returns
    -------
    Race
        As it goes on.
    """
    n_test = plan.n_rows / plan.folds
    went_on = standing.after(
        {name: accuracies(folds, name) for name in standing.running},
        n_train=plan.n_rows - n_test,
        n_test=n_test,
    )
    for stop in went_on.stops[len(standing.stops) :]:
        get_run_logger().info("%s was %s", stop.candidate, stop.reason)
    return went_on


def accuracies(folds: list[FoldHandle], candidate: str) -> tuple[float, ...]:
    """Accuracy of every fold of one candidate, in the order of the plan."""
    own = (fold for fold in folds if fold.candidate == candidate)
    return tuple(f.accuracy for f in sorted(own, key=lambda f: (f.repeat, f.fold)))
