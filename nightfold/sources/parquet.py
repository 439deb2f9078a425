"""Parquet in the image layout of the Hugging Face hub: Nightfold's native form of a data set.

A column of the type struct<bytes, path> holds encoded images, an integer column their classes, and
the schema metadata under the key ``huggingface`` names both columns and the classes. Data sets of
the hub are read as they are, and what is written here opens there.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from nightfold.dataset import Dataset, Split
from nightfold.errors import DataRefused, UsageError
from nightfold.files import refuse_bomb, require_plain
from nightfold.images import Channels, Size, read_images
from nightfold.sources.contents import Contents, entries, integer_labels, require_clear_names
from nightfold.store import atomic_file, make_folder, writing

_SHARD = re.compile(r"(?P<split>train|test)(-.*?)??(-(?P<number>\d+)-of-(?P<count>\d+))?\.parquet")
_BATCH = 4096
_READ_BYTES = 64 * 2**20
"""Encoded images that are read together, beyond the first."""
_MANY_ROWS = 2**20
"""Rows beyond which a file must hold a byte for each: every image takes more."""


@dataclass(frozen=True)
class _Columns:
    image: str
    label: str
    class_names: tuple[str, ...] | None


def files(path: Path) -> list[Path]:
    """The files `read` would read, in the order of the rows.

    Raises
    ------
    DataRefused
        If a folder holds no training rows, lacks a shard or holds other Parquet files.
    """
    return [shard for shards in _shards(path).values() for shard in shards]


def read(path: Path, size: Size | None, channels: Channels | None) -> Contents:
    """Read one file, which is all training rows, or a folder of ``train`` and ``test`` files.

    The files are ``train.parquet`` and ``test.parquet`` or shards such as
    ``train-00000-of-00002.parquet``, in the folder or in its ``data`` folder.

    Parameters
    ----------
    path : Path
    size : tuple of int or None
        (height, width) to resize to; without it all images must have the same size.
    channels : {1, 3} or None
        Without it 1 if every image is stored as grey, else 3.

    Raises
    ------
    DataRefused
        With file and row if an image cannot be read or differs in size, with file if it is not
        Parquet of this layout, or as `files` does.
    """
    shards = _shards(path)
    paths = [shard for members in shards.values() for shard in members]
    columns = _columns(paths[0])
    for shard in paths[1:]:
        if _columns(shard) != columns:
            raise DataRefused(
                f"{shard} names other columns or classes than {paths[0]}: they do not belong "
                "together."
            )
    counts = {
        split: sum(_rows(shard, columns.image) for shard in members)
        for split, members in shards.items()
    }
    total = sum(counts.values())
    if not counts["train"]:
        raise DataRefused(f"{shards['train'][0]} holds no rows: write it again.")
    labels = np.concatenate([_labels(shard, columns) for shard in paths])
    images = read_images(_images(paths, columns.image), total, channels=channels, size=size)
    found, start = {}, 0
    for split, count in counts.items():
        found[split] = Split(images[start : start + count], labels[start : start + count])
        start += count
    # One missing label must not make the other split's labels floating-point.
    train, *test = (
        Split(split.images, integer_labels(split.labels, str(path))) for split in found.values()
    )
    return Contents(train, test[0] if test else None, columns.class_names)


def write_native(folder: Path, dataset: Dataset) -> bool:
    """Write ``train.parquet`` and ``test.parquet`` into `folder` unless they are there already.

    Images are stored as PNG without loss; equal data gives equal bytes.

    Parameters
    ----------
    folder : Path
        Made if need be; other files in it stay.
    dataset : Dataset

    Returns
    -------
    bool
        False if the same data set was there and nothing was written.

    Raises
    ------
    UsageError
        If the folder holds another data set.
    DataRefused
        If the pixels are not uint8 or a label is not an integer, which the form cannot hold.
    """
    for name in ("train", "test"):
        split = getattr(dataset, name)
        if split.images.dtype != np.uint8 or not _integers(split.labels).all():
            raise DataRefused(
                f"The {name} rows of {dataset.name} have {split.images.dtype} pixels and "
                f"{split.labels.dtype} labels: a named data set holds uint8 pixels and integer or "
                "missing labels only."
            )
    make_folder(folder)
    with _one_writer(folder):
        return _write_both(folder, dataset)


@contextmanager
def _one_writer(folder: Path) -> Iterator[None]:
    """Let two that write the same data set take turns; the kernel ends the turn of a dead one."""
    with writing(folder):
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write_both(folder: Path, dataset: Dataset) -> bool:
    if (folder / "train.parquet").exists():
        there = read(folder, None, None)
        if (
            there.test is not None
            and all(
                _equal(getattr(there, name), getattr(dataset, name)) for name in ("train", "test")
            )
            and there.class_names == dataset.class_names
        ):
            return False
        raise UsageError(
            f"{folder} already holds another data set: choose another name or delete that folder."
        )
    # The training file is written last: where it is, the other one is whole.
    splits = {"test": dataset.test, "train": dataset.train}
    for name, split in splits.items():
        _write_split(folder / f"{name}.parquet", split, dataset.class_names)
    return True


def _write_split(target: Path, split: Split, class_names: tuple[str, ...]) -> None:
    label = {"names": list(class_names), "_type": "ClassLabel"}
    features = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("image", image), ("label", pa.int64())],
        metadata={"huggingface": json.dumps(features)},
    )
    with (
        atomic_file(target) as part,
        # The dictionary that Parquet builds by default is of no use where no value recurs.
        pq.ParquetWriter(
            part, schema, compression="zstd", use_dictionary=["label"], write_page_checksum=True
        ) as writer,
    ):
        for start in range(0, len(split), _BATCH):
            images = split.images[start : start + _BATCH]
            labels = split.labels[start : start + _BATCH]
            missing = np.isnan(labels)
            rows = {
                "image": pa.array([{"bytes": _png(pixels)} for pixels in images], image),
                "label": pa.array(np.where(missing, 0, labels).astype(np.int64), mask=missing),
            }
            writer.write_table(pa.table(rows, schema=schema))


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(
        file, "png", optimize=True
    )
    return file.getvalue()


def _integers(labels: NDArray[Any]) -> NDArray[np.bool_]:
    whole: NDArray[np.bool_] = (labels == np.rint(labels)) & np.isfinite(labels)
    whole |= np.isnan(labels)
    return whole


def _equal(one: Split, other: Split) -> bool:
    return (
        one.images.dtype == other.images.dtype
        and np.array_equal(one.images, other.images)
        and np.array_equal(one.labels, other.labels, equal_nan=True)
    )


def _shards(path: Path) -> dict[str, list[Path]]:
    """Paths by split, ``train`` first."""
    if not path.is_dir():
        require_plain(path)
        return {"train": [path]}
    found = [file for file in entries(path) if file.suffix == ".parquet"]
    if not found and (path / "data").is_dir():
        path = path / "data"
        found = [file for file in entries(path) if file.suffix == ".parquet"]
    shards: dict[str, list[Path]] = {}
    for file in found:
        require_plain(file)
        match = _SHARD.fullmatch(file.name)
        if match is None:
            raise DataRefused(
                f"{file} is neither of train nor of test by its name: move it away or rename it."
            )
        members = shards.setdefault(match["split"], [])
        if members and ("-of-" in members[0].name) != ("-of-" in file.name):
            raise DataRefused(
                f"{members[0]} and {file} are two editions of {match['split']}: leave one."
            )
        members.append(file)
        if match["count"] and len(list(path.glob(f"{match['split']}*-of-*"))) != int(
            match["count"]
        ):
            raise DataRefused(
                f"{file} is one of {int(match['count'])} parts but not all are there: fetch the "
                "missing ones."
            )
    if "train" not in shards:
        raise DataRefused(
            f"{path} holds no train.parquet and no train-*.parquet: give the folder that does."
        )
    return dict(sorted(shards.items(), reverse=True))


def _opened(path: Path) -> pq.ParquetFile:
    with _reading(path):
        return pq.ParquetFile(path, page_checksum_verification=True)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Refuse the file for whatever the block raises: damage makes Arrow raise almost anything."""
    try:
        yield
    except DataRefused:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataRefused:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")
    return DataRefused(f"{path} is not whole Parquet ({reason}): fetch or write the file again.")


