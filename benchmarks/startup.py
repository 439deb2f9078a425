"""G: the command's help and its prediction of one image against importing TensorFlow.

Every run is a new process; the files it reads are in the system's cache after the first round.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import typer
from PIL import Image

from benchmarks.digits import mnist
from benchmarks.measure import (
    RESULTS,
    Measurement,
    Minutes,
    Results,
    Spread,
    publish,
    ratios,
    take_turns,
    time_command,
    work_folder,
)
from benchmarks.nightly import NIGHTFOLD, run_nightfold

IMPORT = "import tensorflow"


def main(minutes: Minutes = 5, results: Results = RESULTS) -> None:
    """Measure row G, after fitting a small champion to predict with."""
    with work_folder() as work:
        options = ("--limit", "1000", "--epochs", "1", "--candidates", "baseline", "--folds", "2")
        artifacts = work / "artifacts"
        run_nightfold("retrain", "night", *options, artifacts=artifacts, prefect_home=work / "home")
        image = work / "digit.png"
        image.write_bytes(_png())

        def timed(*arguments: str | Path) -> Measurement:
            def measure(_round: int) -> dict[str, Any]:
                return {"seconds": time_command(arguments, work / "log.txt")}

            return measure

        measured = take_turns(
            {
                IMPORT: timed(sys.executable, "-c", "import tensorflow"),
                "nightfold --help": timed(NIGHTFOLD, "--help"),
                "nightfold predict digit.png": timed(
                    NIGHTFOLD, "predict", image, "--artifacts", artifacts
                ),
            },
            minutes,
        )
    _publish(measured, results)


def _png() -> bytes:
    """The first digit of the test split as a PNG file."""
    _, _, x_test, _ = mnist()
    buffer = io.BytesIO()
    Image.fromarray(x_test[0]).save(buffer, "png")
    return buffer.getvalue()


def _publish(measured: pd.DataFrame, results: Path) -> None:
    summary = pd.DataFrame(
        {
            "command": str(name),
            "rounds": len(own),
            "seconds": str(Spread.of(own.seconds)),
            f"÷ {IMPORT}": str(Spread.of(ratios(measured, "seconds", str(name), IMPORT))),
        }
        for name, own in measured.groupby("contestant", sort=False)
    )
    note = (
        "Each is a new process, in turns: median (range). Files are in the system's cache after "
        "the first round; byte code is compiled."
    )
    publish("startup", "G: how soon the command answers", measured, summary, [note], results)


if __name__ == "__main__":
    typer.run(main)
