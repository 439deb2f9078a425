"""The graphics processor that folds train on, if there is one; asked of its driver, so at once.

What TensorFlow is told about it is in `nightfold.backend`.
"""

from __future__ import annotations

import ctypes
from ctypes.util import find_library
from functools import cache
from importlib.util import find_spec

WORKERS = 4
"""Folds trained at once on one GPU, unless told otherwise: each takes a part of its memory."""


@cache
def name() -> str | None:
    """Name of the first GPU that TensorFlow can train on, None if there is none.

    The driver leaves out what ``CUDA_VISIBLE_DEVICES`` hides. Without NVIDIA's libraries, which
    come with ``tensorflow[and-cuda]``, TensorFlow trains on the processor.
    """
    device = _first_device()
    return device if device is not None and _has_libraries() else None


def sentence() -> str | None:
    """What the log of a run says of the GPU, in a sentence; None if there is none.

    Examples
    --------
    >>> sentence() is None or "GPU" in sentence()
    True
    """
    device = _first_device()
    if device is None:
        return None
    if _has_libraries():
        return f"Folds train on the GPU ({device})."
    return (
        f"The GPU ({device}) is not used, because TensorFlow's libraries for it are missing: "
        'install "tensorflow[and-cuda]".'
    )


def _first_device() -> str | None:
    """What the CUDA driver calls its first device, such as ``NVIDIA H200``."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, text = ctypes.c_int(), ctypes.create_string_buffer(256)
    failed = (
        cuda.cuInit(0)
        or cuda.cuDeviceGet(ctypes.byref(device), 0)
        or cuda.cuDeviceGetName(text, len(text), device)
    )
    return None if failed else text.value.decode(errors="replace")


def _has_libraries() -> bool:
    try:
        found = find_spec("nvidia.cudnn")
    except ModuleNotFoundError:
        found = None
    return found is not None or find_library("cudnn") is not None
