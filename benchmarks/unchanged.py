"""F: the same night again when nothing has changed, against the night before.

Both are whole commands with the same artifacts folder and Prefect profile and no server.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from benchmarks.digits import write_archive
from benchmarks.measure import (
    RESULTS,
    Minutes,
    Results,
    Rows,
    Spread,
    publish,
    ratios,
    take_turns,
    work_folder,
)
from benchmarks.nightly import run_nightfold
from nightfold.experiment import load_experiment

FIRST, SECOND = "first night", "nothing changed"


def main(
    minutes: Minutes = 10,
    experiment: Annotated[str, typer.Option(help="A shipped experiment or a file.")] = "tutorial",
    candidates: Annotated[str | None, typer.Option(help="Only these.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of the experiment's own.")] = None,
    rows: Rows = 60_000,
    results: Results = RESULTS,
) -> None:
    """Measure row F with ``nightfold retrain``."""
    options = ["--candidates", candidates] if candidates else []
    options += ["--epochs", str(epochs)] if epochs else []
    with work_folder() as work:
        data = write_archive(work / "mnist.npz", rows)

        def measure(number: int) -> dict[str, Any]:
            night = run_nightfold(
                "retrain",
                experiment,
                *options,
                *("--dataset", f"npz:{data}"),
                artifacts=work / f"night-{number}",
                prefect_home=work / "prefect",
            )
            retrained = int((night.scores.finished_at > night.started).sum())
            return {
                "seconds": night.seconds,
                "trained": night.training_seconds,
                "retrained": retrained,
                "accuracies": night.scores.accuracy.to_list(),
            }

        measured = take_turns({FIRST: measure, SECOND: measure}, minutes)
    of = max(candidate.epochs for candidate in load_experiment(experiment).candidates)
    what = f"{experiment}, {epochs or of} of {of} epochs, {rows:,} rows"
    # More epochs make the first night longer and leave the second as it is.
    more = of / (epochs or of) - 1
    first = measured.contestant == FIRST
    measured["whole"] = measured.seconds + more * measured.trained.where(first, 0)
    _publish(measured, what, results)


def _publish(measured: pd.DataFrame, what: str, results: Path) -> None:
    share = ratios(measured, "seconds", SECOND, FIRST)
    whole = ratios(measured, "whole", SECOND, FIRST)
    summary = pd.DataFrame(
        {
            "run": name,
            "rounds": len(own),
            "run, s": str(Spread.of(own.seconds)),
            "folds trained": str(own.retrained.max()),
        }
        for name, own in measured.groupby("contestant", sort=False)
    )
    same = "equal" if measured.accuracies.map(tuple).nunique() == 1 else "NOT equal"
    publish(
        "unchanged",
        f"F: nothing changed since last night ({what})",
        measured.assign(what=what),
        summary,
        [
            f"The second run takes {Spread.of(100 * share)} % of the first, and "
            f"{Spread.of(100 * whole)} % of one with all epochs of the experiment, in which the "
            f"folds' training is scaled and the rest kept as measured. Accuracies of all folds are "
            f"{same} in all runs.",
            "Both are `nightfold retrain` as a whole command, with the final model; every round "
            "begins with an empty artifacts folder.",
        ],
        results,
    )


if __name__ == "__main__":
    typer.run(main)
