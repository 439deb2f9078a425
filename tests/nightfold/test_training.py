"""The training loop: what Keras would compute, resumable, deterministic, blind to scored rows."""

import gc
import random
import sys
import threading
from collections import Counter

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import config, kernels

from nightfold import backend
from nightfold.dataset import Dataset, Split
from nightfold.errors import DeviceFailed, NightfoldError, UsageError
from nightfold.experiment import Augmentation, Candidate, EarlyStopping, Optimizer, Schedule
from nightfold.graphs import EVALUATION_BATCH, epoch_graph, evaluation_graph, rows_of
from nightfold.model import build_model, build_network
from nightfold.optimization import learning_rates, make_optimizer
from nightfold.scaling import Scaler, pixel_histogram
from nightfold.training import train

backend.start()
pytestmark = pytest.mark.slow

SGD = Optimizer(name="sgd", learning_rate=0.01, momentum=0.9)
TRAIN, SCORED = np.arange(400), np.arange(400, 600)


def candidate(architecture="baseline", **changes):
    values = {"optimizer": SGD, "epochs": 2, "batch_size": 32, **changes}
    return Candidate(name=architecture.split(":")[-1], architecture=architecture, **values)


def scaler_for(dataset, rows, name="normalize"):
    return Scaler.fit(name, pixel_histogram(dataset.train.images, rows))


def run(dataset, candidate, **changes):
    arguments = {"scaler": scaler_for(dataset, TRAIN), "seed": 3, **changes}
    return train(candidate, dataset, TRAIN, SCORED, **arguments)


OPTIMIZERS = {
    "sgd": Optimizer(learning_rate=0.05),
    # Momenta and betas that float32 holds exactly: Keras rounds them to it in float64 too.
    "momentum": Optimizer(learning_rate=0.01, momentum=0.875),
    "nesterov": Optimizer(learning_rate=0.01, momentum=0.875, nesterov=True),
    "adam": Optimizer(name="adam", learning_rate=0.001, beta_1=0.875, beta_2=1 - 2**-10),
    "rmsprop": Optimizer(name="rmsprop", learning_rate=0.001),
    "adamw": Optimizer(name="adamw", learning_rate=0.001, weight_decay=0.01),
}


STEPS = np.arange(6400)  # 200 batches of 32


@pytest.fixture
def in_double_precision():
    for precision in ("float64", "float32"):
        keras.config.set_floatx(precision)
        keras.config.set_dtype_policy(precision)
        if precision == "float64":
            yield


def fitted(dataset, recipe, rows, disturbance=0.0):
    """Weights after `keras.Model.fit` on the batches that `train` with seed 3 would take."""
    model = build_model(recipe, scaler_for(dataset, rows), dataset, seed=3)
    noise = np.random.default_rng(1)
    weights = [
        w * (1 + disturbance * noise.standard_normal(w.shape)).astype(w.dtype)
        if w.dtype.kind == "f"
        else w
        for w in model.get_weights()
    ]
    model.set_weights(weights)
    order = np.random.default_rng([3, 1]).permutation(rows)
    model.compile(make_optimizer(recipe.optimizer), "sparse_categorical_crossentropy")
    images, labels = dataset.train.images[order], dataset.train.labels[order]
    model.fit(images, labels, batch_size=recipe.batch_size, epochs=1, shuffle=False, verbose=0)
    return model.get_weights()


def trained(dataset, recipe, rows):
    scaler = scaler_for(dataset, rows)
    return train(recipe, dataset, rows, rows[:0], scaler=scaler, seed=3).model.get_weights()


def distance(ours, theirs):
    """Norm of the difference of all weights, relative to the norm of all weights."""
    apart = sum(((a - b) ** 2).sum() for a, b in zip(ours, theirs, strict=True))
    return float(np.sqrt(apart / sum((b**2).sum() for b in theirs)))


