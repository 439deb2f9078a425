"""Fitting: an epoch through `keras.Model.fit`, for models that `nightfold.graphs` cannot train.

Slower; same rows, same order, same learning rates, so checkpoints and scores mean the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightfold.augmentation import augment
from nightfold.experiment import Candidate
from nightfold.graphs import Rows, gather
from nightfold.model import has_own_step


def why_fit(model: Any) -> str | None:
    """Why the model is left to Keras's fit, as the rest of a sentence about it; None if it is not.

    Below float32, Keras multiplies losses so that small gradients are not lost, and casts here and
    there.
    """
    if has_own_step(model):
        return "has a train step or a loss of its own"
    if model.run_eagerly:
        return "is to run eagerly"
    if any(layer.compute_dtype in ("float16", "bfloat16") for layer in model._flatten_layers()):
        return "computes in less than float32"
    if any(getattr(output, "_keras_mask", None) is not None for output in model.outputs):
        return "masks rows out of the loss"
    return None


def fit_epoch(
    model: Any,
    optimizer: Any,
    candidate: Candidate,
    rows: Rows,
    seed: int,
    evaluate: Callable[[NDArray[np.int64]], tuple[Any, float | None, float | None]],
) -> Any:
    """Function that trains one epoch; same arguments and results as `graphs.in_calls`.

    Parameters
    ----------
    model : keras.Model
        Its optimizer is `optimizer` afterwards, or one around it.
    optimizer : keras.optimizers.Optimizer
    candidate : Candidate
    rows : Rows
    seed : int
        Of the augmentation.
    evaluate : callable
        Rows in; probabilities, mean loss and accuracy out. Asked for the loss and the accuracy on
        the rows trained on if the model's own train step does not tell them.

    Returns
    -------
    callable
        ``(order, rates, first_step)`` in, summed loss and number of rows predicted right out.
    """
    import keras

    own_step = type(model).train_step is not keras.Model.train_step
    model.compile(
        optimizer=optimizer,
        loss=model.loss if model.compiled else _cross_entropy(candidate.label_smoothing),
        # A train step of its own need not know of metrics, which then cannot be asked.
        metrics=None if own_step else ["sparse_categorical_accuracy"],
        run_eagerly=model.run_eagerly,
    )

    def epoch(
        order: NDArray[np.int64], rates: NDArray[np.float32], first_step: int
    ) -> tuple[float, float]:
        class Batches(keras.utils.PyDataset):  # type: ignore[misc]
            def __len__(self) -> int:
                return len(rates)

            def __getitem__(self, i: int) -> tuple[Any, NDArray[np.int64]]:
                chosen = order[i * candidate.batch_size : (i + 1) * candidate.batch_size]
                x, y = gather(*rows.of(chosen))
                if candidate.augmentation is not None:
                    x = augment(x, candidate.augmentation, seed, first_step + i)
                return x.numpy(), y.numpy().astype(np.int64)  # as a snapshot has them

        class Rates(keras.callbacks.Callback):  # type: ignore[misc]
            # Not with the batch, which Keras fetches some steps before it is trained on.
            def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
                optimizer.learning_rate.assign(rates[batch])

        history = model.fit(
            Batches(), epochs=1, shuffle=False, verbose=0, callbacks=[Rates()]
        ).history
        # Of a train step that has told no loss, Keras tells 0.
        figures = {name: values[-1] for name, values in history.items() if any(values)}
        if not {"loss", "sparse_categorical_accuracy"} <= figures.keys():
            _, loss, accuracy = evaluate(order)
            figures = {"loss": loss, "sparse_categorical_accuracy": accuracy} | figures
        n = len(order)
        return figures["loss"] * n, figures["sparse_categorical_accuracy"] * n

    return epoch


def _cross_entropy(label_smoothing: float | None) -> Any:
    """What `graphs` minimises, as a loss that can be compiled."""
    import keras

    if not label_smoothing:
        return "sparse_categorical_crossentropy"

    def smoothed(y: Any, probabilities: Any) -> Any:
        labels = keras.ops.reshape(keras.ops.cast(y, "int32"), [-1])
        return keras.losses.categorical_crossentropy(
            keras.ops.one_hot(labels, probabilities.shape[-1]),
            probabilities,
            label_smoothing=label_smoothing,
        )

    return smoothed
