"""Where folds run: worker processes (the default), threads, one after the other, or Dask.

A runner is made for one run, in the flow's body, so that the flow's own parameters choose it, a
retry of the flow gets a new one, and a night is one flow run in the UI.
"""

from __future__ import annotations

import atexit
import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from prefect.context import FlowRunContext
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from nightfold import backend
from nightfold.errors import UsageError
from nightfold.experiment import Runner
from nightfold.imports import few_collections


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
        pool = runner._executor if isinstance(runner, ProcessPoolTaskRunner) else None
        if pool is not None:
            _fill(pool, workers)
            _contain_exits(pool)
        try:
            yield runner
        except Exception:
            raise
        except BaseException:
            # Interrupted or cancelled: leaving the pool would wait for the folds in flight, which
            # continue behind their last epoch anyway.
            if pool is not None:
                _kill_workers(pool)
            raise


_ahead: list[ProcessPoolTaskRunner] = []


def start_ahead(workers: int) -> None:
    """Start a runner of worker processes for the flow that this process will run next.

    All but one of the workers, or the only one, load TensorFlow at once: the remaining core is
    busy with the server that the flow waits for.
    """
    runner = _processes(workers)
    runner.__enter__()
    assert runner._executor is not None
    _fill(runner._executor, max(workers - 1, 1))
    _ahead.append(runner)


def discard_ahead() -> None:
    """End the workers that were started for a flow that did not come to ask for them."""
    while _ahead:
        runner = _ahead.pop()
        assert runner._executor is not None
        _kill_workers(runner._executor)
        runner.__exit__(None, None, None)


def _fill(pool: ProcessPoolExecutor, workers: int) -> None:
    """Let `workers` processes start; a pool starts one only for a job that finds none idle."""
    for _ in range(workers):
        pool.submit(time.sleep, 0.2)


def _contain_exits(pool: ProcessPoolExecutor) -> None:
    """Let no job of `pool` end in an exit; what is submitted from now on is meant.

    In a worker, Prefect answers a server that is gone with ``exit(1)``. Sent back to the flow that
    would end the thread which hands out results, and the flow would wait for ever.
    """
    submit = pool.submit
    pool.submit = lambda job, /, *a, **b: submit(_without_exit, job, *a, **b)  # type: ignore[method-assign]


def _without_exit(job: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    try:
        return job(*arguments, **options)
    except SystemExit as exited:
        raise ChildProcessError("Prefect gave up a step in a worker process") from exited


def start_worker(flow: int, server: int | None) -> None:
    """Prepare a worker process: load what folds need, leave interrupts to the flow, die with it.

    Parameters
    ----------
    flow : int
        Process id of the flow.
    server : int or None
        Process id of the server that the flow has started for itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Taking TensorFlow down in order takes seconds that the flow would wait for. Prefect has sent
    # its logs by then: its threads end before exit handlers are called.
    atexit.register(os._exit, 0)
    threading.Thread(target=_die_with, args=(flow, server), daemon=True).start()
    backend.leave_out_extras()
    backend.start()
    with few_collections():
        for module in ("prefect.task_engine", "tasks.begin", "tasks.fit", "tasks.train"):
            importlib.import_module(module)


def _die_with(flow: int, server: int | None) -> None:
    """Exit once the flow's process is gone, and end its server.

    Workers that outlive a killed flow would keep its run in the state Running and its cores busy;
    its server would stay for ever.
    """
    while os.getppid() == flow:
        time.sleep(0.5)
    if server is not None:
        with suppress(ProcessLookupError):
            os.kill(server, signal.SIGTERM)
    os._exit(1)


def _kill_workers(pool: ProcessPoolExecutor) -> None:
    for worker in list(pool._processes.values()):
        worker.kill()


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


def _own_server() -> int | None:
    """Process id of the server that this process has started, if it has."""
    server = sys.modules.get("prefect.server.api.server")
    process = server and server.SubprocessASGIServer().server_process
    return process.pid if process else None


@contextmanager
def _started(name: Runner, workers: int, address: str | None) -> Iterator[TaskRunner[Any]]:
    if name == "processes" and address is None and _ahead and _ahead[0]._max_workers == workers:
        runner = _ahead.pop()
        try:
            yield runner
        finally:
            runner.__exit__(None, None, None)
    else:
        with _choose(name, workers, address) as chosen:
            yield chosen


def _processes(workers: int) -> ProcessPoolTaskRunner:
    return ProcessPoolTaskRunner(
        max_workers=workers, initializer=start_worker, initargs=(os.getpid(), _own_server())
    )


def _choose(name: Runner, workers: int, address: str | None) -> TaskRunner[Any]:
    if name == "dask":
        return _dask(address)
    if address is not None:
        raise UsageError(f"--address has no effect with --runner {name}; it belongs to dask.")
    if name == "processes":
        return _processes(workers)
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
