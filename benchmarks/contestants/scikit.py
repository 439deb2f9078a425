"""scikit-learn's `cross_validate` with two processes and Keras's own scikit-learn wrapper.

The folds are not scored after each epoch: `cross_validate` scores once. The wrapper takes images
as flat rows and loses `fit_kwargs` when it is cloned, so epochs go in through `params`.
"""

from __future__ import annotations

import time
from typing import Any

import keras
import numpy as np
from keras.wrappers import SKLearnClassifier
from sklearn.model_selection import cross_validate

from benchmarks.contestants.protocol import Task, hand_back, splitter


def build(X: Any, y: Any, architecture: str) -> Any:  # noqa: N803 - the wrapper names them so
    """The tutorial's network behind flat rows."""
    from benchmarks.contestants.sequential import define_model

    network = define_model(architecture)
    model = keras.Sequential([keras.Input((784,)), keras.layers.Reshape((28, 28, 1)), network])
    model.compile(
        optimizer=keras.optimizers.SGD(learning_rate=0.01, momentum=0.9),
        loss="categorical_crossentropy",
    )
    return model


def score(model: Any, images: Any, labels: Any) -> dict[str, float]:
    """Accuracy, and the moment it was known: the only clock that reaches both processes."""
    right = np.ravel(model.predict(images)) == labels
    return {"accuracy": float(right.mean()), "end": time.time()}


def main() -> None:
    """Run the script."""
    task = Task.from_command_line()
    images, labels = task.load()
    result = cross_validate(
        SKLearnClassifier(build, model_kwargs={"architecture": task.architecture}),
        images.reshape(-1, 784).astype("float32") / 255.0,
        labels,
        cv=splitter(),
        n_jobs=2,
        scoring=score,
        params={"epochs": task.epochs, "batch_size": 32, "verbose": 0},
        return_indices=True,
        error_score="raise",
    )
    started = result["test_end"] - result["score_time"] - result["fit_time"]
    accuracies = [float(accuracy) for accuracy in result["test_accuracy"]]
    hand_back(task, accuracies, result["indices"]["test"], started.min(), result["test_end"].max())


if __name__ == "__main__":
    main()
