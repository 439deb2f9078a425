"""The training loop: one model, its rows, its epochs; deterministic and resumable.

An epoch is one graph call over an order of rows that is computed here, not by a data pipeline: the
pixels stay uint8 where they are mapped, and each step gathers its batch, so folds share one copy
and need no copy of their own. After every epoch the whole state goes to a checkpoint; a killed
training continues behind its last finished epoch with the same numbers. This module knows
nothing of folds: `nightfold.foldresult` says which rows are whose.
"""

from __future__ import annotations

import random
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from nightfold import backend
from nightfold.dataset import Dataset
from nightfold.errors import NightfoldError, UsageError
from nightfold.experiment import Candidate
from nightfold.optimization import learning_rates, make_optimizer
from nightfold.scaling import Scaler
from nightfold.store import atomic_file
from nightfold.zoo import find

ENGINE = 1
"""Part of every result's key: raise it when the same candidate would give other numbers."""

EVALUATION_BATCH = 1000
_BUILDING = threading.Lock()  # Keras draws initial weights from a state that all threads share


class Epoch(BaseModel):
    """What one epoch gave; losses in nats, accuracies 0 to 1, times in seconds.

    The validation figures are of the scored rows, for the record only; nothing is decided by them.
    """

    model_config = ConfigDict(frozen=True)

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None
    learning_rate: float
    seconds: float


@dataclass
class Trained:
    """A trained model and how it got there.

    Attributes
    ----------
    model : keras.Model
        Takes raw uint8 images, gives probabilities.
    history : list of Epoch
    probabilities : ndarray of float32, shape (n_scored, n_classes)
        For the scored rows, in their order.
    loss : float or None
        Mean loss on the scored rows; None without any.
    """

    model: Any
    history: list[Epoch]
    probabilities: NDArray[np.float32]
    loss: float | None


@contextmanager
def _own_random(seed: int) -> Iterator[None]:
    """Give this thread draws of its own from `random.randint`.

    Keras takes the seeds of initial weights and dropout from there, and whatever else runs in the
    process (Dask, Prefect, the jitter of a retry) draws from the same state at any moment.
    """
    ours, everybodys, us = random.Random(seed), random.randint, threading.get_ident()

    def randint(a: int, b: int) -> int:
        return (ours.randint if threading.get_ident() == us else everybodys)(a, b)

    random.randint = randint
    try:
        yield
    finally:
        random.randint = everybodys


def build_model(candidate: Candidate, scaler: Scaler, dataset: Dataset, seed: int) -> Any:
    """A fresh model with its own initial weights, scaling inside.

    Parameters
    ----------
    candidate : Candidate
    scaler : Scaler
        Fitted on the rows that the model will be trained on.
    dataset : Dataset
        Gives image shape and number of classes.
    seed : int
        Of the initial weights and of dropout.

    Returns
    -------
    keras.Model
        uint8 (n, height, width, channels) in, float32 probabilities (n, n_classes) out.

    Raises
    ------
    UsageError
        If the architecture does not fit the images or does not give one probability a class.
    """
    import keras

    build = find(candidate.architecture)
    with _BUILDING, _own_random(seed):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input(dataset.image_shape, dtype="uint8", name="image")
        x = inputs
        for layer in scaler.layers():
            x = layer(x)
        try:
            outputs = build(x, dataset.n_classes)
        except (ValueError, TypeError) as error:
            shape = "x".join(map(str, dataset.image_shape))
            first_line = str(error).strip().splitlines()[0]
            raise UsageError(
                f"The architecture {candidate.architecture!r} cannot be built for images of "
                f"{shape}: {first_line}"
            ) from error
        if tuple(getattr(outputs, "shape", ())) != (None, dataset.n_classes):
            raise UsageError(
                f"The architecture {candidate.architecture!r} returns shape "
                f"{getattr(outputs, 'shape', None)}; it must return (None, {dataset.n_classes}), "
                "one probability a class."
            )
        return keras.Model(inputs, outputs, name=candidate.name.replace(".", "_"))


