"""The Prefect server that a command starts for itself when the user has none.

Prefect would start one too, but only after it has imported all of its server's code into the
command, and then wait for it. Here the server is on its way as soon as Prefect's settings are read,
and the command imports what the night needs meanwhile. It answers on the loopback address alone,
without the UI, and keeps its data in the user's Prefect home like any other.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import IO, Any

from nightfold.errors import NightfoldError

STOP = signal.SIGUSR1
"""How the command ends its server; nobody else sends it."""

PAUSES = (0.02, 0.05, 0.1, 0.2)
"""Seconds before a request that was refused for the moment is tried again."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Server:
    """A server that was started; it ends with this process.

    Attributes
    ----------
    url : str
        Of its API.
    process : subprocess.Popen
    output : file
        What it writes.
    """

    url: str
    process: subprocess.Popen[bytes]
    output: IO[bytes]

    def wait(self, seconds: float) -> None:
        """Return once the server answers.

        Raises
        ------
        NightfoldError
            If it ends instead, or does not answer within `seconds`.
        """
        import httpx

        try:
            with httpx.Client(trust_env=False, timeout=seconds) as client:
                client.get(f"{self.url}/health").raise_for_status()
        except httpx.HTTPError as error:
            raise NightfoldError(
                f"Prefect's server did not start ({self._last_words or error}): its database is in "
                "PREFECT_HOME, by default ~/.prefect, which must be writable and have space."
            ) from error

    @property
    def _last_words(self) -> str:
        """The last error it has written, without where in the code it came up."""
        self.output.seek(0)
        lines = self.output.read().decode(errors="replace").splitlines()
        return next((line for line in reversed(lines) if re.match(r"[\w.]+Error: ", line)), "")

    def stop(self) -> None:
        """End the server in order."""
        self.process.send_signal(STOP)
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start() -> Server:
    """Start a server, without waiting for it.

    Its socket listens before it runs, so that a first request waits instead of being refused, and
    fails at once if the server ends.
    """
    from prefect.settings import get_current_settings

    output = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the server)
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "flows.server", str(listener.fileno()), str(os.getpid())],
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={
                **os.environ,
                **get_current_settings().to_environment_variables(exclude_unset=True),
                "PREFECT_UI_ENABLED": "false",
            },
        )
        server = Server(f"http://127.0.0.1:{listener.getsockname()[1]}/api", process, output)
    atexit.register(server.stop)
    return server


def serve(listener: int, command: int) -> None:
    """Serve until told to end or the command is gone.

    Ctrl-C reaches every process of the terminal, and a service manager's SIGTERM every process of
    the service, but this one must stay to hear how the run ended, or Prefect waits for it for
    minutes.

    Parameters
    ----------
    listener : int
        File descriptor of a listening socket.
    command : int
        Process id of the command that has started this process.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    threading.Thread(target=_end_with, args=(command,), daemon=True).start()
    # Python would take two seconds to take all modules apart, and the command waits for them.
    atexit.register(os._exit, 0)
    gc.disable()
    import uvicorn
    from prefect.server.api.server import create_app

    class Starting(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)  # a new database takes over a hundred migrations
            gc.freeze()  # a million objects that stay
            threading.Thread(target=collect_garbage, daemon=True).start()

    app = trying_again(create_app(ephemeral=True, final=True))
    server = Starting(uvicorn.Config(app, log_level="error", lifespan="on"))
    signal.signal(STOP, lambda *_: setattr(server, "should_exit", True))
    server.run(sockets=[socket.socket(fileno=listener)])


def collect_garbage(every: float = 1.0, until: threading.Event | None = None) -> None:
    """Look for garbage in this thread, while Python does not in the others (`gc.disable`).

    Python's module for SQLite keeps a statement for the next cursor that says the same, and a
    cursor that is garbage resets it, for which it waits while the other one is at work. That one
    may wait for a transaction to end, for up to a minute; if the thread that takes the garbage away
    is the server's event loop, the transaction cannot end, and the server stands still.

    Parameters
    ----------
    every : float
        Seconds.
    until : threading.Event, optional
        When to return; by default never.
    """
    until = until or threading.Event()
    while not until.wait(every):
        gc.collect()


def trying_again(app: Application) -> Application:
    """An application that tries what it cannot serve at this moment a few times more.

    Prefect's server answers 503 when a transaction finds that another one has written to SQLite
    since it began, which is over at once. Its clients take that for an overload and wait for two
    seconds, before every second fold or so.

    Parameters
    ----------
    app : callable
        ASGI application; requests it has answered with 503 have changed nothing.

    Returns
    -------
    callable
        The same application but for HTTP requests, which get its 503 only after `PAUSES`.
    """

    async def served(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        received: list[Message] = []
        while not received or received[-1].get("more_body"):
            received.append(await receive())
        for pause in (*PAUSES, None):
            waiting = iter(received)
            refused = False

            async def again(waiting: Iterator[Message] = waiting) -> Message:
                return next(waiting, None) or await receive()

            async def answer(message: Message, last: bool = pause is None) -> None:
                nonlocal refused
                refused = refused or (message.get("status") == 503 and not last)
                if not refused:
                    await send(message)

            try:
                await app(dict(scope), again, answer)
            except Exception:  # raised for the server's log behind the answer to it
                if not refused:
                    raise
            if not refused or pause is None:
                return
            await asyncio.sleep(pause)

    return served


def _end_with(command: int) -> None:
    while os.getppid() == command:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
