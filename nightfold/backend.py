"""The Keras backend: start TensorFlow once in a process, quietly and with one thread.

Folds run side by side, one a core, which is faster than one fold on all cores; and the number of
threads changes the order of sums, so scores are only reproducible with a fixed one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def start() -> None:
    """Import TensorFlow and Keras; later calls do nothing.

    TensorFlow greets on the standard error of the process, below Python's reach and in spite of
    its log level; that stream is closed for the moment of the import, so that progress and errors
    are all a user sees there.
    """
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _silent_stderr():
        import tensorflow as tf

        try:
            tf.config.threading.set_intra_op_parallelism_threads(1)
            tf.config.threading.set_inter_op_parallelism_threads(1)
            tf.config.list_physical_devices()
        except RuntimeError:
            pass  # the process has computed before us and keeps its threads
    # Every fold traces graphs of its own, which TensorFlow takes for a mistake and warns of.
    tf.get_logger().setLevel("ERROR")


@contextmanager
def _silent_stderr() -> Iterator[None]:
    sys.stderr.flush()
    kept = os.dup(2)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(silence)
