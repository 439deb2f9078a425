"""Graphs: an epoch and a scoring pass as one TensorFlow call each.

Pixels stay uint8 where the snapshot maps them: each step gathers its rows inside the graph, of very
many pixels from those that the call is for. What is computed is what `keras.Model.fit` computes on
the same batches, up to the order of float32 sums. Which rows, in which order, and what is kept of
it is decided in `nightfold.training`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightfold.augmentation import augment
from nightfold.dataset import Dataset
from nightfold.experiment import Candidate
from nightfold.forward import training_pass
from nightfold.model import Network
from nightfold.optimization import apply_step

EVALUATION_BATCH = 64
"""Rows scored at once: what a small network makes of so many stays in the processor's cache."""

RESIDENT_BYTES = 2**28
"""Pixels up to here are mapped into the process; of more, each call reads the rows it is for."""

BYTES_PER_CALL = 2**24
"""Pixels read for a call, about; a process holds them twice for a moment."""


@dataclass(frozen=True)
class Rows:
    """Raw pixels and labels of the training split, once a process: all its folds gather from them.

    They stay in the memory of the processor, also beside a GPU, for which TensorFlow cannot gather
    uint8: a batch is what is sent there.

    Attributes
    ----------
    dataset : Dataset
    held : pair of tf.Tensor or None
        All images, uint8, shape (n, height, width, channels), sharing the memory of the snapshot's
        map, and all labels; None if the pixels are too many to map: the kernel maps up to 2 MB
        around each row that is read, so that rows drawn at random soon map nearly all.
    """

    dataset: Dataset
    held: tuple[Any, Any] | None

    def steps_at_once(self, batch_size: int) -> int | None:
        """How many steps a call may be for; None if any number."""
        if self.held is not None:
            return None
        return max(1, BYTES_PER_CALL // (batch_size * math.prod(self.dataset.image_shape)))

    def of(self, order: NDArray[np.int64]) -> tuple[Any, Any, Any]:
        """What to gather the rows of `order` from.

        Returns
        -------
        images : tf.Tensor of uint8, shape (m, height, width, channels)
        labels : tf.Tensor of int32, shape (m,)
        positions : tf.Tensor of int64, shape (len(order),)
            Where in both the rows are, in their order.
        """
        import tensorflow as tf

        with tf.device("CPU:0"):
            if self.held is not None:
                return *self.held, tf.constant(order)
            images = tf.constant(self.dataset.read_training_images(order))
            labels = tf.constant(self.dataset.train.labels[order].astype(np.int32))
            return images, labels, tf.range(len(order), dtype=tf.int64)


@lru_cache(maxsize=1)
def rows_of(snapshot: Path) -> Rows:
    """The training rows of a snapshot, without a copy of the pixels."""
    import tensorflow as tf

    dataset = Dataset.open(snapshot)
    if dataset.train.images.nbytes > RESIDENT_BYTES:
        return Rows(dataset, None)
    pixels = np.asarray(dataset.training_pixels())
    with tf.device("CPU:0"):
        images = tf.experimental.dlpack.from_dlpack(pixels.__dlpack__())
        return Rows(dataset, (images, tf.constant(dataset.train.labels.astype(np.int32))))


def gather(images: Any, labels: Any, chosen: Any) -> tuple[Any, Any]:
    """Rows of images and labels, gathered where they are: beside a GPU too by the processor."""
    import tensorflow as tf

    with tf.device("CPU:0"):
        return tf.gather(images, chosen), tf.gather(labels, chosen)


def epoch_graph(
    network: Network, optimizer: Any, candidate: Candidate, seed: int, n_learning: int
) -> Callable[..., Any]:
    """Graph function that trains on some rows in the given order.

    Parameters
    ----------
    network : Network
    optimizer : keras.optimizers.Optimizer
        Built on the trainable variables of its model.
    candidate : Candidate
    seed : int
        Of the augmentation.
    n_learning : int
        Rows of an epoch.

    Returns
    -------
    callable
        ``(*Rows.of(order), rates float32 (steps,), first_step int32)`` in, sum of the losses over
        rows (float64; with the penalties of layers, as Keras tells it) and number of rows predicted
        right (int64) out. The last step of an epoch is smaller if the batch size does not divide
        its rows; a call takes whole batches otherwise.
    """
    import tensorflow as tf

    batch_size, model = candidate.batch_size, network.model
    variables = model.trainable_variables
    predict, loss_of = training_pass(model, network.training), _loss(model, candidate)

    def step(x: Any, y: Any, rate: Any, number: Any) -> tuple[Any, Any]:
        if candidate.augmentation is not None:
            x = augment(x, candidate.augmentation, seed, number)
        with tf.GradientTape() as tape:
            probabilities = predict(x)
            loss, penalty = loss_of(x, y, probabilities)
            total = tf.add_n([loss, *(tf.cast(tf.reduce_sum(p), loss.dtype) for p in penalty)])
        gradients = tape.gradient(total, [v.value for v in variables])
        apply_step(optimizer, gradients, variables, rate)
        # In int64: a GPU leaves comparing and adding up int32 to the processor.
        correct = tf.argmax(probabilities, axis=1) == tf.cast(y, tf.int64)
        n = tf.cast(tf.shape(y)[0], tf.float64)
        return tf.cast(total, tf.float64) * n, tf.reduce_sum(tf.cast(correct, tf.int64))

    @tf.function(autograph=False, reduce_retracing=True)
    def epoch(images: Any, labels: Any, order: Any, rates: Any, first_step: Any) -> tuple[Any, Any]:
        n = tf.shape(order)[0]
        full = n // batch_size
        nothing = tf.constant(0.0, tf.float64), tf.constant(0, tf.int64)

        def body(i: Any, loss: Any, correct: Any) -> tuple[Any, Any, Any]:
            with tf.device("CPU:0"):
                chosen = order[i * batch_size : (i + 1) * batch_size]
            chosen.set_shape([batch_size])  # a fixed shape lets the graph plan its memory
            x, y = gather(images, labels, chosen)
            step_loss, step_correct = step(x, y, rates[i], first_step + i)
            return i + 1, loss + step_loss, correct + step_correct

        if n_learning < batch_size:  # to plan for whole batches nobody takes costs their memory
            loss, correct = nothing
        else:
            _, loss, correct = tf.while_loop(
                lambda i, *_: i < full, body, (tf.constant(0), *nothing), parallel_iterations=1
            )

        if n_learning % batch_size == 0:  # a second step to trace takes as long as the first
            return loss, correct

        def remainder() -> tuple[Any, Any]:
            with tf.device("CPU:0"):
                rest = order[full * batch_size :]
            x, y = gather(images, labels, rest)
            step_loss, step_correct = step(x, y, rates[full], first_step + full)
            return loss + step_loss, correct + step_correct

        return tf.cond(  # type: ignore[no-any-return]
            full * batch_size < n, remainder, lambda: (loss, correct)
        )

    return epoch  # type: ignore[no-any-return]


def in_calls(epoch: Callable[..., Any], rows: Rows, batch_size: int) -> Callable[..., Any]:
    """An epoch's graph as a function of rows, in one call or, of very many pixels, in several.

    Parameters
    ----------
    epoch : callable
        Of `epoch_graph`.
    rows : Rows
    batch_size : int

    Returns
    -------
    callable
        ``(order int64 (n,), rates float32 (steps,), first_step)`` in, summed loss and number of
        rows predicted right out.
    """
    import tensorflow as tf

    def train(
        order: NDArray[np.int64], rates: NDArray[np.float32], first_step: int
    ) -> tuple[float, float]:
        at_once = rows.steps_at_once(batch_size) or len(rates)
        loss = correct = 0.0
        for start in range(0, len(rates), at_once):
            stop = min(start + at_once, len(rates))
            summed, right = epoch(
                *rows.of(order[start * batch_size : stop * batch_size]),
                tf.constant(rates[start:stop]),
                tf.constant(first_step + start),
            )
            loss, correct = loss + float(summed), correct + float(right)
        return loss, correct

    return train


def evaluation_graph(model: Any, image_shape: tuple[int, int, int]) -> Callable[..., Any]:
    """Graph function that scores some rows by the model itself, without a rewrite.

    Parameters
    ----------
    model : keras.Model
    image_shape : tuple of int
        Height, width, channels.

    Returns
    -------
    callable
        `Rows.of(order)` in, its length a multiple of `EVALUATION_BATCH`; probabilities
        (float32, shape (n, n_classes)) and cross-entropies (float32, shape (n,)) out.
    """
    import keras
    import tensorflow as tf

    @tf.function(autograph=False, input_signature=_rows_signature(image_shape))
    def evaluate(images: Any, labels: Any, order: Any) -> tuple[Any, Any]:
        def score(chosen: Any) -> tuple[Any, Any]:
            x, y = gather(images, labels, chosen)
            probabilities = model(x, training=False)
            losses = keras.losses.sparse_categorical_crossentropy(y, _as_keras(probabilities))
            return tf.cast(probabilities, tf.float32), tf.cast(losses, tf.float32)

        with tf.device("CPU:0"):
            batches = tf.reshape(order, [-1, EVALUATION_BATCH])
        probabilities, losses = tf.map_fn(
            score, batches, fn_output_signature=(tf.float32, tf.float32), parallel_iterations=1
        )
        n_classes = tf.shape(probabilities)[-1]
        return tf.reshape(probabilities, [-1, n_classes]), tf.reshape(losses, [-1])

    return evaluate  # type: ignore[no-any-return]


def score_in_calls(evaluate: Callable[..., Any], rows: Rows) -> Callable[..., Any]:
    """An evaluation graph as a function of rows, in one call or, of very many pixels, in several.

    Parameters
    ----------
    evaluate : callable
        Of `evaluation_graph`.
    rows : Rows

    Returns
    -------
    callable
        Order of rows (int64, shape (n,), at least one) in; probabilities (float32, shape
        (n, n_classes)) and cross-entropies (float32, shape (n,)) out.
    """

    def score(order: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        whole = np.pad(order, (0, -len(order) % EVALUATION_BATCH), mode="edge")
        at_once = EVALUATION_BATCH * (rows.steps_at_once(EVALUATION_BATCH) or len(whole))
        calls = [
            evaluate(*rows.of(whole[start : start + at_once]))
            for start in range(0, len(whole), at_once)
        ]
        probabilities, losses = (np.concatenate(parts) for parts in zip(*calls, strict=True))
        return probabilities[: len(order)], losses[: len(order)]

    return score


def _rows_signature(image_shape: tuple[int, int, int]) -> list[Any]:
    """Of what `Rows.of` gives: however many rows, a graph is traced once."""
    import tensorflow as tf

    return [
        tf.TensorSpec([None, *image_shape], tf.uint8),
        tf.TensorSpec([None], tf.int32),
        tf.TensorSpec([None], tf.int64),
    ]


def _as_keras(probabilities: Any) -> Any:
    """As Keras's losses take them: float64 as float32, and then clipped, as logits are not."""
    import keras
    import tensorflow as tf

    return tf.cast(probabilities, keras.config.floatx())


def _loss(model: Any, candidate: Candidate) -> Callable[[Any, Any, Any], tuple[Any, list[Any]]]:
    """Function of images, labels and probabilities: mean loss of the batch, penalties of layers.

    Cross-entropy unless the architecture compiled its model with a loss of its own.
    """
    import keras
    import tensorflow as tf
    from keras.src.losses.loss import reduce_weighted_values

    def mean(losses: Any, probabilities: Any) -> Any:
        # Of a layer that masks within its call, nobody knows before this is traced.
        mask = getattr(probabilities, "_keras_mask", None)
        return tf.reduce_mean(losses) if mask is None else reduce_weighted_values(losses, mask=mask)

    def own(x: Any, y: Any, probabilities: Any) -> tuple[Any, list[Any]]:
        # Not compute_loss, which a class may have overridden without the argument `training`.
        return model._compute_loss(x, y, probabilities, None, training=True), []

    def cross_entropy(_x: Any, y: Any, probabilities: Any) -> tuple[Any, list[Any]]:
        losses = keras.losses.sparse_categorical_crossentropy(y, _as_keras(probabilities))
        return mean(losses, probabilities), model.losses

    def smoothed(_x: Any, y: Any, probabilities: Any) -> tuple[Any, list[Any]]:
        losses = keras.losses.categorical_crossentropy(
            tf.one_hot(y, probabilities.shape[-1]),
            _as_keras(probabilities),
            label_smoothing=candidate.label_smoothing,
        )
        return mean(losses, probabilities), model.losses

    if model.compiled:
        return own
    return smoothed if candidate.label_smoothing else cross_entropy
