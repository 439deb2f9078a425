"""Imports that cost less: what nobody needs is left out, and garbage is seldom looked for."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


@contextmanager
def hidden(modules: Iterable[str]) -> Iterator[None]:
    """Let imports of `modules` fail, as if they were not installed, unless they are there already.

    For libraries that do without them: outside of the block they can be imported as ever.
    """
    absent = [name for name in modules if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


@contextmanager
def few_collections() -> Iterator[None]:
    """Look for garbage a hundred times less often: an import makes a million objects that stay."""
    young, *old = gc.get_threshold()
    gc.set_threshold(min(100 * young, 2**31 - 1), *old)  # what a C int holds
    try:
        yield
    finally:
        gc.set_threshold(young, *old)
