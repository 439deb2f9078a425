"""An arena with a Prefect server of its own, ready for nights to be disturbed in."""

import fcntl

import pytest

from tests.acceptance.chaos.arena import Arena, Server


@pytest.fixture(scope="package")
def server(tmp_path_factory):
    home = tmp_path_factory.mktemp("prefect")
    server = Server.anywhere(home)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="package")
def arena(server, worker_id, tmp_path_factory):
    """Processes of tests side by side share the two nights that it takes to prepare it."""
    own = tmp_path_factory.mktemp("arena")
    folder = own if worker_id == "master" else own.parent.parent / "arena"
    folder.mkdir(exist_ok=True)
    arena = Arena(folder, server)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        arena.prepare()
    yield arena
    arena.end()
