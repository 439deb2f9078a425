"""B: any candidate against the tutorial's deep network, at equal out-of-fold accuracy.

The sequential script runs a few of its ten epochs and is scaled; the candidate runs whole.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from benchmarks.digits import write_archive
from benchmarks.exact_recipe import FULL_EPOCHS, rival
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

GOAL = 0.9906
"""Accuracy of the tutorial's deep network, 0 to 1."""


def main(
    experiment: Annotated[str, typer.Argument(help="A shipped experiment or a TOML file.")],
    candidate: Annotated[str, typer.Argument(help="One of its candidates.")],
    minutes: Minutes = 10,
    epochs: Annotated[int, typer.Option(help="Of the tutorial's ten; 10 runs it whole.")] = 1,
    rows: Rows = 60_000,
    results: Results = RESULTS,
) -> None:
    """Measure row B for one candidate."""
    with work_folder() as work:
        data = write_archive(work / "mnist.npz", rows)

        def ours(number: int) -> dict[str, Any]:
            night = run_nightfold(
                "evaluate",
                experiment,
                *("--candidates", candidate, "--dataset", f"npz:{data}"),
                *("--folds", "5", "--repeats", "1", "--workers", "2"),
                artifacts=work / f"night-{number}",
                prefect_home=work / "prefect",
            )
            return {
                "seconds": night.seconds,
                "training_seconds": night.training_seconds,
                "seconds_10_epochs": night.seconds,
                "accuracy": night.scores.accuracy.mean(),
                "folds": night.folds,
            }

        tutorial = rival("sequential", Path(sys.executable), data, "deep", epochs, work)
        measured = take_turns({"tutorial deep": tutorial, candidate: ours}, minutes)
    _publish(measured, experiment, candidate, epochs, rows, results)


def _publish(
    measured: pd.DataFrame, experiment: str, candidate: str, epochs: int, rows: int, results: Path
) -> None:
    cheaper = ratios(measured, "seconds_10_epochs", "tutorial deep", candidate)
    accuracy = measured[measured.contestant == candidate].accuracy.median()
    summary = pd.DataFrame(
        {
            "contestant": name,
            "rounds": len(own),
            "run, s": Spread.of(own.seconds),
            "training, s": Spread.of(own.training_seconds),
            "whole recipe, s": Spread.of(own.seconds_10_epochs),
            "accuracy, %": f"{100 * own.accuracy.median():.3f}",
        }
        for name, own in measured.groupby("contestant", sort=False)
    )
    how = "was run whole" if epochs == FULL_EPOCHS else f"ran {epochs} of its 10 epochs; its "
    if epochs != FULL_EPOCHS:
        how += "*whole recipe* is its training scaled to 10, the rest as measured, "
        how += "which also scales what a fold costs once, about a second"
    reached = "reaches" if accuracy >= GOAL else "does not reach"
    same = "identical" if measured.folds.nunique() == 1 else "NOT identical"
    publish(
        f"equal_accuracy_{candidate}",
        f"B: {candidate} against the tutorial's deep network, {rows:,} rows, 5 folds",
        measured.assign(experiment=experiment, tutorial_epochs=epochs, rows=rows),
        summary,
        [
            f"The tutorial's deep network takes {Spread.of(cheaper)} times as long as "
            f"{candidate}, which {reached} 99.06 % out of fold.",
            f"The tutorial's script {how}. Fold assignments are {same}. Median (range) of the "
            "rounds; *training* is from the start of the first fold to the end of the last.",
        ],
        results,
    )


if __name__ == "__main__":
    typer.run(main)