def train(
    candidate: Candidate,
    dataset: Dataset,
    train_rows: NDArray[np.int64],
    scored_rows: NDArray[np.int64],
    *,
    scaler: Scaler,
    seed: int,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Trained:
    """Train `candidate` on some rows of the training split and score it on others.

    Parameters
    ----------
    candidate : Candidate
    dataset : Dataset
    train_rows, scored_rows : ndarray of int64
        Positions in the training split; they must not overlap. `scored_rows` may be empty.
    scaler : Scaler
        Fitted on `train_rows`.
    seed : int
        Of initial weights, dropout and the order of rows.
    checkpoint : Path, optional
        Where the state goes after each epoch, and comes from if it is there.
    on_epoch : callable, optional
        Called with each finished epoch, after its checkpoint is safe. An exception it raises
        leaves the checkpoint as it is; the next call continues behind it.

    Returns
    -------
    Trained

    Raises
    ------
    ValueError
        If a row is in both sets.
    NightfoldError
        If the loss or a weight is no longer a number, or TensorFlow keeps several threads.
    """
    if np.intersect1d(train_rows, scored_rows).size:
        raise ValueError("rows to score are among the rows to train on")
    backend.start()
    backend.require_one_thread()
    inner_rows, learning_rows = _set_aside(candidate, train_rows, seed)
    training = _Training(candidate, dataset, scaler, learning_rows, seed)
    if checkpoint is not None:
        training.restore(checkpoint)
    while not training.finished:
        training.run_epoch(scored_rows, inner_rows)
        if training.diverged:
            raise NightfoldError(
                f"The training of {candidate.name} diverged in epoch {len(training.history)}: its "
                "weights are no longer numbers; lower the learning rate."
            )
        if checkpoint is not None:
            training.save(checkpoint)
        if on_epoch is not None:
            on_epoch(training.history[-1])
    training.use_best()
    probabilities, loss, _ = training.evaluate(scored_rows)
    return Trained(training.model, training.history, probabilities, loss)


def _set_aside(
    candidate: Candidate, rows: NDArray[np.int64], seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split training rows into those early stopping looks at (maybe none) and the rest."""
    if candidate.early_stopping is None:
        return rows[:0], rows
    shuffled = np.random.default_rng([seed, 0]).permutation(rows)
    n_inner = max(1, round(len(rows) * candidate.early_stopping.fraction))
    return np.sort(shuffled[:n_inner]), np.sort(shuffled[n_inner:])


@dataclass
class _Training:
    """The state that a checkpoint holds, and the graph functions that move it."""

    candidate: Candidate
    dataset: Dataset
    scaler: Scaler
    rows: NDArray[np.int64]
    seed: int
    history: list[Epoch] = field(default_factory=list)
    inner_losses: list[float] = field(default_factory=list)
    best_weights: list[NDArray[Any]] = field(default_factory=list)

    def __post_init__(self) -> None:

        self.model = build_model(self.candidate, self.scaler, self.dataset, self.seed)
        self.optimizer = make_optimizer(self.candidate.optimizer)
        self.optimizer.build(self.model.trainable_variables)
        self.steps = -(-len(self.rows) // self.candidate.batch_size)
        self.rates = learning_rates(
            self.candidate.schedule,
            self.candidate.optimizer.learning_rate,
            self.candidate.epochs,
            self.steps,
        )
        self.images, self.labels = _tensors(self.dataset.path)
        self.epoch_graph = _epoch_graph(
            self.model, self.optimizer, self.images, self.labels, self.candidate.batch_size
        )
        self.evaluation_graph = _evaluation_graph(self.model, self.images, self.labels)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done or early stopping's patience is over."""
        stopping = self.candidate.early_stopping
        if len(self.history) >= self.candidate.epochs:
            return True
        if stopping is None or not self.inner_losses:
            return False
        return len(self.inner_losses) - 1 - self._best_epoch() >= stopping.patience

    @property
    def diverged(self) -> bool:
        """Whether the loss or a weight is not finite; a ReLU can hide the one from the other."""
        numbers = [np.array(self.history[-1].train_loss), *self.model.get_weights()]
        return not all(np.isfinite(array).all() for array in numbers)

    def run_epoch(self, scored_rows: NDArray[np.int64], inner_rows: NDArray[np.int64]) -> None:
        """Train one epoch and evaluate it."""
        import tensorflow as tf

        started = time.perf_counter()
        epoch = len(self.history) + 1
        # Seeded by the epoch's number, so a resumed training needs no generator's state.
        order = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
        rates = self.rates[(epoch - 1) * self.steps : epoch * self.steps]
        loss, accuracy = self.epoch_graph(tf.constant(order), tf.constant(rates))
        _, validation_loss, validation_accuracy = self.evaluate(scored_rows)
        if len(inner_rows):
            self._remember(self.evaluate(inner_rows)[1])
        self.history.append(
            Epoch(
                epoch=epoch,
                train_loss=float(loss),
                train_accuracy=float(accuracy),
                validation_loss=validation_loss,
                validation_accuracy=validation_accuracy,
                learning_rate=float(rates[-1]),
                seconds=time.perf_counter() - started,
            )
        )

    def evaluate(
        self, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], float | None, float | None]:
        """Probabilities, mean loss and accuracy on `rows`; None for both without rows."""
        import tensorflow as tf

        if not len(rows):
            return np.empty((0, self.dataset.n_classes), np.float32), None, None
        parts, loss = [], 0.0
        for start in range(0, len(rows), EVALUATION_BATCH):
            chunk = rows[start : start + EVALUATION_BATCH]
            probabilities, chunk_loss = self.evaluation_graph(tf.constant(chunk))
            parts.append(probabilities.numpy())
            loss += float(chunk_loss)
        whole = np.concatenate(parts)
        correct = whole.argmax(axis=1) == self.dataset.train.labels[rows]
        return whole, loss / len(rows), float(correct.mean())

    def use_best(self) -> None:
        """With early stopping, go back to the weights of the best epoch."""
        if self.best_weights:
            self.model.set_weights(self.best_weights)

    def save(self, path: Path) -> None:
        """Write the whole state, atomically; plain arrays, no pickle."""
        arrays = {f"model_{i:04d}": v.numpy() for i, v in enumerate(self._model_state())}
        arrays |= {f"optimizer_{i:04d}": v.numpy() for i, v in enumerate(self.optimizer.variables)}
        arrays |= {f"best_{i:04d}": value for i, value in enumerate(self.best_weights)}
        history = "[" + ",".join(epoch.model_dump_json() for epoch in self.history) + "]"
        with atomic_file(path) as part, part.open("wb") as file:
            np.savez(
                file,
                history=np.frombuffer(history.encode(), np.uint8),
                inner_losses=np.array(self.inner_losses),
                **arrays,
            )

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint if there is a whole one; else start from the beginning."""
        from pydantic import TypeAdapter

        try:
            with np.load(path, allow_pickle=False) as arrays:
                state = {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, zipfile.BadZipFile):
            return
        for i, variable in enumerate(self._model_state()):
            variable.assign(state[f"model_{i:04d}"])
        for i, variable in enumerate(self.optimizer.variables):
            variable.assign(state[f"optimizer_{i:04d}"])
        self.best_weights = [state[name] for name in sorted(state) if name.startswith("best_")]
        self.inner_losses = [float(loss) for loss in state["inner_losses"]]
        self.history = TypeAdapter(list[Epoch]).validate_json(state["history"].tobytes())

    def _model_state(self) -> list[Any]:
        """Weights, moving averages and the random state of dropout."""
        return list(self.model.variables)

    def _remember(self, inner_loss: float | None) -> None:
        assert inner_loss is not None
        self.inner_losses.append(inner_loss)
        if self._best_epoch() == len(self.inner_losses) - 1:
            self.best_weights = self.model.get_weights()

    def _best_epoch(self) -> int:
        """Position of the last epoch whose inner loss fell by at least ``min_delta``."""
        stopping = self.candidate.early_stopping
        assert stopping is not None
        best, best_loss = 0, self.inner_losses[0]
        for position, loss in enumerate(self.inner_losses):
            if loss < best_loss - stopping.min_delta:
                best, best_loss = position, loss
        return best


@lru_cache(maxsize=1)
def _tensors(snapshot: Path) -> tuple[Any, Any]:
    """Raw pixels and labels of the training split, once a process: all its folds gather from them.

    Graphs that TensorFlow keeps for ever would each keep a copy otherwise.
    """
    import tensorflow as tf

    split = Dataset.open(snapshot).train
    return tf.constant(split.images), tf.constant(split.labels.astype(np.int32))


def _epoch_graph(model: Any, optimizer: Any, images: Any, labels: Any, batch_size: int) -> Any:
    """Graph function: order of rows and learning rate of each step in, mean loss, accuracy out."""
    import keras
    import tensorflow as tf

    variables = model.trainable_variables

    def step(rows: Any, rate: Any) -> tuple[Any, Any]:
        x, y = tf.gather(images, rows), tf.gather(labels, rows)
        with tf.GradientTape() as tape:
            probabilities = model(x, training=True)
            losses = keras.losses.sparse_categorical_crossentropy(y, probabilities)
            loss = tf.add_n([tf.reduce_mean(losses), *model.losses])
        gradients = tape.gradient(loss, [v.value for v in variables])
        _apply(optimizer, gradients, variables, rate)
        correct = tf.argmax(probabilities, axis=1, output_type=tf.int32) == y
        return tf.reduce_sum(losses), tf.reduce_sum(tf.cast(correct, tf.int32))

    @tf.function(autograph=False)
    def epoch(order: Any, rates: Any) -> tuple[Any, Any]:
        n = tf.shape(order)[0]
        full = n // batch_size

        def body(i: Any, loss: Any, correct: Any) -> tuple[Any, Any, Any]:
            rows = order[i * batch_size : (i + 1) * batch_size]
            rows.set_shape([batch_size])  # a fixed shape lets the graph plan its memory
            step_loss, step_correct = step(rows, rates[i])
            return i + 1, loss + tf.cast(step_loss, tf.float64), correct + step_correct

        _, loss, correct = tf.while_loop(
            lambda i, *_: i < full,
            body,
            (tf.constant(0), tf.constant(0.0, tf.float64), tf.constant(0)),
            parallel_iterations=1,
        )

        def remainder() -> tuple[Any, Any]:
            step_loss, step_correct = step(order[full * batch_size :], rates[full])
            return loss + tf.cast(step_loss, tf.float64), correct + step_correct

        loss, correct = tf.cond(full * batch_size < n, remainder, lambda: (loss, correct))
        total = tf.cast(n, tf.float64)
        return loss / total, tf.cast(correct, tf.float64) / total

    return epoch


def _apply(optimizer: Any, gradients: list[Any], variables: list[Any], rate: Any) -> None:
    """One optimizer step at learning rate `rate`.

    SGD with momentum goes through TensorFlow's fused operation, which computes what Keras writes
    as four (v = momentum v - rate g; w = w + v, or w + momentum v - rate g with Nesterov) in one
    pass over memory; every other optimizer is applied by Keras.
    """
    import keras
    import tensorflow as tf

    fused = type(optimizer) is keras.optimizers.SGD and optimizer.momentum
    if not fused:
        optimizer.learning_rate.assign(rate)
        optimizer.apply(gradients, variables)
        return
    for gradient, variable, velocity in zip(gradients, variables, optimizer.momentums, strict=True):
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.value.handle,
            accum=velocity.value.handle,
            lr=rate,
            grad=gradient,
            momentum=tf.constant(optimizer.momentum, tf.float32),
            use_nesterov=bool(optimizer.nesterov),
        )
    optimizer.iterations.assign_add(1)


def _evaluation_graph(model: Any, images: Any, labels: Any) -> Any:
    """Graph function: rows in, probabilities and summed loss out."""
    import keras
    import tensorflow as tf

    @tf.function(autograph=False, reduce_retracing=True)
    def evaluate(rows: Any) -> tuple[Any, Any]:
        probabilities = model(tf.gather(images, rows), training=False)
        losses = keras.losses.sparse_categorical_crossentropy(
            tf.gather(labels, rows), probabilities
        )
        return probabilities, tf.reduce_sum(losses)

    return evaluate
