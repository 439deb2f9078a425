"""The training loop: what Keras would compute, resumable, deterministic, blind to scored rows."""

import random
import threading

import keras
import numpy as np
import pytest

from nightfold import backend
from nightfold.dataset import Dataset, Split
from nightfold.errors import NightfoldError
from nightfold.experiment import Candidate, EarlyStopping, Optimizer, Schedule
from nightfold.optimization import learning_rates, make_optimizer
from nightfold.scaling import Scaler, pixel_histogram
from nightfold.training import build_model, train

backend.start()
pytestmark = pytest.mark.slow

SGD = Optimizer(name="sgd", learning_rate=0.01, momentum=0.9)
TRAIN, SCORED = np.arange(400), np.arange(400, 600)


def candidate(architecture="baseline", **changes):
    values = {"optimizer": SGD, "epochs": 2, "batch_size": 32, **changes}
    return Candidate(name=architecture, architecture=architecture, **values)


def scaler_for(dataset, rows, name="normalize"):
    return Scaler.fit(name, pixel_histogram(dataset.train.images, rows))


def run(dataset, candidate, **changes):
    arguments = {"scaler": scaler_for(dataset, TRAIN), "seed": 3, **changes}
    return train(candidate, dataset, TRAIN, SCORED, **arguments)


OPTIMIZERS = {
    "sgd": Optimizer(learning_rate=0.05),
    "momentum": SGD,
    "nesterov": Optimizer(learning_rate=0.01, momentum=0.9, nesterov=True),
    "adam": Optimizer(name="adam", learning_rate=0.001),
    "rmsprop": Optimizer(name="rmsprop", learning_rate=0.001),
    "adamw": Optimizer(name="adamw", learning_rate=0.001, weight_decay=0.01),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_weights_are_those_of_keras_fit_on_the_same_batches(small_mnist, optimizer):
    """Differences come from the order of float32 sums alone; 13 steps keep them below 1e-4."""
    recipe = candidate(optimizer=optimizer, epochs=1)
    ours = run(small_mnist, recipe).model

    theirs = build_model(recipe, scaler_for(small_mnist, TRAIN), small_mnist, seed=3)
    order = np.random.default_rng([3, 1]).permutation(TRAIN)
    theirs.compile(make_optimizer(optimizer), "sparse_categorical_crossentropy")
    images, labels = small_mnist.train.images[order], small_mnist.train.labels[order]
    theirs.fit(images, labels, batch_size=32, epochs=1, shuffle=False, verbose=0)

    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        assert np.abs(a - b).max() < 1e-4


@pytest.mark.parametrize("architecture", ["batch_norm", "adam_dropout"])
def test_two_runs_are_bit_identical(small_mnist, architecture):
    first, second = (run(small_mnist, candidate(architecture)) for _ in range(2))
    assert (first.probabilities == second.probabilities).all()
    for a, b in zip(first.model.get_weights(), second.model.get_weights(), strict=True):
        assert (a == b).all()


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("architecture", ["batch_norm", "adam_dropout"])
def test_interrupted_training_continues_with_the_same_numbers(small_mnist, tmp_path, architecture):
    recipe = candidate(
        architecture,
        epochs=3,
        optimizer=Optimizer(name="adam", learning_rate=0.001),
        schedule=Schedule(name="cosine"),
        early_stopping=EarlyStopping(patience=3),
    )
    undisturbed = run(small_mnist, recipe)
    seen = []

    def interrupt(epoch):
        seen.append(epoch.epoch)
        raise Interrupted

    for _ in range(2):
        with pytest.raises(Interrupted):
            run(small_mnist, recipe, checkpoint=tmp_path / "c.npz", on_epoch=interrupt)
    resumed = run(small_mnist, recipe, checkpoint=tmp_path / "c.npz")

    assert seen == [1, 2]
    assert (resumed.probabilities == undisturbed.probabilities).all()
    for a, b in zip(undisturbed.model.get_weights(), resumed.model.get_weights(), strict=True):
        assert (a == b).all()
    losses = [[epoch.train_loss for epoch in t.history] for t in (undisturbed, resumed)]
    assert losses[0] == losses[1]


def test_a_torn_checkpoint_is_as_good_as_none(small_mnist, tmp_path):
    torn = tmp_path / "c.npz"
    torn.write_bytes(b"PK\x03\x04 not all of it")
    resumed = run(small_mnist, candidate(), checkpoint=torn)
    assert (resumed.probabilities == run(small_mnist, candidate()).probabilities).all()


def test_labels_of_scored_rows_never_reach_the_weights(small_mnist, tmp_path):
    """The leak of an older tutorial, one model across folds, would fail here."""
    labels = small_mnist.train.labels.copy()
    labels[SCORED] = (labels[SCORED] + 1) % 10
    poisoned = Dataset.write(
        tmp_path,
        name="poisoned",
        origin="test",
        class_names=small_mnist.class_names,
        train=Split(small_mnist.train.images, labels),
        test=small_mnist.test,
    )
    recipe = candidate(early_stopping=EarlyStopping(patience=1), epochs=3)
    honest, other = run(small_mnist, recipe), run(poisoned, recipe)
    assert honest.history[0].validation_loss != other.history[0].validation_loss
    for a, b in zip(honest.model.get_weights(), other.model.get_weights(), strict=True):
        assert (a == b).all()


def test_rows_to_score_may_not_be_trained_on(small_mnist):
    with pytest.raises(ValueError, match="rows to score"):
        train(
            candidate(),
            small_mnist,
            TRAIN,
            np.arange(399, 500),
            scaler=scaler_for(small_mnist, TRAIN),
            seed=1,
        )


def test_every_training_starts_from_its_own_fresh_weights(small_mnist):
    recipe, scaler = candidate(), scaler_for(small_mnist, TRAIN)
    fresh = build_model(recipe, scaler, small_mnist, seed=3)
    trained = run(small_mnist, recipe).model
    again = build_model(recipe, scaler, small_mnist, seed=3)
    for before, after in zip(fresh.get_weights(), again.get_weights(), strict=True):
        assert (before == after).all()
    assert any(
        (a != b).any() for a, b in zip(fresh.get_weights(), trained.get_weights(), strict=True)
    )


def test_initial_weights_do_not_depend_on_what_else_draws_random_numbers(small_mnist):
    scaler, stop = scaler_for(small_mnist, TRAIN), threading.Event()
    alone = build_model(candidate("deep"), scaler, small_mnist, seed=3).get_weights()

    def draw():
        while not stop.is_set():
            random.random()

    other = threading.Thread(target=draw)
    other.start()
    try:
        beside = build_model(candidate("deep"), scaler, small_mnist, seed=3).get_weights()
    finally:
        stop.set()
        other.join()
    for a, b in zip(alone, beside, strict=True):
        assert (a == b).all()


def test_early_stopping_ends_and_keeps_the_best_epoch(small_mnist):
    hopeless = candidate(
        optimizer=Optimizer(learning_rate=1.0, momentum=0.9),
        epochs=20,
        early_stopping=EarlyStopping(patience=2),
    )
    assert len(run(small_mnist, hopeless).history) < 20


def test_a_diverged_training_says_so_and_keeps_no_checkpoint(small_mnist, tmp_path):
    overflowing = Scaler(name="none", scale=float("nan"))
    with pytest.raises(NightfoldError, match=r"baseline diverged in epoch \d.*learning rate"):
        run(small_mnist, candidate(), scaler=overflowing, checkpoint=tmp_path / "c.npz")
    assert not (tmp_path / "c.npz").exists()


def test_it_learns_real_digits(small_mnist):
    trained = run(small_mnist, candidate(epochs=6))
    labels = small_mnist.train.labels[SCORED]
    assert (trained.probabilities.argmax(axis=1) == labels).mean() > 0.75
    assert np.allclose(trained.probabilities.sum(axis=1), 1, atol=1e-5)
    assert trained.history[-1].train_loss < trained.history[0].train_loss


def test_the_model_takes_raw_pixels(small_mnist):
    trained = run(small_mnist, candidate())
    images = small_mnist.train.images[SCORED]
    assert images.dtype == np.uint8
    assert np.allclose(trained.model.predict(images, verbose=0), trained.probabilities, atol=1e-5)


def test_sealed_model_needs_nothing_of_ours_to_load(small_mnist, tmp_path):
    recipe = candidate(scaling="standardize_per_image", epochs=1)
    scaler = scaler_for(small_mnist, TRAIN, "standardize_per_image")
    trained = run(small_mnist, recipe, scaler=scaler)
    trained.model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras", safe_mode=True)
    images = small_mnist.train.images[SCORED]
    assert np.allclose(loaded.predict(images, verbose=0), trained.probabilities, atol=1e-5)


class TestLearningRates:
    def test_constant(self):
        assert (learning_rates(Schedule(), 0.1, 2, 3) == np.float32(0.1)).all()

    def test_step_halves_after_so_many_epochs(self):
        rates = learning_rates(Schedule(name="step", factor=0.5, every=1), 0.4, 3, 2)
        assert rates.tolist() == pytest.approx([0.4, 0.4, 0.2, 0.2, 0.1, 0.1])

    def test_cosine_falls_from_the_rate_to_nearly_nothing(self):
        rates = learning_rates(Schedule(name="cosine"), 0.1, 10, 10)
        assert rates[0] == pytest.approx(0.1)
        assert (np.diff(rates) < 0).all()
        assert rates[-1] < 1e-4

    def test_one_cycle_peaks_at_the_rate(self):
        rates = learning_rates(Schedule(name="one_cycle", warm_up=0.25), 0.1, 10, 10)
        assert rates.argmax() == 25
        assert rates.max() == pytest.approx(0.1)
        assert rates[0] == pytest.approx(0.1 / 25)
