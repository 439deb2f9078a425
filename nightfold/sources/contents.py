"""Contents: what a reader found, and what is made of labels that bear no names.

A reader of one kind of source returns Contents; it does not judge them. Labels keep their value
wherever they could be wrong, so that validation can name the row.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightfold.dataset import Split
from nightfold.errors import DataRefused, UsageError, printable

MAX_CLASSES = 65_536
"""More are refused: three times what the largest image collections in use tell apart."""


@dataclass(frozen=True)
class Contents:
    """Rows as a reader found them.

    Attributes
    ----------
    train : Split
    test : Split or None
        None if the source has no rows held out.
    class_names : tuple of str or None
        None if the source does not name its classes; then the labels do.
    """

    train: Split
    test: Split | None
    class_names: tuple[str, ...] | None = None


def integer_labels(labels: NDArray[Any], where: str) -> NDArray[Any]:
    """Labels as int64, or as float64 where one is missing or not an integer.

    Parameters
    ----------
    labels : ndarray, shape (n,) or (n, 1)
        Of any integer, boolean or floating-point dtype; NaN is a missing label.
    where : str
        The file, for messages.

    Returns
    -------
    ndarray, shape (n,)

    Raises
    ------
    DataRefused
        If the array is of another shape or dtype.

    Examples
    --------
    >>> integer_labels(np.array([[3.0], [4.0]]), "y")
    array([3, 4])
    >>> integer_labels(np.array([3.0, np.nan]), "y")
    array([ 3., nan])
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "buif":
        raise DataRefused(
            f"{where} has labels of shape {labels.shape} and dtype {labels.dtype}: give one "
            "integer per image, the index of its class."
        )
    if labels.dtype.kind != "f" and (labels.dtype != np.uint64 or (labels < 2**63).all()):
        return labels.astype(np.int64)
    values = labels.astype(np.float64)
    whole = np.isfinite(values) & (values == np.rint(values)) & (np.abs(values) < 2**53)
    return values.astype(np.int64) if whole.all() else values


def image_array(images: NDArray[Any], where: str) -> NDArray[Any]:
    """Images with a channel axis, contiguous and in native byte order; values as they came.

    Parameters
    ----------
    images : ndarray, shape (n, height, width) or (n, height, width, channels)
    where : str
        The file, for messages.

    Raises
    ------
    DataRefused
        If the array is of another shape or not numeric.
    """
    shape = images.shape
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.ndim != 4 or images.shape[3] not in (1, 3) or images.dtype.kind not in "buif":
        raise DataRefused(
            f"{where} has images of shape {shape} and dtype {images.dtype}: give numbers of shape "
            "(n, height, width) or (n, height, width, channels) with 1 or 3 channels."
        )
    return np.ascontiguousarray(images, dtype=images.dtype.newbyteorder("="))


def named_by_labels(contents: Contents) -> Contents:
    """Name the classes by their label values where the source does not name them.

    Labels that form one run of integers become indices from 0: EMNIST's letters 1 to 26 become
    0 to 25 with the names ``1`` to ``26``. Where the run has a gap, a wrong label is likelier than
    a missing class, so the labels stay as they came, the names end at the gap, and validation
    names the rows beyond it. Negative labels are never a class.

    Raises
    ------
    DataRefused
        If the labels have gaps and begin at more than `MAX_CLASSES`: there is no telling which of
        them are classes.

    Examples
    --------
    >>> images = np.zeros((3, 2, 2, 1), np.uint8)
    >>> letters = named_by_labels(Contents(Split(images, np.array([1, 2, 3])), None))
    >>> letters.class_names, letters.train.labels
    (('1', '2', '3'), array([0, 1, 2]))
    >>> astray = named_by_labels(Contents(Split(images, np.array([0, 1, 57])), None))
    >>> astray.class_names, astray.train.labels
    (('0', '1'), array([ 0,  1, 57]))
    """
    if contents.class_names is not None:
        return contents
    splits = [contents.train] if contents.test is None else [contents.train, contents.test]
    values = np.unique(np.concatenate([split.labels for split in splits]))
    values = values[(values >= 0) & (values == np.rint(values)) & np.isfinite(values)]
    steady = values == values[:1] + np.arange(len(values))
    if steady.all():
        first = int(values[0]) if len(values) else 0
        names = tuple(str(int(value)) for value in values)
    else:
        first, end = 0, int(values[0]) + int(np.argmin(steady))
        if end > MAX_CLASSES:
            raise DataRefused(
                f"The labels run from {int(values[0])} to {int(values[-1])} with gaps, so they are "
                "no indices of classes: number the classes from 0."
            )
        names = tuple(str(i) for i in range(end))
    train, test = (
        split
        and Split(split.images, np.where(split.labels >= 0, split.labels - first, split.labels))
        for split in (contents.train, contents.test)
    )
    assert train is not None
    return Contents(train, test, names)


def require_clear_names(class_names: Sequence[str], where: str) -> None:
    """Refuse names of classes that people and file systems cannot tell apart or cannot show.

    Words that only case tells apart are one class spelled in two ways; single letters may be the
    very classes.

    Raises
    ------
    DataRefused
        Naming the class, also if there are more than `MAX_CLASSES`.

    Examples
    --------
    >>> require_clear_names(["a", "A", "Größe", "目"], "it")
    """
    if len(class_names) > MAX_CLASSES:
        raise DataRefused(
            f"{where} has {len(class_names):,} classes, more than {MAX_CLASSES:,}: its labels are "
            "no classes."
        )
    known: dict[str, str] = {}
    for name in class_names:
        if not name.strip() or not name.isprintable():
            raise DataRefused(
                f"{where} has a class of the name '{printable(name)}', which cannot be shown: "
                "rename it."
            )
        like = unicodedata.normalize("NFC", name).strip()
        like = like if len(like) == 1 else like.casefold()
        if known.get(like) == name:
            raise DataRefused(f"{where} gives two classes the same name {name!r}: rename one.")
        if like in known:
            raise DataRefused(
                f"{where} has the classes {known[like]!r} and {name!r}, which only case, spaces or "
                "spelling in Unicode tell apart: make them one or rename one."
            )
        known[like] = name


def entries(folder: Path) -> list[Path]:
    """What lies in `folder`, sorted by name.

    Raises
    ------
    DataRefused
        If it may not be listed, or not be entered.
    """
    try:
        found = sorted(folder.iterdir())
        for path in found[:1]:
            path.lstat()
    except OSError as error:
        raise DataRefused(f"{folder} cannot be listed ({error.strerror}): check it.") from error
    return found


def existing(path: Path, uri: str) -> Path:
    """`path` itself if something is there.

    Raises
    ------
    UsageError
        If nothing is there.
    """
    if not path.exists():
        raise UsageError(f"The source {uri!r} leads to {path}, which does not exist: check it.")
    return path