def _columns(path: Path) -> _Columns:
    """Which columns hold the images and labels, by the hub's metadata or else by their names."""
    with _reading(path):
        schema = _opened(path).schema_arrow
        columns = schema.names
    features = _features(path, schema)
    images = [name for name, kind in features.items() if kind.get("_type") == "Image"] or ["image"]
    labels = [name for name, kind in features.items() if kind.get("_type") == "ClassLabel"]
    image = "image" if "image" in images else images[0]
    label = "label" if "label" in labels or not labels else labels[0]
    if len(images) > 1 or (len(labels) > 1 and "label" not in labels):
        raise DataRefused(
            f"{path} has several columns of images or classes ({', '.join(images + labels)}): "
            "keep one of each."
        )
    for name in (image, label):
        if (count := columns.count(name)) != 1:
            raise DataRefused(
                f"{path} has {count or 'no'} column{'s' * (count > 1)} {name!r}: its columns are "
                f"{', '.join(columns)}."
            )
    kind = schema.field(image).type
    # A text would be taken for the path of a file, so the type of the bytes matters.
    if not pa.types.is_struct(kind) or [
        field.type for field in kind if field.name == "bytes"
    ] not in ([pa.binary()], [pa.large_binary()]):
        raise DataRefused(
            f"{path} has a column {image!r} of type {kind}: it must be a struct of bytes and path, "
            "the bytes being binary."
        )
    kind = schema.field(label).type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise DataRefused(
            f"{path} has a column {label!r} of type {kind}: it must be an integer, the index of "
            "the class."
        )
    names = features.get(label, {}).get("names") or None
    if names is not None and not (
        isinstance(names, list) and all(isinstance(name, str) for name in names)
    ):
        raise DataRefused(
            f"{path} has schema metadata 'huggingface' whose class names are no list of texts: "
            "write it again."
        )
    if names is not None:
        require_clear_names(names, str(path))
    return _Columns(image, label, None if names is None else tuple(names))


