"""The corpus of hostile input: what it is made of, and what must become of it.

A case is a function that builds its input in an empty folder and returns what a user would give:
a source URI, a path. Nothing of it is stored; bombs are made small and only announce their size or
unfold when they are read.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MIB = 2**20
Make = Callable[[Path], "str | Path"]


@dataclass(frozen=True)
class Case:
    """One hostile input.

    Attributes
    ----------
    reader : str
        What reads it, a key of `tests.hostile.examine.READERS`.
    name : str
        What is wrong with it.
    make : callable
        Builds it in an empty folder and gives what the user would.
    refused : tuple of str
        Words of the sentence; none if it must be accepted.
    memory : int
        Bytes that reading it may add to the process.
    unprivileged : bool
        Whether it only harms a user who may not read everything.
    """

    reader: str
    name: str
    make: Make
    refused: tuple[str, ...]
    memory: int
    unprivileged: bool

    @property
    def key(self) -> str:
        """Name of the case among all."""
        return f"{self.reader}: {self.name}"


CASES: dict[str, Case] = {}


def case(
    reader: str,
    name: str,
    *refused: str,
    memory: int = 256 * MIB,
    unprivileged: bool = False,
) -> Callable[[Make], Make]:
    """Add a function that makes input which must be refused in these words; without, accepted."""

    def add(make: Make) -> Make:
        made = Case(reader, name, make, refused, memory, unprivileged)
        assert CASES.setdefault(made.key, made) is made, f"there are two cases {made.key!r}"
        return make

    return add


@cache
def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Sixty real digits of 8 x 8 pixels, six of each class, and their labels."""
    from nightfold.sources import digits as source

    rows = source.read().train
    chosen = np.sort(np.concatenate([np.flatnonzero(rows.labels == n)[:6] for n in range(10)]))
    return rows.images[chosen, ..., 0], rows.labels[chosen]


def encoded(image: Image.Image | NDArray[Any], form: str = "png", **options: Any) -> bytes:
    """An image as the content of a file."""
    file = io.BytesIO()
    whole = image if isinstance(image, Image.Image) else Image.fromarray(image)
    whole.save(file, form, **options)
    return file.getvalue()
