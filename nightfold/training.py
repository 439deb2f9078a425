"""The training loop: one model, its rows, its epochs; deterministic and resumable.

An epoch is one call of `nightfold.graphs` over an order of rows that is computed here. After every
epoch the whole state goes to a checkpoint; a killed training continues behind its last finished
epoch with the same numbers. This module knows nothing of folds: `nightfold.foldresult` says which
rows are whose.
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from nightfold import backend
from nightfold.dataset import Dataset
from nightfold.errors import NightfoldError, UsageError
from nightfold.experiment import Candidate
from nightfold.fitting import fit_epoch, why_fit
from nightfold.graphs import epoch_graph, evaluation_graph, in_calls, rows_of, score_in_calls
from nightfold.model import averaged, build_network, fault_in, line_of, variables_made
from nightfold.optimization import learning_rates, make_optimizer
from nightfold.scaling import Scaler
from nightfold.store import atomic_file
from nightfold.zoo import find, is_own

ENGINE = 9
"""Part of every result's key: raise it when the same candidate would give other numbers."""


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
    on_note: Callable[[str], None] | None = None,
) -> Trained:
    """Train `candidate` on some rows of the training split and score it on others.

    Parameters
    ----------
    candidate : Candidate
        With an ensemble, its networks are trained one after the other.
    dataset : Dataset
    train_rows, scored_rows : ndarray of int64
        Positions in the training split; they must not overlap. `scored_rows` may be empty.
    scaler : Scaler
        Fitted on `train_rows`.
    seed : int
        Of initial weights, dropout, augmentation and the order of rows.
    checkpoint : Path, optional
        Where the state goes after each epoch, and comes from if it is there; the later networks
        of an ensemble put their number behind the file's name.
    on_epoch : callable, optional
        Called with each finished epoch, after its checkpoint is safe; epochs of an ensemble are
        counted through. An exception it raises leaves the checkpoint as it is; the next call
        continues behind it.
    on_note : callable, optional
        Called with a sentence if there is something about the training that one should know.

    Returns
    -------
    Trained

    Raises
    ------
    ValueError
        If a row is in both sets.
    UsageError
        If the architecture cannot be built or trained, or gives no probabilities.
    NightfoldError
        If the loss or a weight is no longer a number, or TensorFlow keeps several threads or does
        not use the GPU that there is.
    DeviceFailed
        If the memory or the GPU failed.
    """
    if np.intersect1d(train_rows, scored_rows).size:
        raise ValueError("rows to score are among the rows to train on")
    backend.start()
    backend.require_one_thread()
    backend.require_gpu()
    members = []
    with backend.graphs_given_back(), backend.failures_told(f"The training of {candidate.name}"):
        for member in range(candidate.ensemble):
            before = member * candidate.epochs
            members.append(
                _train_one(
                    candidate,
                    dataset,
                    train_rows,
                    scored_rows,
                    scaler=scaler,
                    seed=_member_seed(seed, member),
                    checkpoint=checkpoint and checkpoint_of(checkpoint, member),
                    on_epoch=on_epoch and _counted_on(on_epoch, before),
                    on_note=on_note if member == 0 else None,
                )
            )
    return members[0] if len(members) == 1 else _together(members, candidate, dataset, scored_rows)


def checkpoint_of(path: Path, member: int) -> Path:
    """Where network `member`, from 0, of an ensemble has its checkpoint."""
    return path if member == 0 else path.with_stem(f"{path.stem}-{member + 1}")


def _member_seed(seed: int, member: int) -> int:
    """Seed of one network; the first has the fold's own, as if it were alone."""
    if member == 0:
        return seed
    return int(np.random.SeedSequence([seed, member]).generate_state(1)[0] >> 1)


def _counted_on(on_epoch: Callable[[Epoch], None], before: int) -> Callable[[Epoch], None]:
    return lambda epoch: on_epoch(epoch.model_copy(update={"epoch": before + epoch.epoch}))


def _train_one(
    candidate: Candidate,
    dataset: Dataset,
    train_rows: NDArray[np.int64],
    scored_rows: NDArray[np.int64],
    *,
    scaler: Scaler,
    seed: int,
    checkpoint: Path | None,
    on_epoch: Callable[[Epoch], None] | None,
    on_note: Callable[[str], None] | None,
) -> Trained:
    inner_rows, learning_rows = _set_aside(candidate, train_rows, seed)
    training = _Training(candidate, dataset, scaler, learning_rows, seed)
    unasked = training.network.optimizer
    if on_note is not None and unasked is not None:
        on_note(
            f"{candidate.name} was compiled with {unasked}, and is trained with the optimizer that "
            "the experiment names."
        )
    if on_note is not None and training.why_fit is not None:
        on_note(
            f"{candidate.name} {training.why_fit} and is trained through Keras's fit, which is "
            "slower."
        )
    if checkpoint is not None:
        training.restore(checkpoint)
    while not training.finished:
        training.run_epoch(scored_rows, inner_rows)
        if training.diverged:
            raise NightfoldError(
                f"The training of {candidate.name} diverged in epoch {len(training.history)}: its "
                "weights are no longer numbers; lower the learning rate."
            )
        training.require_probabilities()
        if checkpoint is not None:
            training.save(checkpoint)
        if on_epoch is not None:
            on_epoch(training.history[-1])
    probabilities, loss = training.score(scored_rows)
    return Trained(training.model, training.history, probabilities, loss)


