"""Model: a candidate's network, freshly built, with its own initial weights.

Scaling is its first layer, so it takes raw pixels. Nothing is trained or loaded here.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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

    build = find(candidate.architecture)
    with _BUILDING, _own_random(seed):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input(dataset.image_shape, dtype="uint8", name="image")
        x = inputs
        for layer in scaler.layers():
            x = layer(x)
        try:
            built = build(x, dataset.n_classes)
            own = built if isinstance(built, keras.Model) else None
            # Called as a function, not as a layer: its layers become the outer model's own.
            outputs = built if own is None else own.call(x)
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
        kind = keras.Model if own is None else type(own)
        model = kind(inputs, outputs, name=candidate.name.replace(".", "_"))
        if own is not None and own.compiled:
            model.compile(loss=own.loss)
        return model


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
        outputs = keras.layers.Average(name="mean")([model(inputs) for model in models])
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
