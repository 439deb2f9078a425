"""A small network made for few epochs: two convolutions, normalised, 256 units."""

from __future__ import annotations

from typing import Any

from nightfold.zoo import architecture


@architecture
def swift(images: Any, n_classes: int) -> Any:
    """16 filters 5x5 and 32 filters 3x3, each pooled and normalised, then 256 units."""
    from keras import layers

    x = images
    for filters, size in ((16, 5), (32, 3)):
        x = layers.Conv2D(filters, size, activation="relu", kernel_initializer="he_uniform")(x)
        x = layers.MaxPooling2D(2)(x)
        x = layers.BatchNormalization()(x)
    x = layers.Flatten()(x)
    x = layers.Dense(256, activation="relu", kernel_initializer="he_uniform")(x)
    return layers.Dense(n_classes, activation="softmax")(x)
