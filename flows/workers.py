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
            os.kill(source, signal.SIGKILL)  # a child that nobody has waited for, if it has ended
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
        forkserver.ensure_running()
    except OSError:  # no socket can be made in the folder for temporary files
        return anew
    return context


def _fill(pool: ProcessPoolExecutor, workers: int) -> None:
    # Whoever submits a fold is told what is wrong with the pool.
    with suppress(OSError, EOFError, RuntimeError):
        for _ in range(workers):
            pool.submit(time.sleep, 0.2)


def _die_with_flow(server: int | None) -> None:
    """Exit once the flow's process is gone, and end its server.

    Workers that outlive a killed flow would keep its run in the state Running and its cores busy;
    its server would stay for ever.
    """
    flow = multiprocessing.parent_process()
    assert flow is not None
    flow.join()
    if server is not None:
        with suppress(ProcessLookupError):
            os.kill(server, signal.SIGTERM)
    os._exit(1)


def _own_server() -> int | None:
    """Process id of the server that this process has started, if it has."""
    module = sys.modules.get("prefect.server.api.server")
    process = module and module.SubprocessASGIServer().server_process
    return process.pid if process else None
