"""Optimizers and learning-rate schedules, from what an experiment declares.

A schedule is computed before training as one number for each step, so it can be tested, drawn and
resumed at any step; the optimizer is Keras's own, its update one fused operation where TensorFlow
has one that computes the same.
"""

from __future__ import annotations

from collections.abc import Callable
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


def apply_step(optimizer: Any, gradients: list[Any], variables: list[Any], rate: Any) -> None:
    """One step of `optimizer` at learning rate `rate`, inside a graph.

    Where TensorFlow has the same update as one operation, which passes over memory once, that is
    used; every other optimizer is applied by Keras.

    Notes
    -----
    Plain: ``w = w - rate g``. Momentum: ``v = momentum v - rate g``, ``w = w + v``; with Nesterov
    ``w = w + momentum v - rate g``.
    Adam (Kingma and Ba 2015, as Keras writes it), t from 1: ``m = beta_1 m + (1 - beta_1) g``,
    ``v = beta_2 v + (1 - beta_2) g^2``,
    ``w = w - rate sqrt(1 - beta_2^t) / (1 - beta_1^t) m / (sqrt(v) + epsilon)``.
    """
    import tensorflow as tf

    fused = _fused_update(optimizer)
    plain = all(isinstance(gradient, tf.Tensor) for gradient in gradients) and not any(
        variable.constraint is not None or variable.overwrite_with_gradient
        for variable in variables
    )
    if fused is None or not plain:
        optimizer.learning_rate.assign(rate)
        optimizer.apply(gradients, variables)
        return
    update = fused(optimizer, rate)
    for position, (gradient, variable) in enumerate(zip(gradients, variables, strict=True)):
        update(position, gradient, variable)
    optimizer.iterations.assign_add(1)


def _fused_update(optimizer: Any) -> Callable[[Any, Any], Callable[[int, Any, Any], None]] | None:
    """The fused form of exactly this optimizer, or None if its step does more."""
    from keras import optimizers

    if (
        optimizer.weight_decay
        or optimizer.clipnorm
        or optimizer.clipvalue
        or optimizer.global_clipnorm
        or optimizer.use_ema
        or optimizer.loss_scale_factor
        or optimizer.gradient_accumulation_steps
    ):
        return None
    if type(optimizer) is optimizers.SGD:
        return _momentum if optimizer.momentum else _descent
    if type(optimizer) is optimizers.Adam and not optimizer.amsgrad:
        return _adam
    return None


def _descent(_optimizer: Any, rate: Any) -> Callable[[int, Any, Any], None]:
    import tensorflow as tf

    def update(_position: int, gradient: Any, variable: Any) -> None:
        tf.raw_ops.ResourceApplyGradientDescent(
            var=variable.value.handle, alpha=tf.cast(rate, gradient.dtype), delta=gradient
        )

    return update


def _momentum(optimizer: Any, rate: Any) -> Callable[[int, Any, Any], None]:
    import tensorflow as tf

    def update(position: int, gradient: Any, variable: Any) -> None:
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.value.handle,
            accum=optimizer.momentums[position].value.handle,
            lr=tf.cast(rate, gradient.dtype),
            grad=gradient,
            momentum=tf.constant(optimizer.momentum, gradient.dtype),
            use_nesterov=bool(optimizer.nesterov),
        )

    return update


def _adam(optimizer: Any, rate: Any) -> Callable[[int, Any, Any], None]:
    import tensorflow as tf

    def update(position: int, gradient: Any, variable: Any) -> None:
        def number(value: Any) -> Any:
            return tf.cast(value, gradient.dtype)

        t = number(optimizer.iterations.value + 1)
        beta_1, beta_2 = (
            tf.constant(beta, gradient.dtype) for beta in (optimizer.beta_1, optimizer.beta_2)
        )
        tf.raw_ops.ResourceApplyAdam(
            var=variable.value.handle,
            m=optimizer._momentums[position].value.handle,
            v=optimizer._velocities[position].value.handle,
            beta1_power=tf.pow(beta_1, t),
            beta2_power=tf.pow(beta_2, t),
            lr=number(rate),
            beta1=beta_1,
            beta2=beta_2,
            epsilon=tf.constant(optimizer.epsilon, gradient.dtype),
            grad=gradient,
        )

    return update
