"""Dataset snapshots: named by their content, shared by mapping, refused when altered."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from nightfold.dataset import Dataset, Split
from nightfold.errors import DataRefused
from nightfold.inspection import describe_images
from nightfold.scaling import pixel_histogram


def write(folder, dataset, **changes):
    values = {
        "name": "again",
        "origin": "test",
        "class_names": dataset.class_names,
        "train": dataset.train,
        "test": dataset.test,
    }
    return Dataset.write(folder, **{**values, **changes})


def test_the_same_content_is_the_same_snapshot_and_writes_nothing(small_mnist, tmp_path):
    first = write(tmp_path, small_mnist)
    times = {path: path.stat().st_mtime_ns for path in first.path.iterdir()}
    second = write(tmp_path, small_mnist, name="other name", origin="elsewhere")
    assert second.path == first.path
    assert second.digest == first.digest == small_mnist.digest
    assert {path: path.stat().st_mtime_ns for path in first.path.iterdir()} == times


@pytest.mark.parametrize("what", ["pixel", "label", "order", "class name"])
def test_any_change_of_content_is_another_snapshot(small_mnist, tmp_path, what):
    images, labels = np.array(small_mnist.train.images), np.array(small_mnist.train.labels)
    names = small_mnist.class_names
    if what == "pixel":
        images[3, 4, 5] ^= 1
    elif what == "label":
        labels[3] = (labels[3] + 1) % 10
    elif what == "order":
        images[[0, 1]], labels[[0, 1]] = images[[1, 0]], labels[[1, 0]]
    else:
        names = ("zero", *names[1:])
    other = write(tmp_path, small_mnist, train=Split(images, labels), class_names=names)
    assert other.digest != small_mnist.digest


def test_pixels_are_mapped_and_read_only(small_mnist):
    assert isinstance(small_mnist.train.images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        small_mnist.train.images[0, 0, 0] = 1


def test_rows_are_read_without_the_map(small_mnist):
    rows = np.array([7, 0, 7, len(small_mnist.train) - 1])
    assert (small_mnist.read_training_images(rows) == small_mnist.train.images[rows]).all()


def test_a_row_behind_the_end_of_a_cut_snapshot_is_one_sentence(small_mnist, tmp_path):
    cut = write(tmp_path, small_mnist)
    last = np.array([len(cut.train) - 1])
    os.truncate(cut.path / "train_images.npy", 10_000)
    with pytest.raises(DataRefused, match=r"ends within training image \d+: delete that folder"):
        cut.read_training_images(last)


def test_an_altered_snapshot_is_found_out(small_mnist, tmp_path):
    dataset = write(tmp_path, small_mnist)
    path = dataset.path / "train_images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataRefused, match="altered"):
        Dataset.open(dataset.path).verify()


def test_a_snapshot_with_a_part_missing_is_one_sentence(small_mnist, tmp_path):
    dataset = write(tmp_path, small_mnist)
    (dataset.path / "test_labels.npy").unlink()
    with pytest.raises(DataRefused, match="delete that folder"):
        Dataset.open(dataset.path)


def test_a_handle_refuses_another_snapshot_in_its_place(small_mnist, tmp_path):
    dataset = write(tmp_path, small_mnist)
    with pytest.raises(DataRefused, match="not the one of this run"):
        dataset.handle.model_copy(update={"digest": "0" * 64}).open()


def test_a_limit_is_the_head_of_a_seeded_shuffle(small_mnist, tmp_path):
    hundred = small_mnist.limited(tmp_path, 100, seed=1)
    fifty = small_mnist.limited(tmp_path, 50, seed=1)
    other = small_mnist.limited(tmp_path, 50, seed=2)
    assert (len(hundred.train), len(hundred.test)) == (100, 100)
    assert (hundred.train.images[:50] == fifty.train.images).all()
    assert fifty.digest != other.digest
    assert len(small_mnist.limited(tmp_path, 10_000, seed=1).train) == 600


def resident_bytes_of(file):
    """How much of a mapped file this process has in its own page table."""
    maps = Path("/proc/self/smaps").read_text()
    return 1024 * sum(int(size) for size in re.findall(rf"{file}\n(?:.*\n)*?Rss: +(\d+) kB", maps))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells what is resident")
def test_reading_all_of_a_snapshot_keeps_none_of_it(mnist, tmp_path):
    # A copy: of the one that all tests share, another may still have pages mapped.
    dataset = Dataset.open(shutil.copytree(mnist.path, tmp_path / mnist.path.name))
    pixels = dataset.path / "train_images.npy"
    for read in (
        dataset.verify,
        lambda: pixel_histogram(dataset.train.images, np.arange(len(dataset.train))),
        lambda: describe_images(dataset.train),
    ):
        assert dataset.train.images[::100].any()
        assert resident_bytes_of(pixels) > 10e6
        read()
        assert resident_bytes_of(pixels) < 1e6
