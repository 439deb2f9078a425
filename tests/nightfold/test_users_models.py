"""Networks of a user's own: trained as Keras's fit trains them, or refused in a sentence."""

import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from nightfold.bundle import Bundle, seal
from nightfold.errors import UsageError
from nightfold.experiment import (
    Augmentation,
    Candidate,
    EarlyStopping,
    Optimizer,
    PlanChoice,
    Schedule,
)
from nightfold.finaljob import FinalJob
from nightfold.foldplan import FoldPlan
from nightfold.model import build_model, build_network
from nightfold.optimization import make_optimizer
from nightfold.scaling import Scaler
from nightfold.training import train

pytestmark = pytest.mark.slow

NETWORKS = """
import keras
from keras import layers as L, ops

def head(x, n):
    return L.Dense(n, activation="softmax")(L.Flatten()(x))

# Losses that layers add, in every place where a rewrite could lose them.
def penalised_wide_dense(i, n):
    return head(L.Dense(128, activation="relu", activity_regularizer="l2")(L.Flatten()(i)), n)
def penalised_batch_norm(i, n):
    x = L.BatchNormalization(activity_regularizer="l2")(L.Conv2D(4, 3, strides=3)(i))
    return head(x, n)
def penalised_pooling(i, n):
    x = L.Conv2D(4, 3, activation="relu")(i)
    return head(L.MaxPooling2D(5, activity_regularizer="l2")(x), n)
def penalised_layer_used_twice(i, n):
    shared = L.Dense(8, activation="relu", activity_regularizer="l2")
    return head(L.Add()([shared(L.Flatten()(i[:, :14])), shared(L.Flatten()(i[:, 14:]))]), n)
def penalised_model_used_twice(i, n):
    inner = keras.Input((28, 28, 1))
    part = keras.Model(inner, L.Conv2D(4, 5, strides=4, activity_regularizer="l2")(inner))
    return head(L.Add()([part(i), part(ops.flip(i, 1))]), n)
@keras.saving.register_keras_serializable("users")
class Adds(L.Layer):
    def call(self, x):
        self.add_loss(1e-2 * ops.square(x))
        return x
def a_loss_that_is_a_tensor(i, n):
    return head(Adds()(L.Dense(8)(L.Flatten()(i))), n)

# Activations that are not one of Keras's functions.
def activation_with_weights(i, n):
    return head(L.MaxPooling2D(5)(L.Conv2D(4, 3, activation=L.PReLU("uniform"))(i)), n)
def activation_over_pixels(i, n):
    def centred(x):
        return ops.tanh(x - ops.mean(x, axis=(1, 2), keepdims=True))
    return head(L.MaxPooling2D(5)(L.Conv2D(4, 3, activation=centred)(i)), n)
def activation_that_normalises(i, n):
    return head(L.MaxPooling2D(5)(L.Conv2D(4, 3, activation=L.GroupNormalization(1))(i)), n)

# How a layer is called.
def told_that_it_is_not_training(i, n):
    return head(L.BatchNormalization()(L.Conv2D(4, 3, strides=3)(i), training=False), n)
def called_by_keyword(i, n):
    x = L.MaxPooling2D(2)(inputs=L.Conv2D(32, 3, activation="relu")(inputs=i))
    x = L.Dense(32)(inputs=L.Flatten()(inputs=L.BatchNormalization()(inputs=x)))
    return L.Dense(n, activation="softmax")(x)

# Other dtypes.
def half_under_a_wide_head(i, n):
    x = L.Flatten()(L.Conv2D(32, 3, activation="relu", dtype="mixed_float16")(i))
    return head(L.Dense(64, dtype="float32")(x), n)
def half_head(i, n):
    return L.Dense(n, activation="softmax", kernel_regularizer="l2", dtype="mixed_float16")(
        L.Flatten()(i))
def half_everywhere(i, n):
    keras.config.set_dtype_policy("mixed_float16")
    x = L.Conv2D(4, 3, strides=3, activation="relu")(i)
    return L.Dense(n, activation="softmax", dtype="float32")(L.Flatten()(x))
def mixed_brain(i, n):
    return L.Dense(n, activation="softmax", dtype="mixed_bfloat16")(L.Flatten()(i))
def brain_float(i, n):
    return L.Dense(n, activation="softmax", dtype="bfloat16")(L.Flatten()(i))
def double_dense(i, n):
    return head(L.Dense(96, dtype="float64")(L.Flatten()(i)), n)

# Models.
def sequential(i, n):
    return keras.Sequential([L.Flatten(), L.Dense(n, activation="softmax")])
@keras.saving.register_keras_serializable("users")
class Subclassed(keras.Model):
    def __init__(self, n):
        super().__init__()
        self.flat, self.out = L.Flatten(), L.Dense(n, activation="softmax")
    def call(self, x):
        return self.out(self.flat(x))
def subclassed(i, n):
    return Subclassed(n)
class OwnLoss(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return 3 * super().compute_loss(x, y, y_pred, sample_weight, training)
def own_compute_loss(i, n):
    return OwnLoss(i, head(i, n))
class Guide(keras.Model):
    \"\"\"With metrics of its own and what it needs set from outside, as in Keras's guide.\"\"\"
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.weight = 1.0
    @property
    def metrics(self):
        return [self.loss_tracker]
    def train_step(self, data):
        import tensorflow as tf
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.weight * ops.mean(
                keras.losses.sparse_categorical_crossentropy(y, self(x, training=True)))
        self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        self.loss_tracker.update_state(loss)
        return {"loss": self.loss_tracker.result()}
def guide(i, n):
    model = Guide(i, head(i, n))
    model.weight = 0.5
    return model
def training_none(i, n):
    x = L.BatchNormalization()(L.Conv2D(4, 3, strides=3)(i), training=None)
    return head(L.Dense(800)(L.Flatten()(x), training=None), n)
class Masks(L.Layer):
    def call(self, x):
        return x
    def compute_mask(self, x, previous=None):
        return ops.max(x[:, 14:], axis=1) > 0.9
def masked_rows(i, n):
    x = Masks()(L.Flatten()(i[:, 10:14, 10:17]))
    return L.Dense(n, activation="softmax")(x)

# What only the model that was returned knows: its images, its layers, its attributes.
class Both(keras.Model):
    def call(self, x, training=None, mask=None):
        return super().call(x, training=training)
    def train_step(self, data):
        return super().train_step(data)
def call_and_step(i, n):
    return Both(i, head(i, n))
class CallAndLoss(OwnLoss):
    def call(self, x, training=None, mask=None):
        return super().call(x, training=training)
def call_and_compute_loss(i, n):
    model = CallAndLoss(i, head(i, n))
    model.compile(loss="sparse_categorical_crossentropy")
    return model
class Steps(keras.Model):
    \"\"\"Of which a train step is made of parts.\"\"\"
    table = None
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.weights_of = None
    def images(self, x):
        return x
    def train_step(self, data):
        import tensorflow as tf
        x, y = self.images(data[0]), data[1]
        with tf.GradientTape() as tape:
            loss = ops.mean(keras.losses.sparse_categorical_crossentropy(y, self(x, training=True)))
            if self.weights_of is not None:
                loss += 0.1 * ops.sum(ops.square(self.layers[self.weights_of[0]].kernel))
        self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        return {"loss": loss}
class Mixes(Steps):
    def images(self, x):
        return 0.7 * x + 0.3 * x[::-1]
def images_that_are_mixed(i, n):
    return Mixes(i, head(i, n))
def set_behind_init_and_by_index(i, n):
    model = Steps(i, L.Dense(n, activation="softmax")(L.Dense(9)(L.Flatten()(i))))
    model.weights_of = [2]
    return model
class WeighsByInk(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return super().compute_loss(x, y, y_pred, None, training) * ops.mean(x)
def loss_of_the_images(i, n):
    model = WeighsByInk(i, head(i, n))
    model.compile(loss="sparse_categorical_crossentropy")
    return model
class NeedsMore(Steps):
    def __init__(self, inputs, outputs, more):
        super().__init__(inputs, outputs)
def class_with_arguments_of_its_own(i, n):
    return NeedsMore(i, head(i, n), more=1)
class OwnSequential(keras.Sequential):
    pass
def sequential_of_ones_own(i, n):
    return OwnSequential([L.Flatten(), L.Dense(n, activation="softmax")])
def rows_as_a_sequence(i, n):
    x = keras.Input((28, 28))
    return keras.Model(x, L.Dense(n, activation="softmax")(L.SimpleRNN(4)(x)))
def rows_as_a_sequence_in_a_list(i, n):
    return keras.Sequential(
        [keras.Input((28, 28)), L.SimpleRNN(4), L.Dense(n, activation="softmax")])
@keras.saving.register_keras_serializable("users")
class MasksInside(keras.Model):
    def __init__(self, n):
        super().__init__()
        self.mask, self.flat = L.Masking(), L.Flatten()
        self.out = L.Dense(n, activation="softmax")
    def call(self, x):
        return self.out(self.mask(self.flat(x[:, 10:14, 10:17])))
def masks_within_its_call(i, n):
    return MasksInside(n)

# Losses that are no name.
def compiled_with(loss, i, n):
    model = keras.Model(i, head(i, n))
    model.compile(loss=loss)
    return model
compiled_with.__module__ = "elsewhere"
def scaled_cross_entropy(y, p, by):
    return by * keras.losses.sparse_categorical_crossentropy(y, p)
scaled_cross_entropy.__module__ = "elsewhere"
def partial_loss(i, n):
    import functools
    return compiled_with(functools.partial(scaled_cross_entropy, by=0.5), i, n)
def loss_without_a_reduction(i, n):
    return compiled_with(keras.losses.SparseCategoricalCrossentropy(reduction=None), i, n)

# Layers that were used elsewhere before, and weights that no gradient is for.
def dense_on_more_axes_than_before(i, n):
    wide = L.Dense(400)
    wide(L.Reshape((196,))(i[:, ::2, ::2]))
    return head(wide(L.Reshape((4, 196))(i)), n)
def scales_of_eight_bits(i, n):
    dense = L.Dense(16, activation="relu")
    dense(L.Flatten()(i))
    dense.quantize("float8")
    return head(dense(L.Flatten()(i)), n)

# Exact zeros under the blank margins decide whether ReLU learns there.
def blank_windows_without_a_bias(i, n):
    x = L.LeakyReLU(dtype="float64")(L.Conv2D(32, 3, dtype="float64")(i))
    x = L.Conv2D(32, 3, use_bias=False, activation="relu", dtype="float64")(x)
    x = L.Flatten(dtype="float64")(L.MaxPooling2D(4, dtype="float64")(x))
    return L.Dense(n, activation="softmax", dtype="float64")(x)

SAME = [name for name, function in list(globals().items()) if
        getattr(function, "__module__", "") == __name__ and not isinstance(function, type)
        and name != "head"]

# For the other tests.
def plain(i, n):
    return head(i, n)
class Simplest(keras.Model):
    # Its train step returns its loss and knows of no metric; it may have a second optimizer.
    def __init__(self, *args, share=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.share = share
        self.second = None
    def train_step(self, data):
        import tensorflow as tf
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.share * ops.mean(
                keras.losses.sparse_categorical_crossentropy(y, self(x, training=True)))
        optimizer = self.second or self.optimizer
        optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        return {"loss": loss}
def simplest(i, n):
    return Simplest(i, head(i, n))
def a_quarter(i, n):
    return Simplest(i, head(i, n), share=0.25)
def second_optimizer(i, n):
    model = Simplest(i, head(i, n))
    model.second = keras.optimizers.Adam(1e-3)
    return model
class Counts(L.Layer):
    def __init__(self):
        super().__init__()
        import tensorflow as tf
        self.steps, self.more = tf.Variable(0.0, trainable=False), [tf.Variable(1.0)]
    def call(self, x, training=False):
        if training:
            self.steps.assign_add(1.0)
            self.more[0].assign(self.more[0] * 1.1)
        return x * (self.more[0].value() + self.steps.value())
def tensorflow_variable(i, n):
    return head(Counts()(i), n)
def other_epsilon(i, n):
    keras.config.set_epsilon(0.05)
    return head(i, n)
def weighted_loss(i, n):
    model = keras.Model(i, head(i, n))
    model.compile(loss="sparse_categorical_crossentropy", loss_weights=[0.25])
    return model
class Compiles(keras.Model):
    def compile(self, optimizer, loss_fn):
        super().compile(optimizer)
def own_compile(i, n):
    return Compiles(i, head(i, n))
class Older(keras.Model):
    def compute_loss(self, x, y, y_pred, sample_weight):
        return super().compute_loss(x, y, y_pred, sample_weight)
def older_signature(i, n):
    model = Older(i, head(i, n))
    model.compile(loss="sparse_categorical_crossentropy")
    return model
def out_of_range(i, n):
    return head(L.Embedding(2, 4)(L.Flatten()(5 * i)), n)
class Breaks(L.Layer):
    def call(self, x, training=None):
        if training:
            raise RuntimeError("it is broken")
        return x
def breaks(i, n):
    return head(Breaks()(i), n)
RATES = []
class Noting(keras.Model):
    def train_step(self, data):
        import tensorflow as tf
        tf.py_function(lambda rate: RATES.append(float(rate)), [self.optimizer.learning_rate], [])
        return super().train_step(data)
def noting(i, n):
    return Noting(i, head(i, n))
class Squares(keras.Model):
    def call(self, x, training=None, mask=None):
        p = super().call(x, training=training)
        return p * p / ops.sum(p * p, axis=1, keepdims=True)
def squares(i, n):
    return Squares(i, head(i, n))
class Noisy(L.Layer):
    def call(self, x):
        return x + 0.3 * keras.random.normal(ops.shape(x))
def unseeded_noise(i, n):
    return head(Noisy()(i), n)
def smoothed_itself(i, n):
    model = keras.Model(i, head(i, n))
    model.compile(loss=lambda y, p: keras.losses.sparse_categorical_crossentropy(y, p))
    return model
def no_loss(i, n):
    model = keras.Model(i, head(i, n))
    model.compile()
    return model

def logits(i, n):
    return L.Dense(n)(L.Flatten()(i))
def names_twice(i, n):
    return head(L.Dense(4, name="d")(L.Dense(4, name="d")(L.Flatten()(i))), n)
def wrong_attribute(i, n):
    return i.nothing_there
def two_outputs(i, n):
    return [head(i, n), head(i, n)]
def nothing(i, n):
    pass
def from_elsewhere(i, n):
    return head(keras.Input((28, 28, 1)), n)
def wrong_loss(i, n):
    model = keras.Model(i, head(i, n))
    model.compile(loss="categorical_crossentropy")
    return model
# What has no name that a file could hold.
def unnamed_function(i, n):
    return head(L.Lambda(lambda x: 2 * x)(i), n)
class Halves(L.Layer):
    def call(self, x):
        return x / 2
def unregistered(i, n):
    return head(Halves()(i), n)
@keras.saving.register_keras_serializable("users")
class Scales(L.Layer):
    def __init__(self, by, **kwargs):
        super().__init__(**kwargs)
        self.by = by
    def call(self, x):
        return x * self.by
def without_configuration(i, n):
    return head(Scales(ops.ones(1))(i), n)
@keras.saving.register_keras_serializable("users")
class Forgets(Scales):
    def get_config(self):
        return {**super(Scales, self).get_config(), "by": 1}
def forgetful(i, n):
    return head(Forgets(3)(i), n)
def no_numbers(i, n):
    bad = keras.initializers.Constant(float("nan"))
    return head(L.Dense(4, kernel_initializer=bad)(L.Flatten()(i)), n)

SHARED = []
def a_layer_of_the_module(i, n):
    SHARED[:] = SHARED or [L.Dense(9, name="shared")]
    return head(SHARED[0](L.Flatten()(i)), n)
def compiled_with_adam(i, n):
    model = keras.Model(i, head(i, n))
    model.compile("adam", "sparse_categorical_crossentropy")
    return model

# State that Keras knows nothing of.
class Drifts(keras.losses.Loss):
    def __init__(self):
        super().__init__()
        self.calls = keras.Variable(1.0, trainable=False)
    def call(self, y, p):
        self.calls.assign_add(0.1)
        return self.calls * keras.losses.sparse_categorical_crossentropy(y, p)
def loss_with_a_variable(i, n):
    model = keras.Model(i, head(i, n))
    model.compile(loss=Drifts())
    return model
class Hides(L.Layer):
    def __init__(self):
        super().__init__()
        import tensorflow as tf
        class Module(tf.Module):
            pass
        self.module = Module()
        self.module.variable = tf.Variable(1.0)
        self.held = {"a": tf.Variable(1.0), "b": (tf.Variable(1.0),)}
        self.metric = keras.metrics.Sum()
    def call(self, x, training=False):
        if training:
            self.held["a"].assign_add(0.1)
            self.held["b"][0].assign_add(0.2)
            self.module.variable.assign_add(0.3)
            self.metric.update_state(0.1)
        by = self.held["a"] + self.held["b"][0] + self.module.variable + self.metric.result()
        return x * by
def hidden_variables(i, n):
    return head(Hides()(i), n)
class TwoOptimizers(keras.Model):
    def train_step(self, data):
        import tensorflow as tf
        with tf.GradientTape() as tape:
            loss = ops.mean(keras.losses.sparse_categorical_crossentropy(
                data[1], self(data[0], training=True)))
        weights = self.trainable_weights
        self.more["second"].apply(tape.gradient(loss, weights), weights)
        return {"loss": loss}
def optimizer_in_a_dict(i, n):
    model = TwoOptimizers(i, head(i, n))
    model.more = {"second": keras.optimizers.Adam(1e-3)}
    return model
class CountsAlways(L.Layer):
    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)
    def call(self, x):
        self.calls.assign_add(1.0)
        return x * (1 + self.calls)
def counts_answers_too(i, n):
    return head(CountsAlways()(i), n)
class GrowsWorse(L.Layer):
    def __init__(self):
        super().__init__()
        import tensorflow as tf
        self.noise = tf.Variable(0.0)
    def call(self, x, training=False):
        if training:
            self.noise.assign_add(1.0)
        return x * (1 + 9 * self.noise)
def grows_worse(i, n):
    return head(GrowsWorse()(i), n)
def compiled_within(i, n):
    x = keras.Input((28, 28, 1))
    model = keras.Model(x, head(x, n))
    model.compile("adam", "mse")
    return model(i)
def least_so_far(i, n):
    class Least(L.Layer):
        def build(self, shape):
            self.least = self.add_weight(
                shape=(), initializer=keras.initializers.Constant(float("inf")), trainable=False)
        def call(self, x):
            return x
    return head(Least()(i), n)

class Critic(keras.Model):
    \"\"\"Of which nobody builds the critic before the first step.\"\"\"
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.critic = L.Dense(1, name="critic")
        self.own_optimizer = None
    def train_step(self, data):
        import tensorflow as tf
        with tf.GradientTape() as tape:
            loss = ops.mean(self.critic(self(data[0], training=True)))
        weights = (self.critic if self.own_optimizer else self).trainable_variables
        (self.own_optimizer or self.optimizer).apply(tape.gradient(loss, weights), weights)
        return {"loss": loss}
def late_weights(i, n):
    return Critic(i, head(i, n))
def late_weights_of_its_own_optimizer(i, n):
    model = late_weights(i, n)
    model.own_optimizer = keras.optimizers.SGD(0.01)
    return model
class Looks(keras.Model):
    def train_step(self, data):
        SEEN.append(float(ops.mean(self(data[0])).numpy()))
        return super().train_step(data)
SEEN = []
def runs_eagerly(i, n):
    model = Looks(i, head(i, n))
    model.compile(run_eagerly=True)
    return model
def reads_a_missing_file(i, n):
    class Reads(L.Layer):
        def call(self, x, training=None):
            return x * float(open("nowhere.txt").read()) if training else x
    return head(Reads()(i), n)
"""

