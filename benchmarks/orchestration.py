"""C and C': what a run takes beside training, and how long until it trains.

Every round starts cold: a Prefect profile and an artifacts folder of its own, no server.
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
    take_turns,
    work_folder,
)
from benchmarks.nightly import Night, run_nightfold

FULL_EPOCHS = 10
PARTS = {
    "before": "before the first fold: imports, Prefect's server, ingest, validation, scalers",
    "in_folds": "in folds beside epochs: building, tracing, scoring, writing",
    "late": "a worker that still loads TensorFlow while another trains",
    "between": "of a worker between folds: dispatch",
    "idle": "a core idle at the end, while the last fold runs",
    "after": "after the last fold: tables, comparison, report",
}


def take_apart(night: Night, workers: int) -> dict[str, float]:
    """Seconds of a run that are not training, by where they go.

    ``overhead`` is wall time minus the sum of training seconds over workers; the parts of `PARTS`
    sum to it, each as seconds of wall time (a second of one idle worker of two counts half).
    """
    scores = night.scores
    starts, ends = night.stretches.start, night.stretches.end
    occupied = (ends - starts).dt.total_seconds().sum()
    trained = scores.train_seconds.sum()
    span = night.training_seconds
    # The last folds to end are, one each, the last of every worker.
    last = ends.nlargest(min(workers, len(ends)))
    idle = (ends.max() - last).dt.total_seconds().sum()
    late = _late(starts, ends, workers)
    before = float((starts.min() - pd.Timestamp(night.started)).total_seconds())
    return {
        "seconds": night.seconds,
        "trained": trained / workers,
        "overhead": night.seconds - trained / workers,
        "before": before,
        "in_folds": (occupied - trained) / workers,
        "late": late / workers,
        "between": (workers * span - occupied - idle - late) / workers,
        "idle": idle / workers,
        "after": night.seconds - before - span,
        "per_fold": (workers * span - trained - idle - late) / len(scores),
        "first_step": night.first_step,
        "folds": len(scores),
    }


def _late(starts: pd.Series, ends: pd.Series, workers: int) -> float:
    """Seconds, summed over workers, from the first start until each trains.

    The j-th worker has started when j folds first ran at once.
    """
    running = [((starts <= start) & (ends > start)).sum() for start in starts]
    firsts = [
        min(starts[[n >= j for n in running]], default=ends.max()) for j in range(1, workers + 1)
    ]
    return float(sum((first - starts.min()).total_seconds() for first in firsts))


def main(
    minutes: Minutes = 10,
    experiment: Annotated[str, typer.Option(help="A shipped experiment or a file.")] = "tutorial",
    candidates: Annotated[str | None, typer.Option(help="Only these.")] = None,
    epochs: Annotated[int, typer.Option(help="Of the tutorial's ten.")] = 1,
    rows: Rows = 60_000,
    workers: int = 2,
    results: Results = RESULTS,
) -> None:
    """Measure rows C and C'."""
    options = ["--epochs", str(epochs), "--workers", str(workers)]
    options += ["--candidates", candidates] if candidates else []
    with work_folder() as work:
        data = write_archive(work / "mnist.npz", rows)

        def measure(number: int) -> dict[str, Any]:
            night = run_nightfold(
                "evaluate",
                experiment,
                *options,
                *("--dataset", f"npz:{data}"),
                artifacts=work / f"night-{number}",
                prefect_home=work / f"prefect-{number}",
            )
            return take_apart(night, workers)

        measured = take_turns({"Nightfold": measure}, minutes)
    # Training and the idle core at the end grow with the epochs, the rest does not.
    more = FULL_EPOCHS / epochs - 1
    longer = measured.seconds + more * (measured.trained + measured.idle)
    measured["share"] = measured.overhead / measured.seconds
    measured["share_10_epochs"] = (measured.overhead + more * measured.idle) / longer
    measured["share_10_epochs_without_idle"] = (measured.overhead - measured.idle) / longer
    _publish(measured, f"{experiment}, {epochs} of 10 epochs, {rows:,} rows", results)


def _publish(measured: pd.DataFrame, what: str, results: Path) -> None:
    figures = {
        "whole run, s": "seconds",
        "training seconds over workers, s": "trained",
        "C: the rest, s": "overhead",
        **{f"- {text}": name for name, text in PARTS.items()},
        "C: the rest as a share of this run": "share",
        "C: the same, computed for 10 epochs": "share_10_epochs",
        "C: the same without the idle core at the end": "share_10_epochs_without_idle",
        "C: per fold, in and between folds, s of a worker": "per_fold",
        "C': from the command to the first training step, s": "first_step",
    }
    summary = pd.DataFrame(
        {"figure": text, "median (range)": str(Spread.of(measured[name]))}
        for text, name in figures.items()
    )
    publish(
        "orchestration",
        f"C and C': beside training ({what})",
        measured.assign(what=what),
        summary,
        [
            f"{len(measured)} rounds, each cold: a new Prefect profile, no server, no snapshot. "
            "For 10 epochs, training and the idle core at the end are scaled and everything else "
            "is kept as measured. The idle core is what is left when folds do not divide evenly "
            "among workers, less of it in ten epochs than in one, which cannot be trained in two "
            "parts; it is in the first two shares and left out of the third. The first step is the "
            "start of the first epoch, which still traces its graph.",
        ],
        results,
    )


if __name__ == "__main__":
    typer.run(main)
