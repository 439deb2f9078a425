"""Worker processes that train folds, each a copy of one process that has loaded TensorFlow.

Loading takes seconds of a processor and 250 MB of memory; a copy takes neither.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from typing import Any, Self

from prefect.task_runners import ProcessPoolTaskRunner

from nightfold import backend, gpu

LOADED = "flows.loaded"


class WorkerProcesses(ProcessPoolTaskRunner):
    """Prefect's runner of processes, with processes that are such copies.

    Parameters
    ----------
    workers : int
        How many it may start; it starts one for a job that finds none idle.
    """

    def __init__(self, workers: int) -> None:
        super().__init__(
            max_workers=workers,
            initializer=start_worker,
            initargs=(_own_server(),),
        )
        self.workers = workers

    def __enter__(self) -> Self:
        super().__enter__()
        # Prefect leaves no choice of how processes start.
        self.pool._mp_context = _context()  # type: ignore[attr-defined]
        return self

    @property
    def pool(self) -> ProcessPoolExecutor:
        """The processes, once it is entered."""
        assert self._executor is not None
        return self._executor

    def fill(self) -> None:
        """Let all processes start, without waiting for them."""
        threading.Thread(target=_fill, args=(self.pool, self.workers), daemon=True).start()

    def kill(self) -> None:
        """End all processes, whatever they do, and the one that they are copies of."""
        source = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
        if source is not None:
            with suppress(ProcessLookupError):
                os.kill(source, signal.SIGKILL)
        for worker in list(self.pool._processes.values()):
            worker.kill()


def start_worker(server: int | None) -> None:
    """Prepare a worker process: load what folds need unless it is loaded, die with the flow.

    Parameters
    ----------
    server : int or None
        Process id of the server that the flow has started for itself.
    """
    threading.Thread(target=_die_with_flow, args=(server,), daemon=True).start()
    importlib.import_module(LOADED)
    backend.start()


def contain_exits(pool: ProcessPoolExecutor) -> None:
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


def _context() -> BaseContext:
    """How processes start: copied where that is safe, else each anew.

    The frameworks of macOS do not survive it, nor may CUDA if it was loaded before.
    """
    anew = multiprocessing.get_context("spawn")
    if sys.platform != "linux" or gpu.name() is not None:
        return anew
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([LOADED])
    try:
        _load()
    except OSError:  # no socket can be made in the folder for temporary files
        return anew
    return context


def _load() -> None:
    """Let the process that is copied start, unless it runs, and no other one in its place.

    By itself Python would look for what is loaded in the current folder first, whatever lies there,
    and start another one for a pool that was told to end or has lost its processes.
    """
    source = forkserver._forkserver  # type: ignore[attr-defined]
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        forkserver.ForkServer.ensure_running(source)
    finally:
        del os.environ["PYTHONSAFEPATH"]
        if before is not None:
            os.environ["PYTHONSAFEPATH"] = before
    source.ensure_running = _require_loaded  # type: ignore[method-assign]


def _require_loaded() -> None:
    """In the place of what would start another one.

    Raises
    ------
    ChildProcessError
        If it has ended.
    """
    pid = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    # Looked at only: Python itself waits for it when the next one starts.
    if pid is None or os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        raise ChildProcessError("The process that workers are copies of has ended.")


def _fill(pool: ProcessPoolExecutor, workers: int) -> None:
    # Whoever submits a fold is told what is wrong with the pool.
    with suppress(OSError, EOFError, RuntimeError):
        for _ in range(workers):
            pool.submit(time.sleep, 0.2)


def _die_with_flow(server: int | None) -> None:
    """Exit once the flow's process is gone, and end its server.

    Workers that outlive a killed flow would keep its run in the state Running and its cores busy;
    its server would stay for ever. Without the process that they are copies of, the flow takes them
    for ended.
    """
    flow, source = multiprocessing.parent_process(), os.getppid()
    assert flow is not None
    while flow.is_alive() and os.getppid() == source:
        flow.join(0.5)
    if server is not None and not flow.is_alive():
        with suppress(ProcessLookupError):
            os.kill(server, signal.SIGTERM)
    os._exit(1)


def _own_server() -> int | None:
    """Process id of the server that this process has started, if it has."""
    module = sys.modules.get("prefect.server.api.server")
    process = module and module.SubprocessASGIServer().server_process
    return process.pid if process else None