def _together(
    members: list[Trained],
    candidate: Candidate,
    dataset: Dataset,
    scored_rows: NDArray[np.int64],
) -> Trained:
    """An ensemble: mean of the probabilities; its history is the mean of its networks' histories.

    The history's seconds are those of all networks; with early stopping it ends where the first
    network has stopped.
    """

    def mean(values: list[float | None]) -> float | None:
        numbers = [value for value in values if value is not None]
        return sum(numbers) / len(numbers) if numbers else None

    history = []
    for epochs in zip(*(trained.history for trained in members), strict=False):
        averages = {
            name: mean([getattr(epoch, name) for epoch in epochs])
            for name in (
                "train_loss",
                "train_accuracy",
                "validation_loss",
                "validation_accuracy",
                "learning_rate",
            )
        }
        seconds = sum(epoch.seconds for epoch in epochs)
        history.append(epochs[0].model_copy(update={**averages, "seconds": seconds}))
    probabilities = np.stack([t.probabilities for t in members]).mean(axis=0, dtype=np.float32)
    labels = dataset.train.labels[scored_rows]
    right = probabilities[np.arange(len(labels)), labels.astype(np.int64)]
    loss = float(-np.log(np.maximum(right, 1e-7)).mean()) if len(labels) else None
    model = averaged([trained.model for trained in members], candidate.name.replace(".", "_"))
    return Trained(model, history, probabilities, loss)


