"""The three networks of the tutorial, and the one-layer-deeper steps between them."""

from __future__ import annotations

from typing import Any

from nightfold.zoo import architecture


@architecture
def baseline(images: Any, n_classes: int) -> Any:
    """One convolution of 32 filters 3x3, 2x2 max-pooling, a hidden layer of 100."""
    return _classify(_front(images), n_classes)


@architecture
def batch_norm(images: Any, n_classes: int) -> Any:
    """The baseline with batch normalisation after the activations of its two hidden layers."""
    from keras import layers

    x = _convolution(images, 32)
    x = layers.BatchNormalization()(x)
    x = layers.MaxPooling2D(2)(x)
    x = layers.Flatten()(x)
    x = layers.Dense(100, activation="relu", kernel_initializer="he_uniform")(x)
    x = layers.BatchNormalization()(x)
    return layers.Dense(n_classes, activation="softmax")(x)


@architecture
def deep(images: Any, n_classes: int) -> Any:
    """The baseline with two more convolutions of 64 filters and a second max-pooling."""
    from keras import layers

    x = _convolution(_convolution(_front(images), 64), 64)
    return _classify(layers.MaxPooling2D(2)(x), n_classes)


@architecture
def deep_single(images: Any, n_classes: int) -> Any:
    """Half way from baseline to deep: one more convolution of 64 filters instead of two."""
    from keras import layers

    x = _convolution(_front(images), 64)
    return _classify(layers.MaxPooling2D(2)(x), n_classes)


def _front(images: Any) -> Any:
    from keras import layers

    return layers.MaxPooling2D(2)(_convolution(images, 32))


def _convolution(x: Any, filters: int) -> Any:
    from keras import layers

    return layers.Conv2D(filters, 3, activation="relu", kernel_initializer="he_uniform")(x)


def _classify(x: Any, n_classes: int) -> Any:
    from keras import layers

    x = layers.Flatten()(x)
    x = layers.Dense(100, activation="relu", kernel_initializer="he_uniform")(x)
    return layers.Dense(n_classes, activation="softmax")(x)
