"""PyTorch, eager, in two processes of one thread each.

Written for speed as far as plain PyTorch goes: the pixels stay in one tensor and batches are
gathered by index, without a data loader. Folds are scored after each epoch, as in the tutorial.
"""

from __future__ import annotations

import multiprocessing
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.contestants.protocol import Task, folds, hand_back


def define_model(architecture: str) -> nn.Sequential:
    """The tutorial's network with its initial weights; the softmax is in the loss."""
    stack: list[nn.Module] = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2)]
    flat = 32 * 13 * 13
    if architecture == "deep":
        stack += [nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU()]
        stack += [nn.MaxPool2d(2)]
        flat = 64 * 4 * 4
    last = nn.Linear(100, 10)
    model = nn.Sequential(*stack, nn.Flatten(), nn.Linear(flat, 100), nn.ReLU(), last)
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    nn.init.xavier_uniform_(last.weight)
    return model


def accuracy_on(model: nn.Module, images: Any, labels: Any) -> float:
    """Fraction predicted right, in batches of 1000."""
    with torch.no_grad():
        batches = zip(images.split(1000), labels.split(1000), strict=True)
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)
    return right / len(labels)


def run_fold(
    task: Task, train: NDArray[np.int64], test: NDArray[np.int64]
) -> tuple[float, float, float]:
    """Train and score one fold: accuracy, start and end."""
    torch.set_num_threads(1)
    pixels, classes = task.load()
    images = torch.from_numpy(pixels).unsqueeze(1).float() / 255
    labels = torch.from_numpy(classes)
    started = time.time()
    torch.manual_seed(1)
    model = define_model(task.architecture)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    rows, scored, accuracy = torch.from_numpy(train), torch.from_numpy(test), 0.0
    for _ in range(task.epochs):
        for batch in rows[torch.randperm(len(rows))].split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        accuracy = accuracy_on(model, images[scored], labels[scored])
    return accuracy, started, time.time()


def main() -> None:
    """Run the script."""
    task = Task.from_command_line()
    plan = folds(len(task.load()[1]))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        results = pool.starmap(run_fold, [(task, *fold) for fold in plan], chunksize=1)
    accuracies, starts, ends = (list(column) for column in zip(*results, strict=True))
    hand_back(task, accuracies, [test for _, test in plan], min(starts), max(ends))


if __name__ == "__main__":
    main()
