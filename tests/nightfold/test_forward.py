"""The forward pass of training: rewritten where that is faster, the same function all the same."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from nightfold import backend, forward, winograd
from nightfold.forward import training_pass
from nightfold.zoo import find

backend.start()
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def in_double_precision():
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


def network(*stack, shape=(28, 28, 1)):
    inputs = keras.Input(shape)
    x = inputs
    for layer in stack:
        x = layer(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(layers.Flatten()(x)))


def convolution(filters, size=3, **options):
    return layers.Conv2D(filters, size, activation="relu", bias_initializer="uniform", **options)


def gradients(model, call):
    """Outputs, and gradients of a sum of their logarithms in all weights."""
    images = np.random.default_rng(0).random((6, *model.input_shape[1:]))
    with tf.GradientTape() as tape:
        probabilities = call(tf.constant(images))
        loss = -tf.reduce_sum(tf.math.log(probabilities[:, 0]))
    return [probabilities, *tape.gradient(loss, [v.value for v in model.trainable_variables])]


def shapes_seen(model, monkeypatch):
    """Height and width of what each convolution of the rewritten pass gets."""
    seen = []
    convolve = forward._convolve

    def noting(layer, x):
        seen.append(tuple(x.shape[1:3]))
        return convolve(layer, x)

    monkeypatch.setattr(forward, "_convolve", noting)
    monkeypatch.setattr(forward, "_winograd_pays", lambda *_: True)
    training_pass(model)(tf.zeros((2, *model.input_shape[1:]), tf.float64))
    return seen


def stacks():
    return {
        "odd sides before pooling": [
            convolution(8),
            layers.MaxPooling2D(2),
            convolution(16),
            layers.MaxPooling2D(2),
        ],
        "strides and dilation": [
            convolution(4, 5, strides=2),
            convolution(4, dilation_rate=2),
            layers.AveragePooling2D(3),
        ],
        "oblong windows": [
            convolution(4, (3, 5)),
            layers.MaxPooling2D((2, 3)),
            convolution(4),
            layers.MaxPooling2D((3, 2)),
        ],
        "overlapping pooling": [
            convolution(4),
            layers.MaxPooling2D(3, strides=2),
            convolution(4),
            layers.MaxPooling2D(4, strides=3),
        ],
        "padding": [
            convolution(4, padding="same"),
            layers.MaxPooling2D(3, padding="same"),
            convolution(40, padding="same"),
            convolution(40),
            layers.MaxPooling2D(3),
        ],
        "padding and strides": [convolution(4, strides=2, padding="same"), layers.MaxPooling2D(3)],
        "normalised between": [
            convolution(4),
            layers.BatchNormalization(),
            layers.MaxPooling2D(3),
            convolution(4),
            layers.BatchNormalization(),
            layers.MaxPooling2D(3),
        ],
        "many channels": [
            convolution(32),
            convolution(40),
            layers.MaxPooling2D(2),
            layers.Conv2D(36, 3, use_bias=False),
            convolution(34),
        ],
        "regularised": [
            convolution(4, kernel_regularizer="l2"),
            convolution(4, activity_regularizer="l2"),
            layers.MaxPooling2D(5),
        ],
        "grouped": [convolution(32), convolution(32, groups=4), layers.MaxPooling2D(5)],
    }


@pytest.mark.parametrize("name", stacks())
def test_any_stack_gives_the_outputs_and_gradients_of_its_model(name):
    model = network(*stacks()[name])
    ours = gradients(model, training_pass(model))
    theirs = gradients(model, lambda images: model(images, training=True))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("architecture", ["baseline", "batch_norm", "deep", "deep_single", "sharp"])
def test_the_zoo_gives_the_outputs_and_gradients_of_its_models(architecture):
    inputs = keras.Input((28, 28, 1))
    model = keras.Model(inputs, find(architecture)(inputs, 10))
    ours = gradients(model, training_pass(model))
    theirs = gradients(model, lambda images: model(images, training=True))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-11)


def test_pixels_that_pooling_leaves_out_are_not_computed(monkeypatch):
    """Of 9 x 9 pixels the last pooling reads 8 x 8, so 10 x 10 before, 12 x 12, 26 x 26."""
    inputs = keras.Input((28, 28, 1))
    deep = keras.Model(inputs, find("deep")(inputs, 10))
    assert shapes_seen(deep, monkeypatch) == [(26, 26), (12, 12), (10, 10)]


def test_what_somebody_else_reads_is_computed(monkeypatch):
    inputs = keras.Input((12, 12, 3))
    first = convolution(4)(inputs)
    pooled = layers.MaxPooling2D(3)(convolution(4)(first))
    beside = layers.GlobalAveragePooling2D()(first)
    both = layers.Concatenate()([layers.Flatten()(pooled), beside])
    model = keras.Model(inputs, layers.Dense(10, activation="softmax")(both))
    ours = gradients(model, training_pass(model))
    theirs = gradients(model, lambda images: model(images, training=True))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)
    assert shapes_seen(model, monkeypatch) == [(12, 12), (8, 8)]


def test_convolutions_of_many_channels_are_winograds(monkeypatch):
    sides = []
    convolve = winograd.convolve

    def noting(images, kernel, *, padded):
        sides.append(images.shape[1])
        return convolve(images, kernel, padded=padded)

    monkeypatch.setattr(winograd, "convolve", noting)
    inputs = keras.Input((28, 28, 1))
    deep = keras.Model(inputs, find("deep")(inputs, 10))
    training_pass(deep)(tf.zeros((2, 28, 28, 1), tf.float64))
    assert sides == [12, 10], "not the first, of one channel"


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_what_is_small_is_no_rounding_and_what_sees_nothing_is_zero(padding, small_mnist):
    """Filters a million times smaller than others count to what normalises behind them."""
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    keras.utils.set_random_seed(10)  # of 24 seeds the rounding was 0.3e-5 to 1.4e-5
    inputs = keras.Input((14, 14, 32))
    layer = layers.Conv2D(32, 3, padding=padding, use_bias=False)
    model = keras.Model(inputs, layer(inputs))
    layer.kernel.assign(layer.kernel * np.float32(10.0) ** -(np.arange(32) % 8))
    images = np.repeat(small_mnist.train.images[:16, ::2, ::2] / np.float32(255), 32, axis=-1)
    ours, theirs = training_pass(model)(images).numpy(), model(images).numpy()
    largest = abs(theirs).max(axis=(0, 1, 2))
    assert (abs(ours - theirs).max(axis=(0, 1, 2)) < 1e-5 * largest).all()
    assert ((ours == 0) == (theirs == 0)).all()


def test_batch_normalisation_of_images_is_one_operation():
    """It is so in float32 only."""
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    inputs = keras.Input((28, 28, 1))
    model = keras.Model(inputs, find("batch_norm")(inputs, 10))
    images = tf.TensorSpec([2, 28, 28, 1], tf.float32)
    graph = tf.function(training_pass(model)).get_concrete_function(images).graph
    assert "FusedBatchNormV3" in {operation.type for operation in graph.get_operations()}
