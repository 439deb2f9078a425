"""A scaler learns from training rows only and then lives inside the model."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightfold.errors import UsageError
from nightfold.scaling import SCALERS, Scaler, pixel_histogram


def as_numbers(scaler, images):
    x = images
    for layer in scaler.layers():
        x = layer(x)
    return np.asarray(x)


@given(st.binary(min_size=8, max_size=400), st.integers(1, 7))
def test_histogram_counts_every_pixel_whatever_the_chunk(pixels, chunk):
    images = np.frombuffer(pixels[: len(pixels) // 4 * 4], np.uint8).reshape(-1, 2, 2, 1)
    rows = np.arange(len(images))
    expected = np.bincount(images.ravel(), minlength=256)
    assert (pixel_histogram(images, rows, chunk) == expected).all()


@pytest.mark.slow
def test_standardized_training_pixels_have_mean_0_and_standard_deviation_1(small_mnist):
    images = small_mnist.train.images
    scaler = Scaler.fit("standardize", pixel_histogram(images, np.arange(len(images))))
    numbers = as_numbers(scaler, images)
    assert abs(numbers.mean()) < 1e-4
    assert abs(numbers.std() - 1) < 1e-4


@pytest.mark.slow
def test_centered_training_pixels_have_mean_0_and_range_1(small_mnist):
    images = small_mnist.train.images
    scaler = Scaler.fit("center", pixel_histogram(images, np.arange(len(images))))
    numbers = as_numbers(scaler, images)
    assert abs(numbers.mean()) < 1e-5
    assert numbers.max() - numbers.min() == pytest.approx(1)


@pytest.mark.slow
def test_normalized_pixels_are_those_of_the_tutorial(small_mnist):
    images = small_mnist.train.images[:50]
    scaler = Scaler.fit("normalize", np.ones(256, np.int64))
    expected = images.astype("float32") / 255.0
    assert np.abs(as_numbers(scaler, images) - expected).max() <= np.finfo("float32").eps


@pytest.mark.slow
def test_each_image_is_standardized_by_itself(small_mnist):
    images = small_mnist.train.images[:20]
    scaler = Scaler.fit("standardize_per_image", np.ones(256, np.int64))
    together, alone = as_numbers(scaler, images), as_numbers(scaler, images[:1])
    assert np.abs(together.mean(axis=(1, 2, 3))).max() < 1e-4
    assert np.abs(together.std(axis=(1, 2, 3)) - 1).max() < 1e-3
    assert np.allclose(together[:1], alone, atol=1e-5)


@pytest.mark.parametrize("name", sorted(SCALERS))
def test_constant_pixels_are_not_divided_by_zero(name):
    histogram = np.zeros(256, np.int64)
    histogram[7] = 1000
    scaler = Scaler.fit(name, histogram)
    assert np.isfinite([scaler.scale, scaler.offset]).all()


def test_unknown_scaling_lists_those_there_are():
    with pytest.raises(UsageError, match=r"'zscore'.*normalize"):
        Scaler.fit("zscore", np.ones(256, np.int64))
