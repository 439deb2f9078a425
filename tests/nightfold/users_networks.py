"""Networks as users write them, each to be trained as Keras's fit trains it."""

import functools

import keras
import tensorflow as tf
from keras import layers, ops


def head(x, n):
    return layers.Dense(n, activation="softmax")(layers.Flatten()(x))


# Losses that layers add, in every place where a rewrite could lose them.
def penalised_wide_dense(i, n):
    return head(
        layers.Dense(128, activation="relu", activity_regularizer="l2")(layers.Flatten()(i)), n
    )


def penalised_batch_norm(i, n):
    x = layers.BatchNormalization(activity_regularizer="l2")(layers.Conv2D(4, 3, strides=3)(i))
    return head(x, n)


def penalised_pooling(i, n):
    x = layers.Conv2D(4, 3, activation="relu")(i)
    return head(layers.MaxPooling2D(5, activity_regularizer="l2")(x), n)


def penalised_layer_used_twice(i, n):
    shared = layers.Dense(8, activation="relu", activity_regularizer="l2")
    return head(
        layers.Add()([shared(layers.Flatten()(i[:, :14])), shared(layers.Flatten()(i[:, 14:]))]), n
    )


def penalised_model_used_twice(i, n):
    inner = keras.Input((28, 28, 1))
    part = keras.Model(inner, layers.Conv2D(4, 5, strides=4, activity_regularizer="l2")(inner))
    return head(layers.Add()([part(i), part(ops.flip(i, 1))]), n)


@keras.saving.register_keras_serializable("users")
class Adds(layers.Layer):
    def call(self, x):
        self.add_loss(1e-2 * ops.square(x))
        return x


def a_loss_that_is_a_tensor(i, n):
    return head(Adds()(layers.Dense(8)(layers.Flatten()(i))), n)


# Activations that are not one of Keras's functions.
def activation_with_weights(i, n):
    return head(
        layers.MaxPooling2D(5)(layers.Conv2D(4, 3, activation=layers.PReLU("uniform"))(i)), n
    )


def activation_over_pixels(i, n):
    def centred(x):
        return ops.tanh(x - ops.mean(x, axis=(1, 2), keepdims=True))

    return head(layers.MaxPooling2D(5)(layers.Conv2D(4, 3, activation=centred)(i)), n)


def activation_that_normalises(i, n):
    return head(
        layers.MaxPooling2D(5)(layers.Conv2D(4, 3, activation=layers.GroupNormalization(1))(i)), n
    )


# How a layer is called.
def told_that_it_is_not_training(i, n):
    return head(layers.BatchNormalization()(layers.Conv2D(4, 3, strides=3)(i), training=False), n)


def called_by_keyword(i, n):
    x = layers.MaxPooling2D(2)(inputs=layers.Conv2D(32, 3, activation="relu")(inputs=i))
    x = layers.Dense(32)(inputs=layers.Flatten()(inputs=layers.BatchNormalization()(inputs=x)))
    return layers.Dense(n, activation="softmax")(x)


# Other dtypes.
def half_under_a_wide_head(i, n):
    x = layers.Flatten()(layers.Conv2D(32, 3, activation="relu", dtype="mixed_float16")(i))
    return head(layers.Dense(64, dtype="float32")(x), n)


def half_head(i, n):
    return layers.Dense(n, activation="softmax", kernel_regularizer="l2", dtype="mixed_float16")(
        layers.Flatten()(i)
    )


def half_everywhere(i, n):
    keras.config.set_dtype_policy("mixed_float16")
    x = layers.Conv2D(4, 3, strides=3, activation="relu")(i)
    return layers.Dense(n, activation="softmax", dtype="float32")(layers.Flatten()(x))


def mixed_brain(i, n):
    return layers.Dense(n, activation="softmax", dtype="mixed_bfloat16")(layers.Flatten()(i))


def brain_float(i, n):
    return layers.Dense(n, activation="softmax", dtype="bfloat16")(layers.Flatten()(i))