def _set_aside(
    candidate: Candidate, rows: NDArray[np.int64], seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split training rows into those early stopping looks at (maybe none) and the rest."""
    if candidate.early_stopping is None:
        return rows[:0], rows
    shuffled = np.random.default_rng([seed, 0]).permutation(rows)
    n_inner = max(1, round(len(rows) * candidate.early_stopping.fraction))
    if n_inner >= len(rows):
        raise UsageError(
            f"early_stopping.fraction = {candidate.early_stopping.fraction:g} of {candidate.name} "
            f"leaves none of {len(rows):,} rows to learn from: lower it."
        )
    return np.sort(shuffled[:n_inner]), np.sort(shuffled[n_inner:])


@contextmanager
def _code_of(architecture: str) -> Iterator[None]:
    """Tell a mistake in an architecture of the user's own, which shows when its graph is made."""
    try:
        yield
    except (NightfoldError, MemoryError):
        raise
    except Exception as error:
        if not is_own(architecture) or backend.is_failure(error):
            raise
        build = find(architecture)
        if isinstance(error, OSError) and line_of(error, build) is None:
            raise  # a disk's, which may work again
        what = fault_in(error, build)
        raise UsageError(f"The architecture {architecture!r} cannot be trained: {what}") from error


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
    weight_sums: list[NDArray[np.float64]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.network = build_network(self.candidate, self.scaler, self.dataset, self.seed)
        self.model = self.network.model
        self.optimizer = make_optimizer(self.candidate.optimizer)
        self.steps = -(-len(self.rows) // self.candidate.batch_size)
        self.rates = learning_rates(
            self.candidate.schedule,
            self.candidate.optimizer.learning_rate,
            self.candidate.epochs,
            self.steps,
        )
        self.sources = rows_of(self.dataset.path)
        evaluate = evaluation_graph(self.model, self.dataset.image_shape)
        self.score_rows = score_in_calls(evaluate, self.sources)
        self.why_fit = why_fit(self.network)
        learning = self.model if self.why_fit is None else self.network.trained
        self.optimizer.build(learning.trainable_variables)
        if self.why_fit is not None:
            self.train_in = fit_epoch(
                self.network,
                self.optimizer,
                self.candidate,
                self.sources,
                self.seed,
                self.evaluate,
            )
            self.optimizer = self.network.trained.optimizer  # maybe another one around it
            self.optimizer.build(learning.trainable_variables)
        else:
            epoch = epoch_graph(
                self.network, self.optimizer, self.candidate, self.seed, len(self.rows)
            )
            self.train_in = in_calls(epoch, self.sources, self.candidate.batch_size)
        self.scored: tuple[NDArray[np.float32], float | None] | None = None

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
        """Whether a loss, a probability or a weight is not finite.

        A ReLU can hide the one from the other, and the last step of an epoch from its losses.
        """
        assert self.scored is not None
        probabilities, validation_loss = self.scored
        losses = [self.history[-1].train_loss, validation_loss or 0.0, *self.inner_losses[-1:]]
        weights = [weight.numpy() for weight in self.model.trainable_weights]
        # What is not trained may be infinite on purpose, such as the least loss so far.
        others = [weight.numpy() for weight in self.model.non_trainable_weights]
        return not (
            all(np.isfinite(array).all() for array in (np.array(losses), probabilities, *weights))
            and not any(np.isnan(array).any() for array in others)
        )

    def require_probabilities(self) -> None:
        """Refuse what a network without softmax gives: its scores would mean nothing."""
        assert self.scored is not None
        probabilities, _ = self.scored
        sums = probabilities.sum(axis=1, dtype=np.float64)
        if not len(sums) or (probabilities.min() >= 0 and abs(sums - 1).max() <= 0.01):
            return
        raise UsageError(
            f"The architecture {self.candidate.architecture!r} gives no probabilities: its outputs "
            f"go from {probabilities.min():.3g} to {probabilities.max():.3g} and those of an image "
            f"sum up to {sums[abs(sums - 1).argmax()]:.3g}; end it with softmax."
        )

    def run_epoch(self, scored_rows: NDArray[np.int64], inner_rows: NDArray[np.int64]) -> None:
        """Train one epoch and evaluate it."""
        started = time.perf_counter()
        epoch = len(self.history) + 1
        # Seeded by the epoch's number, so a resumed training needs no generator's state.
        order = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
        first, behind = (epoch - 1) * self.steps, epoch * self.steps
        with self._all_weights_drawn(), _code_of(self.candidate.architecture):
            if self.why_fit is None:  # which does it, or asks the user's class to
                for metric in self.model.metrics:
                    metric.reset_state()  # a layer may look at its own
            loss, correct = self.train_in(order, self.rates[first:behind], first)
        probabilities, validation_loss, validation_accuracy = self.evaluate(scored_rows)
        self.scored = probabilities, validation_loss
        if len(inner_rows):
            self._remember(self.evaluate(inner_rows)[1])
        self.history.append(
            Epoch(
                epoch=epoch,
                train_loss=loss / len(order),
                train_accuracy=correct / len(order),
                validation_loss=validation_loss,
                validation_accuracy=validation_accuracy,
                learning_rate=float(self.rates[behind - 1]),
                seconds=time.perf_counter() - started,
            )
        )
        self._average()

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """Put back what answering has moved: no weight may depend on how many rows are scored.

        Random states of some layers go on in every call, and a layer may count its calls.
        """
        trained = {id(variable.value) for variable in self.model.trainable_variables}
        before = [(v, v.numpy()) for v in self._state() if id(v) not in trained]
        try:
            yield
        finally:
            for variable, value in before:
                if not np.array_equal(variable.numpy(), value):
                    variable.assign(value)

    @contextmanager
    def _all_weights_drawn(self) -> Iterator[None]:
        """Refuse a train step that makes weights: nothing says from which seed, nor in which order.

        The optimizer may not know them either, and says so in its own words. What else it makes,
        such as the momenta of a second optimizer, belongs to the state from then on.
        """
        model = self.network.trained
        known = {id(variable) for variable in model.variables}
        try:
            with variables_made() as made:
                yield
        except Exception as error:
            self._refuse_weights_but(known, error)
            raise
        self._refuse_weights_but(known)
        others = [*model.metrics_variables, *self.optimizer.variables]
        elsewhere = {id(variable.value) for variable in others}
        self.network.variables.extend(v for v in made if id(v) not in elsewhere)

    def _refuse_weights_but(self, known: set[int], error: Exception | None = None) -> None:
        model = self.network.trained
        known = known | {id(variable) for variable in model.metrics_variables}
        new = [variable.path for variable in model.variables if id(variable) not in known]
        if new:
            raise UsageError(
                f"The architecture {self.candidate.architecture!r} makes the weights {new[0]} when "
                "it is trained, which could not be made the same way again: call the build of that "
                "layer where you make it."
            ) from error

    def evaluate(
        self, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], float | None, float | None]:
        """Probabilities, mean loss and accuracy on `rows`; None for both without rows."""
        if not len(rows):
            return np.empty((0, self.dataset.n_classes), np.float32), None, None
        with self._undone(), _code_of(self.candidate.architecture):
            probabilities, losses = self.score_rows(rows)
        correct = probabilities.argmax(axis=1) == self.dataset.train.labels[rows]
        return probabilities, float(losses.mean(dtype=np.float64)), float(correct.mean())

    def score(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], float | None]:
        """Probabilities and mean loss of the finished model on `rows`."""
        kept = list(zip(self._state(), self.best_weights, strict=True) if self.best_weights else [])
        if self.weight_sums:
            n = self.candidate.average_epochs or 1
            sums = zip(self._averaged_state(), self.weight_sums, strict=True)
            kept = [(variable, total / n) for variable, total in sums]
        for variable, value in kept:
            variable.assign(value.astype(variable.dtype.as_numpy_dtype))
        if kept or self.scored is None:
            probabilities, loss, _ = self.evaluate(rows)
            return probabilities, loss
        return self.scored

    def save(self, path: Path) -> None:
        """Write the whole state, atomically; plain arrays, no pickle."""
        kept = {
            "model": [np.asarray(variable.numpy()) for variable in self._state()],
            "optimizer": [variable.numpy() for variable in self.optimizer.variables],
            "best": self.best_weights,
            "sum": self.weight_sums,
        }
        arrays = {
            # NumPy knows no bfloat16; float32 holds each of its values.
            f"{name}_{i:04d}": array.astype(np.float32) if array.dtype.kind == "V" else array
            for name, of_kind in kept.items()
            for i, array in enumerate(of_kind)
        }
        history = "[" + ",".join(epoch.model_dump_json() for epoch in self.history) + "]"
        with atomic_file(path) as part, part.open("wb") as file:
            np.savez(
                file,
                random_state=self._random_state(),
                history=np.frombuffer(history.encode(), np.uint8),
                inner_losses=np.array(self.inner_losses),
                **arrays,
            )

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint if there is a whole one of this training; else start anew."""
        import tensorflow as tf
        from pydantic import TypeAdapter

        try:
            with np.load(path, allow_pickle=False) as arrays:
                state = {name: arrays[name] for name in arrays.files}
            history = TypeAdapter(list[Epoch]).validate_json(state["history"].tobytes())
            kept = {name for name in state if name.startswith(("model_", "optimizer_"))}
            same = np.array_equal(state["random_state"], self._random_state(len(history)))
            if same and len(kept) > len(self._state()) + len(self.optimizer.variables):
                self._make_momenta()
            variables = {f"model_{i:04d}": v for i, v in enumerate(self._state())}
            variables |= {f"optimizer_{i:04d}": v for i, v in enumerate(self.optimizer.variables)}
            same &= kept == variables.keys()
            whole = same and all(
                tf.TensorShape(variable.shape).is_compatible_with(state[name].shape)
                for name, variable in variables.items()
            )
        # Damage can show anywhere: in the archive, in an array's header, in what is there or not.
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return
        if not whole:
            self.__post_init__()  # as it was
            return
        self.history = history
        for name, variable in variables.items():
            variable.assign(state[name])
        self.best_weights = [state[name] for name in sorted(state) if name.startswith("best_")]
        self.weight_sums = [state[name] for name in sorted(state) if name.startswith("sum_")]
        self.inner_losses = [float(loss) for loss in state["inner_losses"]]

    def _make_momenta(self) -> None:
        """Have a train step make what it makes in its first call, such as a second optimizer's."""
        batch = self.rows[: self.candidate.batch_size]
        with self._all_weights_drawn(), _code_of(self.candidate.architecture):
            self.train_in(batch, self.rates[:1], 0)

    def _random_state(self, epochs: int | None = None) -> NDArray[np.int64]:
        """Seed, next epoch and next step: all that the next permutation and moves follow from."""
        done = len(self.history) if epochs is None else epochs
        return np.array([self.seed, done + 1, done * self.steps])

    def _state(self) -> list[Any]:
        """TensorFlow's variables behind the network: weights, moving averages, random states.

        Those that Keras does not know are among them, such as those of a loss.
        """
        return self.network.variables

    def _averaged_state(self) -> list[Any]:
        return [variable for variable in self._state() if variable.dtype.is_floating]

    def _average(self) -> None:
        """Add the weights after this epoch to the sums if it is one of the last to be averaged."""
        last = self.candidate.average_epochs
        if last is None or len(self.history) <= self.candidate.epochs - last:
            return
        weights = [variable.numpy().astype(np.float64) for variable in self._averaged_state()]
        sums = self.weight_sums or [np.zeros_like(array) for array in weights]
        self.weight_sums = [total + array for total, array in zip(sums, weights, strict=True)]

    def _remember(self, inner_loss: float | None) -> None:
        assert inner_loss is not None
        self.inner_losses.append(inner_loss)
        if self._best_epoch() == len(self.inner_losses) - 1:
            self.best_weights = [variable.numpy() for variable in self._state()]

    def _best_epoch(self) -> int:
        """Position of the last epoch whose inner loss fell by at least ``min_delta``."""
        stopping = self.candidate.early_stopping
        assert stopping is not None
        best, best_loss = 0, self.inner_losses[0]
        for position, loss in enumerate(self.inner_losses):
            if loss < best_loss - stopping.min_delta:
                best, best_loss = position, loss
        return best
