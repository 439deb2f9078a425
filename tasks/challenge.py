"""Challenge: hold tonight's best candidate against the champion's recipe on the same folds.

Reads what the run's tables say of the two and counts the look. What follows from it is decided by
`nightfold.gate`; the bundle that the winner becomes is not needed yet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict

from nightfold import statistics
from nightfold.dataset import DatasetHandle
from nightfold.experiment import PolicyChoice
from nightfold.foldplan import PlanHandle
from nightfold.gate import Comparison, weigh
from nightfold.registry import Registry
from nightfold.store import Store, sha256_json
from tasks.defend import Defence


class Contest(BaseModel):
    """What tonight's folds say of the challenger and the champion.

    Attributes
    ----------
    champion : str, optional
        Version that was challenged.
    comparison : Comparison, optional
        None if there was nothing to compare with.
    recalls, champion_recalls : dict of str to float
        By class, over the out-of-fold rows of all repeats.
    undecided : bool
        More repeats might tell.
    problem : str, optional
        Why the champion cannot be compared.
    """

    model_config = ConfigDict(frozen=True)

    champion: str | None
    comparison: Comparison | None = None
    recalls: dict[str, float]
    champion_recalls: dict[str, float] = {}
    undecided: bool = False
    problem: str | None = None


@task(name="challenge", task_run_name="challenge by {challenger}", cache_policy=NO_CACHE)
def challenge(
    run_folder: str,
    challenger: str,
    defence: Defence,
    dataset: DatasetHandle,
    plan: PlanHandle,
    artifacts: str,
) -> Contest:
    """Compare `challenger` with the champion's recipe by the tables in `run_folder`.

    Parameters
    ----------
    run_folder : str
        Holds ``verdicts.parquet`` and ``predictions.parquet``.
    challenger : str
        Name of tonight's best candidate.
    defence : Defence
    dataset : DatasetHandle
    plan : PlanHandle
    artifacts : str
        Root of the store, where looks at the champion are counted.
    """
    contest = hold(
        Path(run_folder),
        challenger,
        defence,
        dataset.open().class_names,
        plan,
        Registry(Store(artifacts)),
    )
    if contest.undecided:
        get_run_logger().info("undecided after %d repeats", plan.repeats)
    return contest


def hold(
    folder: Path,
    challenger: str,
    defence: Defence,
    class_names: tuple[str, ...],
    plan: PlanHandle,
    registry: Registry,
) -> Contest:
    """Compare the two, and count the look."""
    policy, champion = defence.experiment.policy, defence.candidate
    recalls = _recalls(folder, challenger, class_names)
    if policy is None or champion is None or defence.version is None:
        return Contest(champion=defence.version, recalls=recalls, problem=defence.problem)
    comparison = _compare(folder, challenger, champion, defence, plan)
    if not comparison.same_recipe:
        recipe = defence.experiment.candidate(challenger)
        found = comparison.model_dump(mode="json", exclude={"look"})
        look = registry.look(defence.version, sha256_json([recipe.digest, plan.digest, found]))
        comparison = comparison.model_copy(update={"look": look})
    return Contest(
        champion=defence.version,
        comparison=comparison,
        recalls=recalls,
        champion_recalls=_recalls(folder, champion, class_names),
        undecided=weigh(policy, comparison) == "undecided",
    )


def may_repeat(contest: Contest, policy: PolicyChoice | None, plan: PlanHandle) -> bool:
    """Whether one more repeat may be asked for."""
    return contest.undecided and policy is not None and plan.repeats < policy.max_repeats


def _compare(
    folder: Path, challenger: str, champion: str, defence: Defence, plan: PlanHandle
) -> Comparison:
    """Challenger minus champion, from the verdict on the pair, whichever came first in it."""
    about = {"repeats": plan.repeats, "rivals": defence.rivals}
    if challenger == champion:
        same = {"mean_difference": 0.0, "p_worse": 0.0, "p_equivalent": 1.0, "p_better": 0.0}
        return Comparison.model_validate({**same, **about, "same_recipe": True})
    row = _verdict(folder, {challenger, champion})
    sides = ("p_worse", "p_better")
    if row["candidate_a"] == challenger:
        row["mean_difference"] = -row["mean_difference"]
        sides = ("p_better", "p_worse")
    return Comparison.model_validate(
        {
            "mean_difference": row["mean_difference"],
            "p_worse": row[sides[0]],
            "p_equivalent": row["p_equivalent"],
            "p_better": row[sides[1]],
            **about,
        }
    )


def _verdict(folder: Path, pair: set[str]) -> dict[str, Any]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "verdicts.parquet").to_pylist()
    return next(row for row in rows if {row["candidate_a"], row["candidate_b"]} == pair)


def _recalls(folder: Path, candidate: str, class_names: tuple[str, ...]) -> dict[str, float]:
    """Part of each class's rows predicted right out of fold; NaN for a class without rows."""
    table = pq.read_table(
        folder / "predictions.parquet",
        columns=["label", "predicted"],
        filters=[("candidate", "=", candidate)],
    )
    label, predicted = (np.asarray(table[name], np.int64) for name in table.column_names)
    recall = statistics.class_scores(label, predicted, len(class_names)).recall
    return dict(zip(class_names, recall.tolist(), strict=True))
