"""Progress of a run, for the person who started it: a live display in a terminal, lines elsewhere.

It only watches files: ``jobs.json`` of the run and the progress that each fold leaves beside its
checkpoint, so it sees folds wherever they are trained.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

STEPS = {
    "validation.json": "data checked",
    "jobs.json": "folds planned and scalers fitted",
    "verdicts.parquet": "scores aggregated and compared",
    "summary.json": "final steps done, writing the report",
}


@dataclass(frozen=True)
class FoldProgress:
    """How far one fold is.

    `accuracy`, 0 to 1, is on the scored rows: the fold's own once it is done, which averaged
    weights and ensembles make another than the last epoch's, and the last epoch's until then.
    """

    label: str
    epoch: int
    epochs: int
    accuracy: float | None
    done: bool


@dataclass(frozen=True)
class _Steps:
    """What a run has reached since it is watched; an earlier one of its name has left files."""

    run_folder: Path
    before: dict[str, int | None]

    @classmethod
    def of(cls, run_folder: Path) -> _Steps:
        return cls(run_folder, {name: _changed(run_folder / name) for name in STEPS})

    def reached(self) -> list[str]:
        """Files that are new, in the order of `STEPS`."""
        return [n for n in STEPS if _changed(self.run_folder / n) not in (None, self.before[n])]

    def folds(self) -> list[FoldProgress]:
        """Progress of every fold; empty until the folds are planned."""
        return read_progress(self.run_folder) if "jobs.json" in self.reached() else []


def _changed(file: Path) -> int | None:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return None


def read_progress(run_folder: Path) -> list[FoldProgress]:
    """Progress of every fold of a run; empty until the folds are planned."""
    folds = []
    for job in _read_json(run_folder / "jobs.json") or []:
        folder = Path(job["folder"])
        last = _read_json(folder / "progress.json") or {}
        accuracy = _accuracy(folder / "result.json")
        folds.append(
            FoldProgress(
                label=job["label"],
                epoch=last.get("epoch", 0),
                epochs=job["epochs"],
                accuracy=last.get("validation_accuracy") if accuracy is None else accuracy,
                done=accuracy is not None,
            )
        )
    return folds


def _accuracy(result: Path) -> float | None:
    """Of the fold whose result this is; None until it is done."""
    try:
        return _accuracy_of(result, result.stat().st_mtime_ns)
    except (OSError, LookupError, TypeError, ValueError):
        return None


@lru_cache(maxsize=10_000)  # read four times a second
def _accuracy_of(result: Path, _changed: int) -> float:
    return float(json.loads(result.read_bytes())["scores"]["accuracy"])


@contextmanager
def watch(run_folder: Path, title: str) -> Iterator[None]:
    """Show the progress of the run in `run_folder` on standard error until the block ends."""
    console = Console(file=sys.stderr)
    stop = threading.Event()
    show = _show_live if console.is_terminal else _show_lines
    steps = _Steps.of(run_folder)
    thread = threading.Thread(target=show, args=(console, steps, title, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


def _show_lines(console: Console, steps: _Steps, title: str, stop: threading.Event) -> None:
    started = time.monotonic()
    said: set[str] = set()

    def say(text: str) -> None:
        if text not in said:
            said.add(text)
            minutes, seconds = divmod(int(time.monotonic() - started), 60)
            console.print(f"{minutes:3d}:{seconds:02d}  {text}", highlight=False, soft_wrap=True)

    say(title)
    while True:
        last = stop.wait(0.5)
        folds = steps.folds()
        for name in steps.reached():
            say(STEPS[name])
            if name == "jobs.json":
                for fold in folds:
                    if fold.done:
                        say(f"{fold.label}: {_percent(fold.accuracy)}")
        if last:
            return


def _show_live(console: Console, steps: _Steps, title: str, stop: threading.Event) -> None:
    started = time.monotonic()
    first: tuple[float, int] | None = None
    spinner = Spinner("dots")
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        while not stop.wait(0.25):
            folds = steps.folds()
            epochs_done = sum(fold.epoch for fold in folds)
            if folds and first is None:
                first = (time.monotonic(), epochs_done)
            live.update(_display(title, started, first, folds, steps.reached(), spinner))


def _display(
    title: str,
    started: float,
    first: tuple[float, int] | None,
    folds: list[FoldProgress],
    reached: list[str],
    spinner: Spinner,
) -> Any:
    now = time.monotonic()
    step = STEPS[reached[-1]] if reached else "starting: Prefect, data, workers"
    spinner.update(text=Text(f"{title} - {step} - {_clock(now - started)}"))
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=bool(folds))
    for column in ("candidate", "folds", "epochs", "accuracy so far", ""):
        table.add_column(column, justify="right" if column not in ("candidate", "") else "left")
    groups: dict[str, list[FoldProgress]] = {}
    for fold in folds:
        groups.setdefault(fold.label.split(" repeat ")[0], []).append(fold)
    for name, group in groups.items():
        scored = [f.accuracy for f in group if f.accuracy is not None]
        total, done = sum(f.epochs for f in group), sum(f.epoch for f in group)
        if all(f.done for f in group):
            done = total  # early stopping may have ended before the last epoch
        table.add_row(
            name,
            f"{sum(f.done for f in group)}/{len(group)}",
            f"{sum(f.epoch for f in group)}/{total}",
            _percent(sum(scored) / len(scored)) if scored else "-",
            ProgressBar(total=total, completed=done, width=24),
        )
    return Group(spinner, table, Text(_time_left(now, first, folds), style="dim"))


def _time_left(now: float, first: tuple[float, int] | None, folds: list[FoldProgress]) -> str:
    """Time for the folds that are left, from the pace since the first look."""
    if first is None:
        return ""
    done = sum(fold.epoch for fold in folds)
    left = sum(fold.epochs - fold.epoch for fold in folds if not fold.done)
    pace = (done - first[1]) / max(now - first[0], 1e-9)
    if not left:
        return "all folds scored"
    return f"about {_clock(left / pace)} left for the folds" if pace > 0 else "estimating time left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _percent(accuracy: float | None) -> str:
    return "-" if accuracy is None else f"{100 * accuracy:.3f} %"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
