"""One night at a time on an artifacts folder, and no lock that outlives its holder."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from nightfold.errors import Busy, UsageError
from nightfold.experiment import shipped
from nightfold.lock import LOCK, alone
from nightfold.store import Store

HOLD = """
import subprocess, sys, time
from nightfold.lock import alone
from nightfold.store import Store
with alone(Store(sys.argv[1]), "first", minutes=0, tell=print):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print(child.pid, flush=True)
    time.sleep(60)
"""


def never(sentence):
    pytest.fail(f"there is nothing to wait for: {sentence}")


@pytest.fixture
def holder(tmp_path):
    """Another process that has the folder, and the id of a child it has started meanwhile."""
    environment = {**os.environ, "PYTHONPATH": str(shipped())}
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    yield process
    process.kill()
    process.wait()
    process.stdout.close()
    os.kill(child, signal.SIGKILL)


def test_the_second_is_refused_and_told_who_has_the_folder(tmp_path, holder):
    with (
        pytest.raises(Busy, match=rf"the run first \(process {holder.pid} on .*, since 20") as said,
        alone(Store(tmp_path), "second", minutes=0, tell=never, advice=", or wait longer"),
    ):
        pass
    assert "\n" not in str(said.value)
    assert str(said.value).endswith("run again when that has ended, or wait longer.")


def test_the_second_waits_no_longer_than_asked(tmp_path, holder):
    heard = []
    with (
        pytest.raises(Busy, match=r"after 0\.01 minutes"),
        alone(Store(tmp_path), "second", minutes=0.01, tell=heard.append),
    ):
        pass
    (sentence,) = heard
    assert str(holder.pid) in sentence


def test_a_killed_holder_frees_the_folder_at_once_though_its_children_live(tmp_path, holder):
    """Fold workers notice the end of their flow half a second later."""
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert json.loads((tmp_path / LOCK).read_text())["run_id"] == "first"
    with alone(Store(tmp_path), "second", minutes=0, tell=never):
        assert json.loads((tmp_path / LOCK).read_text())["run_id"] == "second"
    assert (tmp_path / LOCK).read_text() == ""


def test_the_second_goes_on_when_the_first_has_ended(tmp_path):
    """Two flows of one process take turns as well."""
    order = []
    entered, leave = threading.Event(), threading.Event()

    def first():
        with alone(Store(tmp_path), "first", minutes=0, tell=never):
            entered.set()
            leave.wait()
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait()
    with alone(Store(tmp_path), "second", minutes=1, tell=lambda _: leave.set()):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_an_error_frees_the_folder(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), alone(Store(tmp_path), "run", minutes=0, tell=never):
            raise KeyError


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    """Some network disks know no locks; none is at hand here, so the system's answer is played."""
    from nightfold import lock

    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with (
        pytest.raises(UsageError, match="cannot lock files"),
        alone(Store(tmp_path), "run", minutes=0, tell=never),
    ):
        pass
