"""`nightfold history`: what the nights did, one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from flows.cli.options import ARTIFACTS, ArtifactsOption, JsonOption
from flows.cli.output import aligned, print_json, show_table, tell

if TYPE_CHECKING:
    from nightfold.history import History, Score

app = typer.Typer()


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


def _show_history(told: History) -> None:
    from nightfold.gate import OUTCOMES

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
    table = aligned(
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
