"""The shipped MNIST is the original, to the byte."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from nightfold import sources
from nightfold.dataset import Dataset, Split
from nightfold.experiment import shipped

ORIGINALS = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_original_files_can_be_rebuilt_from_the_shipped_ones(mnist: Dataset, name: str) -> None:
    split: Split = mnist.train if name.startswith("train") else mnist.test
    array = split.images[..., 0] if "images" in name else split.labels
    assert hashlib.sha256(idx_bytes(array)).hexdigest() == ORIGINALS[name]


def test_the_readme_names_the_originals_and_the_licence() -> None:
    text = shipped("data", "mnist", "README.md").read_text()
    for name, digest in ORIGINALS.items():
        assert f"`{name}` | `{digest}`" in text
    for word in ("LeCun", "Cortes", "Burges", "by-sa/3.0", "ingest idx:PATH --name mnist"):
        assert word in text


def test_the_files_are_small_and_in_the_layout_of_the_hub() -> None:
    for name in ("train", "test"):
        path = shipped("data", "mnist", f"{name}.parquet")
        assert path.stat().st_size < 15_000_000
        schema = pq.read_schema(path)
        assert schema.names == ["image", "label"]
        assert [field.name for field in schema.field("image").type] == ["bytes", "path"]
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        assert features["image"] == {"_type": "Image"}
        assert features["label"] == {"names": list("0123456789"), "_type": "ClassLabel"}


def test_the_name_finds_the_shipped_data_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mnist: Dataset
) -> None:
    monkeypatch.chdir(tmp_path)
    source = sources.read("mnist")
    assert source.name == source.origin == "mnist"
    np.testing.assert_array_equal(source.test.images, mnist.test.images)


def test_the_test_rows_are_none_of_the_training_rows(mnist: Dataset) -> None:
    assert not set(mnist.train.row_digests) & set(mnist.test.row_digests)
