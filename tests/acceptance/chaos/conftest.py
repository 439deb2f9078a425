"""An arena with a Prefect server of its own, ready for nights to be disturbed in."""

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
def arena(server, tmp_path_factory):
    arena = Arena(tmp_path_factory.mktemp("arena"), server)
    arena.prepare()
    yield arena
    arena.end()