@pytest.mark.parametrize(
    ("architecture", "optimizer"),
    [*(("baseline", name) for name in OPTIMIZERS), ("deep", "momentum")],
)
def test_after_200_steps_weights_are_those_of_keras_fit(
    mnist, architecture, optimizer, in_double_precision
):
    """In float64, where rounding has no time to grow: what is computed is the same.

    The learning rate is a power of two, which the schedule's float32 holds exactly; small batches,
    as convolutions of float64 are slow.
    """
    rate = 2.0 ** round(np.log2(OPTIMIZERS[optimizer].learning_rate))
    optimizer = OPTIMIZERS[optimizer].model_copy(update={"learning_rate": rate})
    recipe = candidate(architecture, optimizer=optimizer, epochs=1, batch_size=8)
    rows = np.arange(200 * recipe.batch_size)
    ours = trained(mnist, recipe, rows)
    assert ours[0].dtype == "float64"
    assert distance(ours, fitted(mnist, recipe, rows)) < 1e-12


@pytest.mark.parametrize("architecture", ["deep", "batch_norm", "adam_dropout"])
def test_in_float32_it_is_as_close_to_fit_as_fit_is_to_itself(mnist, architecture):
    """ReLU and max-pooling make training chaotic: once rounding has turned one of their choices,
    `fit` itself ends as far from a `fit` whose initial weights were disturbed in the fifth digit
    as the engine does, 1e-2 to 1e-1 of the weights' norm after 200 steps."""
    name = "adam" if architecture == "adam_dropout" else "momentum"
    recipe = candidate(architecture, optimizer=OPTIMIZERS[name], epochs=1)
    theirs = fitted(mnist, recipe, STEPS)
    by_chaos = distance(fitted(mnist, recipe, STEPS, disturbance=1e-4), theirs)
    assert distance(trained(mnist, recipe, STEPS), theirs) <= 2 * by_chaos


@pytest.mark.parametrize("architecture", ["batch_norm", "adam_dropout"])
def test_the_first_steps_are_those_of_fit(mnist, architecture):
    """Before rounding has grown, in float32: batch normalisation's sums are the least exact."""
    recipe = candidate(architecture, epochs=1)
    rows = STEPS[: 3 * 32]
    assert distance(trained(mnist, recipe, rows), fitted(mnist, recipe, rows)) < 1e-4


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


@pytest.mark.parametrize("damage", ["empty", "no history", "odd history", "short", "none"])
def test_whatever_a_checkpoint_lacks_it_is_as_good_as_none(damage, small_mnist, tmp_path):
    def interrupt(_epoch):
        raise Interrupted

    path = tmp_path / "c.npz"
    with pytest.raises(Interrupted):
        run(small_mnist, candidate(), checkpoint=path, on_epoch=interrupt)
    with np.load(path, allow_pickle=False) as arrays:
        state = {name: arrays[name] for name in arrays.files}
    if damage == "no history":
        del state["history"]
    if damage == "odd history":
        state["history"] = np.frombuffer(b'[{"epoch": 1}]', np.uint8)
    if damage == "short":
        state["model_0000"] = state["model_0000"][:1]
    np.savez(path, **state)
    if damage == "empty":
        path.write_bytes(b"")
    epochs = []
    resumed = run(small_mnist, candidate(), checkpoint=path, on_epoch=epochs.append)
    assert epochs[0].epoch == (2 if damage == "none" else 1)
    assert (resumed.probabilities == run(small_mnist, candidate()).probabilities).all()


def test_a_checkpoint_holds_all_that_the_next_epoch_needs(small_mnist, tmp_path):
    """Weights, the optimizer's slots, sums of averaged weights, permutation and random state."""
    recipe = candidate(
        "adam_dropout",
        epochs=3,
        average_epochs=2,
        augmentation=Augmentation(shift=0.1),
        optimizer=Optimizer(name="adam", learning_rate=0.001),
    )
    undisturbed = run(small_mnist, recipe)

    def interrupt(epoch):
        if epoch.epoch == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(small_mnist, recipe, checkpoint=tmp_path / "c.npz", on_epoch=interrupt)
    with np.load(tmp_path / "c.npz", allow_pickle=False) as arrays:
        counts = Counter(name.partition("_")[0] for name in arrays.files)
        assert arrays["random_state"].tolist() == [3, 3, 2 * 13]
    # Three layers of kernel and bias, the states of dropout's generator and of the one of layers
    # without a seed; two moments each, the number of the step and the learning rate; the sums are
    # of the weights.
    assert (counts["model"], counts["optimizer"], counts["sum"]) == (8, 14, 6)
    resumed = run(small_mnist, recipe, checkpoint=tmp_path / "c.npz")
    assert (resumed.probabilities == undisturbed.probabilities).all()


