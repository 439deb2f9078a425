"""Model: a candidate's network, freshly built, with its own initial weights.

Scaling is its first layer, so it takes raw pixels. Nothing is trained or loaded here.
"""

from __future__ import annotations

import re
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from nightfold.backend import failures_told, is_failure
from nightfold.dataset import Dataset
from nightfold.draws import own_draws
from nightfold.errors import UsageError
from nightfold.experiment import Candidate
from nightfold.scaling import Scaler
from nightfold.zoo import find, is_own

_BUILDING = threading.Lock()  # Keras draws initial weights from a state that all threads share


@dataclass(frozen=True)
class Network:
    """A candidate's network, freshly built.

    Attributes
    ----------
    model : keras.Model
        uint8 (n, height, width, channels) in, float32 probabilities (n, n_classes) out; functional.
    own : keras.Model or None
        The model that the architecture returned, if it is one: on scaled images, with the same
        weights. What it was compiled with, and a train step, are its own.
    scaling : list of keras.layers.Layer
        From raw pixels to the scaled ones.
    optimizer : str or None
        Class of the optimizer that `own` was compiled with, which nobody asks, unless it is what
        Keras takes if none is named.
    variables : list of tf.Variable
        All that building it has made, in their order: weights, moving averages, random states, and
        whatever else the architecture keeps, wherever it does.
    """

    model: Any
    own: Any
    scaling: list[Any]
    optimizer: str | None
    variables: list[Any]

    @property
    def trained(self) -> Any:
        """What Keras's fit trains, on scaled images if it is `own`."""
        return self.model if self.own is None else self.own

    @property
    def training(self) -> bool | None:
        """With what `training` Keras's train step calls the network.

        None if it takes no such argument: Keras then trains it as it answers, without dropout.
        """
        return True if self.own is None or self.own._call_has_training_arg else None

    def scaled(self, images: Any) -> Any:
        """What `own` is given for raw images."""
        for layer in self.scaling:
            images = layer(images)
        return images


def build_model(candidate: Candidate, scaler: Scaler, dataset: Dataset, seed: int) -> Any:
    """The `model` of a `build_network`."""
    return build_network(candidate, scaler, dataset, seed).model


def build_network(candidate: Candidate, scaler: Scaler, dataset: Dataset, seed: int) -> Network:
    """A fresh network with its own initial weights, scaling inside.

    Parameters
    ----------
    candidate : Candidate
    scaler : Scaler
        Fitted on the rows that the network will be trained on.
    dataset : Dataset
        Gives image shape and number of classes.
    seed : int
        Of the initial weights and of dropout.

    Raises
    ------
    UsageError
        If the architecture does not fit the images, does not give one probability a class, or
        returns weights that it has not made itself.
    """
    import keras
    from keras.src.backend import compute_output_spec
    from keras.src.random.seed_generator import global_seed_generator

    build = find(candidate.architecture)
    told_of = failures_told(f"The building of {candidate.name}")
    with told_of, _BUILDING, own_draws(seed), _own_settings(), variables_made() as variables:
        keras.utils.set_random_seed(seed)
        inputs = keras.Input(dataset.image_shape, dtype="uint8", name="image")
        x, scaling = inputs, scaler.layers()
        for layer in scaling:
            x = layer(x)
        try:
            # A user's model may begin at the source of what it is given, which is to be behind the
            # scaling: so it gets an input of its own, and is called on the scaled images below.
            # Architectures of ours return a tensor, and need no second call.
            given = keras.Input(x.shape[1:], dtype=x.dtype) if is_own(candidate.architecture) else x
            built = build(given, dataset.n_classes)
            own = built if isinstance(built, keras.Model) else None
            _require_usable(candidate, built)
            if own is not None:
                answers = _on(own, x)
            else:
                answers = built if given is x else keras.Model(given, built).call(x)
            one = keras.tree.flatten(answers)
            outputs = one[0] if len(one) == 1 else answers
            model = keras.Model(inputs, outputs, name=candidate.name.replace(".", "_"))
            if not all(layer.built for layer in model._flatten_layers()):
                # A layer within another one, such as an activation, may have no weights before.
                # Not called for numbers: a layer may draw or count in every call.
                compute_output_spec(model, keras.KerasTensor(inputs.shape, "uint8"), training=False)
        except UsageError:
            raise
        except Exception as error:  # a function of the user's may raise anything
            if is_failure(error):
                raise
            shape = "x".join(map(str, dataset.image_shape))
            raise UsageError(
                f"The architecture {candidate.architecture!r} cannot be built for images of "
                f"{shape}: {fault_in(error, build)}"
            ) from error
        if model.output_shape != (None, dataset.n_classes):
            raise UsageError(
                f"The architecture {candidate.architecture!r} returns shape {model.output_shape}; "
                f"it must return (None, {dataset.n_classes}), one probability a class."
            )
        if own is not None and own.compiled and own.loss is not None:
            loss, weights = own.loss, own._compile_loss._user_loss_weights
            if isinstance(answers, dict) and isinstance(loss, dict) and len(answers) == 1:
                loss, weights = _of_the_output(next(iter(answers)), loss, weights)
            model.compile(loss=loss, loss_weights=weights)
        if candidate.label_smoothing and (model.compiled or has_own_step(own)):
            raise UsageError(
                f"label_smoothing has no effect on {candidate.name}, whose architecture "
                f"{candidate.architecture!r} has a loss or a train step of its own: leave it out."
            )
        # Layers that draw without a seed share this one: made here, it depends on nothing else.
        global_seed_generator()
    network = Network(model, own, scaling, _named_optimizer(own), variables)
    _require_own_weights(candidate, network)
    return network


