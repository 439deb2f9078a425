"""The whole night: cross-validate, fit the best candidate on all rows, test it, promote it."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.night import Run, contest, prepare, publish, refuse, rehearse_own
from flows.runners import make_runner
from flows.settings import DEFAULTS, Settings
from nightfold.errors import NightfoldError
from nightfold.summary import Summary
from tasks.finalize import finalize
from tasks.promote import promote


@flow(
    name="retrain",
    flow_run_name="retrain {settings.experiment}",
    retries=2,
    retry_delay_seconds=1,
    persist_result=False,
    description=__doc__,
)
def retrain(settings: Settings = DEFAULTS) -> Summary | State[Any]:
    """Evaluate, challenge the champion, finalize, promote, report.

    Retried as `evaluate` is. The final model is fitted by one of the same workers, beside the last
    folds as of whoever leads by then, and once more if they choose another.
    """
    try:
        with Run.begin("retrain", settings).turn() as run:
            with make_runner(run.settings.runner, run.workers, run.settings.address) as runner:
                data = prepare(run)
                rehearse_own(run, data, runner)
                scored, challenged = contest(run, data, runner)
                best = scored.best.name
                parameters = {
                    "job": scored.data.final_job(run, best),
                    "fold_accuracies": scored.accuracies(best),
                }
                final = runner.submit(finalize, parameters).result()
            promotion = promote(
                final.bundle,
                final.facts.milliseconds,
                challenged,
                run.experiment.policy,
                run.artifacts,
            )
            return publish(run, scored, final.facts, promotion)
    except NightfoldError as error:
        return refuse(error)
