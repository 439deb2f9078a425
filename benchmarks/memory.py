"""D: memory of a run on a million images, by process, with one worker and with two.

The dense network in batches of 1,000 is trained, because it is over soon and the pixels are what
is looked at. Linux only: figures are those of ``/proc/PID/smaps_rollup``.
"""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import psutil
import typer

from benchmarks.digits import write_many
from benchmarks.measure import RESULTS, Minutes, Results, Spread, publish, ratios, take_turns
from benchmarks.nightly import run_nightfold, write_experiment

FIGURES = ("rss", "pss", "private")
SECONDS_BETWEEN_SAMPLES = 0.5


def read_memory(process: psutil.Process) -> dict[str, int]:
    """Resident, proportional and private memory of a process, bytes.

    Resident counts every page it maps, proportional divides shared pages among those who map
    them, private counts pages that no other process maps.
    """
    text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    kib = {
        line.split(":")[0]: int(line.split()[1])
        for line in text.splitlines()[1:]
        if line.endswith("kB")
    }
    private = kib["Private_Clean"] + kib["Private_Dirty"]
    return {"rss": 1024 * kib["Rss"], "pss": 1024 * kib["Pss"], "private": 1024 * private}


def role(process: psutil.Process, command: int) -> str:
    """What a process is in the run: the command itself, a worker, or Prefect's server."""
    if process.pid == command:
        return "parent"
    words = " ".join(process.cmdline())
    if "spawn_main" in words:
        return "worker"
    return "server" if "prefect" in words or "uvicorn" in words else "other"


class Watch:
    """Samples a run's processes while a ``with`` block starts and awaits it.

    Attributes
    ----------
    peaks : dict of str to int
        Largest value seen in bytes: ``parent_rss``, ``worker_pss``, ... of the largest process in
        that role, and ``total_pss`` of all together at one moment.
    """

    def __init__(self) -> None:
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

    def _raise_to(self, name: str, value: int) -> None:
        self.peaks[name] = max(value, self.peaks.get(name, 0))


def main(
    minutes: Minutes = 10,
    rows: Annotated[int, typer.Option(help="Images of 28 x 28 to make of MNIST.")] = 1_000_000,
    results: Results = RESULTS,
) -> None:
    """Measure row D."""
    with tempfile.TemporaryDirectory(prefix="nightfold-benchmark-") as folder:
        work = Path(folder)
        data = write_many(work / "digits", rows)
        experiment = write_experiment(work / "memory.toml", "dense", epochs=1, batch_size=1000)

        def measurement(workers: int) -> Any:
            def measure(number: int) -> dict[str, Any]:
                artifacts = work / f"night-{workers}-{number}"
                with Watch() as watch:
                    night = run_nightfold(
                        "evaluate",
                        experiment,
                        *("--dataset", f"idx:{data}", "--workers", str(workers)),
                        artifacts=artifacts,
                        prefect_home=work / "prefect",
                    )
                return {"seconds": night.seconds, **watch.peaks}

            return measure

        measured = take_turns({"1 worker": measurement(1), "2 workers": measurement(2)}, minutes)
    _publish(measured, rows, results)


def _publish(measured: pd.DataFrame, rows: int, results: Path) -> None:
    pixels = rows * 28 * 28
    lines = []
    for name in [f"{role}_{figure}" for role in ("parent", "worker") for figure in FIGURES]:
        lines.append(_line(measured, name))
    lines.append(_line(measured, "total_pss"))
    wide = measured.pivot(index="round", columns="contestant", values="total_pss")
    added = Spread.of((wide["2 workers"] - wide["1 worker"]) / pixels)
    publish(
        "memory",
        f"D: memory of a run on {rows:,} images of 28 x 28 ({_gigabytes(pixels)} GB of pixels)",
        measured.assign(rows=rows, pixel_bytes=pixels),
        pd.DataFrame(lines),
        [
            f"The second worker adds {added} times the pixels to the memory of all processes "
            "together; with one copy on the machine it adds far less than 1, with a copy each, 1 "
            "or more.",
            "Largest values in GB (1e9 bytes), sampled twice a second from the start of the "
            "command to its end; *worker* is the larger of two. *rss* counts every page a process "
            "maps, shared or not; *pss* divides shared pages among those who map them; *private* "
            "are pages nobody else maps. The parent's peak is in ingest, which holds the source. "
            "The test split has 1,000 images.",
        ],
        results,
    )


def _line(measured: pd.DataFrame, name: str) -> dict[str, str]:
    line = {"peak, GB": name.replace("_", " ")}
    for contestant, own in measured.groupby("contestant", sort=False):
        line[str(contestant)] = str(Spread.of(own[name] / 1e9))
    line["2 workers ÷ 1"] = str(Spread.of(ratios(measured, name, "2 workers", "1 worker")))
    return line


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.3f}"


if __name__ == "__main__":
    typer.run(main)
