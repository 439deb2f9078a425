"""Where folds run: worker processes (the default), threads, one after the other, or Dask.

A runner is made for one run, in the flow's body, so that the flow's own parameters choose it and a
retry of the flow gets a new one.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from nightfold.errors import UsageError
from nightfold.experiment import Runner


def make_runner(name: Runner, workers: int, address: str | None = None) -> TaskRunner[Any]:
    """A task runner, to be entered with ``with``.

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
    if name == "dask":
        return _dask(address)
    if address is not None:
        raise UsageError(f"--address has no effect with --runner {name}; it belongs to dask.")
    if name == "processes":
        return ProcessPoolTaskRunner(
            max_workers=workers, initializer=start_worker, initargs=(os.getpid(),)
        )
    return ThreadPoolTaskRunner(max_workers=1 if name == "sequential" else workers)  # type: ignore[return-value]


def start_worker(parent: int) -> None:
    """Prepare a worker process: die with the flow, leave interrupts to it, load TensorFlow.

    Parameters
    ----------
    parent : int
        Process id of the flow.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    from nightfold import backend

    backend.start()


def _die_with(parent: int) -> None:
    """Exit once the flow's process is gone.

    Workers that outlive a killed flow would keep its run in the state Running and its cores busy.
    """
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _dask(address: str | None) -> TaskRunner[Any]:
    if address is None:
        raise UsageError(
            "--runner dask needs --address of a running scheduler, such as tcp://127.0.0.1:8786."
        )
    try:
        from distributed import Client
        from prefect_dask import DaskTaskRunner
    except ImportError as error:
        raise UsageError(
            "--runner dask needs the extra: pip install 'nightfold[dask]'."
        ) from error
    try:
        Client(address, timeout="5s").close()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"No Dask scheduler answers at {address}: start one with 'dask scheduler'."
        ) from error
    return DaskTaskRunner(address=address)  # type: ignore[no-any-return]
