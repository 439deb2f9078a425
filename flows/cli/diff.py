"""`nightfold diff`: why a score changed between two runs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import ARTIFACTS, ArtifactsOption, JsonOption, checked
from flows.cli.output import aligned, print_json, say, show_table, tell
from nightfold.errors import UsageError

if TYPE_CHECKING:
    from flows.settings import Settings
    from nightfold.difference import Difference, Question

app = typer.Typer()


@app.command(epilog="Example: `nightfold diff --minutes 10`")
def diff(
    run_a: Annotated[
        str | None,
        typer.Argument(help="A run's id; by default the one before RUN_B of the same experiment."),
    ] = None,
    run_b: Annotated[str, typer.Argument(help="A run's id, or latest.")] = "latest",
    candidate: Annotated[
        str | None, typer.Option(help="By its name; by default the best of RUN_B.")
    ] = None,
    minutes: Annotated[float, typer.Option(min=0, help="Training to spend, at most.")] = 30,
    workers: Annotated[int | None, typer.Option(min=1, help="Folds at once.")] = None,
    as_json: JsonOption = False,
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """Split the change of a score between two runs into code, data, candidate and seed.

    Changes one of them at a time, in this order, and trains what neither run has: A's recipe on
    B's data, and so on. What is in the store already costs nothing; what does not fit into
    --minutes is left out, and the row says so. Also writes difference.json into the folder of B.
    """
    from nightfold.difference import Question
    from nightfold.store import Store

    if not math.isfinite(minutes):
        raise UsageError(f"--minutes {minutes} is not a number of minutes.")
    settings = checked(workers=workers, artifacts=str(artifacts))
    store = Store(artifacts)
    question = Question.read(store, run_a, run_b, candidate)
    if question.affordable(minutes, settings.n_workers):
        found = _train_corners(question, candidate, minutes, settings)
    else:
        found = question.answer(minutes, settings.n_workers)
        found.write(store.run(found.b.run_id))
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        _show_difference(found)


def _train_corners(
    question: Question, candidate: str | None, minutes: float, settings: Settings
) -> Difference:
    """The answer of the flow, which trains what is missing and fits."""
    from flows.cli.server import prepare_prefect, run_flow, stoppable
    from flows.progress import watch

    a, b = (night.summary.run_id for night in (question.a, question.b))
    with stoppable(), watch(question.folder, f"diff {a} {b}"):
        prepare_prefect()
        from flows.diff import diff as flow

        found: Difference = run_flow(flow, a, b, candidate, minutes, settings)
    return found


def _show_difference(found: Difference) -> None:
    a, b = found.a, found.b
    say(
        f"A  {a.run_id}  {a.candidate}  {100 * a.accuracy:.3f} %\n"
        f"B  {b.run_id}  {b.candidate}  {100 * b.accuracy:.3f} %\n"
    )
    steps = aligned("step", "what changed", "points", "95 % interval", "reading", wrapped=1)
    for step in found.steps:
        what = "; ".join(step.what) + (f"\n{step.reason}" if step.reason else "")
        cells = _change(step.difference, step.low, step.high)
        steps.add_row(step.factor, what, *cells, step.reading)
    if found.rest:
        steps.add_row("rest", "everything not measured, together", f"{100 * found.rest:+.3f}")
    whole = _change(found.difference, found.low, found.high)
    steps.add_row("whole", "B less A, as recorded", *whole, found.reading)
    show_table(steps)
    corners = aligned("code, data, candidate, seed of", "accuracy (%)", "from")
    for corner in found.corners:
        score = "" if corner.accuracy is None else f"{100 * corner.accuracy:.3f}"
        cost = "" if corner.minutes is None else f": {corner.minutes:.1f} minutes"
        corners.add_row(" ".join(corner.corner), score, f"{corner.source}{cost}")
    say("")
    show_table(corners)
    tell(
        "\nOne factor is changed at a time, in this order; in another order the parts may differ. "
        "Intervals: 95 %, paired by fold where rows and folds are the same, else unpaired (Nadeau "
        "and Bengio 2003, Welch 1947; see docs/evidence.md)."
    )
    for note in found.notes:
        tell(note)


def _change(difference: float | None, low: float | None, high: float | None) -> tuple[str, str]:
    """A change and its interval, in percentage points."""
    if difference is None:
        return "", ""
    interval = "" if low is None or high is None else f"{100 * low:+.3f} to {100 * high:+.3f}"
    return f"{100 * difference:+.3f}" if difference else "0", interval
