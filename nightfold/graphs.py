"""Graphs: an epoch and a scoring pass as one TensorFlow call each.

Pixels stay uint8 where the snapshot maps them: each step gathers its rows inside the graph. What
is computed is what `keras.Model.fit` computes on the same batches, up to the order of float32 sums.
Which rows, in which order, and what is kept of it is decided in `nightfold.training`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightfold.augmentation import augment
from nightfold.dataset import Dataset, give_back
from nightfold.experiment import Candidate
from nightfold.forward import training_pass
from nightfold.optimization import apply_step

EVALUATION_BATCH = 128
"""Rows scored at once: what a small network makes of so many stays in the processor's cache."""

RESIDENT_BYTES = 2**28
"""Pixels up to here may stay in a process's memory map; of more, pages are given back."""

ROWS_PER_CALL = 4096
"""Rows trained on between two times of giving pages back."""


@dataclass(frozen=True)
class Rows:
    """Raw pixels and labels of the training split, once a process: all its folds gather from them.

    Attributes
    ----------
    images : tf.Tensor of uint8, shape (n, height, width, channels)
        Shares the memory of `pixels`.
    labels : tf.Tensor of int32, shape (n,)
    pixels : ndarray of uint8
        The memory map of the snapshot.
    """

    images: Any
    labels: Any
    pixels: NDArray[np.uint8]

    @property
    def many(self) -> bool:
        """Whether the pixels are too many to keep in every process."""
        return self.pixels.nbytes > RESIDENT_BYTES

    def release(self) -> None:
        """Give the pages of many pixels back; they stay in the cache that all processes share."""
        if self.many:
            give_back(self.pixels)


@lru_cache(maxsize=1)
def rows_of(snapshot: Path) -> Rows:
    """The training rows of a snapshot, as tensors without a copy of the pixels."""
    import tensorflow as tf

    dataset = Dataset.open(snapshot)
    pixels = dataset.training_pixels()
    images = tf.experimental.dlpack.from_dlpack(np.asarray(pixels).__dlpack__())
    if tf.config.list_logical_devices("GPU"):
        with tf.device("GPU:0"):
            images = tf.identity(images)
    return Rows(images, tf.constant(dataset.train.labels.astype(np.int32)), pixels)


def epoch_graph(
    model: Any, optimizer: Any, candidate: Candidate, rows: Rows, seed: int, n_learning: int
) -> Callable[..., Any]:
    """Graph function that trains on some rows in the given order.

    Parameters
    ----------
    model : keras.Model
    optimizer : keras.optimizers.Optimizer
        Built on the model's trainable variables.
    candidate : Candidate
    rows : Rows
    seed : int
        Of the augmentation.
    n_learning : int
        Rows of an epoch.

    Returns
    -------
    callable
        ``(order int64 (n,), rates float32 (steps,), first_step int32)`` in, sum of the losses over
        rows (float64) and number of rows predicted right (int32) out. The last step of an epoch is
        smaller if the batch size does not divide its rows; a call takes whole batches otherwise.
    """
    import tensorflow as tf

    batch_size, variables = candidate.batch_size, model.trainable_variables
    predict, loss_of = training_pass(model), _loss(model, candidate)

    def step(chosen: Any, rate: Any, number: Any) -> tuple[Any, Any]:
        x, y = tf.gather(rows.images, chosen), tf.gather(rows.labels, chosen)
        if candidate.augmentation is not None:
            x = augment(x, candidate.augmentation, seed, number)
        with tf.GradientTape() as tape:
            probabilities = predict(x)
            loss, penalty = loss_of(x, y, probabilities)
            total = tf.add_n([loss, *penalty])
        gradients = tape.gradient(total, [v.value for v in variables])
        apply_step(optimizer, gradients, variables, rate)
        correct = tf.argmax(probabilities, axis=1, output_type=tf.int32) == y
        n = tf.cast(tf.shape(chosen)[0], tf.float64)
        return tf.cast(loss, tf.float64) * n, tf.reduce_sum(tf.cast(correct, tf.int32))

    @tf.function(autograph=False, reduce_retracing=True)
    def epoch(order: Any, rates: Any, first_step: Any) -> tuple[Any, Any]:
        n = tf.shape(order)[0]
        full = n // batch_size

        def body(i: Any, loss: Any, correct: Any) -> tuple[Any, Any, Any]:
            chosen = order[i * batch_size : (i + 1) * batch_size]
            chosen.set_shape([batch_size])  # a fixed shape lets the graph plan its memory
            step_loss, step_correct = step(chosen, rates[i], first_step + i)
            return i + 1, loss + step_loss, correct + step_correct

        _, loss, correct = tf.while_loop(
            lambda i, *_: i < full,
            body,
            (tf.constant(0), tf.constant(0.0, tf.float64), tf.constant(0)),
            parallel_iterations=1,
        )

        if n_learning % batch_size == 0:  # a second step to trace takes as long as the first
            return loss, correct

        def remainder() -> tuple[Any, Any]:
            rest = order[full * batch_size :]
            step_loss, step_correct = step(rest, rates[full], first_step + full)
            return loss + step_loss, correct + step_correct

        return tf.cond(  # type: ignore[no-any-return]
            full * batch_size < n, remainder, lambda: (loss, correct)
        )

    return epoch  # type: ignore[no-any-return]


def evaluation_graph(model: Any, rows: Rows) -> Callable[..., Any]:
    """Graph function: rows in, probabilities and summed cross-entropy out."""
    import keras
    import tensorflow as tf

    @tf.function(autograph=False, reduce_retracing=True)
    def evaluate(chosen: Any) -> tuple[Any, Any]:
        probabilities = model(tf.gather(rows.images, chosen), training=False)
        losses = keras.losses.sparse_categorical_crossentropy(
            tf.gather(rows.labels, chosen), probabilities
        )
        return probabilities, tf.reduce_sum(losses)

    return evaluate  # type: ignore[no-any-return]


def _loss(model: Any, candidate: Candidate) -> Callable[[Any, Any, Any], tuple[Any, list[Any]]]:
    """Function of images, labels and probabilities: mean loss of the batch, penalties of layers.

    Cross-entropy unless the architecture compiled its model with a loss of its own.
    """
    import keras
    import tensorflow as tf

    def own(x: Any, y: Any, probabilities: Any) -> tuple[Any, list[Any]]:
        return model.compute_loss(x=x, y=y, y_pred=probabilities, training=True), []

    def cross_entropy(_x: Any, y: Any, probabilities: Any) -> tuple[Any, list[Any]]:
        losses = keras.losses.sparse_categorical_crossentropy(y, probabilities)
        return tf.reduce_mean(losses), model.losses

    def smoothed(_x: Any, y: Any, probabilities: Any) -> tuple[Any, list[Any]]:
        losses = keras.losses.categorical_crossentropy(
            tf.one_hot(y, probabilities.shape[-1]),
            probabilities,
            label_smoothing=candidate.label_smoothing,
        )
        return tf.reduce_mean(losses), model.losses

    if model.compiled:
        return own
    return smoothed if candidate.label_smoothing else cross_entropy
