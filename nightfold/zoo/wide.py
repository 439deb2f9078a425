"""Networks with wide fully connected layers."""

from __future__ import annotations

from typing import Any

from nightfold.zoo import architecture


@architecture
def wide_cnn(images: Any, n_classes: int) -> Any:
    """Two padded 3x3 convolutions (32, 64), each max-pooled, then layers of 3136 and 128."""
    from keras import layers

    x = images
    for filters in (32, 64):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D(2)(x)
    x = layers.Flatten()(x)
    for units in (3136, 128):
        x = layers.Dense(units, activation="relu")(x)
    return layers.Dense(n_classes, activation="softmax")(x)
