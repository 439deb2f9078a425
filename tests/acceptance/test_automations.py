"""Nobody is awake: a killed night starts once more by itself, and somebody is told."""

import json
import os
import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pandas as pd
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.states import Crashed

from flows.automations import install

pytestmark = [pytest.mark.slow, pytest.mark.long]
SECRET = "a-secret-that-only-the-chat-knows"


@pytest.fixture(scope="module")
def chat():
    """What was posted to a webhook, and its URL."""

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self):
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    posted = []
    server = HTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield posted, f"http://127.0.0.1:{server.server_port}/{SECRET}"
    server.shutdown()


@pytest.fixture(scope="module")
def guarded(bench, chat):
    """A server with a pool, the deployments and the automations; no worker yet."""
    bench.prefect("work-pool", "create", "nightfold", "--type", "process")
    bench.prefect("deploy", "--all")
    for _ in range(2):  # a second call must not add a second automation
        install(chat[1], silence=timedelta(seconds=75))
    with get_client(sync_client=True) as client:
        assert len(client.read_automations()) == 3
    bench.env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] = "30"
    return bench


@pytest.fixture(scope="module")
def worker(guarded):
    return guarded.start("prefect", "worker", "start", "--pool", "nightfold")


def queue(artifacts, deployment="on-demand"):
    """A night of a minute, its folds one after the other."""
    settings = {
        "limit": 12_000,
        "folds": 4,
        "epochs": 3,
        "candidates": ["baseline"],
        "workers": 1,
        "artifacts": str(artifacts),
    }
    with get_client(sync_client=True) as client:
        found = client.read_deployment_by_name(f"retrain/{deployment}")
        return client.create_flow_run_from_deployment(found.id, parameters={"settings": settings})


def runs(deployment="on-demand"):
    """Those that the schedule has not made, oldest first."""
    with get_client(sync_client=True) as client:
        found = client.read_deployment_by_name(f"retrain/{deployment}")
        ours = DeploymentFilter(id=DeploymentFilterId(any_=[found.id]))
        all_runs = client.read_flow_runs(deployment_filter=ours)
    asked_for = [run for run in all_runs if not run.auto_scheduled]
    return sorted(asked_for, key=lambda run: run.created)


def states(deployment="on-demand"):
    return [run.state_name for run in runs(deployment)]


def finished(artifacts):
    """When each fold that is done was."""
    return {path: path.stat().st_mtime_ns for path in artifacts.glob("folds/*/result.json")}


def assert_whole(artifacts, before):
    """A second run has every fold once and has trained none of those that were done."""
    latest = Path(json.loads((artifacts / "latest.json").read_text())["path"])
    assert len(list((artifacts / "runs").iterdir())) == 2
    assert sorted(pd.read_parquet(latest / "scores.parquet")["fold"]) == [1, 2, 3, 4]
    after = finished(artifacts)
    assert before
    assert {path: after[path] for path in before} == before
    assert (artifacts / "models" / "champion.json").exists()


@pytest.fixture(scope="module")
def crashed_once(guarded, worker, kill_processes_of, tmp_path_factory):
    """A run whose flow and fold workers were killed when a fold was done; its worker lives."""
    artifacts = tmp_path_factory.mktemp("artifacts")
    run = queue(artifacts)
    guarded.wait_until(lambda: finished(artifacts), "a finished fold", 400)
    before = finished(artifacts)
    assert kill_processes_of(run)
    guarded.wait_until(lambda: states() == ["Crashed", "Completed"], "a second run's end", 400)
    return run, artifacts, before


def test_a_crashed_run_starts_once_more_and_goes_on_where_it_was(crashed_once):
    _, artifacts, before = crashed_once
    first, second = runs()
    assert second.parameters == first.parameters
    assert_whole(artifacts, before)


def test_a_second_crash_stays(crashed_once, guarded):
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(runs()[1].id, Crashed(message="again"), force=True)
    with pytest.raises(AssertionError, match="a third run did not come"):
        guarded.wait_until(lambda: len(runs()) > 2, "a third run", 15)
    assert states() == ["Crashed", "Crashed"]


def test_the_chat_is_told_and_its_url_is_nowhere(crashed_once, chat, guarded):
    run, artifacts, _ = crashed_once
    posted, _ = chat
    guarded.wait_until(lambda: posted, "a message", 30)
    assert posted[0]["state"] == "Crashed"
    assert posted[0]["flow_run_id"] == str(run.id)
    assert posted[0]["text"].startswith("retrain night is Crashed: Process exited")
    files = [path for path in artifacts.rglob("*") if path.is_file()]
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    assert SECRET not in guarded.tell()
    with get_client(sync_client=True) as client:
        assert SECRET not in client.read_flow_run(run.id).model_dump_json()
        shown = client.request("POST", "/block_documents/filter", json={}).text
    assert "nightfold-failures" in shown
    assert SECRET not in shown


def test_both_runs_have_left_their_lines(crashed_once):
    _, artifacts, before = crashed_once
    told = {}
    for log in artifacts.glob("runs/*/log.jsonl"):
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        (flow_run,) = {line["flow_run_id"] for line in lines}
        assert {line["run_id"] for line in lines} == {log.parent.name}
        told[flow_run] = [line["message"] for line in lines]
    first, second = (told[str(run.id)] for run in runs())
    assert first.count("fold finished") == len(before)
    assert first.count("fold started") - len(before) in (0, 1)
    assert second.count("fold finished") == 4 - len(before)
    assert "Finished in state Completed()" in second


@pytest.mark.skipif(
    os.environ.get("NIGHTFOLD_LOAD") != "full", reason="waits for heartbeats; make load runs it"
)
def test_a_run_that_nobody_is_left_to_report_is_noticed_and_starts_once_more(
    guarded, worker, kill_processes_of, chat, tmp_path
):
    """The machine goes down: flow, fold workers and Prefect's worker at once."""
    run = queue(tmp_path, "nightly")
    guarded.wait_until(lambda: finished(tmp_path), "a finished fold", 400)
    worker.kill()
    assert kill_processes_of(run)
    worker.wait()
    before = finished(tmp_path)
    assert states("nightly") == ["Running"]
    guarded.wait_until(lambda: states("nightly")[0] == "Crashed", "the end of the silence", 400)
    guarded.start("prefect", "worker", "start", "--pool", "nightfold")
    guarded.wait_until(
        lambda: states("nightly") == ["Crashed", "Completed"], "a second run's end", 600
    )
    assert_whole(tmp_path, before)
    told = [message["text"] for message in chat[0] if message["flow_run_id"] == str(run.id)]
    assert told == ["retrain night is Crashed: No heartbeat for 75 seconds."]
