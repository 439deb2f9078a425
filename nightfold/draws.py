"""Draws of Python's `random`, from which Keras takes every seed that nobody has given."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_OURS = threading.RLock()  # `random.randint` belongs to the whole process


@contextmanager
def own_draws(seed: int) -> Iterator[None]:
    """Give this thread draws of its own from `random.randint`.

    Keras takes the seeds of initial weights and dropout from there, and whatever else runs in the
    process (Dask, Prefect, the jitter of a retry) draws from the same state at any moment.
    """
    ours, us = random.Random(seed), threading.get_ident()
    with _OURS:
        everybodys = random.randint

        def randint(a: int, b: int) -> int:
            return (ours.randint if threading.get_ident() == us else everybodys)(a, b)

        random.randint = randint
        try:
            yield
        finally:
            random.randint = everybodys
