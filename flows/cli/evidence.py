"""`nightfold plan`, `history` and `diff`: what a night can prove, what the nights did, and why."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import (
    ARTIFACTS,
    ArtifactsOption,
    JsonOption,
    NightOptions,
    checked,
    with_night_options,
)
from flows.cli.output import print_json, say, show_table, tell
from nightfold.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from flows.settings import Settings
    from nightfold.difference import Difference, Question
    from nightfold.history import History, Score
    from nightfold.planner import Detectable, Look, Outlook
    from nightfold.registry import Registry
    from tasks.defend import Defence

app = typer.Typer()

SHOWN_PAIRS = 6
"""Pairs in the table, the hardest first; `--json` has all."""

OUTCOMES = {
    "promote": "promoted",
    "keep": "champion kept",
    "undecided": "undecided",
    "refuse": "refused",
}


@app.command(epilog="Example: `nightfold plan night --repeats 2`")
@partial(with_night_options, without=("runner", "address", "seed", "wait", "run_id"))
def plan(options: NightOptions, as_json: JsonOption = False) -> None:
    """Say what difference a night can detect, and what more repeats would cost and buy.

    Takes the words of `retrain` and trains nothing. The spread of differences and the time of
    training are those of earlier nights; what is assumed without one is said.
    """
    from nightfold.foldplan import FoldPlan
    from nightfold.planner import Earlier, plan_ahead
    from nightfold.registry import Registry
    from nightfold.store import Store
    from tasks.compare import ROPE, SURE
    from tasks.defend import enter
    from tasks.ingest import take_in

    settings = options.settings()
    experiment, store = settings.load(), Store(options.artifacts)
    dataset = take_in(experiment.dataset, str(options.artifacts))
    registry = Registry(store)
    defence = enter(experiment, dataset, registry)
    outlook = plan_ahead(
        defence.experiment.candidates,
        FoldPlan.build(experiment.plan, dataset),
        Earlier.read(store, dataset.name),
        workers=settings.n_workers,
        look=_next_look(defence, registry),
        **(experiment.policy.verdict if experiment.policy else {"rope": ROPE, "sure": SURE}),
    )
    if defence.problem:
        tell(f"The champion cannot be compared: {defence.problem}")
    if as_json:
        print_json(
            {"experiment": experiment.name, "dataset": dataset.name}
            | outlook.model_dump(mode="json")
        )
        return
    say(
        f"{experiment.name} on {dataset.name}: {outlook.n_rows:,} images, {outlook.folds} folds, "
        f"repeats {outlook.repeats}, workers {outlook.workers}"
    )
    _show(outlook)


@app.command(epilog="Example: `nightfold history --json`")
def history(as_json: JsonOption = False, artifacts: ArtifactsOption = ARTIFACTS) -> None:
    """Tell the champion's score night by night, and what became of challengers.

    A night is a complete run of `retrain`; `evaluate` decides nothing. Rollbacks and promotions by
    hand stand between the nights. With `--json`, scores are fractions.
    """
    from nightfold.history import History
    from nightfold.store import Store

    store = Store(artifacts)
    told = History.read(store)
    if as_json:
        print_json(told.model_dump(mode="json"))
        return
    if not told.nights:
        tell(f"No nights under {store.runs} yet: 'nightfold retrain' makes one.")
    if told.nights or told.changes:
        _show_history(told)
    if told.left_out:
        named = ", ".join(f"{left.name} ({left.reason})" for left in told.left_out)
        tell(f"Left out: {named}.")


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
    from flows.cli.nights import stopped
    from flows.cli.server import prepare_prefect, run_flow
    from flows.progress import watch

    a, b = (night.summary.run_id for night in (question.a, question.b))
    try:
        with watch(question.folder, f"diff {a} {b}"):
            prepare_prefect()
            from flows.diff import diff as flow

            found: Difference = run_flow(flow, a, b, candidate, minutes, settings)
    except KeyboardInterrupt:
        stopped("interrupted", 130)
    except SystemExit:  # how the command's own handler answers SIGTERM
        stopped("terminated", 143)
    return found


def _show_difference(found: Difference) -> None:
    a, b = found.a, found.b
    say(
        f"A  {a.run_id}  {a.candidate}  {100 * a.accuracy:.3f} %\n"
        f"B  {b.run_id}  {b.candidate}  {100 * b.accuracy:.3f} %\n"
    )
    steps = _table("step", "what changed", "points", "95 % interval", "reading", wrapped=1)
    for step in found.steps:
        what = "; ".join(step.what) + (f"\n{step.reason}" if step.reason else "")
        cells = _change(step.difference, step.low, step.high)
        steps.add_row(step.factor, what, *cells, step.reading)
    if found.rest:
        steps.add_row("rest", "everything not measured, together", f"{100 * found.rest:+.3f}")
    whole = _change(found.difference, found.low, found.high)
    steps.add_row("whole", "B less A, as recorded", *whole, found.reading)
    show_table(steps)
    corners = _table("code, data, candidate, seed of", "accuracy (%)", "from")
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


def _show_history(told: History) -> None:
    rows = [
        (
            night.started_at,
            f"{night.dataset}, changed" if night.data_changed else night.dataset,
            _score(night.champion_score) if night.champion else "none",
            f"{night.challenger.candidate} {100 * night.challenger.accuracy:.3f}",
            OUTCOMES[night.outcome],
        )
        for night in told.nights
    ] + [(change.at, "", change.version, "", f"{change.action} by hand") for change in told.changes]
    table = _table(
        "night (UTC)", "data set", "champion (%)", "challenger (%)", "outcome", wrapped=1
    )
    for at, *cells in sorted(rows):
        table.add_row(f"{at:%Y-%m-%d %H:%M}", *cells)
    show_table(table)
    if told.nights:
        tell(
            "± is half of the 95 % interval over images; it does not cover the choice of the seed."
        )


def _score(score: Score | None) -> str:
    if score is None:
        return "not trained"
    text = f"{score.candidate} {100 * score.accuracy:.3f}"
    if score.low is None or score.high is None:
        return text
    return f"{text} ± {50 * (score.high - score.low):.3f}"


def _next_look(defence: Defence, registry: Registry) -> Look | None:
    """What the gate will ask of a challenger tonight, if there is a champion to be challenged."""
    from nightfold.gate import required_probability
    from nightfold.planner import Look

    champion, policy = registry.champion() if defence.candidate else None, defence.experiment.policy
    if champion is None or policy is None or defence.candidate is None:
        return None
    number = len(champion.looks) + 1
    rivals = max(1, sum(c.name != defence.candidate for c in defence.experiment.candidates))
    needed = required_probability(policy.probability, look=number, rivals=rivals)
    return Look(champion=defence.candidate, number=number, probability=needed)


def _show(outlook: Outlook) -> None:
    if not outlook.pairs:
        say("One recipe only, the champion's included: there is no difference to detect.")
        return
    basis = {"others": "other pairs", "assumed": "assumed"}
    pairs = _table("pair", "spread", "known from", "detectable", "95 % interval")
    for pair in outlook.pairs[:SHOWN_PAIRS]:
        known = basis.get(pair.basis) or f"{pair.plans} plan{'s' if pair.plans > 1 else ''}"
        pairs.add_row(
            f"{pair.b} against {pair.a}",
            f"{100 * pair.deviation:.3f}",
            known,
            *_points(pair.tonight),
        )
    efforts = _table("repeats", "folds", "minutes", "detectable", "95 % interval")
    for effort in outlook.efforts:
        efforts.add_row(
            str(effort.repeats),
            str(effort.folds),
            "unknown" if effort.minutes is None else f"{effort.minutes:.1f}",
            *_points(effort.detectable),
        )
    efforts.add_row("any number", "", "", f"{100 * outlook.floor:.3f}", "")
    show_table(pairs)
    hidden = len(outlook.pairs) - SHOWN_PAIRS
    if hidden > 0:
        say(f"and {hidden} more pairs that are easier to tell apart (--json has them)")
    say(f"\nMore repeats, for {outlook.pairs[0].b} against {outlook.pairs[0].a}:")
    show_table(efforts)
    if outlook.look and outlook.promotion:
        say(
            f"\nTo be promoted over {outlook.look.champion} at look {outlook.look.number}: "
            f"{_points(outlook.promotion)[0]} points, because "
            f"{100 * outlook.look.probability:.3f} % is asked for."
        )
    tell(
        "\nIn points of accuracy. Spread: standard deviation of the difference between folds. "
        "Detectable: the smallest true difference that gets the verdict 'better' "
        f"({100 * outlook.sure:g} % sure of more than {100 * outlook.rope:g} point) in "
        f"{100 * outlook.power:g} % of nights, by the corrected t of the verdicts (Nadeau and "
        "Bengio 2003; see docs/evidence.md). Minutes: of training the folds with "
        f"{outlook.workers} at once."
    )
    for note in outlook.notes:
        tell(note)


def _table(*columns: str, wrapped: int = 0) -> Table:
    """A table of which only the column at `wrapped` gives way on a narrow terminal."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for position, column in enumerate(columns):
        table.add_column(
            column, justify="right" if position > wrapped else "left", no_wrap=position != wrapped
        )
    return table


def _points(detectable: Detectable) -> tuple[str, str]:
    """The difference and its interval, in percentage points."""
    if detectable.low is None or detectable.high is None:
        return f"{100 * detectable.difference:.3f}", "unknown"
    return (
        f"{100 * detectable.difference:.3f}",
        f"{100 * detectable.low:.3f} to {100 * detectable.high:.3f}",
    )
