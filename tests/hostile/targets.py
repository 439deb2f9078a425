"""What is damaged by chance: sound files of every format, and the reader that must stand it.

The property tests and the fuzzer share these; a target reads one file in a folder of its own.
"""

from __future__ import annotations

import gzip
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from nightfold import sources
from nightfold.dataset import Dataset
from nightfold.errors import NightfoldError
from nightfold.experiment import load_experiment, shipped
from nightfold.foldplan import FoldPlan
from nightfold.images import read_image
from nightfold.manifest import read_manifest
from nightfold.registry import Registry
from nightfold.store import Store
from nightfold.summary import Summary
from tests.hostile import document_cases, idx_cases, image_cases, npz_cases, parquet_cases
from tests.hostile.corpus import digits


class Refusal(str):
    """The sentence of a refusal."""


@dataclass(frozen=True)
class Target:
    """One format and its reader.

    Attributes
    ----------
    file : str
        Where the damaged content goes, in the folder.
    seeds : callable
        Sound contents.
    surround : callable
        Writes what else the reader needs into the folder.
    read : callable
        Reads the folder; what it gives is compared.
    summed : bool
        Whether check sums cover the content, so that damage changes nothing or is refused.
    """

    file: str
    seeds: Callable[[], list[bytes]]
    surround: Callable[[Path], object]
    read: Callable[[Path], Any]
    summed: bool = False

    def verdict(self, folder: Path, content: bytes) -> Any:
        """What the reader gives for `content`, or its `Refusal`.

        Any other exception, and a refusal that is no printable sentence, is a finding.
        """
        (folder / self.file).write_bytes(content)
        try:
            return self.read(folder)
        except NightfoldError as refused:
            sentence = Refusal(refused)
        assert sentence.isprintable(), "a sentence on one line"
        return sentence


def _rows(uri: str) -> tuple[Any, ...]:
    """A data set in a form that compares, after a look at whether it is one."""
    source = sources.read(uri)
    assert len(source.class_names) == len(set(source.class_names)) >= 2
    for split in (source.train, source.test):
        assert split.images.ndim == 4
        assert len(split.images) == len(split.labels)
        assert split.images.dtype.kind in "buif"
        assert split.labels.dtype in (np.int64, np.float64)
    assert source.train.images.shape[1:] == source.test.images.shape[1:]
    return tuple(
        (a.dtype.str, a.shape, a.tobytes())
        for split in (source.train, source.test)
        for a in (split.images, split.labels)
    )


def _nothing(folder: Path) -> None:
    """Nothing else is needed."""


def _idx() -> list[bytes]:
    pixels = digits()[0]
    return [idx_cases.idx(pixels), idx_cases.idx(pixels[..., None]), idx_cases.idx(pixels, ">i2")]


def _npz() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npz"
        npz_cases.archive(path)
        packed = path.read_bytes()
        npz_cases.archive(path, 0)
        return [packed, path.read_bytes()]


def _parquet() -> list[bytes]:
    names = parquet_cases.features(list("0123456789"))
    table = parquet_cases.sound().replace_schema_metadata({"huggingface": json.dumps(names)})
    contents = []
    for options in (
        {"compression": "zstd", "write_page_checksum": True},
        {"compression": "none", "row_group_size": 13},
        {"compression": "snappy", "data_page_version": "2.0", "use_dictionary": False},
    ):
        file = io.BytesIO()
        pq.write_table(table[:20], file, **options)
        contents.append(file.getvalue())
    return contents


def _images(*forms: str) -> Callable[[], list[bytes]]:
    return lambda: [image_cases.content_of(form) for form in forms]


def _pixels(folder: Path) -> tuple[Any, ...]:
    path = folder / "x.png"
    pixels = read_image(path, where=str(path)).pixels
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] in (1, 3)
    return pixels.shape, pixels.tobytes()


