"""A network made for accuracy: three convolutions, everything normalised."""

from __future__ import annotations

from typing import Any

from nightfold.zoo import architecture


@architecture
def sharp(images: Any, n_classes: int) -> Any:
    """32 filters 5x5, 64 and 64 filters 3x3, two poolings, 256 units, batch norm after each."""
    from keras import layers

    x = images
    for filters, size, pooled in ((32, 5, True), (64, 3, False), (64, 3, True)):
        x = layers.Conv2D(filters, size, activation="relu", kernel_initializer="he_uniform")(x)
        if pooled:
            x = layers.MaxPooling2D(2)(x)
        x = layers.BatchNormalization()(x)
    x = layers.Flatten()(x)
    x = layers.Dense(256, activation="relu", kernel_initializer="he_uniform")(x)
    x = layers.BatchNormalization()(x)
    return layers.Dense(n_classes, activation="softmax")(x)
