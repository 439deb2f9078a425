"""Many runs at once and many folds in one, on PostgreSQL: all end, nothing is lost or doubled.

Short by default. ``make load`` runs the full form: 50 runs queued at once, 500 folds in one run.
``NIGHTFOLD_LOAD_DATABASE=sqlite`` takes Prefect's default database instead, with
``NIGHTFOLD_LOAD_RUNS`` runs, ``NIGHTFOLD_LOAD_AT_ONCE`` of them at the same time; the figures in
docs/operations.md are from there.
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from pwd import getpwnam

import pandas as pd
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

from nightfold.manifest import verify
from nightfold.registry import Registry
from nightfold.store import Store

FULL = os.environ.get("NIGHTFOLD_LOAD") == "full"
DATABASE = os.environ.get("NIGHTFOLD_LOAD_DATABASE", "postgresql")
RUNS = int(os.environ.get("NIGHTFOLD_LOAD_RUNS", "50" if FULL else "4"))
AT_ONCE = int(os.environ.get("NIGHTFOLD_LOAD_AT_ONCE", "4" if FULL else "2"))
FOLDS, REPEATS = (50, 10) if FULL else (10, 5)
MINUTES = 60 if FULL else 5
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(2 * MINUTES * 60),
    pytest.mark.skipif(
        DATABASE == "postgresql" and not POSTGRES,
        reason="no PostgreSQL under /usr/lib/postgresql (Debian: apt install postgresql)",
    ),
]

EXPERIMENT = """
[dataset]
source = "digits"

[plan]
folds = 2

[policy]
metric = "accuracy"
rope = 0.01
probability = 0.95
max_repeats = 1
min_holdout_accuracy = 0.0
min_class_recall = 0.0
max_class_loss = 1.0
max_ece = 1.0
max_megabytes = 100
max_milliseconds = 100000

