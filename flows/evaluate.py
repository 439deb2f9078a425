"""Cross-validate the candidates of an experiment: tables and a report, no final model."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.night import Run, cross_validate, prepare, publish, refuse
from flows.runners import make_runner
from flows.settings import DEFAULTS, Settings
from nightfold.errors import NightfoldError
from nightfold.summary import Summary


@flow(
    name="evaluate",
    flow_run_name="evaluate {settings.experiment}",
    retries=2,
    retry_delay_seconds=1,
    persist_result=False,
    description=__doc__,
)
def evaluate(settings: Settings = DEFAULTS) -> Summary | State[Any]:
    """Cross-validate, aggregate, compare, report.

    A broken worker pool fails this attempt; Prefect retries the flow with a new pool and finished
    folds come back from the cache. What the user must mend is not retried.
    """
    try:
        with Run.begin("evaluate", settings).turn() as run:
            with make_runner(run.settings.runner, run.workers, run.settings.address) as runner:
                scored = cross_validate(run, prepare(run), runner)
            return publish(run, scored)
    except NightfoldError as error:
        return refuse(error)
