"""Augmentation: random moves of training images, as part of the training graph.

Draws depend on the seed and the number of the step alone, so a resumed training sees the same
images as an undisturbed one. Prediction knows nothing of this.
"""

from __future__ import annotations

from typing import Any

from nightfold.experiment import Augmentation


def augment(images: Any, choice: Augmentation, seed: int, step: Any) -> Any:
    """Move every image by a draw of its own.

    Parameters
    ----------
    images : tf.Tensor of uint8, shape (n, height, width, channels)
    choice : Augmentation
    seed : int
    step : tf.Tensor of int32, scalar
        Number of the step over the whole training.

    Returns
    -------
    tf.Tensor of uint8, same shape
        Bilinear, rounded; beyond an edge its nearest pixel goes on.

    Notes
    -----
    A pixel at (x, y) of the result, measured from the centre, is taken from
    ``z (x cos a - y sin a) + dx, z (x sin a + y cos a) + dy`` with angle a, zoom z and shift
    (dx, dy) uniform within the limits of `choice`.
    """
    import math

    import tensorflow as tf

    n = tf.shape(images)[0]
    height, width = int(images.shape[1]), int(images.shape[2])
    draws = tf.random.stateless_uniform([4, n], seed=tf.stack([seed, step]), minval=-1.0)
    angle = draws[0] * (choice.rotation * math.pi / 180)
    zoom = 1 + draws[1] * choice.zoom
    cosine, sine = zoom * tf.cos(angle), zoom * tf.sin(angle)
    x, y = (width - 1) / 2, (height - 1) / 2
    shift_x = x - cosine * x + sine * y + draws[2] * (choice.shift * width)
    shift_y = y - sine * x - cosine * y + draws[3] * (choice.shift * height)
    nothing = tf.zeros_like(angle)
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(images, tf.float32),
        transforms=tf.stack(
            [cosine, -sine, shift_x, sine, cosine, shift_y, nothing, nothing], axis=1
        ),
        output_shape=[height, width],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="NEAREST",
    )
    return tf.cast(tf.round(moved), tf.uint8)
