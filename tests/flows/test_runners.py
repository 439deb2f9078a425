"""Worker processes: one server for all, TensorFlow loaded early, gone when their flow is gone."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, get_context
from pathlib import Path

import psutil
import pytest

from flows.runners import make_runner
from flows.workers import contain_exits
from nightfold import gpu
from nightfold.errors import UsageError
from nightfold.experiment import shipped

slow = pytest.mark.slow

SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
from prefect import flow, task
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_API_URL
from flows.runners import make_runner

@task
def look(folder, seconds):
    seen = {"server": PREFECT_API_URL.value(), "set since": os.environ.get("SET_SINCE")}
    seen["copied"] = "flows.loaded" in Path("/proc/self/cmdline").read_text()
    modules = ("tensorflow", "pandas", "matplotlib", "sklearn")
    seen |= {name: name in sys.modules for name in modules}
    Path(folder, f"{os.getpid()}.part").write_text(json.dumps(seen))
    Path(folder, f"{os.getpid()}.part").rename(Path(folder, f"{os.getpid()}.json"))
    time.sleep(seconds)

@flow
def scratch(folder, seconds):
    with make_runner("processes", 2) as runner:
        for future in [runner.submit(look, {"folder": folder, "seconds": seconds})] * 2:
            future.result()
    return FlowRunContext.get().client.api_url

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as the command does
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if tests run in background
    if sys.argv[3] == "flows.server":
        from flows.cli.server import prepare_prefect
        prepare_prefect(2)
    print(scratch(sys.argv[1], float(sys.argv[2])))
    os.environ["SET_SINCE"] = "the first flow"
    print(scratch(sys.argv[1] + "/again", 0))
"""


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """Starts the flow above in a process of its own, with the command's server or Prefect's."""
    home = tmp_path_factory.mktemp("prefect")
    script = home / "scratch.py"
    script.write_text(SCRIPT)
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "PYTHONPATH": str(shipped()),
        "DO_NOT_TRACK": "1",
    }
    running = []

    def start(folder, seconds, server, temporary):
        for needed in (folder / "again", temporary):
            needed.mkdir(parents=True)
        command = [sys.executable, str(script), str(folder), str(seconds), server]
        traps = home / "traps"
        traps.mkdir(exist_ok=True)
        for name in ("flows", "keras", "tasks"):
            (traps / f"{name}.py").write_text("raise RuntimeError('not this one')")
        own = {"env": {**env, "TMPDIR": str(temporary)}, "stdout": subprocess.PIPE, "text": True}
        own["cwd"] = traps
        running.append(subprocess.Popen(command, **own))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def below(pid):
    """Its children and theirs."""
    return [process.pid for process in psutil.Process(pid).children(recursive=True)]


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@slow
@pytest.mark.parametrize("own", ["uvicorn", "flows.server"])
def test_workers_talk_to_the_server_of_their_flow_and_have_tensorflow_loaded(flow, tmp_path, own):
    """Left alone, every worker would start a server of its own, which takes longer than a fold."""
    # Where the path of a socket has no room, workers start anew, as they do beside a GPU.
    copied = own == "flows.server"
    temporary = tmp_path / ("t" if copied else "t" * 80)
    process = flow(tmp_path / "seen", 0, own, temporary)
    server = process.communicate(timeout=240)[0].split()[0]
    assert process.returncode == 0
    seen = [json.loads(path.read_text()) for path in tmp_path.glob("seen/*.json")]
    assert seen
    for worker in seen:
        assert worker["copied"] == copied
        assert worker["server"].rstrip("/") == server.rstrip("/")
        assert worker["tensorflow"]
        # These would take a second that no fold needs.
        assert not worker["pandas"]
        assert not worker["matplotlib"]
        assert not worker["sklearn"]
        assert worker["set since"] is None
    seen_again = [json.loads(path.read_text()) for path in tmp_path.glob("seen/again/*.json")]
    assert {worker["set since"] for worker in seen_again} == {"the first flow"}


@slow
@pytest.mark.parametrize(
    ("own", "sent"),
    [
        ("flows.server", signal.SIGINT),
        ("flows.server", signal.SIGTERM),
        ("flows.server", signal.SIGKILL),
        ("uvicorn", signal.SIGKILL),
    ],
)
def test_neither_workers_nor_server_outlive_an_interrupted_or_killed_flow(
    flow, tmp_path, own, sent
):
    temporary = tmp_path / "t"
    process = flow(tmp_path / "seen", 100, own, temporary)
    wait_until(lambda: list(tmp_path.glob("seen/*.json")), 200)
    started = below(process.pid)
    assert {int(path.stem) for path in tmp_path.glob("seen/*.json")} <= set(started)
    assert list(temporary.glob("pymp-*"))
    assert any(own.encode() in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in started)
    process.send_signal(sent)
    process.wait(timeout=20)
    wait_until(lambda: not any(map(alive, started)), 5)
    assert not list(temporary.glob("pymp-*"))


@slow
def test_a_step_that_exits_in_a_worker_ends_in_an_error():
    """As it is, its exit would end the thread that hands out results, and the flow would wait."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        contain_exits(pool)
        exited = pool.submit(sys.exit, 1)
        exited.add_done_callback(Future.result)
        with pytest.raises(ChildProcessError, match="gave up"):
            exited.result(timeout=60)
        assert pool.submit(abs, -1).result(timeout=60) == 1


@pytest.mark.parametrize("name", ["processes", "threads", "sequential"])
def test_an_address_without_dask_is_refused(name):
    with pytest.raises(UsageError, match="no effect"), make_runner(name, 2, "tcp://127.0.0.1:1"):
        pass


def test_workers_start_anew_beside_a_gpu(monkeypatch):
    monkeypatch.setattr(gpu, "name", lambda: "NVIDIA H200")
    with make_runner("processes", 1) as runner:
        assert runner.pool._mp_context.get_start_method() == "spawn"
        runner.kill()


@slow
def test_what_workers_are_copies_of_ends_with_them_and_only_another_flow_starts_another():
    """Ctrl-C while it loads would wait for it, and for another one that its pool would start."""
    with make_runner("processes", 2) as runner:
        copied = forkserver._forkserver._forkserver_pid
        runner.kill()
        wait_until(lambda: not alive(copied), 5)
        with pytest.raises((ChildProcessError, BrokenProcessPool)):
            runner.pool.submit(abs, -1).result(timeout=60)
    with make_runner("processes", 1) as runner:
        assert runner.pool.submit(abs, -1).result(timeout=60) == 1
        assert forkserver._forkserver._forkserver_pid != copied


def test_dask_without_an_address_says_what_to_give():
    with pytest.raises(UsageError, match="--address"), make_runner("dask", 2):
        pass


@slow
def test_a_server_that_cannot_start_says_why_in_one_sentence(tmp_path):
    home = tmp_path / "home"
    home.write_text("a file where Prefect wants a folder")
    done = subprocess.run(
        [
            Path(sys.executable).with_name("nightfold"),
            "evaluate",
            "--artifacts",
            str(tmp_path / "artifacts"),
        ],
        env={
            **{key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")},
            "PREFECT_HOME": str(home),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "PREFECT_HOME" in done.stderr
    assert "Not a directory" in done.stderr or "unable to open database" in done.stderr
    assert "Traceback" not in done.stderr