def _named_optimizer(own: Any) -> str | None:
    """Class of the optimizer that a model was compiled with, unless it is what Keras takes."""
    import keras

    if own is None or not own.compiled:
        return None
    told, untold = (
        (type(optimizer), {**optimizer.get_config(), "name": None})
        for optimizer in (own.optimizer, keras.optimizers.get("rmsprop"))
    )
    return None if told == untold else type(own.optimizer).__name__


def _require_usable(candidate: Candidate, built: Any) -> None:
    """Refuse what is neither a tensor nor a model that a night can train."""
    import keras

    if not isinstance(built, keras.Model):
        if isinstance(built, keras.KerasTensor):
            return
        what = f"{len(built)} outputs" if isinstance(built, list | tuple | dict) else repr(built)
        raise UsageError(
            f"The architecture {candidate.architecture!r} returns {what[:80]}; it must return "
            "one output or a keras.Model of one, with one probability a class."
        )
    for name, instead in (
        ("__call__", "call"),
        ("compile", "train step"),
        ("fit", "train step"),
        ("make_train_function", "train step"),
    ):
        stock = {getattr(kind, name) for kind in (keras.Model, keras.Sequential)}
        if getattr(type(built), name) not in stock:
            raise UsageError(
                f"The architecture {candidate.architecture!r} returns a {type(built).__name__} "
                f"with a {name} of its own, which a night does not use: put it into its {instead}."
            )


def _on(own: Any, x: Any) -> Any:
    """What a user's model makes of the scaled images.

    One of layers alone is called as a function, so that they become the outer model's own; one with
    a `call` of its own becomes a layer.
    """
    import keras
    from keras.src.models.functional import Functional

    if own.built and isinstance(own, Functional | keras.Sequential):
        takes = own.input_shape
        # Keras would give images of one channel to a model that takes none, but not as a function.
        if isinstance(takes, tuple) and len(takes) == len(x.shape) - 1 and x.shape[-1] == 1:
            x = keras.layers.Reshape(x.shape[1:-1], name="one_channel")(x)
    stock = type(own).call in (Functional.call, keras.Sequential.call)
    alone = stock and own.activity_regularizer is None
    return own.call(x) if alone else own(x)


def _of_the_output(name: str, loss: dict[str, Any], weights: Any) -> tuple[Any, Any]:
    """Loss and weight of a model's one output, which the night's model gives without its name.

    What names other outputs or several losses stays, and is refused by Keras.
    """
    import keras

    if loss.keys() != {name} or keras.tree.is_nested(loss[name]):
        return loss, weights
    return loss[name], keras.tree.flatten(weights)[0]


