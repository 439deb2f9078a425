"""D: memory of a run on a million images, by process, with one worker and with two.

What grows with the pixels is told from what every process needs anyway by running on a tenth of
them as well. The dense network in batches of 1,000 is trained, because it is over soon and the
pixels are what is looked at. Linux only: figures are those of ``/proc/PID/smaps_rollup``.
"""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import psutil
import typer

from benchmarks.digits import write_many
from benchmarks.measure import (
    RESULTS,
    Measurement,
    Minutes,
    Results,
    Spread,
    publish,
    take_turns,
    work_folder,
)
from benchmarks.nightly import run_nightfold, write_experiment

FIGURES = ("rss", "pss", "private", "anonymous")
SECONDS_BETWEEN_SAMPLES = 0.5
IMAGE_BYTES = 28 * 28
PART = 10
"""The smaller runs are on one row in so many."""


def read_memory(process: psutil.Process) -> dict[str, int]:
    """Resident, proportional, private and anonymous memory of a process, bytes.

    Resident counts every page it maps, proportional divides shared pages among those who map
    them, private counts pages that no other process maps (a file's too), anonymous counts what is
    no file's: its own, and what it shares with the process that workers are copies of.
    """
    text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    kib = {
        line.split(":")[0]: int(line.split()[1])
        for line in text.splitlines()[1:]
        if line.endswith("kB")
    }
    private = kib["Private_Clean"] + kib["Private_Dirty"]
    return {
        "rss": 1024 * kib["Rss"],
        "pss": 1024 * kib["Pss"],
        "private": 1024 * private,
        "anonymous": 1024 * kib["Anonymous"],
    }


def role(process: psutil.Process, command: int) -> str:
    """What a process is: the command, a worker, what workers are copies of, or Prefect's server."""
    if process.pid == command:
        return "parent"
    words = " ".join(process.cmdline())
    if "forkserver" in words:
        return "loaded" if process.ppid() == command else "worker"
    return "server" if "prefect" in words or "uvicorn" in words else "other"


class Watch:
    """Samples a run's processes while a ``with`` block starts and awaits it.

    Parameters
    ----------
    artifacts : Path
        Of the run; its ``jobs.json`` there tells that folds are being trained.

    Attributes
    ----------
    peaks : dict of str to int
        Largest value seen in bytes: ``parent_rss``, ``worker_pss``, ... of the largest process in
        that role; ``total_pss`` of all together at one moment; and ``training_pss``, the same from
        when the folds were planned.
    """

    def __init__(self, artifacts: Path) -> None:
        self.artifacts = artifacts
        self.peaks: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_stopped, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample_until_stopped(self) -> None:
        while not self._stop.wait(SECONDS_BETWEEN_SAMPLES):
            for command in psutil.Process().children():
                self._sample(command)

    def _sample(self, command: psutil.Process) -> None:
        total = 0
        for process in [command, *command.children(recursive=True)]:
            try:
                memory, name = read_memory(process), role(process, command.pid)
            except (OSError, psutil.Error):
                continue  # it has just ended
            total += memory["pss"]
            for figure, value in memory.items():
                self._raise_to(f"{name}_{figure}", value)
        self._raise_to("total_pss", total)
        if any(self.artifacts.glob("runs/*/jobs.json")):
            self._raise_to("training_pss", total)

    def _raise_to(self, name: str, value: int) -> None:
        self.peaks[name] = max(value, self.peaks.get(name, 0))


def main(
    minutes: Minutes = 10,
    rows: Annotated[int, typer.Option(help="Images of 28 x 28 to make of MNIST.")] = 1_000_000,
    results: Results = RESULTS,
) -> None:
    """Measure row D."""
    with work_folder() as work:
        experiment = write_experiment(work / "memory.toml", "dense", epochs=1, batch_size=1000)

        def measurement(workers: int, n_rows: int) -> Measurement:
            data = write_many(work / f"digits-{n_rows}", n_rows)

            def measure(number: int) -> dict[str, Any]:
                artifacts = work / f"night-{workers}-{n_rows}-{number}"
                with Watch(artifacts) as watch:
                    night = run_nightfold(
                        "evaluate",
                        experiment,
                        *("--dataset", f"idx:{data}", "--workers", str(workers)),
                        artifacts=artifacts,
                        prefect_home=work / "prefect",
                    )
                shutil.rmtree(artifacts)  # a snapshot of a million images a run
                run = {"workers": workers, "rows": n_rows, "seconds": night.seconds}
                return {**run, **watch.peaks}

            return measure

        runs = {
            f"{workers} on {n_rows:,}": measurement(workers, n_rows)
            for n_rows in (rows // PART, rows)
            for workers in (1, 2)
        }
        measured = take_turns(runs, minutes)
    _publish(measured, rows, results)


def _publish(measured: pd.DataFrame, rows: int, results: Path) -> None:
    names = [f"{role}_{figure}" for role in ("parent", "worker") for figure in FIGURES]
    summary = pd.DataFrame(
        _line(measured, name, rows) for name in [*names, "total_pss", "training_pss"]
    )
    publish(
        "memory",
        f"D: memory of a run on {rows:,} images of 28 x 28 ({_gigabytes(rows)} GB of pixels)",
        measured,
        summary,
        [
            f"*Copies* is how much the peak grew from {rows // PART:,} images to {rows:,}, over "
            "how much the pixels grew: 0 is a process that takes nothing for itself, 1 is a copy "
            "of its own, or one that all share in the figures of all processes together.",
            "Peaks in GB (1e9 bytes), sampled twice a second from the start of the command to its "
            "end; *worker* is the larger of two. *rss* counts every page a process maps, shared or "
            "not; *pss* divides shared pages among those who map them; *private* are pages nobody "
            "else maps, those of the snapshot's file too; *anonymous* are no file's: its own, and "
            "what it shares with the process that workers are copies of. *total* is the pss of all "
            "processes together, *training* the same from when folds were planned: ingest is over "
            "then. The test split has 1,000 images.",
        ],
        results,
    )


def _line(measured: pd.DataFrame, name: str, rows: int) -> dict[str, str]:
    """Peak of one figure with one worker and with two, and how it grew with the pixels."""
    line = {"peak": name.replace("_", " ")}
    peak = measured.pivot(index="round", columns=["workers", "rows"], values=name)
    for workers in (1, 2):
        line[f"{workers} worker{'s'[: workers - 1]}, GB"] = str(
            Spread.of(peak[workers, rows] / 1e9)
        )
    for workers in (1, 2):
        grown = peak[workers, rows] - peak[workers, rows // PART]
        copies = grown / ((rows - rows // PART) * IMAGE_BYTES)
        line[f"copies, {workers}"] = str(Spread.of(copies))
    return line


def _gigabytes(rows: int) -> str:
    return f"{rows * IMAGE_BYTES / 1e9:.3f}"


if __name__ == "__main__":
    typer.run(main)