@pytest.mark.parametrize("architecture", ["swift", "deep"])
def test_a_worker_keeps_no_graph_of_a_training_that_is_over(small_mnist, architecture):
    """It may live for months; TensorFlow by itself would keep all that have a custom gradient."""

    def graphs():
        gc.collect()
        return sum(type(each).__name__ == "FuncGraph" for each in gc.get_objects())

    before = graphs()
    run(small_mnist, candidate(architecture, epochs=1))
    assert graphs() <= before


def test_gradients_that_others_have_registered_stay():
    backend.start()
    import tensorflow as tf

    @tf.custom_gradient
    def squared(x):
        return x * x, lambda upstream: 7 * upstream

    graph = tf.function(squared)
    graph(tf.constant(3.0))
    with backend.graphs_given_back():
        pass
    with tf.GradientTape() as tape:
        x = tf.constant(3.0)
        tape.watch(x)
        y = graph(x)
    assert tape.gradient(y, x) == 7


def test_a_checkpoint_of_another_training_is_not_continued(small_mnist, tmp_path):
    run(small_mnist, candidate(epochs=1), checkpoint=tmp_path / "c.npz")
    other = run(small_mnist, candidate(epochs=1), checkpoint=tmp_path / "c.npz", seed=4)
    assert (
        other.probabilities == run(small_mnist, candidate(epochs=1), seed=4).probabilities
    ).all()


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


def test_a_training_that_diverges_in_the_last_step_of_an_epoch_says_so_too(small_mnist, tmp_path):
    """The loss of an epoch's only batch is finite, and so may be the weights that it leads to."""
    recipe = candidate(
        "deep",
        epochs=2,
        scaling="none",
        batch_size=65_536,
        optimizer=Optimizer(name="sgd", learning_rate=10.0, momentum=0.9),
    )
    for _ in range(2):  # and says so again
        with pytest.raises(NightfoldError, match=r"deep diverged in epoch \d.*learning rate"):
            run(small_mnist, recipe, scaler=Scaler(name="none"), checkpoint=tmp_path / "c.npz")


def test_batches_of_more_rows_than_there_are_are_not_planned_for(small_mnist):
    """TensorFlow would set aside what they take, which for a big enough batch is all memory."""
    recipe = candidate("dense", batch_size=65_536)
    network = build_network(recipe, scaler_for(small_mnist, TRAIN), small_mnist, seed=3)
    optimizer = make_optimizer(recipe.optimizer)
    optimizer.build(network.model.trainable_variables)
    epoch = epoch_graph(network, optimizer, recipe, seed=3, n_learning=len(TRAIN))
    given = *rows_of(small_mnist.path).of(TRAIN), np.float32([0.01]), np.int32(0)
    graph = str(epoch.get_concrete_function(*given).graph.as_graph_def(add_shapes=True))
    assert "size: 784\n" in graph
    assert "size: 65536\n" not in graph


def test_early_stopping_that_leaves_no_row_to_learn_from_is_refused(small_mnist):
    recipe = candidate(early_stopping=EarlyStopping(patience=1, fraction=0.999))
    with pytest.raises(UsageError, match=r"early_stopping.fraction = 0.999 of .* leaves none of"):
        run(small_mnist, recipe)


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


CUSTOM = """
import keras
from keras import layers

class Careful(keras.Model):
    steps = 0

    def train_step(self, data):
        Careful.steps += 1
        assert data[1].dtype == "int64"
        return super().train_step(data)

def flat(images, n_classes):
    return layers.Dense(n_classes, activation="softmax")(layers.Flatten()(images))

def own_step(images, n_classes):
    return Careful(images, flat(images, n_classes))

def own_loss(images, n_classes):
    model = keras.Model(images, flat(images, n_classes))
    model.compile(loss=lambda y, p: 3 * keras.losses.sparse_categorical_crossentropy(y, p))
    return model

class Twice(layers.Layer):
    def call(self, x):
        return 2 * x

def own_layer(images, n_classes):
    return flat(Twice()(images), n_classes)
"""


