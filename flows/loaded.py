"""What a worker process needs, loaded by the import of this module.

A process imports it once and is copied then, so TensorFlow must not begin to compute here: copies
would lack the threads that it computes with.
"""

import atexit
import gc
import importlib
import os
import signal
import sys
from contextlib import suppress
from multiprocessing import forkserver, parent_process
from pathlib import Path

from nightfold import backend
from nightfold.imports import few_collections


def leave() -> None:
    """End this process now, and leave no file even of a flow that was killed.

    Taking TensorFlow down in order takes seconds that the flow would wait for. Prefect has sent its
    logs by then: its threads end before exit handlers are called.
    """
    address = forkserver._forkserver._forkserver_address  # type: ignore[attr-defined]
    if address and parent_process() is None:  # copies know it too
        with suppress(OSError):
            for socket in Path(address).parent.glob("listener-*"):
                socket.unlink()
            Path(address).parent.rmdir()
    os._exit(0)


# Whoever imports it for another purpose keeps its own way to end.
if parent_process() is not None or "multiprocessing.forkserver" in " ".join(sys.orig_argv):
    # Both reach every process of the terminal; the flow decides what becomes of its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    atexit.register(leave)
backend.leave_out_extras()
backend.load()
with few_collections():
    for name in ("prefect.task_engine", "tasks.begin", "tasks.fit", "tasks.train"):
        importlib.import_module(name)
# What a search for garbage does not look at is not written to, and stays shared.
gc.freeze()
