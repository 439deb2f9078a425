"""E: ten times the rows and ten times the folds against the work that they bring.

Three whole runs in turns: the base, ten times its rows, ten times its folds. Linear growth makes
the time per row trained on the same in all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from benchmarks.digits import write_many
from benchmarks.measure import (
    RESULTS,
    Minutes,
    Results,
    Spread,
    publish,
    ratios,
    take_turns,
    work_folder,
)
from benchmarks.nightly import run_nightfold, write_experiment

FACTOR = 10
FIGURES = {
    "training, µs a row": "training_us_per_row",
    "folds, µs a row": "folds_us_per_row",
    "run, µs a row": "run_us_per_row",
}


def main(
    minutes: Minutes = 10,
    rows: Annotated[int, typer.Option(help="Of the base; the larger has ten times as many.")] = (
        60_000
    ),
    folds: Annotated[int, typer.Option(help="Of the base.")] = 5,
    architecture: str = "baseline",
    batch_size: int = 32,
    results: Results = RESULTS,
) -> None:
    """Measure row E, one epoch a fold, two workers."""
    with work_folder() as work:
        sizes = {
            "base": (rows, folds),
            "10 x rows": (FACTOR * rows, folds),
            "10 x folds": (rows, FACTOR * folds),
        }

        def measurement(name: str, n_rows: int, n_folds: int) -> Any:
            label = name.replace(" ", "-")
            data = write_many(work / f"digits-{n_rows}", n_rows)
            experiment = write_experiment(
                work / f"{label}.toml", architecture, 1, n_folds, batch_size
            )

            def measure(number: int) -> dict[str, Any]:
                night = run_nightfold(
                    "evaluate",
                    experiment,
                    *("--dataset", f"idx:{data}", "--workers", "2"),
                    artifacts=work / f"night-{label}-{number}",
                    prefect_home=work / "prefect",
                )
                scores = night.scores
                trained = scores.n_train.sum() / 1e6
                stretches = night.stretches
                occupied = (stretches.end - stretches.start).dt.total_seconds().sum()
                return {
                    "rows": n_rows,
                    "folds": n_folds,
                    "rows_trained": int(scores.n_train.sum()),
                    "seconds": night.seconds,
                    "training_us_per_row": scores.train_seconds.sum() / trained,
                    "folds_us_per_row": occupied / trained,
                    "run_us_per_row": 2 * night.seconds / trained,
                }

            return measure

        runs = {name: measurement(name, *size) for name, size in sizes.items()}
        measured = take_turns(runs, minutes)
    _publish(measured, architecture, results)


def _publish(measured: pd.DataFrame, architecture: str, results: Path) -> None:
    lines = []
    for name, own in measured.groupby("contestant", sort=False):
        line = {
            "run": name,
            "rows": f"{own.rows.iloc[0]:,}",
            "folds": str(own.folds.iloc[0]),
            "run, s": str(Spread.of(own.seconds)),
        }
        for text, figure in FIGURES.items():
            line[text] = str(Spread.of(own[figure]))
            against_base = Spread.of(ratios(measured, figure, str(name), "base"))
            line[text.replace("µs a row", "÷ base")] = str(against_base)
        lines.append(line)
    publish(
        "growth",
        f"E: growth ({architecture}, one epoch a fold)",
        measured.assign(architecture=architecture),
        pd.DataFrame(lines),
        [
            f"{measured['round'].max()} rounds. *A row* is one row trained on in one fold, in "
            "seconds of a worker. *÷ base* of 1 is linear growth; below 1 the larger run is "
            "cheaper a row, because fixed costs are spread over more of them. *Training* is the "
            "epochs alone, *folds* all that workers do, *run* the command, its wall time times "
            "the two workers. Every epoch also scores the rows of its fold, a fifth of all with 5 "
            "folds and a fiftieth with 50; they are not in the count of rows.",
        ],
        results,
    )


if __name__ == "__main__":
    typer.run(main)