def double_dense(i, n):
    return head(layers.Dense(96, dtype="float64")(layers.Flatten()(i)), n)


# Models.
def sequential(i, n):
    return keras.Sequential([layers.Flatten(), layers.Dense(n, activation="softmax")])


@keras.saving.register_keras_serializable("users")
class Subclassed(keras.Model):
    def __init__(self, n):
        super().__init__()
        self.flat, self.out = layers.Flatten(), layers.Dense(n, activation="softmax")

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
    """With metrics of its own and what it needs set from outside, as in Keras's guide."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.weight = 1.0

    @property
    def metrics(self):
        return [self.loss_tracker]

    def train_step(self, data):

        x, y = data
        with tf.GradientTape() as tape:
            loss = self.weight * ops.mean(
                keras.losses.sparse_categorical_crossentropy(y, self(x, training=True))
            )
        self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        self.loss_tracker.update_state(loss)
        return {"loss": self.loss_tracker.result()}


def guide(i, n):
    model = Guide(i, head(i, n))
    model.weight = 0.5
    return model


def training_none(i, n):
    x = layers.BatchNormalization()(layers.Conv2D(4, 3, strides=3)(i), training=None)
    return head(layers.Dense(800)(layers.Flatten()(x), training=None), n)


class Masks(layers.Layer):
    def call(self, x):
        return x

    def compute_mask(self, x, previous=None):
        return ops.max(x[:, 14:], axis=1) > 0.9


def masked_rows(i, n):
    x = Masks()(layers.Flatten()(i[:, 10:14, 10:17]))
    return layers.Dense(n, activation="softmax")(x)


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
    """Of which a train step is made of parts."""

    table = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.weights_of = None

    def images(self, x):
        return x

    def train_step(self, data):

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
    model = Steps(i, layers.Dense(n, activation="softmax")(layers.Dense(9)(layers.Flatten()(i))))
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
    return OwnSequential([layers.Flatten(), layers.Dense(n, activation="softmax")])


def rows_as_a_sequence(i, n):
    x = keras.Input((28, 28))
    return keras.Model(x, layers.Dense(n, activation="softmax")(layers.SimpleRNN(4)(x)))


def rows_as_a_sequence_in_a_list(i, n):
    return keras.Sequential(
        [keras.Input((28, 28)), layers.SimpleRNN(4), layers.Dense(n, activation="softmax")]
    )


@keras.saving.register_keras_serializable("users")
class MasksInside(keras.Model):
    kind = layers.Masking

    def __init__(self, n):
        super().__init__()
        self.mask, self.flat = self.kind(), layers.Flatten()
        self.out = layers.Dense(n, activation="softmax")

    def call(self, x):
        return self.out(self.mask(self.flat(x[:, 10:14, 10:17])))


def masks_within_its_call(i, n):
    return MasksInside(n)


@keras.saving.register_keras_serializable("users")
class Ink(layers.Layer):
    """Of which blank rows have none."""

    def compute_mask(self, x, previous=None):
        return ops.any(x > 0, axis=-1)

    def call(self, x):
        return x


@keras.saving.register_keras_serializable("users")
class MasksItself(MasksInside):
    kind = Ink


def masks_of_ones_own_within_its_call(i, n):
    return MasksItself(n)


class Learns(Steps):
    """Its step trains a layer that its answers do not need."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.more = layers.Dense(1)
        self.more.build((None, 10))

    def train_step(self, data):
        with tf.GradientTape() as tape:
            answers = self(data[0], training=True)
            loss = ops.mean(keras.losses.sparse_categorical_crossentropy(data[1], answers))
            loss += ops.mean(ops.square(self.more(answers)))
        self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        return {"loss": loss}


def layer_of_the_train_step_alone(i, n):
    return Learns(i, head(i, n))


