"""`nightfold plan`: what a night can prove, before it is run."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import typer

from flows.cli.options import JsonOption, NightOptions, with_night_options
from flows.cli.output import aligned, print_json, say, show_table, tell

if TYPE_CHECKING:
    from nightfold.planner import Detectable, Look, Outlook
    from nightfold.registry import Registry
    from tasks.defend import Defence

app = typer.Typer()

SHOWN_PAIRS = 6
"""Pairs in the table, the hardest first; `--json` has all."""


@app.command(epilog="Example: `nightfold plan night --repeats 2`")
@partial(with_night_options, without=("runner", "address", "seed", "wait", "run_id"))
def plan(options: NightOptions, as_json: JsonOption = False) -> None:
    """Say what difference a night can detect, and what more repeats would cost and buy.

    Takes the options of `retrain` and trains nothing. The spread of differences and the time of
    training are those of earlier nights; what is assumed without one is said.
    """
    from nightfold.foldplan import FoldPlan
    from nightfold.planner import plan_ahead
    from nightfold.registry import Registry
    from nightfold.scoretable import Earlier
    from nightfold.store import Store
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
        **experiment.verdict,
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


def _next_look(defence: Defence, registry: Registry) -> Look | None:
    """What the gate will ask of a challenger tonight, if there is a champion to be challenged."""
    from nightfold.gate import required_probability
    from nightfold.planner import Look

    champion, policy = registry.champion() if defence.candidate else None, defence.experiment.policy
    if champion is None or policy is None or defence.candidate is None:
        return None
    number = len(champion.looks) + 1
    needed = required_probability(policy.probability, look=number, rivals=defence.rivals)
    return Look(champion=defence.candidate, number=number, probability=needed)


def _show(outlook: Outlook) -> None:
    if not outlook.pairs:
        say("One recipe only, the champion's included: there is no difference to detect.")
        return
    basis = {"others": "other pairs", "assumed": "assumed"}
    pairs = aligned("pair", "spread", "known from", "detectable", "95 % interval")
    for pair in outlook.pairs[:SHOWN_PAIRS]:
        known = basis.get(pair.basis) or f"{pair.plans} plan{'s' if pair.plans > 1 else ''}"
        pairs.add_row(
            f"{pair.b} against {pair.a}",
            f"{100 * pair.deviation:.3f}",
            known,
            *_points(pair.tonight),
        )
    efforts = aligned("repeats", "folds", "minutes", "detectable", "95 % interval")
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


def _points(detectable: Detectable) -> tuple[str, str]:
    """The difference and its interval, in percentage points."""
    if detectable.low is None or detectable.high is None:
        return f"{100 * detectable.difference:.3f}", "unknown"
    return (
        f"{100 * detectable.difference:.3f}",
        f"{100 * detectable.low:.3f} to {100 * detectable.high:.3f}",
    )