@pytest.fixture
def custom(tmp_path, monkeypatch):
    (tmp_path / "custom_networks.py").write_text(CUSTOM)
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda name: candidate(f"custom_networks:{name}")
    sys.modules.pop("custom_networks", None)


def runs_on_a_gpu(node):
    """Whether TensorFlow has a kernel for this operation and its types on a GPU, or on anything."""
    known = kernels.get_registered_kernels_for_op(node.op).kernel
    return not known or any(
        kernel.device_type in {"GPU", "DEFAULT"}
        and all(
            node.attr[limit.name].type in limit.allowed_values.list.type
            for limit in kernel.constraint
        )
        for kernel in known
    )


GPU_BUILD = any(
    kernel.device_type == "GPU" for kernel in kernels.get_registered_kernels_for_op("Conv2D").kernel
)


@pytest.fixture
def determined():
    """Deterministic operations, which a GPU is asked for."""
    config.enable_op_determinism()
    yield
    config.disable_op_determinism()


@pytest.mark.skipif(not GPU_BUILD, reason="TensorFlow was built without GPU kernels")
@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("baseline", "rmsprop"),
        ("batch_norm", "momentum"),
        ("deep", "nesterov"),
        ("swift", "adam"),
        ("sharp", "adamw"),
    ],
)
def test_all_that_is_left_to_a_gpu_has_a_kernel_there(
    small_mnist, monkeypatch, determined, name, optimizer
):
    # Graphs as they are where there is one.
    monkeypatch.setattr("tensorflow.config.list_logical_devices", lambda _kind: ["a GPU"])
    moves = Augmentation(rotation=10, shift=0.1, zoom=0.1)
    recipe = candidate(
        name, augmentation=moves, label_smoothing=0.1, optimizer=OPTIMIZERS[optimizer]
    )
    network = build_network(recipe, scaler_for(small_mnist, TRAIN), small_mnist, seed=3)
    model = network.model
    optimizer = make_optimizer(recipe.optimizer)
    optimizer.build(model.trainable_variables)
    rows = rows_of(small_mnist.path).of(TRAIN)
    rates = np.float32([0.01] * 13)
    epoch = epoch_graph(network, optimizer, recipe, seed=3, n_learning=len(TRAIN))
    graphs = [
        epoch.get_concrete_function(*rows, rates, np.int32(0)),
        evaluation_graph(model, small_mnist.image_shape).get_concrete_function(*rows),
    ]
    definitions = [graph.graph.as_graph_def() for graph in graphs]
    left = [
        node
        for definition in definitions
        for nodes in (definition.node, *(f.node_def for f in definition.library.function))
        for node in nodes
        if "CPU" not in node.device
    ]
    assert {"MatMul", "Conv2D", "Cast"} <= {node.op for node in left}
    assert not {node.op for node in left if not runs_on_a_gpu(node)}


@pytest.mark.parametrize("name", ["batch_norm", "swift"])
def test_deterministic_operations_are_no_other_training(small_mnist, determined, name):
    """As a GPU is asked for them; here the processor's own, which round otherwise."""
    recipe = candidate(name, epochs=1, augmentation=Augmentation(rotation=10), label_smoothing=0.1)
    asked = run(small_mnist, recipe)
    config.disable_op_determinism()
    assert np.allclose(asked.probabilities, run(small_mnist, recipe).probabilities, atol=1e-3)


def test_want_of_memory_is_no_mistake_of_the_architecture(small_mnist, monkeypatch):
    def exhausted(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating 9 GB\nMore.")

    monkeypatch.setattr("nightfold.model.find", lambda _name: exhausted)
    said = r"baseline ran out of memory \(OOM .* 9 GB\): give few"
    with pytest.raises(DeviceFailed, match=said):
        run(small_mnist, candidate())
    with pytest.raises(DeviceFailed, match=said):  # as a rehearsal does
        build_network(candidate(), scaler_for(small_mnist, TRAIN), small_mnist, seed=3)


def test_want_of_memory_is_no_mistake_of_a_train_step(small_mnist, monkeypatch, tmp_path):
    (tmp_path / "hungry_networks.py").write_text("""
import keras
import tensorflow as tf

class Hungry(keras.Model):
    def train_step(self, data):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating 9 GB")

def hungry(images, n_classes):
    x = keras.layers.Flatten()(images)
    return Hungry(images, keras.layers.Dense(n_classes, activation="softmax")(x))
""")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DeviceFailed, match="hungry ran out of memory"):
        run(small_mnist, candidate("hungry_networks:hungry"))


