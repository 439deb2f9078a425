"""The whole night: cross-validate, fit the best candidate on all rows, test it, promote it."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.night import Run, cross_validate, publish, refuse
from flows.runners import make_runner
from flows.settings import DEFAULTS, Settings
from nightfold.errors import NightfoldError
from nightfold.summary import Summary
from tasks.finalize import FinalJob, finalize
from tasks.promote import promote


@flow(
    name="retrain",
    flow_run_name="retrain {settings.experiment}",
    retries=2,
    retry_delay_seconds=1,
    description=__doc__,
)
def retrain(settings: Settings = DEFAULTS) -> Summary | State[Any]:
    """Evaluate, finalize, promote, report.

    Retried as `evaluate` is. The final model is fitted by one of the same workers, which have
    TensorFlow loaded already.
    """
    try:
        run = Run.begin("retrain", settings)
        with make_runner(run.settings.runner, run.workers, run.settings.address) as runner:
            scored = cross_validate(run, runner)
            job = FinalJob(
                candidate=run.experiment.candidate(scored.best.name),
                dataset=scored.dataset,
                plan=scored.plan,
                scaler=scored.scalers.final[scored.best.scaling],
                seed=run.experiment.seed,
                fold_accuracies=scored.accuracies(scored.best.name),
                run_id=run.run_id,
                artifacts=run.artifacts,
                h5=run.settings.h5,
            )
            final = runner.submit(finalize, {"job": job}).result()
        promotion = promote(final.bundle, run.artifacts)
        return publish(run, scored, final.facts, promotion)
    except NightfoldError as error:
        return refuse(error)
