"""Measuring: take turns, compare pair by pair, say median and range, write what came out.

A figure is always a ratio of two things measured in the same round, because a machine is never
the same twice. What is measured is in the other modules; here is only how.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import psutil
import pyarrow as pa
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from nightfold.store import atomic_file
from nightfold.tables import write_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("nightfold", "tensorflow", "keras", "scikit-learn", "prefect", "numpy")
BUSY = 10
"""Percent of the processor that others may use before a result carries a warning."""

Measurement = Callable[[int], dict[str, Any]]
"""Given the round, counted from 1, runs once and returns figures by name."""

Minutes = Annotated[float, typer.Option(help="Start no round that would end later than this.")]
Rows = Annotated[int, typer.Option(help="First rows of MNIST to use.")]
Results = Annotated[Path, typer.Option(help="Folder for the Parquet table and the summary.")]


@dataclass(frozen=True)
class Spread:
    """Median and range of a few values."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: pd.Series) -> Spread:
        """Of all values that are there."""
        there = values.dropna()
        return cls(float(there.median()), float(there.min()), float(there.max()), len(there))

    def __str__(self) -> str:
        digits = 3 if abs(self.median) < 1 else 2 if abs(self.median) < 100 else 0
        if self.n == 1:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


@contextmanager
def work_folder() -> Iterator[Path]:
    """A folder for what a benchmark writes on its way; it is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="nightfold-benchmark-") as folder:
        yield Path(folder)


def take_turns(measurements: Mapping[str, Measurement], minutes: float) -> pd.DataFrame:
    """Run every measurement once, then all again, as long as the time lasts.

    Parameters
    ----------
    measurements : mapping of str to callable
        By the contestant's name, in the order of every round.
    minutes : float
        No round begins that, lasting as long as the longest so far, would end later; the first
        always does.

    Returns
    -------
    DataFrame
        One row a measurement: ``round`` (from 1), ``contestant`` and the figures.
    """
    rows: list[dict[str, Any]] = []
    began, longest, number = time.perf_counter(), 0.0, 0
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        shown = progress.add_task("")
        while not number or time.perf_counter() - began + longest <= 60 * minutes:
            number += 1
            round_began = time.perf_counter()
            for contestant, measure in measurements.items():
                progress.update(shown, description=f"round {number}: {contestant}")
                rows.append({"round": number, "contestant": contestant, **measure(number)})
            longest = max(longest, time.perf_counter() - round_began)
    return pd.DataFrame(rows)


def ratios(rows: pd.DataFrame, figure: str, numerator: str, denominator: str) -> pd.Series:
    """Ratio of a figure between two contestants, round by round.

    Returns
    -------
    Series of float64, indexed by round
        Only rounds in which both were measured.
    """
    wide = rows.pivot(index="round", columns="contestant", values=figure)
    return (wide[numerator] / wide[denominator]).dropna()


def time_command(
    arguments: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None
) -> float:
    """Run a whole program from the root of the checkout; its seconds, start to end.

    Parameters
    ----------
    arguments : sequence of str or Path
    log : Path
        Takes everything the program says.
    environment : mapping, optional
        In place of this process's own.

    Raises
    ------
    SystemExit
        With the program's last lines if it fails.
    """
    command = [str(argument) for argument in arguments]
    with log.open("wb") as file:
        began = time.perf_counter()
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False
        )
        seconds = time.perf_counter() - began
    require_success(command, done.returncode, log)
    return seconds


def require_success(command: Sequence[str], exit_code: int, log: Path) -> None:
    """End the benchmark, with the program's last lines, unless it succeeded."""
    if exit_code:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise SystemExit(f"{shlex.join(command)} ended with {exit_code}:\n{last}")


def machine() -> dict[str, str]:
    """What was measured on: processor, cores, memory, versions, date."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.0f} GiB",
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def _warning(others: float) -> list[str]:
    """A sentence if others use the processor, percent of all cores."""
    if others <= BUSY:
        return []
    return [
        f"**The machine was busy: others used {others:.0f} % of the processor when this ended. "
        "Measure again on a quiet one before quoting it.**"
    ]


def _processor() -> str:
    """The processor's own name for itself; generic names come with family and model."""
    facts: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    name = facts.get("model name", platform.machine())
    return f"{name} (family {facts.get('cpu family', '?')}, model {facts.get('model', '?')})"


def publish(
    name: str,
    title: str,
    rows: pd.DataFrame,
    summary: pd.DataFrame,
    notes: Sequence[str],
    results: Path = RESULTS,
) -> None:
    """Show the summary, and write ``NAME.parquet`` and ``NAME.md``.

    Parameters
    ----------
    name : str
        Of the two files.
    title : str
    rows : DataFrame
        Every single measurement.
    summary : DataFrame
        What people read; values are shown as they are.
    notes : sequence of str
        A sentence or two each: how to read it, what was left out.
    results : Path
        Folder of the files.
    """
    # Everything of ours has ended, so whatever is still computing is somebody else's.
    others = psutil.cpu_percent(interval=1)
    facts = {**machine(), "used by others": f"{others:.0f} %", "command": _command()}
    notes = [*notes, *_warning(others)]
    results.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pandas(rows, preserve_index=False)
    write_table(results / f"{name}.parquet", table, name=f"benchmark {name}", **facts)
    heading = [f"# {title}", f"`{facts.pop('command')}`", markdown(summary)]
    about = ", ".join(f"{key} {value}" for key, value in facts.items())
    with atomic_file(results / f"{name}.md") as part:
        part.write_text("\n\n".join([*heading, *notes, f"Measured: {about}."]) + "\n")
    shown = Table(title=title, box=None, padding=(0, 2, 0, 0))
    for column in summary.columns:
        shown.add_column(str(column))
    for row in summary.astype(str).itertuples(index=False):
        shown.add_row(*row)
    console = Console()
    console.print(shown)
    for note in notes:
        console.print(note)
    console.print(f"written to {results / name}.md and .parquet", highlight=False)


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table of `table`, values as they are."""
    lines: list[Any] = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _command() -> str:
    """What was typed; paths of this machine are nobody else's, so only their last part is kept."""
    specification = getattr(sys.modules["__main__"], "__spec__", None)
    name = specification.name if specification else Path(sys.argv[0]).stem
    shown = [f".../{Path(a).name}" if a.startswith("/") else a for a in sys.argv[1:]]
    return shlex.join(["python", "-m", name, *shown])