def _features(path: Path, schema: pa.Schema) -> dict[str, Any]:
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    try:
        features = json.loads(text)["info"]["features"]
        return {name: kind for name, kind in features.items() if isinstance(kind, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataRefused(
            f"{path} has schema metadata 'huggingface' that is not the hub's JSON: write it again."
        ) from error


def _rows(path: Path, image: str) -> int:
    """Rows of the file, unless it could not hold so many or they unfold to a bomb."""
    with _reading(path):
        about, size = _opened(path).metadata, path.stat().st_size
    if about.num_rows > max(_MANY_ROWS, size):
        raise DataRefused(
            f"{path} announces {about.num_rows:,} rows in {size:,} bytes, which cannot hold as "
            "many images: fetch or write the file again."
        )
    for group, unfolded in enumerate(_group_bytes(about)):
        refuse_bomb(f"Row group {group} of {path}", size, unfolded)
    return int(about.num_rows)


def _group_bytes(about: pq.FileMetaData) -> list[int]:
    """Bytes that each row group unfolds to.

    Not asked of its columns: contradictions in their statistics end the interpreter there.
    """
    return [about.row_group(group).total_byte_size for group in range(about.num_row_groups)]


def _labels(path: Path, columns: _Columns) -> NDArray[np.float64]:
    with _reading(path):
        file = _opened(path)
        values = file.read(columns=[columns.label])[columns.label].to_numpy()
    _require_rows(path, file.metadata.num_rows, len(values))
    return np.asarray(values, np.float64)


def _images(paths: list[Path], column: str) -> Iterator[tuple[bytes, str]]:
    for path in paths:
        row, batches = 0, _batches(path, column)
        announced = _opened(path).metadata.num_rows
        while (contents := _next(batches, path, column)) is not None:
            if row + len(contents) > announced:  # before one is read into memory that is not there
                _require_rows(path, announced, row + len(contents))
            for content in contents:
                where = f"row {row} of {path}"
                if not content.is_valid:
                    raise DataRefused(f"{where} has no image bytes: embed the image or drop it.")
                yield content.as_py(), where
                row += 1
        _require_rows(path, announced, row)


def _require_rows(path: Path, announced: int, found: int) -> None:
    if found != announced:
        raise DataRefused(
            f"{path} announces {announced:,} rows but holds {found:,}: fetch or write the file "
            "again."
        )


def _batches(path: Path, column: str) -> Iterator[pa.RecordBatch]:
    with _reading(path):
        file = _opened(path)
        # A value that many rows share is stored once but read for each of them.
        together = _READ_BYTES // max([1, *_group_bytes(file.metadata)])
        batches: Iterator[pa.RecordBatch] = file.iter_batches(
            max(1, min(256, together)), columns=[f"{column}.bytes"]
        )
    return batches


def _next(batches: Iterator[pa.RecordBatch], path: Path, column: str) -> pa.Array | None:
    with _reading(path):
        batch = next(batches, None)
        return None if batch is None else batch.column(column).field("bytes")
