"""Networks as users write them, each for a test of its own in `test_users_models`."""

from pathlib import Path

import keras
import tensorflow as tf
from keras import layers, ops
from users_networks import CountsAlways, OwnLoss, head


class CountsImages(layers.Layer):
    def __init__(self):
        super().__init__()
        self.seen = keras.metrics.Sum()

    def call(self, x, training=False):
        if training:
            self.seen.update_state(0.1)
        return x * (1 + self.seen.result())


def counts_images_of_an_epoch(i, n):
    return head(CountsImages()(i), n)


class KeepsMetrics(keras.Model):
    def reset_metrics(self):
        pass


def counts_images_of_all_epochs(i, n):
    return KeepsMetrics(i, counts_images_of_an_epoch(i, n))


class AnyShape(layers.Layer):
    def __init__(self):
        super().__init__()
        self.last = tf.Variable(tf.zeros((1, 3)), shape=(None, 3), trainable=False)

    def call(self, x, training=False):
        if training:
            self.last.assign(self.last + 1.0)
        return x * (1 + 0.1 * ops.mean(self.last))


def variable_of_any_shape(i, n):
    return head(AnyShape()(i), n)


def two_losses_of_an_output(i, n):
    model = keras.Model(i, {"digit": head(i, n)})
    model.compile(loss={"digit": ["sparse_categorical_crossentropy", "mse"]})
    return model


def the_first_class_at_first(i, n):
    certain = keras.initializers.Constant([20.0] + [0.0] * (n - 1))
    first = layers.Dense(n, "softmax", kernel_initializer="zeros", bias_initializer=certain)
    return OwnLoss(i, first(layers.Flatten()(i)))


def plain(i, n):
    return head(i, n)


class Simplest(keras.Model):
    # Its train step returns its loss and knows of no metric; it may have a second optimizer.
    def __init__(self, *args, share=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.share = share
        self.second = None

    def train_step(self, data):

        x, y = data
        with tf.GradientTape() as tape:
            loss = self.share * ops.mean(
                keras.losses.sparse_categorical_crossentropy(y, self(x, training=True))
            )
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


class Counts(layers.Layer):
    def __init__(self):
        super().__init__()

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


class Flips(keras.Model):
    def __call__(self, x, *args, **kwargs):
        return super().__call__(ops.flip(x, 1), *args, **kwargs)


def called_in_its_own_way(i, n):
    return Flips(i, layers.Dense(n, activation="softmax")(layers.Flatten()(i[:, :9])))


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
    return head(layers.Embedding(2, 4)(layers.Flatten()(5 * i)), n)


class Breaks(layers.Layer):
    def call(self, x, training=None):
        if training:
            raise RuntimeError("it is broken")
        return x


def breaks(i, n):
    return head(Breaks()(i), n)


RATES = []


class Noting(keras.Model):
    def train_step(self, data):

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


class Noisy(layers.Layer):
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
    return layers.Dense(n)(layers.Flatten()(i))


def names_twice(i, n):
    return head(layers.Dense(4, name="d")(layers.Dense(4, name="d")(layers.Flatten()(i))), n)


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
    return head(layers.Lambda(lambda x: 2 * x)(i), n)


class Halves(layers.Layer):
    def call(self, x):
        return x / 2


def unregistered(i, n):
    return head(Halves()(i), n)


@keras.saving.register_keras_serializable("users")
class Scales(layers.Layer):
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
    return head(layers.Dense(4, kernel_initializer=bad)(layers.Flatten()(i)), n)


SHARED = []


def a_layer_of_the_module(i, n):
    SHARED[:] = SHARED or [layers.Dense(9, name="shared")]
    return head(SHARED[0](layers.Flatten()(i)), n)


KEPT = []


def a_loss_of_the_module(i, n):
    KEPT[:] = KEPT or [Drifts()]
    model = keras.Model(i, head(i, n))
    model.compile(loss=KEPT[0])
    return model


@tf.function
def swish(x):
    return tf.nn.silu(x)


class Swish(layers.Layer):
    def call(self, x):
        return swish(x)


def swish_of_the_images(i, n):
    return head(Swish()(i), n)


def swish_of_a_layer(i, n):
    return head(Swish()(layers.Conv2D(1, 3, padding="same")(i)), n)  # of the same shape


def compiled_with_adam(i, n):
    model = keras.Model(i, head(i, n))
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def compiled_with_its_own_rmsprop(i, n):
    model = keras.Model(i, head(i, n))
    model.compile(keras.optimizers.RMSprop(1e-5), "sparse_categorical_crossentropy")
    return model


def eager_and_determined_for_all(i, n):
    tf.config.run_functions_eagerly(True)
    tf.config.experimental.enable_op_determinism()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    return head(i, n)


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


class Hides(layers.Layer):
    def __init__(self):
        super().__init__()

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

        with tf.GradientTape() as tape:
            loss = ops.mean(
                keras.losses.sparse_categorical_crossentropy(data[1], self(data[0], training=True))
            )
        weights = self.trainable_weights
        self.more["second"].apply(tape.gradient(loss, weights), weights)
        return {"loss": loss}


def optimizer_in_a_dict(i, n):
    model = TwoOptimizers(i, head(i, n))
    model.more = {"second": keras.optimizers.Adam(1e-3)}
    return model


class CountsSteps(layers.Layer):
    def build(self, shape):
        self.steps = self.add_weight(
            shape=(), initializer="zeros", dtype="int32", trainable=False, name="steps"
        )

    def call(self, x, training=False):
        if training:
            self.steps.assign_add(1)
        return x


def counts_steps(i, n):
    return head(CountsSteps()(i), n)


def counts_answers_too(i, n):
    return head(CountsAlways()(i), n)


class GrowsWorse(layers.Layer):
    def __init__(self):
        super().__init__()

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
    class Least(layers.Layer):
        def build(self, shape):
            self.least = self.add_weight(
                shape=(), initializer=keras.initializers.Constant(float("inf")), trainable=False
            )

        def call(self, x):
            return x

    return head(Least()(i), n)


class Critic(keras.Model):
    """Of which nobody builds the critic before the first step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.critic = layers.Dense(1, name="critic")
        self.own_optimizer = None

    def train_step(self, data):

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


def eager(i, n):
    model = keras.Model(i, head(i, n))
    model.compile(run_eagerly=True)
    return model


def runs_eagerly(i, n):
    model = Looks(i, head(i, n))
    model.compile(run_eagerly=True)
    return model


def reads_a_missing_file(i, n):
    class Reads(layers.Layer):
        def call(self, x, training=None):
            return x * float(Path("nowhere.txt").read_text()) if training else x

    return head(Reads()(i), n)
