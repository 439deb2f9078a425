"""The Keras backend: start TensorFlow once in a process, quietly and with one thread.

Folds run side by side, one a core, which is faster than one fold on all cores; and the number of
threads changes the order of sums, so scores are only reproducible with a fixed one. Folds that
share a GPU leave it to each other, and compute on it as exactly and repeatably as it can.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from typing import Any

from nightfold import gpu
from nightfold.errors import DeviceFailed, NightfoldError, UsageError
from nightfold.imports import few_collections, hidden

_EXTRAS = ("matplotlib", "pandas", "sklearn")
"""What Keras imports if it is there: for plots, data frames and wrappers, never to train."""

_WANTED = {
    "backend": "tensorflow",
    "floatx": "float32",
    "image_data_format": "channels_last",
    "epsilon": 1e-7,
    "max_epochs": None,
    "max_steps_per_epoch": None,
}
"""Keras's own settings, apart from its backend: what scores are computed with."""

_left_out: list[str] = []

_loading = threading.Lock()


def leave_out_extras() -> None:
    """Let `start` load TensorFlow and Keras alone, in little more than half of the time.

    To be called before it, in a process that trains or predicts and does nothing else: Keras takes
    matplotlib, pandas and scikit-learn for not installed, as long as the process lives. Other code
    may import them afterwards.
    """
    _left_out[:] = _EXTRAS


def load() -> None:
    """Import TensorFlow and Keras, which do not compute yet; later calls do nothing.

    TensorFlow greets on the standard error of the process, below Python's reach and in spite of
    its log level; that stream is closed for the moment of the import, so that progress and errors
    are all a user sees there.
    """
    with _loading:  # folds in threads come here side by side
        if "keras" not in sys.modules:
            os.environ["KERAS_BACKEND"] = "tensorflow"
            for limit in ("KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH"):
                os.environ.pop(limit, None)
        # A keras.json in the home may change the float type or the order of axes, and with them
        # every score; without a place for it Keras neither reads nor writes one.
        os.environ.setdefault("KERAS_HOME", os.devnull)
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        if "tensorflow" not in sys.modules:
            with _silent_stderr(), hidden(_left_out), few_collections():
                importlib.import_module("tensorflow")


def start() -> None:
    """Load TensorFlow and Keras and give them one thread; later calls do nothing.

    A process that has computed before keeps its threads.

    Raises
    ------
    UsageError
        If Keras was set otherwise than it sets itself, as by a keras.json in ``KERAS_HOME``.
    """
    load()
    import tensorflow as tf

    _require_own_settings()
    _share_gpu()
    if threads() == 1:
        return
    # A GPU that cannot be used is told by the first training, not by the end of a worker.
    with suppress(RuntimeError, tf.errors.OpError):
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        tf.config.list_logical_devices()
    # Every fold traces graphs of its own, which TensorFlow takes for a mistake and warns of.
    tf.get_logger().setLevel("ERROR")


@cache
def _require_own_settings() -> None:
    """Refuse settings with which scores would be others; those a network makes come later."""
    from keras import config

    for name, wanted in _WANTED.items():
        if (found := getattr(config, name)()) != wanted:
            raise UsageError(
                f"Keras is set to {name} {found!r} in this process, and scores would be others: "
                f"leave it at {wanted!r}, in keras.json (see KERAS_HOME) and in the program that "
                "imports it."
            )


