"""Networks without convolutions."""

from __future__ import annotations

from typing import Any

from nightfold.zoo import architecture


@architecture
def dense(images: Any, n_classes: int) -> Any:
    """Flattened pixels and one hidden layer of 128."""
    from keras import layers

    x = layers.Dense(128, activation="relu")(layers.Flatten()(images))
    return layers.Dense(n_classes, activation="softmax")(x)
