"""Networks that drop units while they learn."""

from __future__ import annotations

from typing import Any

from nightfold.zoo import architecture


@architecture
def adam_dropout(images: Any, n_classes: int) -> Any:
    """A linear 3x3 convolution of 28 filters, max-pooling, 128 units, a fifth dropped."""
    from keras import layers

    x = layers.Conv2D(28, 3)(images)
    x = layers.MaxPooling2D(2)(x)
    x = layers.Flatten()(x)
    x = layers.Dense(128, activation="relu")(x)
    x = layers.Dropout(0.2)(x)
    return layers.Dense(n_classes, activation="softmax")(x)
