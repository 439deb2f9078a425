"""Benchmark data: the digits asked for, all of them different."""

import numpy as np
import pytest

from benchmarks import digits
from nightfold import sources


@pytest.mark.slow
def test_many_digits_are_all_different_and_read_as_idx(tmp_path):
    rows = 130_000  # two whole copies of MNIST and a part
    contents = sources.read(f"idx:{digits.write_many(tmp_path / 'many', rows)}")
    images, labels = contents.train.images, contents.train.labels
    assert images.shape == (rows, 28, 28, 1)
    assert len({image.tobytes() for image in images}) == rows
    assert np.array_equal(labels[:60_000], labels[60_000:120_000])
    assert len(contents.test.labels) == 1000


def test_rivals_and_nightfold_read_the_same_first_rows(tmp_path):
    path = digits.write_archive(tmp_path / "mnist.npz", 500)
    contents = sources.read(f"npz:{path}")
    x_train, y_train, _, _ = digits.mnist()
    assert np.array_equal(contents.train.images[..., 0], x_train[:500])
    assert np.array_equal(contents.train.labels, y_train[:500])
