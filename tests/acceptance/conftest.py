"""A real Prefect server with a home of its own, and the processes that tests start beside it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from nightfold.experiment import shipped


@dataclass
class Bench:
    """Starts processes in the checkout and ends them; knows the server once there is one."""

    logs: Path
    env: dict[str, str]
    running: ExitStack = field(default_factory=ExitStack)

    def start(self, *command):
        """Start a Python module as a process; it ends with the tests of the file."""
        log = self.logs / f"{len(list(self.logs.iterdir()))}-{command[0]}-{command[1]}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=shipped(),
                env=self.env,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.running.callback(end, process)
        return process

    def prefect(self, *arguments):
        """Run ``prefect ...`` to its end and return what it says."""
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
            cwd=shipped(),
            env=self.env,
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def wait_until(self, condition, what, seconds=120):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come; {self.tell()}"
            time.sleep(0.5)

    def tell(self):
        """The end of every log, for a test that fails."""
        return "\n".join(f"{p.name}:\n{p.read_text()[-3000:]}" for p in self.logs.glob("*.log"))


def end(process):
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def free_port():
    """A function that finds a port nobody listens on."""

    def find():
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    return find


@contextmanager
def _serving(tmp_path_factory, port, **server):
    """A bench with a Prefect server on it; clients in this process talk to that server, too.

    Settings of the server's own, such as its database, are given by their environment variables.
    """
    api_url = f"http://127.0.0.1:{port}/api"
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        "PREFECT_HOME": str(tmp_path_factory.mktemp("prefect")),
        "PREFECT_API_URL": api_url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # Only how soon the server and the worker look for work, so that the tests are short.
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        **server,
    }
    bench = Bench(tmp_path_factory.mktemp("logs"), env)

    def answers():
        try:
            return httpx.get(f"{api_url}/health").status_code == 200
        except httpx.TransportError:
            return False

    with bench.running, temporary_settings({PREFECT_API_URL: api_url}):
        bench.start("prefect", "server", "start", "--port", str(port))
        bench.wait_until(answers, "the server", 300)
        yield bench


@pytest.fixture(scope="session")
def serving():
    """A context manager that gives a bench, for a server that needs settings of its own."""
    return _serving


@pytest.fixture(scope="module")
def server_settings():
    """Settings of the bench's server, and of whatever is started on it; for a file to override."""
    return {}


@pytest.fixture(scope="module")
def bench(tmp_path_factory, free_port, server_settings):
    """A bench with a server on SQLite, Prefect's default."""
    with _serving(tmp_path_factory, free_port(), **server_settings) as bench:
        yield bench


@pytest.fixture(scope="session")
def processes_of():
    """A function that finds the processes of a flow run; the worker marks them."""

    def find(run):
        mark = f"PREFECT__FLOW_RUN_ID={run.id}".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes():
                    found.append(int(process.name))
            except OSError:
                continue
        return found

    return find


@pytest.fixture(scope="session")
def kill_processes_of(processes_of):
    """A function that ends the processes of a flow run as the kernel does without memory."""

    def kill(run):
        killed = processes_of(run)
        for process in killed:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        return killed

    return kill
