"""A connection that breaks once the server has done its work, before its answer is through."""

import socket
import threading
from contextlib import suppress
from dataclasses import replace

import pytest

from nightfold.lock import alone
from nightfold.store import Store
from tests.acceptance.chaos.arena import champion_of, differences

pytestmark = pytest.mark.slow


class Wire:
    """Connections to a server, passed on byte by byte; the first answer to `state` is lost."""

    def __init__(self, port, state):
        self.to, self.state, self.lost = port, b'"type":"%s"' % state.encode(), 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        with suppress(OSError):
            while True:
                near = self.listener.accept()[0]
                far = socket.create_connection(("127.0.0.1", self.to))
                reported = threading.Event()
                for one, other, way in ((near, far, self._there), (far, near, self._back)):
                    threading.Thread(target=way, args=(one, other, reported), daemon=True).start()

    def _there(self, near, far, reported):
        last = b""
        with suppress(OSError):
            while piece := near.recv(65536):
                last = last[-4096:] + piece
                if b"/set_state" in last and self.state in last.replace(b" ", b""):
                    reported.set()
                far.sendall(piece)
        far.close()

    def _back(self, far, near, reported):
        with suppress(OSError):
            while piece := far.recv(65536):
                if reported.is_set() and not self.lost:
                    self.lost += 1
                    break
                near.sendall(piece)
        with suppress(OSError):
            near.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def wire(server, arena, monkeypatch):
    def lay(state):
        wire = Wire(server.port, state)
        monkeypatch.setattr(arena, "server", replace(server, port=wire.port))
        wires.append(wire)
        return wire

    wires = []
    yield lay
    for wire in wires:
        wire.listener.close()


def test_a_night_of_which_the_server_confirms_the_end_twice_ends_as_any_other(
    arena, wire, tmp_path
):
    lossy = wire("COMPLETED")
    artifacts = tmp_path / "artifacts"
    arena.new_chain(artifacts)
    assert arena.start(artifacts).wait() == 0, arena.said(artifacts)
    assert lossy.lost == 1
    assert "promoted" in arena.said(artifacts)
    assert not differences(artifacts, arena.calm, "night")


def test_a_refusal_of_which_the_answer_is_lost_is_still_one_sentence(arena, wire, tmp_path):
    lossy = wire("FAILED")
    artifacts = tmp_path / "artifacts"
    arena.new_chain(artifacts)
    with alone(Store(artifacts), "other", minutes=0, tell=print):
        assert arena.start(artifacts, wait="0").wait() == 1
    assert lossy.lost == 1
    said = arena.said(artifacts)
    assert "nightfold: The artifacts folder" in said, said
    assert "Traceback" not in said
    assert champion_of(artifacts) == "before"
