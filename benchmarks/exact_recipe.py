"""A and A': the tutorial's recipe against its own script and against the best rivals.

Whole programs, imports included, in turns: the sequential Keras script, scikit-learn's
`cross_validate` with two processes, PyTorch with two processes of one thread, and Nightfold with
two workers. All get the same archive of digits and must arrive at the same folds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from rich import print as say

from benchmarks.digits import write_archive
from benchmarks.measure import (
    RESULTS,
    Measurement,
    Minutes,
    Results,
    Rows,
    Spread,
    publish,
    ratios,
    take_turns,
    time_command,
    work_folder,
)
from benchmarks.nightly import run_nightfold, write_experiment

FULL_EPOCHS = 10
READING = (
    "*÷* is that time over Nightfold's of the same round: median (range) of the rounds. *Run* is "
    "the whole process, imports and workers' start included, and for Nightfold also Prefect's "
    "server, validation, tables and report. *Training* is each contestant's own clock from the "
    "start of its first fold to the end of its last. *10 epochs* is computed: training times 10 ÷ "
    "the epochs run, everything else as measured. That also scales what a fold costs once, "
    "building and tracing, and so errs against whoever trains faster; only `--epochs 10` measures "
    "it. *tutorial* is the sequential script with TensorFlow's own choice of threads, "
    "*scikit-learn* is `cross_validate(n_jobs=2)` around Keras's wrapper, *PyTorch* is eager in "
    "two processes of one thread, *Nightfold* has two workers."
)
RIVALS = {
    "tutorial": "sequential",
    "scikit-learn": "scikit",
    "PyTorch": "pytorch",
}


def rival(
    script: str, python: Path, data: Path, architecture: str, epochs: int, work: Path
) -> Measurement:
    """A measurement of one of the scripts in ``benchmarks/contestants``."""

    def measure(_round: int) -> dict[str, Any]:
        result = work / f"{script}.json"
        module = f"benchmarks.contestants.{script}"
        seconds = time_command(
            [python, "-m", module, data, architecture, str(epochs), result], work / f"{script}.log"
        )
        return _figures(seconds, epochs, **json.loads(result.read_text()))

    return measure


def ours(data: Path, architecture: str, epochs: int, work: Path) -> Measurement:
    """The same recipe with ``nightfold evaluate``."""
    experiment = write_experiment(work / f"{architecture}.toml", architecture, epochs)

    def measure(number: int) -> dict[str, Any]:
        night = run_nightfold(
            "evaluate",
            experiment,
            *("--dataset", f"npz:{data}", "--workers", "2"),
            artifacts=work / f"{architecture}-{number}",
            prefect_home=work / "prefect",
        )
        accuracies = night.scores.accuracy.to_list()
        return _figures(night.seconds, epochs, night.training_seconds, accuracies, night.folds)

    return measure


def _figures(
    seconds: float, epochs: int, training_seconds: float, accuracies: list[float], folds: str
) -> dict[str, Any]:
    fixed = seconds - training_seconds
    return {
        "seconds": seconds,
        "training_seconds": training_seconds,
        "seconds_10_epochs": fixed + training_seconds * FULL_EPOCHS / epochs,
        "accuracy": sum(accuracies) / len(accuracies),
        "accuracies": accuracies,
        "folds": folds,
    }


def torch_version(python: Path) -> str | None:
    """Version of PyTorch that an interpreter imports; None if it has none."""
    done = subprocess.run(
        [python, "-c", "import torch; print(torch.__version__)"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() if done.returncode == 0 else None


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """One line a contestant: what it took, and how many times Nightfold's time that is."""
    lines = []
    for contestant, own in rows.groupby("contestant", sort=False):

        def against(figure: str, name: str = str(contestant)) -> str:
            return str(Spread.of(ratios(rows, figure, name, "Nightfold")))

        lines.append(
            {
                "contestant": contestant,
                "rounds": len(own),
                "run, s": Spread.of(own.seconds),
                "training, s": Spread.of(own.training_seconds),
                "accuracy, %": f"{100 * own.accuracy.median():.3f}",
                "run ÷": against("seconds"),
                "training ÷": against("training_seconds"),
                "10 epochs ÷": against("seconds_10_epochs"),
            }
        )
    return pd.DataFrame(lines)


def best_rival(rows: pd.DataFrame, figure: str) -> Spread:
    """The faster of scikit-learn and PyTorch in each round, over Nightfold."""
    wide = rows.pivot(index="round", columns="contestant", values=figure)
    rivals = wide[[name for name in list(RIVALS)[1:] if name in wide]]
    return Spread.of(rivals.min(axis=1) / wide["Nightfold"])


def main(
    minutes: Minutes = 10,
    epochs: Annotated[int, typer.Option(help="Of the tutorial's ten.")] = 1,
    rows: Rows = 60_000,
    architectures: Annotated[str, typer.Option(help="Separated by commas.")] = "baseline,deep",
    pytorch: Annotated[
        Path, typer.Option(help="Interpreter that has PyTorch; left out if it has none.")
    ] = Path(sys.executable),
    results: Results = RESULTS,
) -> None:
    """Measure rows A and A'; the minutes are shared by the networks."""
    scripts: dict[str, tuple[str, Path]] = {
        name: (script, pytorch if script == "pytorch" else Path(sys.executable))
        for name, script in RIVALS.items()
    }
    torch = torch_version(pytorch)
    if torch is None:
        say(f"PyTorch is left out: {pytorch} has none (see benchmarks/README.md).")
        scripts.pop("PyTorch")
    chosen = architectures.split(",")
    with work_folder() as work:
        data = write_archive(work / "mnist.npz", rows)
        for architecture in chosen:
            contestants: dict[str, Callable[[int], dict[str, Any]]] = {
                name: rival(script, python, data, architecture, epochs, work)
                for name, (script, python) in scripts.items()
            }
            contestants["Nightfold"] = ours(data, architecture, epochs, work)
            measured = take_turns(contestants, minutes / len(chosen))
            _publish(measured, architecture, epochs, rows, torch, results)


def _publish(
    measured: pd.DataFrame,
    architecture: str,
    epochs: int,
    rows: int,
    torch: str | None,
    results: Path,
) -> None:
    same = "identical" if measured.folds.nunique() == 1 else "NOT identical"
    rivals = f"{best_rival(measured, 'seconds')} for the whole run, "
    rivals += f"{best_rival(measured, 'seconds_10_epochs')} at 10 epochs"
    publish(
        f"exact_recipe_{architecture}",
        f"A and A': the tutorial's {architecture}, {epochs} of 10 epochs, {rows:,} rows, 5 folds",
        measured.assign(architecture=architecture, epochs=epochs, rows=rows),
        summarise(measured),
        [
            f"Fold assignments are {same} in all runs. PyTorch is {torch or 'left out'}.",
            f"Best rival in each round ÷ Nightfold: {rivals}.",
            READING,
        ],
        results,
    )


if __name__ == "__main__":
    typer.run(main)
