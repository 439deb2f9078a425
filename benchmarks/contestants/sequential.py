"""The tutorial's cross-validation as a plain Keras script, written anew from its description.

Load, scale to 0..1, one-hot labels, then one fold after the other: a fresh compiled model, `fit`
with the fold's rows as validation data, `evaluate`. TensorFlow keeps its own choice of threads.
"""

from __future__ import annotations

import time
from typing import Any

import keras
from keras import layers

from benchmarks.contestants.protocol import Task, folds, hand_back


def define_model(architecture: str) -> Any:
    """The tutorial's network, compiled."""
    model = keras.Sequential([keras.Input((28, 28, 1))])
    model.add(layers.Conv2D(32, 3, activation="relu", kernel_initializer="he_uniform"))
    model.add(layers.MaxPooling2D(2))
    if architecture == "deep":
        model.add(layers.Conv2D(64, 3, activation="relu", kernel_initializer="he_uniform"))
        model.add(layers.Conv2D(64, 3, activation="relu", kernel_initializer="he_uniform"))
        model.add(layers.MaxPooling2D(2))
    model.add(layers.Flatten())
    model.add(layers.Dense(100, activation="relu", kernel_initializer="he_uniform"))
    model.add(layers.Dense(10, activation="softmax"))
    optimizer = keras.optimizers.SGD(learning_rate=0.01, momentum=0.9)
    model.compile(optimizer=optimizer, loss="categorical_crossentropy", metrics=["accuracy"])
    return model


def main() -> None:
    """Run the script."""
    task = Task.from_command_line()
    pixels, labels = task.load()
    images = pixels.reshape(-1, 28, 28, 1).astype("float32") / 255.0
    targets = keras.utils.to_categorical(labels)
    accuracies, scored_rows = [], []
    started = time.time()
    for train, test in folds(len(images)):
        model = define_model(task.architecture)
        validation = (images[test], targets[test])
        model.fit(
            images[train],
            targets[train],
            epochs=task.epochs,
            batch_size=32,
            validation_data=validation,
            verbose=0,
        )
        _, accuracy = model.evaluate(*validation, verbose=0)
        accuracies.append(float(accuracy))
        scored_rows.append(test)
    hand_back(task, accuracies, scored_rows, started, time.time())


if __name__ == "__main__":
    main()