def _share_gpu() -> None:
    """Train on the first GPU, if there is one, with the same numbers every time."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return
    # Kernels that add up in whatever order, or that are chosen by a race, give other numbers.
    tf.config.experimental.enable_op_determinism()
    # Matrix units would round what they multiply to 10 bits.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    with suppress(RuntimeError):  # in use already
        tf.config.set_visible_devices(gpus[:1], "GPU")
        # By default the first worker would take all of its memory.
        tf.config.experimental.set_memory_growth(gpus[0], True)


def threads() -> int:
    """Number of threads TensorFlow computes with in this process; 0 for one a core."""
    from tensorflow.config import threading

    within = threading.get_intra_op_parallelism_threads()
    between = threading.get_inter_op_parallelism_threads()
    return max(within, between) if within and between else 0


def require_one_thread() -> None:
    """Refuse to train where the same training would give other numbers, in the last digits.

    Raises
    ------
    NightfoldError
        If TensorFlow was used in this process before `start` and keeps several threads.
    """
    if threads() != 1:
        raise NightfoldError(
            "TensorFlow has already computed in this process with several threads, which changes "
            "scores in their last digits; call nightfold.backend.start() before anything else "
            "uses TensorFlow, or train in worker processes."
        )


def require_gpu() -> None:
    """Refuse to train on the processor what would be taken for trained on the GPU.

    Raises
    ------
    NightfoldError
        If there is a GPU with its libraries but TensorFlow does not use it.
    """
    import tensorflow as tf

    if gpu.name() is not None and not tf.config.list_physical_devices("GPU"):
        raise NightfoldError(
            f"TensorFlow cannot use the {gpu.name()}: its driver or libraries do not fit; install "
            '"tensorflow[and-cuda]", or hide the GPU with CUDA_VISIBLE_DEVICES=-1.'
        )


def is_failure(error: BaseException) -> bool:
    """Whether TensorFlow tells of memory or of a GPU and not of the code that it ran."""
    from tensorflow import errors

    return isinstance(error, errors.ResourceExhaustedError) or (
        isinstance(error, errors.OpError)
        and gpu.name() is not None
        and re.search("CUDA|cuDNN|cuBLAS|DNN library", error.message) is not None
    )


@contextmanager
def failures_told(what: str) -> Iterator[None]:
    """Raise those failures as `DeviceFailed`, in a sentence that begins with `what`."""
    try:
        yield
    except Exception as error:
        if not is_failure(error):
            raise
        reason = str(getattr(error, "message", error)).strip().partition("\n")[0][:200].rstrip(".")
        exhausted = type(error).__name__ == "ResourceExhaustedError"
        failed = "ran out of memory" if exhausted else f"failed on the {gpu.name()}"
        hide = ", or hide the GPU with CUDA_VISIBLE_DEVICES=-1" if gpu.name() else ""
        raise DeviceFailed(
            f"{what} {failed} ({reason}): give fewer --workers or a smaller batch_size{hide}."
        ) from error


@contextmanager
def graphs_given_back() -> Iterator[None]:
    """Let the graphs that were traced inside go when nobody holds them any more.

    TensorFlow registers each use of `tf.custom_gradient`, of ours and of Keras's, for as long as
    the process lives, and with it the whole graph around it: some MB a fold, in workers that may
    live for months (https://github.com/tensorflow/tensorflow/issues/97697). Behind this, the
    register holds a gradient weakly, and the graphs it was traced in hold it.
    """
    from tensorflow.python.framework.ops import gradient_registry

    try:
        yield
    finally:
        registered = gradient_registry._registry
        for name, entry in list(registered.items()):
            gradient = entry["type"]
            if not name.startswith("CustomGradient-") or isinstance(gradient, _HeldByItsGraph):
                continue
            if graphs := _graphs_around(gradient):
                for graph in graphs:
                    graph.gradients_held = [*getattr(graph, "gradients_held", ()), gradient]
                forget = partial(registered.pop, name, None)
                entry["type"] = _HeldByItsGraph(gradient, forget)


class _HeldByItsGraph:
    """A gradient function that lives as long as the graph that it belongs to."""

    def __init__(self, gradient: Callable[..., Any], forget: Callable[[], Any]) -> None:
        self._gradient = weakref.ref(gradient, lambda _: forget())

    def __call__(self, *given: Any) -> Any:
        gradient = self._gradient()
        assert gradient is not None
        return gradient(*given)


def _graphs_around(gradient: Callable[..., Any]) -> list[Any]:
    """The graph of the tensors that a gradient function refers to, and those around it."""
    from tensorflow.python.framework.func_graph import FuncGraph

    seen: set[int] = set()
    waiting: list[Any] = [gradient]
    while waiting:
        function = waiting.pop()
        seen.add(id(function))
        for cell in getattr(function, "__closure__", None) or ():
            try:
                held = cell.cell_contents
            except ValueError:  # empty
                continue
            for value in held if isinstance(held, list | tuple) else [held]:
                graph = getattr(value, "graph", None)
                if isinstance(graph, FuncGraph):
                    around = [graph]
                    while isinstance(around[-1].outer_graph, FuncGraph):
                        around.append(around[-1].outer_graph)
                    return around
                if id(value) not in seen and hasattr(value, "__closure__"):
                    waiting.append(value)
    return []


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