def _pngs() -> list[bytes]:
    sound = image_cases.content_of("png")
    # Small images of every depth, colour and order of rows.
    others = [
        image_cases.png(8, 8, image_cases.stream(8, 8, 16, 2), depth=16, colour=2),
        image_cases.png(8, 8, image_cases.stream(8, 8, 8, 6), colour=6),
        image_cases.png(9, 5, image_cases.stream(9, 5, 1, 0), depth=1),
    ]
    return [sound, *others]


def _animations() -> list[bytes]:
    return [image_cases.frames(form) for form in ("gif", "png", "webp", "tiff")]


def _json(*documents: dict[str, Any]) -> Callable[[], list[bytes]]:
    return lambda: [json.dumps(document, indent=2).encode() for document in documents]


def _experiments() -> list[bytes]:
    return [path.read_bytes() for path in sorted(shipped("experiments").glob("*.toml"))]


def _snapshot_file(name: str) -> Callable[[], list[bytes]]:
    def content() -> list[bytes]:
        with tempfile.TemporaryDirectory() as folder:
            return [(document_cases.snapshot(Path(folder)) / name).read_bytes()]

    return content


def _around_snapshot(folder: Path) -> None:
    path = document_cases.snapshot(folder / "datasets")
    for file in path.iterdir():
        file.rename(folder / file.name)


def _snapshot(folder: Path) -> Any:
    dataset = Dataset.open(folder)
    dataset.verify()
    return dataset.digest


def _plans() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        return [document_cases.plan(Path(folder)).read_bytes()]


def _champion(folder: Path) -> Any:
    return Registry(Store(folder)).champion()


TARGETS: dict[str, Target] = {
    "idx": Target(
        idx_cases.IMAGES,
        _idx,
        idx_cases.folder_of,
        lambda folder: _rows(f"idx:{folder}"),
    ),
    "labels": Target(
        idx_cases.LABELS,
        lambda: [idx_cases.idx(digits()[1]), idx_cases.idx(digits()[1], ">f8")],
        idx_cases.folder_of,
        lambda folder: _rows(f"idx:{folder}"),
    ),
    "gzip": Target(
        idx_cases.IMAGES,
        lambda: [gzip.compress(content, mtime=0) for content in _idx()[:1]],
        idx_cases.folder_of,
        lambda folder: _rows(f"idx:{folder}"),
        summed=True,
    ),
    "npz": Target(
        "x.npz", _npz, _nothing, lambda folder: _rows(f"npz:{folder / 'x.npz'}"), summed=True
    ),
    "parquet": Target(
        "x.parquet", _parquet, _nothing, lambda folder: _rows(f"parquet:{folder / 'x.parquet'}")
    ),
    "png": Target("x.png", _pngs, _nothing, _pixels, summed=True),
    "images": Target("x.png", _images("jpeg", "gif", "bmp", "tiff", "webp"), _nothing, _pixels),
    "animations": Target("x.png", _animations, _nothing, _pixels),
    "experiment": Target(
        "x.toml", _experiments, _nothing, lambda folder: load_experiment(folder / "x.toml")
    ),
    "pointer": Target(
        "models/champion.json",
        _json(document_cases.pointer(history=[document_cases.entry()])),
        lambda folder: (folder / "models").mkdir(exist_ok=True),
        _champion,
    ),
    "manifest": Target("manifest.json", _json(document_cases.manifest()), _nothing, read_manifest),
    "summary": Target("summary.json", _json(document_cases.summary()), _nothing, Summary.read),
    "index": Target("dataset.json", _snapshot_file("dataset.json"), _around_snapshot, _snapshot),
    "npy": Target(
        "train_images.npy",
        _snapshot_file("train_images.npy"),
        _around_snapshot,
        _snapshot,
        summed=True,
    ),
    "plan": Target(
        "x.parquet",
        _plans,
        _nothing,
        lambda folder: FoldPlan.open(folder / "x.parquet").digest,
        summed=True,
    ),
}


@cache
def seeds(name: str) -> tuple[bytes, ...]:
    """Sound contents of a target."""
    return tuple(TARGETS[name].seeds())