def test_a_gpu_that_fails_is_no_mistake_of_the_architecture(small_mnist, monkeypatch):
    def failing(*_):
        raise tf.errors.InternalError(None, None, "CUDA_ERROR_INVALID_PTX: a PTX JIT failed")

    monkeypatch.setattr("nightfold.gpu.name", lambda: "NVIDIA H200")
    monkeypatch.setattr("nightfold.backend.require_gpu", lambda: None)
    monkeypatch.setattr("nightfold.model.find", lambda _name: failing)
    with pytest.raises(DeviceFailed, match=r"failed on the NVIDIA H200 .*CUDA_VISIBLE_DEVICES=-1"):
        run(small_mnist, candidate())


def test_a_gpu_that_tensorflow_cannot_use_is_refused(small_mnist, monkeypatch):
    """Its key says that a fold was trained there."""
    monkeypatch.setattr("nightfold.gpu.name", lambda: "NVIDIA H200")
    with pytest.raises(NightfoldError, match=r"cannot use the NVIDIA H200.*CUDA_VISIBLE_DEVICES"):
        run(small_mnist, candidate())


def test_all_rows_are_trained_on_in_one_call_however_many_make_a_batch(small_mnist, monkeypatch):
    called, held = [], rows_of(small_mnist.path)
    monkeypatch.setattr(
        "nightfold.training.epoch_graph", lambda *_: lambda *given: called.append(given) or (0, 0)
    )
    every = np.arange(len(small_mnist.train))
    assert len(every) % 32
    train(
        candidate(epochs=1),
        small_mnist,
        every,
        every[:0],
        scaler=scaler_for(small_mnist, every),
        seed=3,
    )
    assert [given[0] is held.held[0] for given in called] == [True]


@pytest.fixture
def many_pixels(monkeypatch):
    """Pixels count as too many to map, 100 rows go to a call; returns how many rows are read."""
    read, read_training_images = [], Dataset.read_training_images

    def noted(dataset, rows):
        read.append(len(rows))
        return read_training_images(dataset, rows)

    def use():
        monkeypatch.setattr("nightfold.graphs.RESIDENT_BYTES", 0)
        monkeypatch.setattr("nightfold.graphs.BYTES_PER_CALL", 100 * 28 * 28)
        monkeypatch.setattr("nightfold.training.rows_of", rows_of.__wrapped__)
        monkeypatch.setattr(Dataset, "read_training_images", noted)
        return read

    return use


@pytest.mark.parametrize("name", ["baseline", "flat", "own_step"])
def test_many_pixels_are_read_in_parts_and_give_the_same_weights(
    small_mnist, custom, many_pixels, name
):
    recipe = candidate() if name == "baseline" else custom(name)
    mapped = run(small_mnist, recipe)
    read = many_pixels()
    in_parts = run(small_mnist, recipe)
    scored = 4 * [EVALUATION_BATCH]  # 200 rows and some of the last again
    if name == "own_step":  # batch after batch; Keras looks at some twice
        assert set(read) == {32, 400 % 32, *scored}
    else:  # two epochs: 400 rows in batches of 32, three batches to a call
        assert read == 2 * [96, 96, 96, 96, 16, *scored]
    assert (mapped.probabilities == in_parts.probabilities).all()


