"""Where folds run: worker processes (the default), threads, one after the other, or Dask.

A runner is made for one run, in the flow's body, so that the flow's own parameters choose it, a
retry of the flow gets a new one, and a night is one flow run in the UI.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect.context import FlowRunContext
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.workers import WorkerProcesses, contain_exits
from nightfold.errors import UsageError
from nightfold.experiment import Runner


@contextmanager
def make_runner(
    name: Runner, workers: int, address: str | None = None
) -> Iterator[TaskRunner[Any]]:
    """A started task runner for the length of a ``with`` block.

    Worker processes start and load TensorFlow at once, beside whatever the flow does until it
    submits the first fold.

    Parameters
    ----------
    name : {'processes', 'threads', 'sequential', 'dask'}
    workers : int
        Folds trained at once; a running Dask scheduler has its own number.
    address : str, optional
        Of a running Dask scheduler, ``tcp://host:port``; only with ``dask``.

    Raises
    ------
    UsageError
        If `address` is missing, has no effect or does not answer, or Dask is not installed.
    """
    with _api_shared(), _started(name, workers, address) as runner:
        processes = runner if isinstance(runner, WorkerProcesses) else None
        if processes is not None:
            processes.fill()
            contain_exits(processes.pool)
        try:
            yield runner
        except Exception:
            raise
        except BaseException:
            # Interrupted or cancelled: leaving the pool would wait for the folds in flight, which
            # continue behind their last epoch anyway.
            if processes is not None:
                processes.kill()
            raise


_ahead: list[WorkerProcesses] = []


def start_ahead(workers: int) -> None:
    """Start a runner of worker processes for the flow that this process will run next."""
    runner = WorkerProcesses(workers)
    runner.__enter__()
    runner.fill()
    _ahead.append(runner)


def discard_ahead() -> None:
    """End the workers that were started for a flow that did not come to ask for them."""
    while _ahead:
        runner = _ahead.pop()
        runner.kill()
        runner.__exit__(None, None, None)


@contextmanager
def _api_shared() -> Iterator[None]:
    """Let workers talk to the server that the flow talks to.

    Without a server of the user's, Prefect starts one for the process of the flow, and would start
    another one in every worker: they do not know of the first.
    """
    flow = FlowRunContext.get()
    if flow is None or PREFECT_API_URL.value():
        yield
        return
    with temporary_settings({PREFECT_API_URL: str(flow.client.api_url)}):
        yield


@contextmanager
def _started(name: Runner, workers: int, address: str | None) -> Iterator[TaskRunner[Any]]:
    if name == "processes" and address is None and _ahead and _ahead[0].workers == workers:
        runner = _ahead.pop()
        try:
            yield runner
        finally:
            runner.__exit__(None, None, None)
    else:
        with _choose(name, workers, address) as chosen:
            yield chosen


def _choose(name: Runner, workers: int, address: str | None) -> TaskRunner[Any]:
    if name == "dask":
        return _dask(address)
    if address is not None:
        raise UsageError(f"--address has no effect with --runner {name}; it belongs to dask.")
    if name == "processes":
        return WorkerProcesses(workers)
    return ThreadPoolTaskRunner(max_workers=1 if name == "sequential" else workers)  # type: ignore[return-value]


def _dask(address: str | None) -> TaskRunner[Any]:
    if address is None:
        raise UsageError(
            "--runner dask needs --address of a running scheduler, such as tcp://127.0.0.1:8786."
        )
    try:
        from distributed import Client
        from prefect_dask import DaskTaskRunner
    except ImportError as error:
        raise UsageError("--runner dask needs the extra: pip install 'nightfold[dask]'.") from error
    try:
        Client(address, timeout="5s").close()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"No Dask scheduler answers at {address}: start one with 'dask scheduler'."
        ) from error
    return DaskTaskRunner(address=address)  # type: ignore[no-any-return]
