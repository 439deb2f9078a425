"""Winograd's convolutions: the same numbers as TensorFlow's own, from fewer multiplications."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from nightfold import backend, winograd

backend.start()
pytestmark = pytest.mark.slow

SIDES = st.integers(3, 19)
FEW = st.integers(1, 5)


def drawn(n, height, width, channels, filters, dtype="float64"):
    draw = np.random.default_rng([n, height, width, channels, filters])
    images = tf.constant(draw.normal(size=(n, height, width, channels)).astype(dtype))
    kernel = tf.constant(draw.normal(size=(3, 3, channels, filters), scale=0.1).astype(dtype))
    return images, kernel


def with_gradients(convolve, images, kernel):
    """What a convolution gives, and the gradients of a sum of its sines."""
    with tf.GradientTape() as tape:
        tape.watch([images, kernel])
        y = convolve(images, kernel)
        total = tf.reduce_sum(tf.sin(y))
    return [y, *tape.gradient(total, [images, kernel])]


def direct(images, kernel, padded=False):
    return tf.nn.conv2d(images, kernel, 1, "SAME" if padded else "VALID")


def apart(ours, theirs):
    """Root mean square of the difference, in root mean squares of `theirs`, of each array."""
    return [
        float(np.sqrt(np.mean((np.float64(a) - b) ** 2) / np.mean(np.float64(b) ** 2)))
        for a, b in zip(ours, theirs, strict=True)
    ]


@settings(max_examples=40, deadline=None)
@given(FEW, SIDES, SIDES, FEW, FEW, st.booleans())
def test_it_is_the_convolution_and_so_are_its_gradients(
    n, height, width, channels, filters, padded
):
    images, kernel = drawn(n, height, width, channels, filters)
    ours = with_gradients(lambda x, k: winograd.convolve(x, k, padded=padded), images, kernel)
    theirs = with_gradients(lambda x, k: direct(x, k, padded), images, kernel)
    assert ours[0].shape == theirs[0].shape
    assert max(apart(ours, theirs)) < 1e-12


@pytest.mark.parametrize("side", [1, 2])
def test_padding_makes_an_image_of_one_pixel_large_enough(side):
    images, kernel = drawn(2, side, 1, 3, 2)
    ours = winograd.convolve(images, kernel, padded=True)
    assert apart([ours], [direct(images, kernel, True)])[0] < 1e-12


@pytest.mark.parametrize(("tile", "outputs"), [(2, 4), (3, 6), (4, 8), (5, 10)])
def test_rounding_in_float32_costs_less_than_a_digit(tile, outputs, monkeypatch):
    """Against float64, an ordinary convolution is off by 3e-7 and this by up to 3e-6."""
    monkeypatch.setattr(winograd, "POINTS", {tile: winograd.POINTS[tile]})
    winograd.axis_of.cache_clear()
    images, kernel = drawn(16, outputs + 2, outputs + 2, 64, 64, "float32")
    exact = with_gradients(direct, tf.cast(images, "float64"), tf.cast(kernel, "float64"))
    ours = with_gradients(lambda x, k: winograd.convolve(x, k, padded=False), images, kernel)
    winograd.axis_of.cache_clear()
    theirs = with_gradients(direct, images, kernel)
    assert max(apart(ours, exact)) < 10 * max(apart(theirs, exact))


def test_a_large_batch_in_parts_is_the_same_and_so_is_one_of_unknown_size():
    images, kernel = drawn(24, 18, 18, 32, 8)
    assert winograd._parts(24, 24 * 18**2 * 32 * 8 * 4) > 1
    whole = tf.function(lambda x, k: winograd.convolve(x, k, padded=False)).get_concrete_function(
        tf.TensorSpec((None, 18, 18, 32), "float64"), tf.TensorSpec(kernel.shape, "float64")
    )
    expected = direct(images, kernel)
    for y in (winograd.convolve(images, kernel, padded=False), whole(images, kernel)):
        assert apart([y], [expected])[0] < 1e-12


@pytest.mark.parametrize(
    ("n", "size", "parts"),
    [(32, 1, 1), (32, 2, 2), (30, 4, 5), (7, 4, 7), (7, 1, 1), (17, 2, 1), (1, 9, 1), (64, 99, 16)],
)
def test_parts_are_equal_few_and_small(n, size, parts):
    assert winograd._parts(n, size * winograd.NEAR) == parts


def test_it_multiplies_a_quarter_as_often():
    axis = winograd.axis_of(10, padded=False)
    products = (axis.points * axis.tiles) ** 2
    assert products * 4 == 9 * axis.outputs**2


@pytest.mark.parametrize(
    ("side", "channels", "filters", "worth_it"),
    [(10, 64, 64, True), (12, 32, 64, True), (28, 1, 32, False), (10, 4, 4, False)],
)
def test_it_pays_where_there_are_many_channels(side, channels, filters, worth_it):
    assert winograd.pays(side, side, channels, filters, padded=False) is worth_it


def test_it_does_not_pay_where_no_window_fits():
    assert not winograd.pays(2, 10, 64, 64, padded=False)