class TestUsersOwn:
    def test_train_step_goes_through_fit_and_says_so(self, small_mnist, custom):
        recipe = custom("own_step")
        plain = recipe.model_copy(update={"architecture": "custom_networks:flat"})
        notes = []
        done = run(small_mnist, recipe, on_note=notes.append)
        assert sys.modules["custom_networks"].Careful.steps > 0
        assert notes == [
            "own_step has a train step or a loss of its own and is trained through Keras's fit, "
            "which is slower."
        ]
        # A train step that does what Keras's does: the same numbers as the graphs give.
        assert np.allclose(done.probabilities, run(small_mnist, plain).probabilities, atol=1e-4)

    def test_a_fit_is_resumed_with_the_same_numbers(self, small_mnist, custom, tmp_path):
        recipe = custom("own_step")
        undisturbed = run(small_mnist, recipe)

        def interrupt(_epoch):
            raise Interrupted

        with pytest.raises(Interrupted):
            run(small_mnist, recipe, checkpoint=tmp_path / "c.npz", on_epoch=interrupt)
        resumed = run(small_mnist, recipe, checkpoint=tmp_path / "c.npz")
        assert (resumed.probabilities == undisturbed.probabilities).all()

    def test_loss_is_the_one_that_is_minimised(self, small_mnist, custom):
        recipe = custom("own_loss")
        plain = recipe.model_copy(
            update={
                "architecture": "custom_networks:flat",
                "optimizer": SGD.model_copy(update={"learning_rate": 0.03}),
            }
        )
        ours, same = run(small_mnist, recipe), run(small_mnist, plain)
        assert np.allclose(ours.probabilities, same.probabilities, atol=1e-4)
        assert ours.history[0].train_loss == pytest.approx(3 * same.history[0].train_loss, rel=1e-3)

    def test_layer_is_trained_as_it_is(self, small_mnist, custom):
        history = run(small_mnist, custom("own_layer")).history
        assert history[-1].train_loss < history[0].train_loss


class TestEnsemble:
    def test_probabilities_are_the_mean_of_networks_of_different_seeds(self, small_mnist):
        both = run(small_mnist, candidate(ensemble=2))
        first = run(small_mnist, candidate())
        second = 2 * both.probabilities - first.probabilities
        assert np.allclose(second.sum(axis=1), 1, atol=1e-5)
        assert np.abs(second - first.probabilities).max() > 0.01
        answers = np.asarray(both.model(small_mnist.train.images[SCORED], training=False))
        assert np.allclose(answers, both.probabilities, atol=1e-5)

    def test_it_continues_behind_the_network_in_flight(self, small_mnist, tmp_path):
        recipe, seen = candidate(ensemble=2), []
        undisturbed = run(small_mnist, recipe)

        def interrupt(epoch):
            seen.append(epoch.epoch)
            raise Interrupted

        for _ in range(3):
            with pytest.raises(Interrupted):
                run(small_mnist, recipe, checkpoint=tmp_path / "c.npz", on_epoch=interrupt)
        resumed = run(small_mnist, recipe, checkpoint=tmp_path / "c.npz")
        assert seen == [1, 2, 3]
        assert (resumed.probabilities == undisturbed.probabilities).all()
        assert [e.train_loss for e in resumed.history] == [
            e.train_loss for e in undisturbed.history
        ]


def test_averaged_weights_are_the_mean_of_the_last_epochs(small_mnist):
    after = [
        run(small_mnist, candidate(epochs=n, schedule=Schedule())).model.get_weights()
        for n in (2, 3)
    ]
    averaged = run(small_mnist, candidate(epochs=3, average_epochs=2)).model.get_weights()
    for a, b, mean in zip(*after, averaged, strict=True):
        assert np.allclose((a + b) / 2, mean, atol=1e-7)


def test_label_smoothing_is_that_of_keras(small_mnist):
    recipe = candidate(label_smoothing=0.2, epochs=1)
    ours = run(small_mnist, recipe).model.get_weights()
    model = build_model(recipe, scaler_for(small_mnist, TRAIN), small_mnist, seed=3)
    order = np.random.default_rng([3, 1]).permutation(TRAIN)
    smoothed = keras.losses.CategoricalCrossentropy(label_smoothing=0.2)
    model.compile(make_optimizer(SGD), smoothed)
    labels = keras.utils.to_categorical(small_mnist.train.labels[order])
    model.fit(small_mnist.train.images[order], labels, batch_size=32, shuffle=False, verbose=0)
    assert distance(ours, model.get_weights()) < 1e-5


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
