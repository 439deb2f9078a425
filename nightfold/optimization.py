"""Optimizers and learning-rate schedules, from what an experiment declares.

A schedule is computed before training as one number for each step, so it can be tested, drawn and
resumed at any step; the optimizer is Keras's own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightfold.experiment import Optimizer, Schedule


def make_optimizer(choice: Optimizer) -> Any:
    """The Keras optimizer that `choice` declares; parameters left out are Keras's defaults."""
    from keras import optimizers

    kinds = {
        "sgd": optimizers.SGD,
        "adam": optimizers.Adam,
        "rmsprop": optimizers.RMSprop,
        "adamw": optimizers.AdamW,
    }
    return kinds[choice.name](**choice.model_dump(exclude={"name"}, exclude_none=True))


def learning_rates(
    schedule: Schedule, learning_rate: float, epochs: int, steps_per_epoch: int
) -> NDArray[np.float32]:
    """Learning rate of every step of training.

    Parameters
    ----------
    schedule : Schedule
    learning_rate : float
        The optimizer's; constant and step start from it, cosine falls from it, one-cycle peaks
        at it.
    epochs, steps_per_epoch : int

    Returns
    -------
    ndarray of float32, shape (epochs * steps_per_epoch,)

    Notes
    -----
    Cosine: ``lr (1 + cos(pi t)) / 2`` with t from 0 to 1 (Loshchilov and Hutter 2017, without
    restarts). One-cycle: linear from lr/25 up to lr over the first part of the steps (`warm_up`,
    0.3 if not given), then linear down to 0 (Smith and Topin 2019, two phases).
    """
    steps = np.arange(epochs * steps_per_epoch)
    t = steps / max(len(steps), 1)
    if schedule.name == "step":
        drops = steps // (steps_per_epoch * (schedule.every or 1))
        rates = learning_rate * (schedule.factor or 0.5) ** drops
    elif schedule.name == "cosine":
        rates = learning_rate * (1 + np.cos(np.pi * t)) / 2
    elif schedule.name == "one_cycle":
        peak = schedule.warm_up or 0.3
        rates = learning_rate * np.interp(t, [0, peak, 1], [1 / 25, 1, 0])
    else:
        rates = np.full(len(steps), learning_rate)
    return rates.astype(np.float32)
