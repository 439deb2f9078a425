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
from nightfold.model import Network, has_own, has_own_step

_OVERRIDES_LEFT_TO_FIT = (
    "trainable_variables",
    "trainable_weights",
    "losses",
    "metrics",
    "compute_metrics",
    "reset_metrics",
)


def why_fit(network: Network) -> str | None:
    """Why a network is left to Keras's fit, as the rest of a sentence about it; None if it is not.

    Below float32, Keras multiplies losses so that small gradients are not lost, and casts here and
    there; of a layer that masks, a model with a call of its own does not tell before it is called.
    """
    import keras

    model, own = network.model, network.own
    layers = list(model._flatten_layers())
    if has_own_step(own):
        return "has a train step or a loss of its own"
    if own is not None and (
        _trained(own) != _trained(model)
        or any(has_own(own, name) for name in _OVERRIDES_LEFT_TO_FIT)
    ):
        return f"overrides one of {', '.join(_OVERRIDES_LEFT_TO_FIT)}"
    if own is not None and own.run_eagerly:
        return "is to run eagerly"
    if any(layer.compute_dtype in ("float16", "bfloat16") for layer in layers):
        return "computes in less than float32"
    if any(getattr(output, "_keras_mask", None) is not None for output in model.outputs) or any(
        _masks(layer) for layer in layers
    ):
        return "may mask rows out of the loss"
    losses = keras.tree.flatten(model.loss) if model.compiled else []
    if any(getattr(loss, "reduction", "sum") in (None, "none") or _sums(loss) for loss in losses):
        return "has a loss that Keras does not reduce to a number"
    return None


def _trained(model: Any) -> set[int]:
    return {id(variable) for variable in model.trainable_variables}


def _sums(loss: Any) -> bool:
    """Whether a loss says in its own `__call__` how it is summed over rows."""
    import keras

    stock = keras.losses.Loss
    return isinstance(loss, stock) and type(loss).__call__ is not stock.__call__


def _masks(layer: Any) -> bool:
    """Whether the layer may begin a mask; most others only pass one on."""
    import keras

    if type(layer).compute_mask.__module__.startswith("keras."):
        return isinstance(layer, keras.layers.Masking) or getattr(layer, "mask_zero", False)
    return True


def fit_epoch(
    network: Network,
    optimizer: Any,
    candidate: Candidate,
    rows: Rows,
    seed: int,
    evaluate: Callable[[NDArray[np.int64]], tuple[Any, float | None, float | None]],
) -> Any:
    """Function that trains one epoch; same arguments and results as `graphs.in_calls`.

    Parameters
    ----------
    network : Network
        The optimizer of what is trained is `optimizer` afterwards, or one around it.
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

    model = network.trained
    own_loss = network.model.compiled
    model.compile(
        optimizer=optimizer,
        loss=model.loss if own_loss else _cross_entropy(candidate.label_smoothing),
        loss_weights=model._compile_loss._user_loss_weights if own_loss else None,
        # Steps and measures of its own need not know of metrics, which then cannot be asked.
        metrics=None
        if has_own(model, "train_step") or has_own(model, "compute_metrics")
        else ["sparse_categorical_accuracy"],
        run_eagerly=model.run_eagerly,
        jit_compile=False,  # as in the graphs
    )

    class Batches(keras.utils.PyDataset):  # type: ignore[misc]
        """What `take` gives for the number of a batch."""

        def __init__(self, take: Callable[[int], Any], n: int) -> None:
            super().__init__()
            self.take: Callable[[int], Any] | None = take
            self.n = n

        def __len__(self) -> int:
            return self.n

        def __getitem__(self, i: int) -> Any:
            assert self.take is not None
            return self.take(i)

    def epoch(
        order: NDArray[np.int64], rates: NDArray[np.float32], first_step: int
    ) -> tuple[float, float]:
        def take(i: int) -> tuple[Any, NDArray[np.int64]]:
            chosen = order[i * candidate.batch_size : (i + 1) * candidate.batch_size]
            x, y = gather(*rows.of(chosen))
            if candidate.augmentation is not None:
                x = augment(x, candidate.augmentation, seed, first_step + i)
            if network.own is not None:
                x = network.scaled(x)
            return x.numpy(), y.numpy().astype(np.int64)  # as a snapshot has them

        class Rates(keras.callbacks.Callback):  # type: ignore[misc]
            # Not with the batch, which Keras fetches some steps before it is trained on.
            def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
                optimizer.learning_rate.assign(rates[batch])

        batches = Batches(take, len(rates))
        try:
            history = model.fit(
                batches, epochs=1, shuffle=False, verbose=0, callbacks=[Rates()]
            ).history
        finally:
            batches.take = None  # TensorFlow keeps the rest for as long as the process lives
        # Of a train step that has told no loss, Keras tells 0.
        figures = {name: v[-1] for name, v in history.items() if name != "loss" or any(v)}
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
