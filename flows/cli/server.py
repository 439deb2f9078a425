"""Prefect for the time of one command: its settings, its server, and running a flow."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from flows.cli.output import tell
from nightfold.errors import NightfoldError, UsageError
from nightfold.imports import few_collections

LAST_IMPORTS = 5.0
"""Seconds that a command which was stopped waits for what it was importing."""


def prepare_prefect(workers: int = 0) -> None:
    """Settings that must be there before Prefect is imported, and a server; the user's own stay.

    On a fresh profile a server takes longer to start than Prefect's own limit. Log lines go to the
    run, which the UI shows, not to the terminal.

    Parameters
    ----------
    workers : int
        Worker processes that the flow will ask for.
    """
    for name, value in {
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # Its default lets every web page in that is open on this machine.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": "http://127.0.0.1",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_INTERNAL_LOGGING_LEVEL": "CRITICAL",
        "DO_NOT_TRACK": "1",
    }.items():
        os.environ.setdefault(name, value)
    with _signals_kept():
        from prefect.settings import PREFECT_API_URL
    with _signals_kept():
        if url := PREFECT_API_URL.value():
            _knock(url)
        else:
            _start_server(workers)


@contextmanager
def stoppable() -> Iterator[None]:
    """End the command as Ctrl-C or SIGTERM ask for; what is trained stays."""
    try:
        yield
    except KeyboardInterrupt:
        _stopped("interrupted", 130)
    except SystemExit:  # how the command's own handler answers SIGTERM
        _stopped("terminated", 143)


def _stopped(how: str, exit_code: int) -> NoReturn:
    tell(f"nightfold: {how}; run the same command again to go on behind the last finished epoch.")
    sys.exit(exit_code)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Let what a signal raises inside leave the block even if an import has swallowed it.

    Some libraries try what they import and take any exception for their answer: of 150 commands
    that were interrupted in their first second on a busy machine one went on to its end.
    """
    sent: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers = {number: handler for number, handler in before.items() if callable(handler)}

    def note(number: int, frame: FrameType | None) -> None:
        sent.append(number)
        handlers[signal.Signals(number)](number, frame)

    for number in handlers:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if sent:
        signal.raise_signal(sent[-1])


def _start_server(workers: int) -> None:
    """Start Prefect's server for the time of the run, and use the time that it takes."""
    from prefect.context import refresh_global_settings_context
    from prefect.settings import PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS

    from flows import server

    started = server.start()
    os.environ["PREFECT_API_URL"] = started.url
    refresh_global_settings_context()
    in_vain = threading.Event()
    ahead = threading.Thread(target=_get_ready, args=(workers, in_vain), daemon=True)
    ahead.start()
    try:
        started.wait(PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value())
        ahead.join()
    except BaseException:
        # The interpreter must not end beside it: a pool that starts then is a traceback.
        in_vain.set()
        # A signal in the middle of an import of this thread can leave Python's lock of imports
        # taken; the other one then waits for ever.
        ahead.join(LAST_IMPORTS)
        raise


def _get_ready(workers: int, in_vain: threading.Event) -> None:
    """Import what the night will need, then let a first worker load TensorFlow."""
    with few_collections():
        for module in ("flows.retrain", "great_expectations", "sklearn.model_selection"):
            importlib.import_module(module)
    if workers and not in_vain.is_set():
        from flows.runners import start_ahead

        start_ahead(workers)


def _knock(url: str) -> None:
    """Refuse a server that does not answer or does not let this command in."""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    url = _shown(url)
    try:
        with get_client(sync_client=True) as client:
            client.api_version()
    except PrefectHTTPStatusError as error:
        answer = f"{error.response.status_code} {error.response.reason_phrase}"
        raise UsageError(
            f"The Prefect server at {url} answers {answer}: check PREFECT_API_URL and, if it asks "
            "for a password, PREFECT_API_AUTH_STRING."
        ) from error
    except (httpx.TransportError, RuntimeError) as error:
        raise UsageError(
            f"No Prefect server answers at {url}: start one with 'prefect server start', or unset "
            "PREFECT_API_URL, and the command starts its own."
        ) from error


def run_flow(flow: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Run a flow in this process: what it returned is returned, what it raised is raised.

    Its state is not asked for. Where the server's answer to a flow's last report is lost, Prefect
    reports again and gets the state that the server has kept, and that one holds no value.

    Parameters
    ----------
    flow : Flow
    *arguments, **options
        Of the flow.

    Raises
    ------
    NightfoldError
        What the flow has refused; or, in place of whatever Prefect has made of it, that the server
        is gone or broken, or that the run was cancelled or failed otherwise without a traceback.
    """
    from prefect.exceptions import CancelledRun, CrashedRun, FailedRun

    try:
        return flow(*arguments, **options)
    except NightfoldError:
        raise
    except (CancelledRun, CrashedRun, FailedRun) as ended:
        raise NightfoldError(str(ended)) from ended
    except Exception as error:
        if told := _told_of_server(error):
            raise NightfoldError(
                f"{told} Then run the same command again; it resumes where it stopped."
            ) from error
        raise


def _told_of_server(error: BaseException) -> str | None:
    """What is wrong with the server, if anything is."""
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.settings import PREFECT_API_URL

    url = _shown(str(PREFECT_API_URL.value()))
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, PrefectHTTPStatusError) and cause.response.status_code >= 500:
            answer = f"{cause.response.status_code} {cause.response.reason_phrase}"
            return (
                f"The Prefect server at {url} answers {answer}: see its log, and whether the disk "
                "of its database (PREFECT_HOME, by default ~/.prefect) is full."
            )
        cause = cause.__cause__ or cause.__context__
    try:
        _knock(str(PREFECT_API_URL.value()))
    except UsageError:
        return f"The Prefect server at {url} has ended or no longer answers: start it again."
    return None


def _shown(url: str) -> str:
    """A server's address without the password that may be in it, for the screen.

    Examples
    --------
    >>> _shown("http://me:p@ss/word@127.0.0.1:4200/api")
    'http://127.0.0.1:4200/api'
    """
    scheme, between, rest = url.partition("://")
    return scheme + between + rest.rpartition("@")[2]
