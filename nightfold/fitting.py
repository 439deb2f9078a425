"""Fitting: an epoch through `keras.Model.fit`, for models with a train step of their own.

Slower than the graphs of `nightfold.graphs`, which know nothing of such a step; same rows, same
order, same learning rates, so checkpoints and scores mean the same.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightfold.augmentation import augment
from nightfold.experiment import Candidate
from nightfold.graphs import Rows, gather

log = logging.getLogger(__name__)


def needs_fit(model: Any) -> bool:
    """Whether the model's class has a train step of its own."""
    import keras

    return type(model).train_step is not keras.Model.train_step


def fit_epoch(model: Any, optimizer: Any, candidate: Candidate, rows: Rows, seed: int) -> Any:
    """Function that trains one epoch; same arguments and results as `graphs.in_calls`.

    Parameters
    ----------
    model : keras.Model
    optimizer : keras.optimizers.Optimizer
    candidate : Candidate
    rows : Rows
    seed : int
        Of the augmentation.

    Returns
    -------
    callable
        ``(order, rates, first_step)`` in, summed loss and number of rows predicted right out.
    """
    import keras

    log.warning(
        "%s has a train step of its own and is trained through Keras's fit, which is slower.",
        candidate.name,
    )
    model.compile(
        optimizer=optimizer,
        loss=model.loss if model.compiled else "sparse_categorical_crossentropy",
        metrics=["sparse_categorical_accuracy"],
    )

    def epoch(
        order: NDArray[np.int64], rates: NDArray[np.float32], first_step: int
    ) -> tuple[float, float]:
        class Batches(keras.utils.PyDataset):  # type: ignore[misc]
            def __len__(self) -> int:
                return len(rates)

            def __getitem__(self, i: int) -> tuple[Any, NDArray[np.int64]]:
                optimizer.learning_rate.assign(rates[i])
                chosen = order[i * candidate.batch_size : (i + 1) * candidate.batch_size]
                x, y = gather(*rows.of(chosen))
                if candidate.augmentation is not None:
                    x = augment(x, candidate.augmentation, seed, first_step + i)
                return x.numpy(), y.numpy().astype(np.int64)  # as a snapshot has them

        history = model.fit(Batches(), epochs=1, shuffle=False, verbose=0).history
        n = len(order)
        return history["loss"][-1] * n, history["sparse_categorical_accuracy"][-1] * n

    return epoch
