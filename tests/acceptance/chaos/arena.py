"""Nights that are killed and started again, and what must hold after every kill and at the end.

A chain is one night: it is started, killed, started again with the same command, killed again, and
so on until it ends by itself. Then it is compared with a night that nobody disturbed.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path

import h5py
import httpx
import numpy as np
import psutil
import pyarrow.parquet as pq

from nightfold.experiment import shipped
from nightfold.lock import LOCK
from nightfold.manifest import verify
from nightfold.registry import Registry
from nightfold.store import TEMPORARY, Store

HERE = Path(__file__).resolve().parent
COMMAND = [sys.executable, "-c", "from flows.cli import main; main()"]
ROWS = 600
RUN = "night"
TIMES = {  # what a clock or the machine decides, and no seed
    "run_id",
    "run_date",
    "train_seconds",
    "images_per_second",
    "peak_rss_bytes",
    "started_at",
    "finished_at",
    "seconds",
}
PATIENCE = 900
"""Seconds after which a command that should have ended is a fault."""


@dataclass
class Server:
    """A Prefect server on this machine with a home of its own."""

    home: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @classmethod
    def anywhere(cls, home):
        """One on a port that nobody listens on."""
        home.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return cls(home, probe.getsockname()[1])

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def environment(self):
        return {
            **{name: value for name, value in os.environ.items() if "PREFECT" not in name},
            "PREFECT_HOME": str(self.home),
            "PREFECT_API_URL": self.url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }

    def start(self, enter=()):
        """Start it; `enter` is a command that starts another."""
        log = self.home.with_name(f"{self.home.name}.log").open("ab")
        self.process = subprocess.Popen(
            [*enter, sys.executable, "-m", "prefect", "server", "start", "--port", str(self.port)],
            env=self.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.2)
        raise AssertionError("the server did not come")

    def kill(self):
        """End it as a power failure would, and every process it has started."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@dataclass
