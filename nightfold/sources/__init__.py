"""Sources: every place that images and labels come from, named by one URI.

`mnist`, `idx:PATH`, `folder:PATH`, `parquet:PATH`, `npz:PATH`, `digits`: each kind has a reader in
a module of its own. A source gives the rows as they are; whether they may be trained on is decided
by validation. A new kind is one module and one line in `KINDS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nightfold.dataset import Split
from nightfold.errors import DataRefused, UsageError, printable
from nightfold.experiment import shipped
from nightfold.files import given
from nightfold.images import Channels, Size
from nightfold.sources import digits, folder, idx, npz, parquet
from nightfold.sources.contents import Contents, existing, named_by_labels
from nightfold.sources.parquet import write_native
from nightfold.store import sha256_file, sha256_json

__all__ = ["KINDS", "Kind", "Source", "fingerprint", "named", "read", "write_native"]

MAX_SIDE = 8192
DEFAULT_HOLDOUT = 0.1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Source:
    """What a URI led to, complete with class names and a test split.

    Attributes
    ----------
    name : str
        What people call it.
    origin : str
        The URI, and the part held out if the source had no test split.
    class_names : tuple of str
    train, test : Split
    """

    name: str
    origin: str
    class_names: tuple[str, ...]
    train: Split
    test: Split


@dataclass(frozen=True)
class Kind:
    """A kind of source that takes a path.

    Attributes
    ----------
    read : callable
        Path, size and channels to Contents.
    files : callable
        Path to the files that `read` would read.
    decodes : bool
        Whether it decodes images, so that size and channels have an effect.
    """

    read: Callable[[Path, Size | None, Channels | None], Contents]
    files: Callable[[Path], list[Path]]
    decodes: bool


KINDS: dict[str, Kind] = {
    "folder": Kind(folder.read, folder.files, decodes=True),
    "idx": Kind(lambda path, size, channels: idx.read(path), idx.files, decodes=False),
    "npz": Kind(lambda path, size, channels: npz.read(path), npz.files, decodes=False),
    "parquet": Kind(parquet.read, parquet.files, decodes=True),
}


def read(
    uri: str,
    *,
    size: Size | None = None,
    channels: Channels | None = None,
    holdout: float | None = None,
    holdout_seed: int = 1,
) -> Source:
    """Read all rows of a source.

    Parameters
    ----------
    uri : str
        A name or ``KIND:PATH``.
    size : tuple of int, optional
        (height, width) to resize encoded images to.
    channels : {1, 3}, optional
        Decode images as grey or as RGB.
    holdout : float, optional
        Part of the rows, rounded down, to hold out for the final test if the source has no test
        split; a tenth if left out. Every class keeps its share where each has two rows or more,
        and an image with an exact copy among the rest is not held out.
    holdout_seed : int
        Seed of that choice.

    Returns
    -------
    Source

    Raises
    ------
    UsageError
        If there is no such source or path, or if a given value would have no effect.
    DataRefused
        If the source cannot be read, has a single class or no rows.
    """
    kind, path = _resolved(uri)
    _refuse_values_without_effect(uri, kind, size, channels)
    try:
        contents = named_by_labels(
            digits.read() if kind is None or path is None else kind.read(path, size, channels)
        )
    except MemoryError as error:
        raise DataRefused(
            f"The source {uri!r} does not fit into memory: give fewer or smaller images."
        ) from error
    class_names, origin = contents.class_names or (), printable(uri)
    _refuse_unusable(uri, contents, class_names)
    if contents.test is None:
        part = DEFAULT_HOLDOUT if holdout is None else holdout
        train, test = _held_out(uri, contents.train, part, holdout_seed)
        origin = f"{uri} (held out: {part:g}, seed {holdout_seed})"
    elif holdout is None:
        train, test = contents.train, contents.test
    else:
        raise UsageError(
            f"The source {uri!r} has a test split of its own, so a holdout has no effect: leave "
            "it out."
        )
    return Source(_called(uri, path), origin, class_names, train, test)


def fingerprint(uri: str) -> str | None:
    """Digest of the names and contents of all files that `read` would read, without decoding.

    Returns
    -------
    str or None
        None if the source is not made of files.

    Raises
    ------
    UsageError, DataRefused
        As `read`, as far as it concerns names and folders.
    """
    kind, path = _resolved(uri)
    if kind is None or path is None:
        return None
    try:
        return sha256_json(
            [[file.relative_to(path).as_posix(), sha256_file(file)] for file in kind.files(path)]
        )
    except OSError as error:
        raise DataRefused(
            f"{error.filename} cannot be read ({error.strerror}): check it."
        ) from error


def named(name: str) -> Path:
    """Folder under ``data/`` where `nightfold ingest --name` puts a data set of that name.

    Raises
    ------
    UsageError
        If it is not a plain name, or is the name of something else.
    """
    if not _NAME.fullmatch(name) or name in {*KINDS, "digits"}:
        raise UsageError(
            f"A data set cannot be named {name!r}: use letters, digits, '_', '.', '-', and none of "
            f"{', '.join([*KINDS, 'digits'])}."
        )
    return Path("data") / name


def _resolved(uri: str) -> tuple[Kind | None, Path | None]:
    """The kind and path a URI stands for; neither for the digits of scikit-learn."""
    if uri == "digits":
        return None, None
    prefix, colon, rest = uri.partition(":")
    if colon and prefix in KINDS:
        if not rest:
            raise UsageError(f"The source {uri!r} lacks a path: write {prefix}:PATH.")
        return KINDS[prefix], existing(given(rest), uri)
    for root in (Path("data"), shipped("data")):
        if _NAME.fullmatch(uri) and (root / uri / "train.parquet").is_file():
            return KINDS["parquet"], root / uri
    names = {
        p.parent.name for r in (Path("data"), shipped("data")) for p in r.glob("*/train.parquet")
    }
    hint = ""
    if given(uri).exists():
        hint = f" (for the images in that folder write folder:{uri})"
    raise UsageError(
        f"There is no source {uri!r}{hint}: give {', '.join([*sorted(names), 'digits'])}, or "
        f"{', '.join(f'{kind}:PATH' for kind in KINDS)}."
    )


def _called(uri: str, path: Path | None) -> str:
    if path is None:
        return uri
    return printable(path.stem if path.is_file() else path.resolve().name)


def _refuse_values_without_effect(
    uri: str, kind: Kind | None, size: Size | None, channels: Channels | None
) -> None:
    for option, value in (("size", size), ("channels", channels)):
        if value is not None and not (kind and kind.decodes):
            raise UsageError(
                f"The setting {option!r} has no effect on {uri!r}, whose pixels are not encoded: "
                "leave it out (it applies to folder:, parquet: and named data sets)."
            )
    if size is not None and not all(1 <= side <= MAX_SIDE for side in size):
        raise UsageError(
            f"The size {size[0]}x{size[1]} cannot be used: give height and width of 1 to "
            f"{MAX_SIDE} pixels."
        )


def _refuse_unusable(uri: str, contents: Contents, class_names: tuple[str, ...]) -> None:
    splits = [("train", contents.train)]
    if contents.test is not None:
        splits.append(("test", contents.test))
    for name, split in splits:
        if not len(split) or not split.images.size:
            raise DataRefused(f"The source {uri!r} has no {name} pixels: it holds nothing to use.")
    if contents.test is not None:
        one, other = (split.images.shape[1:] for _, split in splits)
        if one != other:
            raise DataRefused(
                f"The source {uri!r} has images of {'x'.join(map(str, one))} in train but "
                f"{'x'.join(map(str, other))} in test: make them alike."
            )
    if len(class_names) < 2:
        raise DataRefused(
            f"The source {uri!r} has {'only the class ' + class_names[0] if class_names else 'no'}"
            f"{'' if class_names else ' labels'}: a classifier needs two classes or more."
        )


def _held_out(uri: str, rows: Split, part: float, seed: int) -> tuple[Split, Split]:
    from sklearn.model_selection import train_test_split

    n_test = int(len(rows) * part)
    if n_test < 1:
        raise DataRefused(
            f"The source {uri!r} has {len(rows)} rows and no test split, and {part:g} of them is "
            "not one row: add rows or hold out more."
        )
    counts = np.unique(rows.labels, return_counts=True)[1]
    # NaN is never equal to itself, so labels with a missing one cannot be stratified.
    enough = (
        rows.labels.dtype.kind == "i"
        and counts.min() >= 2
        and len(counts) <= min(n_test, len(rows) - n_test)
    )
    train, test = train_test_split(
        np.arange(len(rows)),
        test_size=n_test,
        random_state=seed,
        stratify=rows.labels if enough else None,
    )
    # A held-out image with a copy to learn from would test nothing: the copies learn together.
    digests = np.array(rows.row_digests)
    copied = np.isin(digests[test], digests[train])
    train, test = np.concatenate([train, test[copied]]), test[~copied]
    # In the order of the source, so that a row can be traced to where it came from.
    train.sort()
    test.sort()
    return (
        Split(rows.images[train], rows.labels[train]),
        Split(rows.images[test], rows.labels[test]),
    )
