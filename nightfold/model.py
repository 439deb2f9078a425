"""Model: a candidate's network, freshly built, with its own initial weights.

Scaling is its first layer, so it takes raw pixels. Nothing is trained or loaded here.
"""

from __future__ import annotations

import random
import re
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from nightfold.dataset import Dataset
from nightfold.errors import UsageError
from nightfold.experiment import Candidate
from nightfold.scaling import Scaler
from nightfold.zoo import find

_BUILDING = threading.Lock()  # Keras draws initial weights from a state that all threads share


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
        uint8 (n, height, width, channels) in, float32 probabilities (n, n_classes) out; of the
        architecture's own class and with its own loss if it returned a model.

    Raises
    ------
    UsageError
        If the architecture does not fit the images or does not give one probability a class.
    """
    import keras
    from keras.src.random.seed_generator import global_seed_generator

    build = find(candidate.architecture)
    with _BUILDING, _own_random(seed), _own_settings():
        keras.utils.set_random_seed(seed)
        inputs = keras.Input(dataset.image_shape, dtype="uint8", name="image")
        x = inputs
        for layer in scaler.layers():
            x = layer(x)
        try:
            model = _assembled(candidate, inputs, x, build(x, dataset.n_classes))
            if not all(layer.built for layer in model._flatten_layers()):
                # A layer within another one, such as an activation, may have no weights before.
                model(np.zeros((1, *dataset.image_shape), np.uint8), training=False)
        except UsageError:
            raise
        except Exception as error:  # a function of the user's may raise anything
            shape = "x".join(map(str, dataset.image_shape))
            raise UsageError(
                f"The architecture {candidate.architecture!r} cannot be built for images of "
                f"{shape}: {told(error, build)}"
            ) from error
        if model.output_shape != (None, dataset.n_classes):
            raise UsageError(
                f"The architecture {candidate.architecture!r} returns shape {model.output_shape}; "
                f"it must return (None, {dataset.n_classes}), one probability a class."
            )
        if candidate.label_smoothing and (model.compiled or has_own_step(model)):
            raise UsageError(
                f"label_smoothing has no effect on {candidate.name}, whose architecture "
                f"{candidate.architecture!r} has a loss or a train step of its own: leave it out."
            )
        # Layers that draw without a seed share this one: made here, it depends on nothing else.
        global_seed_generator()
        return model


def _assembled(candidate: Candidate, inputs: Any, x: Any, built: Any) -> Any:
    """One model from raw pixels to what an architecture has made of the scaled ones.

    A model that it returns is called as a function where that says all, so that its layers become
    the outer model's own, and the outer one is of its class; a model with a `call` of its own
    becomes a layer.
    """
    import keras
    from keras.src.models.functional import Functional

    if not isinstance(built, keras.Model):
        if not isinstance(built, keras.KerasTensor):
            what = (
                f"{len(built)} outputs" if isinstance(built, list | tuple | dict) else repr(built)
            )
            raise UsageError(
                f"The architecture {candidate.architecture!r} returns {what[:80]}; it must return "
                "one output or a keras.Model of one, with one probability a class."
            )
        return keras.Model(inputs, built, name=_name_of(candidate))
    own, kind = built, type(built)
    for name in ("compile", "fit", "make_train_function"):
        if getattr(kind, name) is not getattr(keras.Model, name) and kind is not keras.Sequential:
            raise UsageError(
                f"The architecture {candidate.architecture!r} returns a {kind.__name__} with a "
                f"{name} of its own, which a night does not call: put it into its train step."
            )
    if own.compiled and own.get_compile_config().get("loss_weights") is not None:
        raise UsageError(
            f"The architecture {candidate.architecture!r} compiles its model with loss_weights, "
            "which a night does not take over: put them into the loss."
        )
    if kind.call in (Functional.call, keras.Sequential.call):
        outputs = own.call(x)
        kind = keras.Model if kind is keras.Sequential else kind
    elif has_own_step(own) or kind.compute_loss is not keras.Model.compute_loss:
        raise UsageError(
            f"The architecture {candidate.architecture!r} returns a {kind.__name__} that has both "
            "a call and a train step of its own: make it of inputs and outputs instead of a call."
        )
    else:
        outputs, kind = own(x), keras.Model
    model = kind(inputs, outputs, name=_name_of(candidate))
    if kind is type(own):
        # What its train step may look at; Keras's own attributes and its metrics are the new one's.
        keras_own = vars(keras.Model(inputs, outputs)).keys()
        for name, value in vars(own).items():
            plain = isinstance(value, bool | int | float | str | tuple | None)
            if name not in keras_own and (plain or name not in vars(model)):
                setattr(model, name, value)
    if own.compiled and own.loss is not None:
        model.compile(loss=own.loss)
    model.run_eagerly = own.compiled and own.run_eagerly
    return model


def _name_of(candidate: Candidate) -> str:
    return candidate.name.replace(".", "_")


def has_own_step(model: Any) -> bool:
    """Whether the model's class has a train step of its own, or computes its loss itself."""
    import keras

    kind = type(model)
    return kind.train_step is not keras.Model.train_step or (
        kind.compute_loss is not keras.Model.compute_loss and not model.compiled
    )


def answering(model: Any) -> Any:
    """The model without its class's ways of training: plain Keras can load what is left."""
    import keras
    from keras.src.models.functional import Functional

    if type(model) is Functional:
        return model
    return keras.Model(model.input, model.output, name=model.name)


def told(error: Exception, function: Callable[..., Any]) -> str:
    """An error in a user's code in a line: what, and where in the file of `function`."""
    # Keras puts a line of its own before, and colours, and a list of arguments behind.
    lines = [re.sub(r"\x1b\[\d*m", "", line).strip() for line in str(error).splitlines()]
    what = next((line for line in lines if line and not line.startswith("Exception enc")), "")
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
        The only one of `models` itself if there is just one.
    """
    import keras

    if len(models) == 1:
        return models[0]
    with _BUILDING:
        inputs = keras.Input(models[0].input_shape[1:], dtype="uint8", name="image")
        for position, model in enumerate(models, start=1):
            model.name = f"{name}_{position}"
        parts = [answering(model)(inputs) for model in models]
        outputs = keras.layers.Average(name="mean")(parts)
        return keras.Model(inputs, outputs, name=name)


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


@contextmanager
def _own_settings() -> Iterator[None]:
    """Undo what an architecture sets for all of Keras, so that no other candidate meets it."""
    from keras import config

    floatx, policy, order = config.floatx(), config.dtype_policy(), config.image_data_format()
    epsilon = config.epsilon()
    try:
        yield
    finally:
        config.set_floatx(floatx)
        config.set_dtype_policy(policy)
        config.set_image_data_format(order)
        config.set_epsilon(epsilon)