def _require_own_weights(candidate: Candidate, network: Network) -> None:
    """Refuse weights that another fold may have trained, or will: they were not made in here."""
    import keras

    made = {id(variable) for variable in network.variables}
    losses = keras.tree.flatten(network.model.loss) if network.model.compiled else []
    held = [value for loss in losses for value in getattr(loss, "__dict__", {}).values()]
    for variables in (
        network.model.variables,
        network.own.variables if network.own is not None else (),
        [value for value in held if isinstance(value, keras.Variable)],
    ):
        for variable in variables:
            if id(variable.value) not in made:
                raise UsageError(
                    f"The architecture {candidate.architecture!r} returns {variable.path}, which "
                    "its function has not made, so one fold could start from what another has "
                    "learned: make every layer and random generator within the function."
                )


def has_own_step(model: Any) -> bool:
    """Whether the model, or its class, has a train step or a way to its loss of its own."""
    return model is not None and (has_own(model, "train_step") or has_own(model, "compute_loss"))


def has_own(model: Any, method: str) -> bool:
    """Whether a method of the model is not Keras's."""
    import keras

    return method in vars(model) or getattr(type(model), method) is not getattr(keras.Model, method)


def fault_in(error: Exception, function: Callable[..., Any]) -> str:
    """An error in a user's code in a line: what, and where in the file of `function`."""
    # Keras puts a line of its own before, and colours, and a list of arguments behind.
    lines = [re.sub(r"\x1b\[\d*m", "", line).strip() for line in str(error).splitlines()]
    lines = [line.removeprefix("Error encountered:").strip() for line in lines]
    before = ("Exception enc", "Could not automatically infer")
    what = next((line for line in lines if line and not line.startswith(before)), "")
    # TensorFlow says it at last, before the node.
    what = next((a for a, b in pairwise(lines) if b.startswith("[[{{node")), what)
    if not isinstance(error, ValueError | TypeError):
        what = f"{type(error).__name__}: {what}"
    at = line_of(error, function)
    return what if at is None else f"{what} ({Path(function.__code__.co_filename).name}, line {at})"


def line_of(error: Exception, function: Callable[..., Any]) -> int | None:
    """The line in the file of `function` where an error came from; None if from elsewhere."""
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    at = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    return at[-1] if at else None


def averaged(models: list[Any], name: str) -> Any:
    """One model whose probabilities are the mean of those of `models`.

    Parameters
    ----------
    models : list of keras.Model
        All of one input shape; they become parts of the new model.
    name : str

    Returns
    -------
    keras.Model
    """
    import keras

    with _BUILDING:
        inputs = keras.Input(models[0].input_shape[1:], dtype="uint8", name="image")
        for position, model in enumerate(models, start=1):
            model.name = f"{name}_{position}"
        outputs = keras.layers.Average(name="mean")([model(inputs) for model in models])
        return keras.Model(inputs, outputs, name=name)


@contextmanager
def variables_made() -> Iterator[list[Any]]:
    """All variables that this thread makes, Keras's and TensorFlow's, in their order."""
    import tensorflow as tf

    made: list[Any] = []

    def record(make: Callable[..., Any], **described: Any) -> Any:
        variable = make(**described)
        made.append(variable)
        return variable

    with tf.variable_creator_scope(record):
        yield made


@contextmanager
def _own_settings() -> Iterator[None]:
    """Undo what an architecture sets for all of Keras or TensorFlow, or another would meet it.

    Meanwhile TensorFlow's default graph stays, whoever would replace it.
    """
    import tensorflow as tf
    from keras import config
    from tensorflow.python.framework import config as tf_config

    # keras.backend.clear_session would also forget, for all threads, who is told of new variables.
    reset, tf.compat.v1.reset_default_graph = tf.compat.v1.reset_default_graph, lambda: None
    floatx, policy, order = config.floatx(), config.dtype_policy(), config.image_data_format()
    epsilon = config.epsilon()
    eagerly, determined = tf.config.functions_run_eagerly(), tf_config.is_op_determinism_enabled()
    rounded = tf_config.tensor_float_32_execution_enabled()
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(eagerly)
        tf_config.enable_tensor_float_32_execution(rounded)
        if not determined:
            tf_config.disable_op_determinism()
        tf.compat.v1.reset_default_graph = reset
        config.set_floatx(floatx)
        config.set_dtype_policy(policy)
        config.set_image_data_format(order)
        config.set_epsilon(epsilon)