class Attempt:
    """One start of the command and how it ended."""

    process: subprocess.Popen[bytes]
    began: float
    mark: Path
    """There once the chosen write has come. Its own: a dying worker of the start before may come to
    the write that was chosen for that one."""

    @property
    def fired(self):
        return self.mark.exists()

    def wait_until_fired(self, seconds=PATIENCE):
        """Whether the chosen write comes before the command ends."""
        deadline = time.monotonic() + seconds
        while not self.fired and time.monotonic() < deadline:
            if self.wait(0.05) is not None:
                break
        return self.fired

    def workers(self):
        try:
            children = psutil.Process(self.process.pid).children()
            copied = [p for p in children if "forkserver" in " ".join(p.cmdline())]
            return [worker for source in copied for worker in source.children()]
        except psutil.Error:
            return []

    def wait(self, seconds=PATIENCE):
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None

    def end(self):
        """Kill whatever is left of it; workers of a flow that is gone end by themselves."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Arena:
    """A folder with the data, the champion of the night before, and the undisturbed night."""

    def __init__(self, folder: Path, server: Server):
        self.folder, self.server = folder, server
        self.experiment = HERE / "night.toml"
        self.before, self.calm = folder / "before", folder / "calm"
        self.attempts: list[Attempt] = []

    def prepare(self):
        """Make what is missing: a champion, then an undisturbed night with its list of writes."""
        data = self.folder / "digits"
        if not data.exists():
            data.mkdir(parents=True)
            for name, rows in (("train", ROWS), ("test", 200)):
                table = pq.read_table(shipped("data", "mnist", f"{name}.parquet"))
                pq.write_table(table.slice(0, rows), data / f"{name}.parquet")
        if not (self.before / "latest.json").exists():
            done = self.start(self.before, candidates="weak", run="before")
            assert done.wait() == 0, self.said(self.before)
            for name in ("datasets", "plans"):
                shutil.rmtree(self.before / name)
        if not (self.calm / "latest.json").exists():
            self.new_chain(self.calm)
            began = time.monotonic()
            assert self.start(self.calm).wait() == 0, self.said(self.calm)
            self.note("seconds", time.monotonic() - began)
            assert champion_of(self.calm) == RUN

    def note(self, name, value):
        (self.folder / f"{name}.json").write_text(json.dumps(value))

    @property
    def seconds(self):
        """How long the undisturbed night took."""
        return json.loads((self.folder / "seconds.json").read_text())

    def writes(self):
        """Every write of the undisturbed night, in order: its name and which occurrence it is."""
        seen: dict[str, int] = {}
        found = []
        for line in ledger(self.calm):
            if "write" in line:
                name = line["write"]
                seen[name] = seen.get(name, 0) + 1
                found.append((name, seen[name]))
        return found

    def new_chain(self, artifacts):
        """A folder as the night before has left it."""
        shutil.rmtree(artifacts, ignore_errors=True)
        shutil.copytree(self.before, artifacts)
        for path in artifacts.parent.glob(f"{artifacts.name}.ledger*"):
            path.unlink()

    def start(
        self,
        artifacts,
        at="",
        how="",
        *,
        candidates="moved,dropped",
        run=RUN,
        flow="retrain",
        wait="1",
        enter=(),
        notes=None,
    ):
        """Start the night.

        `at` and `how` as in the shim; `run` None for a name of its own; `enter` is a command that
        starts another; ledger and log have the name of `notes`, else of the artifacts.
        """
        notes = notes or artifacts
        mark = notes.with_name(f"{notes.name}.ledger.fired-{len(self.attempts)}")
        arguments = {
            "--dataset": f"parquet:{self.folder / 'digits'}",
            "--candidates": candidates,
            "--workers": "2",
            "--artifacts": str(artifacts),
            "--wait": wait,
            **({} if run is None else {"--run-id": run}),
        }
        environment = {
            **self.server.environment,
            "PYTHONPATH": os.pathsep.join([str(HERE / "shim"), str(shipped())]),
            "CHAOS_LEDGER": str(notes.with_name(f"{notes.name}.ledger")),
            "CHAOS_MARK": str(mark),
            "CHAOS_ROOTS": f"{artifacts}:{self.server.home / 'storage'}",
            "CHAOS_AT": at,
            "CHAOS_HOW": how,
        }
        with notes.with_name(f"{notes.name}.log").open("wb") as log:
            process = subprocess.Popen(
                [
                    *enter,
                    *COMMAND,
                    flow,
                    str(self.experiment),
                    *chain.from_iterable(arguments.items()),
                ],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.attempts.append(Attempt(process, time.monotonic(), mark))
        return self.attempts[-1]

    def end(self):
        """Kill whatever was started and is left."""
        for attempt in self.attempts:
            attempt.end()

    def said(self, artifacts):
        return artifacts.with_name(f"{artifacts.name}.log").read_text()[-3000:]


def ledger(artifacts):
    """What the shim has noted, line by line; a line that a kill has cut is left out."""
    path = artifacts.with_name(f"{artifacts.name}.ledger")
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def champion_of(artifacts):
    entry = Registry(Store(artifacts)).champion()
    return entry and entry.version


def faults_at_any_moment(artifacts):
    """What may never be seen, however a night was killed; one sentence each."""
    found = []
    try:
        registry = Registry(Store(artifacts))
        entry = registry.champion()
        assert entry is not None, "there is no champion any more"
        verify(registry.resolve("champion"), manifest_sha256=entry.manifest_sha256)
    except Exception as error:
        found.append(f"champion.json: {error}")
    for path in published(artifacts):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".parquet":
                pq.read_table(path, partitioning=None)
            elif path.suffix == ".npz":
                with np.load(path) as arrays:
                    [arrays[name] for name in arrays.files]
            elif path.suffix == ".npy":
                np.load(path)
            elif path.suffix == ".png":
                assert path.read_bytes()[-8:-4] == b"IEND", "no end"
            elif path.suffix == ".html":
                assert path.read_text().rstrip().endswith("</html>"), "no end"
        except FileNotFoundError:
            continue  # a dying worker was still at work
        except Exception as error:
            found.append(f"{path.relative_to(artifacts)} is half written: {error}")
    return found


def published(artifacts):
    """Every file but those under construction."""
    for folder, folders, files in os.walk(artifacts):
        folders[:] = [name for name in folders if not name.startswith(TEMPORARY)]
        for name in files:
            if not name.startswith(TEMPORARY):
                yield Path(folder, name)


def leftovers(artifacts):
    """Files that nobody will ever need again."""
    found = list(artifacts.rglob(f"{TEMPORARY}*"))
    found += [
        p for p in artifacts.glob("folds/*/checkpoint*.npz") if (p.parent / "result.json").exists()
    ]
    lock = artifacts / LOCK
    return found + ([lock] if lock.exists() and lock.stat().st_size else [])


def differences(artifacts, calm, run):
    """In what a night differs from the undisturbed one; empty if it is the same bit for bit."""
    ours, theirs = Store(artifacts).run(run), Store(calm).run(RUN)
    found = []
    for name in ("scores", "histories", "predictions", "verdicts", "foldplan"):
        mine, other = (table_of(folder / f"{name}.parquet") for folder in (ours, theirs))
        if run != RUN and name == "verdicts":
            continue  # promoted by a start before, it is the champion that it is compared with
        if not mine.equals(other):
            found.append(name)
    if weights_of(artifacts, champion_of(artifacts)) != weights_of(calm, RUN):
        found.append("final weights")
    partitions = [*artifacts.glob(f"scores/*/{run}.parquet")]
    if len(partitions) != 1 or not table_of(partitions[0]).equals(
        table_of(next(calm.glob(f"scores/*/{RUN}.parquet")))
    ):
        found.append("the table of all nights")
    if run == RUN:
        if champion_of(artifacts) != RUN:
            found.append("champion")
        if looks_of(artifacts) != looks_of(calm):
            found.append("looks at the champion")
        if told_of(ours) != told_of(theirs):
            found.append("summary")
    return found


def table_of(path):
    """Rows of our own candidates without what a clock decides, in a fixed order."""
    table = pq.read_table(path, partitioning=None)
    table = table.drop_columns([name for name in table.column_names if name in TIMES])
    if "candidate" in table.column_names:
        table = table.filter(np.isin(table["candidate"].to_pylist(), ["moved", "dropped"]))
    return table.replace_schema_metadata(None)


def weights_of(artifacts, version):
    """Every array of a sealed model, as bytes."""
    found = {}
    with zipfile.ZipFile(artifacts / "models" / str(version) / "model.keras") as archive:
        weights = BytesIO(archive.read("model.weights.h5"))

    def keep(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item[()].tobytes()

    with h5py.File(weights) as file:
        file.visititems(keep)
    assert found
    return found


def looks_of(artifacts):
    return [len(entry.looks) for entry in Registry(Store(artifacts)).history()]


def told_of(folder):
    """The summary without times and places."""
    document = json.loads((folder / "summary.json").read_text())
    for candidate in document["candidates"]:
        candidate.pop("train_seconds")
    document["final"] = {k: document["final"][k] for k in ("candidate", "holdout_accuracy")}
    document["promotion"].pop("checks")
    document["dataset"].pop("path")
    document.pop("disk")
    return {k: v for k, v in document.items() if k not in TIMES}


def repeated_epochs(lines):
    """The most epochs of one training that a process has trained again, and how many in all.

    A process that comes to a training begins where the one before was last seen: behind its last
    finished epoch if nothing is lost, at the epoch in flight if that was.
    """
    last: dict[str, tuple[int, int]] = {}
    most = total = 0
    for line in lines:
        if "training" not in line:
            continue
        pid, epoch = last.get(line["training"], (line["pid"], line["epoch"] - 1))
        if pid != line["pid"]:
            again = max(0, epoch - line["epoch"] + 1)
            most, total = max(most, again), total + again
        last[line["training"]] = line["pid"], line["epoch"]
    return most, total


def kind_of(write):
    """A write without who and which: ``rename folds/checkpoint.npz``."""
    role, what, path = write.split(" ", 2)
    path = re.sub(r"[0-9a-f]{16,}", "*", path).replace("final-*", "final")
    path = re.sub(r"figures/(\.part-)?.*", "figures/*.png", path)
    path = re.sub(r"run_date=[0-9-]+", "run_date=*", path)
    return f"{role} {what} {path}"


def choose(writes, hit, rng: random.Random, n):
    """`n` writes in the order of the night, kinds that were hit least first."""
    by_kind: dict[str, list[tuple[int, tuple[str, int]]]] = {}
    for position, write in enumerate(writes):
        by_kind.setdefault(kind_of(write[0]), []).append((position, write))
    kinds = sorted(by_kind, key=lambda kind: (hit.get(kind, 0), rng.random()))[:n]
    return [write for _, write in sorted(rng.choice(by_kind[kind]) for kind in kinds)]