SCALER = Scaler(name="normalize", scale=1 / 255)


def names_of(kind):
    scope = {"__name__": "users_networks"}
    exec(NETWORKS, scope)
    return scope[kind]


@pytest.fixture
def users(tmp_path, monkeypatch):
    """A candidate of one of the networks above, by its name."""
    (tmp_path / "users_networks.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "users_networks", raising=False)

    def candidate(name, **changes):
        recipe = {"epochs": 1, "batch_size": 32, "optimizer": Optimizer(learning_rate=2**-6)}
        architecture = f"users_networks:{name}"
        return Candidate(name=name, architecture=architecture, **(recipe | changes))

    return candidate


ROWS, SCORED = np.arange(112), np.arange(112, 144)  # three batches and a half


def trained(dataset, candidate, **options):
    return train(candidate, dataset, ROWS, SCORED, scaler=SCALER, seed=3, **options)


def fitted(dataset, candidate):
    """What Keras makes of the user's own model on scaled images, and its answers."""
    network = build_network(candidate, SCALER, dataset, 3)
    order = np.random.default_rng([3, 1]).permutation(ROWS)
    images, labels = dataset.train.images[order], dataset.train.labels[order].astype(np.int64)
    model, own = network.model, network.own
    if own is not None:
        images = images * np.float32(1 / 255)
    model = model if own is None else own
    loss, eager = "sparse_categorical_crossentropy", model.run_eagerly
    if model.compiled and model.loss is not None:
        loss = model.loss
    model.compile(make_optimizer(candidate.optimizer), loss, run_eagerly=eager)
    model.fit(images, labels, batch_size=32, epochs=1, shuffle=False, verbose=0)
    return network.model


def distance(ours, theirs):
    pairs = list(zip(ours.get_weights(), theirs.get_weights(), strict=True))
    assert pairs
    off = sum(np.sum((a.astype(float) - b.astype(float)) ** 2) for a, b in pairs)
    return np.sqrt(off / sum(np.sum(b.astype(float) ** 2) for _, b in pairs))


@pytest.mark.parametrize("name", names_of("SAME"))
def test_weights_are_those_of_fit(name, small_mnist, users):
    """Four steps; in float32 rounding leaves 1e-6, and what is lost or added much more."""
    candidate = users(name)
    assert distance(trained(small_mnist, candidate).model, fitted(small_mnist, candidate)) < 2e-5


def test_every_step_of_fit_has_its_own_learning_rate(small_mnist, users):
    candidate = users("noting", batch_size=4, schedule=Schedule(name="one_cycle"))
    trained(small_mnist, candidate)
    used = sys.modules["users_networks"].RATES
    plain = trained(
        small_mnist, candidate.model_copy(update={"architecture": "users_networks:plain"})
    )
    assert len(used) == len(set(used)) == 28
    assert distance(trained(small_mnist, candidate).model, plain.model) < 1e-6


def test_fit_gets_smoothed_labels_and_moved_images_as_the_graphs_do(small_mnist, users):
    """bfloat16 goes through fit: as far from float32 as it is without both."""
    changes = {"label_smoothing": 0.3, "augmentation": Augmentation(shift=0.1)}
    far = distance(*(trained(small_mnist, users(n)).model for n in ("mixed_brain", "plain")))
    with_both = (trained(small_mnist, users(n, **changes)).model for n in ("mixed_brain", "plain"))
    assert distance(*with_both) < 3 * far < 0.02
    assert distance(*(trained(small_mnist, users("plain", **c)).model for c in ({}, changes))) > far


def test_what_is_left_to_fit_is_told(small_mnist, users):
    for name, why in (
        ("own_compute_loss", "has a train step or a loss of its own"),
        ("half_head", "computes in less than float32"),
        ("plain", None),
    ):
        notes = []
        trained(small_mnist, users(name), on_note=notes.append)
        slower = "is trained through Keras's fit, which is slower."
        assert notes == ([f"{name} {why} and {slower}"] if why else [])


def test_a_train_step_finds_what_its_model_was_made_with(small_mnist, users):
    whole, quarter = (
        trained(small_mnist, users(name, optimizer=Optimizer(learning_rate=rate))).model
        for name, rate in (("simplest", 2**-8), ("a_quarter", 2**-6))
    )
    assert distance(whole, quarter) < 1e-6
    assert 1 < trained(small_mnist, users("simplest")).history[0].train_loss < 2.5


def test_weights_of_losses_count(small_mnist, users):
    plain = trained(small_mnist, users("plain", optimizer=Optimizer(learning_rate=2**-8))).model
    assert distance(trained(small_mnist, users("weighted_loss")).model, plain) < 1e-6


def test_an_optimizer_that_is_not_used_is_told(small_mnist, users):
    notes = []
    trained(small_mnist, users("compiled_with_adam"), on_note=notes.append)
    assert notes == [
        "compiled_with_adam was compiled with Adam, and is trained with the optimizer that the "
        "experiment names."
    ]


def test_weights_do_not_depend_on_how_many_rows_are_scored(small_mnist, users):
    candidate = users("counts_answers_too", epochs=2)
    weights = [
        train(candidate, small_mnist, ROWS, scored, scaler=SCALER, seed=3).model
        for scored in (SCORED, SCORED[:0])
    ]
    assert distance(*weights) == 0


def test_no_fold_goes_on_with_what_another_has_learned(small_mnist, users):
    candidate = users("a_layer_of_the_module")
    trained(small_mnist, candidate)
    with pytest.raises(UsageError, match="returns shared/kernel, which its function has not made"):
        trained(small_mnist, candidate)


def test_early_stopping_brings_back_what_keras_does_not_know(small_mnist, users):
    stopping = EarlyStopping(patience=1, fraction=0.2)
    rate = Optimizer(learning_rate=2**-20)
    found = trained(
        small_mnist, users("grows_worse", epochs=6, early_stopping=stopping, optimizer=rate)
    )
    assert len(found.history) < 6
    assert found.loss == found.history[-2].validation_loss  # patience is one epoch


def test_a_weight_may_be_infinite_on_purpose(small_mnist, users):
    assert trained(small_mnist, users("least_so_far")).history[0].train_loss < 2.5


def test_a_network_with_a_call_of_its_own_is_called_once(small_mnist, users):
    model = build_model(users("squares"), SCALER, small_mnist, 3)
    plain = build_model(users("plain"), SCALER, small_mnist, 3)
    images = small_mnist.train.images[:8]
    once = np.square(plain(images))
    assert np.allclose(model(images), once / once.sum(axis=1, keepdims=True), atol=1e-6)


def test_what_an_architecture_sets_for_keras_ends_with_it(small_mnist, users):
    alone = trained(small_mnist, users("plain"))
    trained(small_mnist, users("half_everywhere"))
    trained(small_mnist, users("other_epsilon"))
    assert keras.config.dtype_policy().name == "float32"
    assert keras.config.epsilon() == pytest.approx(1e-7)
    assert (trained(small_mnist, users("plain")).probabilities == alone.probabilities).all()


@pytest.mark.parametrize(
    "name",
    [
        "brain_float",
        "half_head",
        "unseeded_noise",
        "guide",
        "second_optimizer",
        "tensorflow_variable",
        "loss_with_a_variable",
        "hidden_variables",
        "optimizer_in_a_dict",
    ],
)
def test_an_interrupted_training_goes_on_with_the_same_numbers(name, small_mnist, users, tmp_path):
    class Interrupted(Exception):
        pass

    def interrupt(_epoch):
        raise Interrupted

    candidate = users(name, epochs=2)
    undisturbed = trained(small_mnist, candidate)
    with pytest.raises(Interrupted):
        trained(small_mnist, candidate, checkpoint=tmp_path / "c.npz", on_epoch=interrupt)
    resumed = trained(small_mnist, candidate, checkpoint=tmp_path / "c.npz")
    assert len(resumed.history) == 2
    assert (resumed.probabilities == undisturbed.probabilities).all()


def test_a_model_compiled_without_a_loss_minimises_the_usual_one(small_mnist, users):
    models = [trained(small_mnist, users(name)).model for name in ("no_loss", "plain")]
    assert distance(*models) == 0


def test_a_loss_may_have_the_signature_that_older_keras_asked_for(small_mnist, users):
    models = [trained(small_mnist, users(n)).model for n in ("older_signature", "plain")]
    assert distance(*models) < 1e-6


def test_penalties_are_part_of_the_loss_of_training(small_mnist, users):
    with_penalty = trained(small_mnist, users("penalised_wide_dense")).history[0].train_loss
    model = build_model(users("penalised_wide_dense"), SCALER, small_mnist, 3)
    model.compile("sgd", "sparse_categorical_crossentropy")
    batch = ROWS[:32]
    images, labels = small_mnist.train.images[batch], small_mnist.train.labels[batch]
    assert with_penalty == pytest.approx(model.evaluate(images, labels, verbose=0), rel=0.2)


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("logits", {}, "gives no probabilities: .* end it with softmax."),
        ("names_twice", {}, 'The name "d" is used 2 times'),
        (
            "wrong_attribute",
            {},
            r"AttributeError: .*'nothing_there' \(users_networks.py, line \d+\)",
        ),
        ("two_outputs", {}, "returns 2 outputs; it must return one output"),
        ("nothing", {}, "returns None; it must return one output"),
        ("from_elsewhere", {}, "cannot be built .*not connected to `inputs`"),
        ("wrong_loss", {}, "'users_networks:wrong_loss' cannot be trained: .* same rank"),
        ("own_compile", {}, "a Compiles with a compile of its own"),
        ("out_of_range", {}, "cannot be trained: InvalidArgumentError: indices.* is not in"),
        ("breaks", {}, "cannot be trained: RuntimeError: .*it is broken"),
        (
            "reads_a_missing_file",
            {},
            r"cannot be trained: FileNotFoundError: .* \(users_networks.py, line \d+\)",
        ),
        ("late_weights", {}, "makes the weights critic/kernel when it is trained"),
        ("late_weights_of_its_own_optimizer", {}, "makes the weights critic/kernel when"),
        ("smoothed_itself", {"label_smoothing": 0.1}, "label_smoothing has no effect"),
        ("guide", {"label_smoothing": 0.1}, "label_smoothing has no effect"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(name, changes, sentence, small_mnist, users):
    with pytest.raises(UsageError, match=sentence) as caught:
        trained(small_mnist, users(name, **changes))
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_a_step_that_is_to_run_eagerly_does(small_mnist, users):
    trained(small_mnist, users("runs_eagerly"))
    seen = sys.modules["users_networks"].SEEN
    assert seen == pytest.approx([0.1] * 4)


@pytest.fixture
def final_job(small_mnist, users, tmp_path):
    """The final fit of one of the networks above on `small_mnist`."""
    plan = FoldPlan.build(PlanChoice(folds=2), small_mnist)

    def make(name, **changes):
        return FinalJob(
            candidate=users(name, **changes),
            dataset=small_mnist.handle,
            plan=plan.handle(plan.save(tmp_path)),
            scaler=SCALER,
            seed=3,
            run_id="night-1",
            artifacts=str(tmp_path),
        )

    return make


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("unnamed_function", "holds the layer Lambda"),
        ("unregistered", "uses 'Halves', which nobody here has registered"),
        ("without_configuration", "cannot save the model .* give each class .* a get_config"),
        ("forgetful", "other answers, .* when it was saved and loaded"),
        ("no_numbers", "none that are numbers"),
    ],
)
def test_what_could_not_be_sealed_is_told_before_it_is_trained(name, sentence, final_job):
    with pytest.raises(UsageError, match=f"could not be published after .*: .*{sentence}") as told:
        final_job(name).rehearse()
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["scales_of_eight_bits", "compiled_within", "partial_loss"])
def test_how_a_network_is_trained_or_stored_keeps_it_from_no_bundle(name, final_job):
    final_job(name).rehearse()


@pytest.mark.parametrize("changes", [{}, {"ensemble": 2}])
def test_a_class_that_only_trains_in_its_own_way_needs_no_name(changes, final_job, facts, tmp_path):
    """The sealed model answers without it."""
    job = final_job("guide", **changes)
    job.rehearse()
    images = np.asarray(job.dataset.open().test.images[:4])
    handle = seal(job.fit().model, tmp_path / "models", facts, images)
    assert Bundle.load(Path(handle.path)).predict(images).sum() == pytest.approx(4)
