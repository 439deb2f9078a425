"""Take the change of a score between two runs apart: train the corners that are missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.night import refuse, tell
from flows.runners import make_runner
from flows.settings import DEFAULTS, Settings
from nightfold import lock
from nightfold.difference import Corner, Difference, Question
from nightfold.errors import NightfoldError
from nightfold.foldresult import FoldJob
from nightfold.store import Store
from tasks.hand_out import announce, train_all
from tasks.scale import scale


@flow(
    name="diff",
    flow_run_name="diff {run_a} {run_b}",
    retries=2,
    retry_delay_seconds=1,
    description=__doc__,
)
def diff(
    run_a: str,
    run_b: str,
    candidate: str | None = None,
    minutes: float = 30,
    settings: Settings = DEFAULTS,
) -> Difference | State[Any]:
    """Train what fits into `minutes`, then answer; retried as `evaluate` is.

    Of the settings only those that say where folds run and where artifacts are have an effect.
    """
    try:
        store, workers = Store(settings.artifacts), settings.n_workers
        with lock.alone(store, f"diff-{run_b}", minutes=settings.wait, tell=tell):
            question = Question.read(store, run_a, run_b, candidate)
            chosen = question.affordable(minutes, workers)
            with make_runner(settings.runner, workers, settings.address) as runner:
                jobs = [job for corner in chosen for job in jobs_of(corner, store, question.folder)]
                announce(jobs, question.folder)
                train_all(runner, jobs, settings.at_once)
            difference = question.answer(minutes, workers, chosen)
            difference.write(store.run(run_b))
            return difference
    except NightfoldError as error:
        return refuse(error)


def jobs_of(corner: Corner, store: Store, folder: Path) -> list[FoldJob]:
    """Every fold of a corner, on rows that are verified to be those of its night."""
    dataset, plan = corner.data.dataset, corner.data.plan
    dataset.open().verify()
    scaling = corner.recipe.scaling
    scalers = scale(dataset, plan, [scaling], str(folder / corner.letters))
    name = f"{corner.letters}.{corner.recipe.name}"[:64]
    return [
        FoldJob(
            candidate=corner.recipe.model_copy(update={"name": name}),
            dataset=dataset,
            plan=plan,
            scaler=scalers.of(scaling, repeat, fold),
            repeat=repeat,
            fold=fold,
            seed=corner.seed_value,
            artifacts=str(store.root),
            source=str(corner.code.code_behind(corner.recipe)["architecture_source"]),
        )
        for repeat in range(1, plan.repeats + 1)
        for fold in range(1, plan.folds + 1)
    ]
