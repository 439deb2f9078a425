"""`nightfold evaluate`, `retrain` and `report`: run a night, and look at one again."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import (
    ARTIFACTS,
    ArtifactsOption,
    JsonOption,
    NightOptions,
    with_night_options,
)
from flows.cli.output import print_json, show_outcome
from flows.cli.server import prepare_prefect, run_flow, stoppable
from nightfold.errors import NotPromoted

if TYPE_CHECKING:
    from flows.settings import Settings
    from nightfold.summary import Summary

app = typer.Typer()


@app.command(epilog="Example: `nightfold evaluate night --limit 2000 --epochs 1 --folds 3`")
@with_night_options
def evaluate(options: NightOptions) -> None:
    """Cross-validate candidates: tables and a report, no final model."""
    _run("evaluate", options.settings())


@app.command(epilog="Example: `nightfold retrain tutorial --workers 2`")
@with_night_options
def retrain(
    options: NightOptions,
    h5: Annotated[bool, typer.Option("--h5", help="Also save the model as HDF5.")] = False,
    require_promotion: Annotated[
        bool, typer.Option("--require-promotion", help="Exit with 4 unless promoted.")
    ] = False,
) -> None:
    """The whole night: cross-validate, fit the best on all rows, test it, promote it."""
    summary = _run("retrain", options.settings(h5=h5))
    if require_promotion and summary.promotion and not summary.promotion.promoted:
        raise NotPromoted(summary.promotion.reason)


@app.command(epilog="Example: `nightfold report latest --json`")
def report(
    run_id: Annotated[str, typer.Argument(help="A run's id, or latest.")] = "latest",
    as_json: JsonOption = False,
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """Show a run's outcome, and build its report again from its tables."""
    from nightfold.store import Store
    from nightfold.summary import Summary
    from tasks.report import build_report

    folder = Store(artifacts).find_run(run_id)
    build_report(folder)
    summary = Summary.read(folder)
    if as_json:
        print_json(summary.model_dump(mode="json"))
        return
    show_outcome(summary, folder)


def _run(name: str, settings: Settings) -> Summary:
    """Run a flow in this process; show its progress and how it ended."""
    from flows.progress import watch
    from nightfold.store import Store

    assert settings.run_id is not None
    folder = Store(settings.artifacts).run(settings.run_id)
    try:
        with stoppable(), watch(folder, f"{name} {settings.experiment} as {settings.run_id}"):
            prepare_prefect(settings.n_workers if settings.runner == "processes" else 0)
            if name == "retrain":
                from flows.retrain import retrain as flow
            else:
                from flows.evaluate import evaluate as flow
            summary: Summary = run_flow(flow, settings)
    finally:
        if runners := sys.modules.get("flows.runners"):
            runners.discard_ahead()
    show_outcome(summary, folder)
    return summary
