"""Inspection: small tables that describe a split, so that nobody has to look at its pixels again.

One table has a row per image, the other a row per class. They state what is there and judge
nothing: what is acceptable is decided by validation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nightfold.dataset import Split, in_pieces
from nightfold.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

CHUNK_BYTES = 16 * 2**20
"""Pixels looked at together: large enough for vectorised speed, small beside a worker."""


def describe_images(split: Split) -> pd.DataFrame:
    """One row per image, indexed by its position in the split.

    Parameters
    ----------
    split : Split
        May be mapped into memory: pixels are read chunk by chunk, each once for the statistics and
        once for the digests.

    Returns
    -------
    DataFrame
        ``digest`` (sha256 of the pixels), ``label`` (as stored), ``minimum`` and ``maximum``
        (float64, in the units of the pixels, NaN if the image holds a NaN or no numbers),
        ``foreground`` (float64, share in [0, 1] of pixels that differ from the background, where
        the background is the more frequent of the image's minimum and maximum; 0 for a constant
        image) and ``labels_seen`` (int64, how many different labels the same image carries in this
        split).
    """
    import pandas as pd

    minimum, maximum, foreground = _pixel_statistics(split.images)
    frame = pd.DataFrame(
        {
            "digest": split.row_digests,
            "label": np.asarray(split.labels),
            "minimum": minimum,
            "maximum": maximum,
            "foreground": foreground,
            "labels_seen": np.ones(len(split), np.int64),
        },
        index=pd.RangeIndex(len(split), name="row"),
    )
    copied = frame["digest"].duplicated(keep=False)
    if copied.any():
        groups = frame.loc[copied].groupby("digest", sort=False)
        frame.loc[copied, "labels_seen"] = groups["label"].transform("nunique")
    return frame


def describe_classes(
    split: Split, class_names: tuple[str, ...], reference: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """One row per class, indexed by its name.

    Parameters
    ----------
    split : Split
    class_names : tuple of str
        Name of each class index.
    reference : mapping of str to float, optional
        Expected share of each class, in any common unit; uniform if left out.

    Returns
    -------
    DataFrame
        ``rows`` (int64, rows with that label) and ``balance`` (float64, rows divided by the rows
        expected of the reference: 1 is exactly as expected).

    Raises
    ------
    UsageError
        If the reference does not give every class, and nothing else, a share above 0.
    """
    import pandas as pd

    shares = _expected_shares(class_names, reference)
    # Not bincount: labels may be missing, negative or text here.
    rows = np.array(
        [np.count_nonzero(split.labels == i) for i in range(len(class_names))], np.int64
    )
    balance = rows / (shares * max(rows.sum(), 1))
    return pd.DataFrame(
        {"rows": rows, "balance": balance}, index=pd.Index(class_names, name="class_name")
    )


def _pixel_statistics(
    images: NDArray[Any],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    n, per_image = len(images), int(np.prod(images.shape[1:]))
    minimum, maximum, foreground = (np.full(n, np.nan) for _ in range(3))
    if per_image == 0 or images.dtype.kind not in "biuf":
        return minimum, maximum, foreground
    chunk = max(1, CHUNK_BYTES // (per_image * images.dtype.itemsize))
    for number, piece in enumerate(in_pieces(images, chunk)):
        rows = slice(number * chunk, (number + 1) * chunk)
        flat = np.asarray(piece).reshape(-1, per_image)
        low, high = flat.min(axis=1, keepdims=True), flat.max(axis=1, keepdims=True)
        background = np.maximum(
            np.count_nonzero(flat == low, axis=1), np.count_nonzero(flat == high, axis=1)
        )
        minimum[rows], maximum[rows] = low[:, 0], high[:, 0]
        foreground[rows] = 1 - background / per_image
    return minimum, maximum, foreground


def _expected_shares(
    class_names: tuple[str, ...], reference: Mapping[str, float] | None
) -> NDArray[np.float64]:
    if reference is None:
        return np.full(len(class_names), 1 / max(len(class_names), 1))
    if set(reference) != set(class_names) or min(reference.values()) <= 0:
        raise UsageError(
            "The experiment's reference_balance must give each class a share above 0: the classes "
            f"are {', '.join(class_names)}, it gives "
            f"{', '.join(f'{name} = {share:g}' for name, share in reference.items()) or 'none'}."
        )
    shares = np.array([reference[name] for name in class_names], np.float64)
    return np.asarray(shares / shares.sum(), np.float64)
