"""The server of a command: what it cannot serve at this moment it tries again, and never waits
for a lock of SQLite where it answers."""

import asyncio
import gc
import sqlite3
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from flows import server


def asked(app, content=b"{}"):
    """The answer of the application to a POST, and how often it was asked inside."""

    async def ask():
        transport = httpx.ASGITransport(server.trying_again(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.post("/api", content=content)

    return asyncio.run(ask())


class Locked:
    """An application that finds its database locked a few times; it raises behind its answer,
    as Starlette does, so that the server can log why."""

    def __init__(self, times):
        self.left, self.bodies = times, []

    async def __call__(self, scope, receive, send):
        scope["path"] += "/seen"  # routers write into the scope they were given
        assert scope["path"] == "/api/seen"
        self.bodies.append((await receive())["body"])
        locked = self.left > 0
        self.left -= 1
        await send({"type": "http.response.start", "status": 503 if locked else 201, "headers": []})
        await send({"type": "http.response.body", "body": b"locked" if locked else b"done"})
        if locked:
            raise OSError("database is locked")


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch):
    monkeypatch.setattr(server, "PAUSES", (0.0, 0.0, 0.0))


@pytest.mark.parametrize("times", [0, 1, 3])
def test_a_request_that_meets_a_lock_is_served_a_moment_later(times):
    app = Locked(times)
    answer = asked(app, b"[1, 2]")
    assert (answer.status_code, answer.content) == (201, b"done")
    assert app.bodies == [b"[1, 2]"] * (times + 1)


def test_a_lock_that_stays_is_told_to_the_client_who_waits_longer():
    app = Locked(9)
    with pytest.raises(OSError, match="locked"):
        asked(app)
    assert len(app.bodies) == 4


def test_other_failures_are_not_tried_again():
    calls = []

    async def broken(scope, receive, send):
        calls.append(scope)
        raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake"):
        asked(broken)
    assert len(calls) == 1


class Garbage(list):
    """What only the search for garbage takes away."""

    def __init__(self, *held):
        super().__init__([*held, self])


@pytest.fixture
def collecting():
    """Garbage is looked for as in the server."""
    ended = threading.Event()
    gc.disable()
    collector = threading.Thread(target=server.collect_garbage, args=(0.01, ended))
    collector.start()
    yield
    ended.set()
    collector.join()
    gc.enable()


@pytest.mark.usefixtures("collecting")
def test_a_cursor_that_is_garbage_does_not_keep_a_transaction_from_its_end(tmp_path):
    """Its connection waits for that transaction, and its statement is at work there once more."""

    def connection():
        return sqlite3.connect(
            tmp_path / "server.db", timeout=5, isolation_level=None, check_same_thread=False
        )

    holder, waiter = connection(), connection()
    holder.execute("CREATE TABLE runs (name)")
    insert = "INSERT INTO runs VALUES (?)"
    cursor = waiter.executemany(insert, [("yesterday",)])
    holder.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as worker:
        waiting = worker.submit(waiter.executemany, insert, [("tonight",)])
        time.sleep(0.1)
        seen = weakref.ref(garbage := Garbage(cursor))
        del cursor, garbage
        [[] for _ in range(100_000)]  # Python would look for garbage here, and wait
        holder.execute("COMMIT")
        assert waiting.exception() is None
    for _ in range(500):
        if seen() is None:
            break
        time.sleep(0.01)
    assert seen() is None
    holder.close(), waiter.close()