def step_of_this_very_model(i, n):
    model = keras.Model(i, head(i, n))

    def step(data):
        with tf.GradientTape() as tape:
            answers = model(data[0], training=True)
            loss = 2 * ops.mean(keras.losses.sparse_categorical_crossentropy(data[1], answers))
        model.optimizer.apply(tape.gradient(loss, model.trainable_weights), model.trainable_weights)
        return {"loss": loss}

    model.train_step = step
    return model


class TrainsItsHead(keras.Model):
    @property
    def trainable_variables(self):
        return self.layers[-1].trainable_variables

    trainable_weights = trainable_variables


def trains_its_head_alone(i, n):
    return TrainsItsHead(i, head(layers.Dense(9)(layers.Flatten()(i)), n))


def one_output_in_a_dict(i, n):
    return keras.Model({"image": i}, {"class": head(i, n)})


# Losses that are no name.
def _compiled_with(loss, i, n):
    model = keras.Model(i, head(i, n))
    model.compile(loss=loss)
    return model


def _scaled_cross_entropy(y, p, by):
    return by * keras.losses.sparse_categorical_crossentropy(y, p)


def partial_loss(i, n):

    return _compiled_with(functools.partial(_scaled_cross_entropy, by=0.5), i, n)


def loss_without_a_reduction(i, n):
    return _compiled_with(keras.losses.SparseCategoricalCrossentropy(reduction=None), i, n)


# Layers that were used elsewhere before, and weights that no gradient is for.
def dense_on_more_axes_than_before(i, n):
    wide = layers.Dense(400)
    wide(layers.Reshape((196,))(i[:, ::2, ::2]))
    return head(wide(layers.Reshape((4, 196))(i)), n)


def scales_of_eight_bits(i, n):
    dense = layers.Dense(16, activation="relu")
    dense(layers.Flatten()(i))
    dense.quantize("float8")
    return head(dense(layers.Flatten()(i)), n)


# Exact zeros under the blank margins decide whether ReLU learns there.
def blank_windows_without_a_bias(i, n):
    x = layers.LeakyReLU(dtype="float64")(layers.Conv2D(32, 3, dtype="float64")(i))
    x = layers.Conv2D(32, 3, use_bias=False, activation="relu", dtype="float64")(x)
    x = layers.Flatten(dtype="float64")(layers.MaxPooling2D(4, dtype="float64")(x))
    return layers.Dense(n, activation="softmax", dtype="float64")(x)


# What Keras asks a model, and what it does not tell it.
@keras.saving.register_keras_serializable("users")
class NoTraining(keras.Model):
    def __init__(self, n, between):
        super().__init__()
        self.flat, self.hidden = layers.Flatten(), layers.Dense(16, activation="relu")
        self.between, self.out = between, layers.Dense(n, activation="softmax")

    def call(self, x):
        return self.out(self.between(self.hidden(self.flat(x))))


def no_training_and_dropout(i, n):
    return NoTraining(n, layers.Dropout(0.5, seed=1))


def no_training_and_batch_norm(i, n):
    return NoTraining(n, layers.BatchNormalization())


class LearnsItsHead(keras.Model):
    @property
    def trainable_weights(self):
        return self.layers[-1].trainable_weights


def weights_of_its_own(i, n):
    return LearnsItsHead(i, head(layers.Dense(9)(layers.Flatten()(i)), n))


class Penalises(keras.Model):
    @property
    def losses(self):
        return [0.1 * ops.sum(ops.square(self.layers[-1].kernel))]


def losses_of_its_own(i, n):
    return Penalises(i, head(i, n))


class StartsAnew(keras.Model):
    def reset_metrics(self):
        super().reset_metrics()
        self.layers[-1].bias.assign(ops.ones_like(self.layers[-1].bias))


def more_than_metrics_reset(i, n):
    return StartsAnew(i, head(i, n))


def penalised_as_a_whole(i, n):
    model = keras.Sequential([layers.Flatten(), layers.Dense(n, activation="softmax")])
    model.activity_regularizer = keras.regularizers.L2(10.0)
    return model


