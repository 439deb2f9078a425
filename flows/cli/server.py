"""Prefect for the time of one command: its settings, its server, and what a flow left."""

from __future__ import annotations

import importlib
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

from nightfold.errors import UsageError

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State


def prepare_prefect() -> None:
    """Settings that must be there before Prefect is imported; the user's own stay.

    Without a server, Prefect starts one for the time of the run. On a fresh profile that takes
    longer than its own limit. Its log lines go to the run, which the UI shows, not to the terminal.
    """
    for name, value in {
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "DO_NOT_TRACK": "1",
    }.items():
        os.environ.setdefault(name, value)
    _start_server()


def _start_server() -> None:
    """Start Prefect's server for the time of the run, unless the user has one.

    Ctrl-C reaches every process of the terminal, but this one must stay to hear how the run ended,
    or Prefect waits for it for minutes: a blocked signal stays blocked in the processes one starts.
    """
    from prefect.settings import PREFECT_API_URL

    if url := PREFECT_API_URL.value():
        _knock(url)
        return
    from prefect.server.api.server import SubprocessASGIServer

    threading.Thread(target=_import_ahead, daemon=True).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        SubprocessASGIServer().start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _import_ahead() -> None:
    """Import what the night will need while its server starts, which takes as long."""
    for module in ("flows.retrain", "great_expectations", "sklearn.model_selection"):
        importlib.import_module(module)


def _knock(url: str) -> None:
    """Refuse a server that does not answer or does not let this command in."""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError

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


def result_of(state: State[Any]) -> Any:
    """What a flow returned; what it raised, raised here."""
    result = state.result(raise_on_failure=False)
    if isinstance(result, BaseException):
        raise result
    return result