[[candidates]]
name = "dense"
architecture = "dense"
epochs = 1
"""


@pytest.fixture(scope="module")
def postgres(free_port):
    """The URL of an empty database of a cluster of its own, which ends with the tests."""
    folder = Path(tempfile.mkdtemp(prefix="nightfold-postgres-"))
    port, user = str(free_port()), []
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        user = ["runuser", "-u", "postgres", "--"]
        os.chown(folder, getpwnam("postgres").pw_uid, -1)
    data, bin_ = str(folder / "data"), POSTGRES[-1]
    quiet = {"check": True, "cwd": "/", "stdout": subprocess.DEVNULL}
    subprocess.run(
        [*user, bin_ / "initdb", "-D", data, "-U", "postgres", "--auth", "trust"], **quiet
    )
    options = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder}"
    control = [*user, bin_ / "pg_ctl", "-D", data, "-w", "-l", folder / "log"]
    subprocess.run([*control, "-o", options, "start"], **quiet)
    yield f"postgresql+asyncpg://postgres@127.0.0.1:{port}/postgres"
    subprocess.run([*control, "-m", "fast", "stop"], **quiet)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def loaded(request, serving, tmp_path_factory, free_port):
    """A bench on that database, with a pool, a deployment without limit, and no worker yet."""
    database = {}
    if DATABASE == "postgresql":
        url = request.getfixturevalue("postgres")
        database["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = url
    with serving(tmp_path_factory, free_port(), **database) as bench:
        bench.prefect("work-pool", "create", "load", "--type", "process")
        bench.prefect("deploy", "flows/retrain.py:retrain", "--name", "load", "--pool", "load")
        yield bench


@pytest.fixture(scope="module")
def queue(loaded, tmp_path_factory):
    """A function that queues a night on scikit-learn's digits in an artifacts folder of its own.

    Nights on one folder wait for each other, so that would be no load.
    """
    experiment = tmp_path_factory.mktemp("experiment") / "digits.toml"
    experiment.write_text(EXPERIMENT)
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("retrain/load")

        def put(artifacts, **settings):
            values = {"experiment": str(experiment), "artifacts": str(artifacts), **settings}
            return client.create_flow_run_from_deployment(
                deployment.id, parameters={"settings": values}
            )

        yield put


def read(client, runs):
    return [client.read_flow_run(run.id) for run in runs]


def task_runs(client, run):
    """All of them: the server gives at most 200 at a time."""
    ours = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
    found = []
    while page := client.read_task_runs(flow_run_filter=ours, limit=200, offset=len(found)):
        found += page
    return found


def assert_sound(artifacts, run):
    """The pointers of an artifacts folder lead to the one run that was there, and to its model."""
    (folder,) = (artifacts / "runs").iterdir()
    latest = json.loads((artifacts / "latest.json").read_text())
    assert latest["run_id"] == folder.name
    assert folder.name.endswith(run.id.hex[:6])
    (entry,) = Registry(Store(artifacts)).history()
    assert entry.version == folder.name
    verify(artifacts / "models" / entry.version, manifest_sha256=entry.manifest_sha256)
    return pd.read_parquet(folder / "scores.parquet"), pd.read_parquet(artifacts / "scores")


def wait_for_all(loaded, client, runs):
    started = time.monotonic()
    loaded.wait_until(
        lambda: all(run.state.is_final() for run in read(client, runs)), "the end", MINUTES * 60
    )
    states = Counter(run.state_name for run in read(client, runs))
    log = "".join(path.read_text() for path in loaded.logs.glob("*prefect-server.log"))
    print(
        f"\n{DATABASE}: {len(runs)} runs, {AT_ONCE} at once, {dict(states)}, "
        f"{time.monotonic() - started:.0f} s, {log.count('database is locked')} x locked"
    )
    return states


def test_queued_runs_all_end_well_and_once(loaded, queue, tmp_path):
    folders = [tmp_path / f"night-{number}" for number in range(RUNS)]
    runs = [queue(folder, runner="sequential") for folder in folders]
    loaded.start("prefect", "worker", "start", "--pool", "load", "--limit", str(AT_ONCE))
    with get_client(sync_client=True) as client:
        states = wait_for_all(loaded, client, runs)
        assert states == {"Completed": RUNS}, loaded.tell()
        assert [run.run_count for run in read(client, runs)] == [1] * RUNS
        for folder, run in zip(folders, runs, strict=True):
            steps = Counter(step.name for step in task_runs(client, run))
            assert set(steps.values()) == {1}
            assert {f"train dense repeat 1 fold {fold}" for fold in (1, 2)} <= set(steps)
            scores, all_scores = assert_sound(folder, run)
            assert sorted(scores["fold"]) == [1, 2]
            assert len(all_scores) == 2


def test_every_fold_of_a_run_of_many_is_there_once(loaded, queue, tmp_path):
    run = queue(tmp_path, folds=FOLDS, repeats=REPEATS, workers=2)
    loaded.start("prefect", "worker", "start", "--pool", "load", "--limit", "1")
    with get_client(sync_client=True) as client:
        assert wait_for_all(loaded, client, [run]) == {"Completed": 1}, loaded.tell()
        trained = [step for step in task_runs(client, run) if step.name.startswith("train ")]
    places = {(repeat, fold) for repeat in range(1, REPEATS + 1) for fold in range(1, FOLDS + 1)}
    assert {step.state_name for step in trained} == {"Completed"}
    assert sorted(step.name for step in trained) == sorted(
        f"train dense repeat {repeat} fold {fold}" for repeat, fold in places
    )
    for table in assert_sound(tmp_path, run):
        rows = list(zip(table["repeat"], table["fold"], strict=True))
        assert len(rows) == FOLDS * REPEATS
        assert set(rows) == places
    predictions = pd.read_parquet(next(tmp_path.glob("runs/*/predictions.parquet")))
    assert not predictions.duplicated(["repeat", "row"]).any()
    assert len(list((tmp_path / "folds").glob("*/result.json"))) == FOLDS * REPEATS