class Normalises(layers.Layer):
    """Of which the images with little ink do not count."""

    supports_masking = True

    def __init__(self):
        super().__init__()
        self.norm = layers.BatchNormalization()

    def build(self, shape):
        self.norm.build(shape)

    def call(self, x, training=None):
        return self.norm(x, mask=ops.mean(x, -1) > 0.12, training=training)


def masks_within_the_call_of_a_layer(i, n):
    return layers.Dense(n, activation="softmax")(Normalises()(layers.Flatten()(i)))


# Where a model begins.
def begins_where_images_do(i, n):
    return keras.Model(keras.utils.get_source_inputs(i), head(i, n))


def begins_there_and_has_a_step(i, n):
    return Mixes(keras.utils.get_source_inputs(i), head(i, n))


def cut_and_continued(i, n):
    whole = keras.Model(i, head(layers.Dense(9, activation="relu")(layers.Flatten()(i)), n))
    return keras.Model(whole.input, head(whole.layers[2].output, n))


def begins_with_a_cleared_session(i, n):
    keras.backend.clear_session()
    return keras.Sequential(
        [layers.Flatten(), layers.Dense(16), layers.Dropout(0.5), layers.Dense(n, "softmax")]
    )


# Losses.
def loss_by_the_name_of_an_output(i, n):
    model = keras.Model(i, {"digit": head(i, n)})
    model.compile(loss={"digit": "sparse_categorical_crossentropy"}, loss_weights={"digit": 0.5})
    return model


def loss_by_name_and_weights_in_a_list(i, n):
    model = keras.Model(i, {"digit": head(i, n)})
    model.compile(loss={"digit": "sparse_categorical_crossentropy"}, loss_weights=[0.5])
    return model


class MeasuresAlone(keras.Model):
    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        return {"ink": ops.mean(x)}


def measures_of_its_own(i, n):
    return MeasuresAlone(i, head(i, n))


class OneLossARow(keras.losses.Loss):
    def __call__(self, y, probabilities, sample_weight=None):
        return keras.losses.sparse_categorical_crossentropy(y, probabilities)


def loss_that_sums_itself(i, n):
    model = keras.Model(i, head(i, n))
    model.compile(loss=OneLossARow())
    return model


def double_and_certain(i, n):
    """Some of its probabilities are less than what a loss clips."""
    x = layers.Dense(32, dtype="float64", kernel_initializer="random_normal")(layers.Flatten()(i))
    return layers.Dense(n, "softmax", dtype="float64", kernel_initializer=Wide())(x)


class Wide(keras.initializers.RandomNormal):
    def __init__(self):
        super().__init__(stddev=20.0, seed=1)


# What building a network must not move, and layers with a method of their own.
@keras.saving.register_keras_serializable("users")
class CountsAlways(layers.Layer):
    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.calls.assign_add(1.0)
        return x * (1 + self.calls)


def counts_beside_a_layer_without_weights_yet(i, n):
    return head(layers.Dense(8, activation=layers.PReLU())(layers.Flatten()(CountsAlways()(i))), n)


def _doubled(layer):
    once = layer.call
    layer.call = lambda *given, **named: 2 * once(*given, **named)
    return layer


def convolution_with_a_call_of_its_own(i, n):
    x = _doubled(layers.Conv2D(8, 3, activation="relu"))(i)
    return head(layers.MaxPooling2D(2)(x), n)


def wide_dense_with_a_call_of_its_own(i, n):
    return head(_doubled(layers.Dense(128, activation="relu"))(layers.Flatten()(i)), n)


def batch_norm_with_a_call_of_its_own(i, n):
    return head(_doubled(layers.BatchNormalization())(layers.Conv2D(4, 3, strides=2)(i)), n)


SAME = [
    name
    for name, function in list(globals().items())
    if getattr(function, "__module__", "") == __name__
    and not isinstance(function, type)
    and not name.startswith("_")
    and name != "head"
]
"""All of them."""
