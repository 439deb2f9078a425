"""The `nightfold` command as a contestant: started whole, read from the tables it leaves.

Each run has the artifacts folder and the Prefect profile it is given and no server, so nothing is
reused unless a benchmark wants it.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import pandas as pd

from benchmarks.contestants.protocol import folds_digest
from benchmarks.measure import time_command

NIGHTFOLD = Path(sys.executable).with_name("nightfold")

EXACT = """description = "The tutorial's recipe, to be compared."
[plan]
folds = {folds}
seed = 1
[[candidates]]
name = "{architecture}"
architecture = "{architecture}"
epochs = {epochs}
batch_size = {batch_size}
optimizer = {{ name = "sgd", learning_rate = 0.01, momentum = 0.9 }}
"""


def write_experiment(
    path: Path, architecture: str, epochs: int, folds: int = 5, batch_size: int = 32
) -> Path:
    """Experiment file of one network in the tutorial's recipe."""
    path.write_text(
        EXACT.format(architecture=architecture, epochs=epochs, folds=folds, batch_size=batch_size)
    )
    return path


def environment(prefect_home: Path) -> dict[str, str]:
    """The environment of this process with a Prefect profile of its own and no server."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    return {**kept, "PREFECT_HOME": str(prefect_home)}


@dataclass(frozen=True)
class Night:
    """One finished run of the command.

    Attributes
    ----------
    folder : Path
        The run's folder.
    seconds : float
        From the start of the command to its end.
    started : datetime
        When the command was started, UTC.
    """

    folder: Path
    seconds: float
    started: datetime

    @cached_property
    def scores(self) -> pd.DataFrame:
        """The run's score rows."""
        return pd.read_parquet(self.folder / "scores.parquet")

    @cached_property
    def stretches(self) -> pd.DataFrame:
        """When workers had folds: ``start`` and ``end``, UTC; a fold in two parts has two rows."""
        lines = [json.loads(line) for line in (self.folder / "log.jsonl").read_text().splitlines()]
        begun: dict[tuple[str, int, int], str] = {}
        rows = []
        for line in lines:
            fold = line["candidate"], line["repeat"], line["fold"]
            if line["message"] == "fold started":
                begun[fold] = line["time"]
            elif line["message"] in ("fold finished", "fold put aside"):
                rows.append({"start": begun[fold], "end": line["time"]})
        stretches = pd.DataFrame(rows, columns=["start", "end"])
        return stretches.astype("datetime64[us, UTC]")

    @property
    def training_seconds(self) -> float:
        """From the start of the first fold to the end of the last."""
        span = self.stretches.end.max() - self.stretches.start.min()
        return float(span.total_seconds())

    @property
    def folds(self) -> str:
        """Digest of the fold plan's first repeat, as rivals compute it."""
        plan = pd.read_parquet(self.folder / "foldplan.parquet").query("repeat == 1")
        return folds_digest(plan.sort_values("row").fold.to_numpy() - 1)

    @property
    def first_step(self) -> float:
        """Seconds from the start of the command to the first epoch's first step.

        A fold's last progress file is written when its last epoch is safe; its epochs' own seconds
        before that lies its first step. Writing checkpoints is counted in, a few hundredths each.
        """
        histories = pd.read_parquet(self.folder / "histories.parquet")
        seconds = histories.groupby(["candidate", "repeat", "fold"]).seconds.sum()
        starts = []
        for job, (candidate, repeat, fold) in self._jobs():
            written = (job / "progress.json").stat().st_mtime
            starts.append(written - seconds[candidate, repeat, fold])
        return float(min(starts) - self.started.timestamp())

    def _jobs(self) -> list[tuple[Path, tuple[str, int, int]]]:
        """Folder of every fold result, with candidate, repeat and fold."""
        jobs = json.loads((self.folder / "jobs.json").read_text())
        named = []
        for job in jobs:
            candidate, _, rest = job["label"].rpartition(" repeat ")
            repeat, _, fold = rest.partition(" fold ")
            named.append((Path(job["folder"]), (candidate, int(repeat), int(fold))))
        return named


def run_nightfold(
    flow: str, experiment: str | Path, *options: str | Path, artifacts: Path, prefect_home: Path
) -> Night:
    """Run ``nightfold evaluate`` or ``retrain`` as a whole program.

    Parameters
    ----------
    flow : {'evaluate', 'retrain'}
    experiment : str or Path
    *options : str or Path
        As on the command line.
    artifacts, prefect_home : Path
        Made if they are not there.
    """
    artifacts.mkdir(parents=True, exist_ok=True)
    log = artifacts / "log.txt"
    started = datetime.now(UTC)
    seconds = time_command(
        [NIGHTFOLD, flow, experiment, *options, "--artifacts", artifacts],
        log,
        environment(prefect_home),
    )
    latest = json.loads((artifacts / "latest.json").read_text())
    return Night(Path(latest["path"]), seconds, started)
