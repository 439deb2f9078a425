"""What was tried to make a training step faster: kept or left out, measured side by side.

Two kinds: other ways to compute a part of a step, in one process and in turns; and switches of
TensorFlow, oneDNN and the system, a process each, on whole training steps.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from benchmarks.digits import write_snapshot
from benchmarks.measure import (
    RESULTS,
    ROOT,
    Measurement,
    Minutes,
    Results,
    Spread,
    publish,
    ratios,
    take_turns,
    work_folder,
)
from nightfold import backend, winograd

REPEATS = 40
"""How often a part is computed in one call."""

READING = (
    "Above 1 is slower. The fastest of several calls in each round; median and range of the ratio "
    "over rounds."
)
AS_IT_IS = "as it is"
TRAINED = ("baseline", "batch_norm", "deep")

SWITCHES: dict[str, dict[str, str]] = {
    AS_IT_IS: {},
    "oneDNN off": {"TF_ENABLE_ONEDNN_OPTS": "0"},
    "AVX2 only": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "two threads": {"NIGHTFOLD_BENCHMARK_THREADS": "2"},
    "two operations at once": {
        "NIGHTFOLD_BENCHMARK_THREADS": "1",
        "NIGHTFOLD_BENCHMARK_AT_ONCE": "2",
    },
    "pinned to a core": {"NIGHTFOLD_BENCHMARK_PINNED": "1"},
    "two operations at once, pinned to a core": {
        "NIGHTFOLD_BENCHMARK_THREADS": "1",
        "NIGHTFOLD_BENCHMARK_AT_ONCE": "2",
        "NIGHTFOLD_BENCHMARK_PINNED": "1",
    },
    "memory kept by malloc": {
        "MALLOC_MMAP_THRESHOLD_": str(2**29),
        "MALLOC_TRIM_THRESHOLD_": str(2**29),
        "MALLOC_TOP_PAD_": str(2**28),
    },
}

WITHOUT = {
    "bias and ReLU before pooling": "_bias_behind_pooling",
    "Keras's batch normalisation": "_fused_batch_norm",
    "input gradient against the transposed kernel": "_wide_dense",
    "pixels that nobody reads": "_pixels_read",
    "convolutions without Winograd's filtering": "_winograd_pays",
}
"""Rewrites of `nightfold.forward`, each switched off in turn."""

CONVOLUTIONS = (
    (10, 64, 64, 32),
    (12, 32, 64, 32),
    (12, 16, 32, 96),
    (18, 64, 64, 32),
    (26, 32, 64, 32),
    (6, 128, 128, 32),
    (8, 16, 16, 32),
    (34, 32, 32, 32),
)
"""Pixels a side, channels, filters, batch: those of the zoo first, then larger and smaller ones."""

Part = Callable[[], Any]


def first_convolution(batch: int = 32) -> dict[str, Part]:
    """Ways to compute the tutorial's first block and its gradients: 32 filters 3x3, pooled."""
    import tensorflow as tf

    draw = np.random.default_rng(0)
    x = tf.constant(draw.random((batch, 28, 28, 1), dtype=np.float32))
    kernel = tf.Variable(draw.normal(size=(3, 3, 1, 32), scale=0.1).astype(np.float32))
    bias = tf.Variable(np.zeros(32, np.float32))
    dy = tf.constant(draw.normal(size=(batch, 13, 13, 32)).astype(np.float32))

    def behind(y: Any) -> Any:
        return tf.nn.relu(tf.nn.bias_add(tf.nn.max_pool2d(y, 2, 2, "VALID"), bias))

    def before() -> Any:
        y = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "VALID"), bias))
        return tf.nn.max_pool2d(y, 2, 2, "VALID")

    def product() -> Any:
        parts = [x[:, i : i + 26, j : j + 26, :] for i in range(3) for j in range(3)]
        columns = tf.reshape(tf.concat(parts, -1), [-1, 9])
        y = tf.matmul(columns, tf.reshape(kernel, [9, 32]))
        return behind(tf.reshape(y, [batch, 26, 26, 32]))

    def slices() -> Any:
        y = tf.nn.conv2d(x, kernel, 1, "VALID")
        quarters = [y[:, i::2, j::2, :] for i in (0, 1) for j in (0, 1)]
        largest = tf.maximum(tf.maximum(*quarters[:2]), tf.maximum(*quarters[2:]))
        return tf.nn.relu(tf.nn.bias_add(largest, bias))

    def differentiated(forward: Part) -> Part:
        def run() -> Any:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(forward() * dy)
            gradients = tape.gradient(loss, [kernel, bias])
            for variable, gradient in zip((kernel, bias), gradients, strict=True):
                variable.assign_sub(1e-9 * gradient)
            return loss

        return run

    return {
        "bias and ReLU behind pooling (kept)": differentiated(
            lambda: behind(tf.nn.conv2d(x, kernel, 1, "VALID"))
        ),
        "bias and ReLU before pooling": differentiated(before),
        "convolution as a product of patches": differentiated(product),
        "pooling as the maximum of slices": differentiated(slices),
    }


def wide_convolution(side: int, channels: int, filters: int, batch: int = 32) -> dict[str, Part]:
    """Ways to compute a 3x3 convolution of so many pixels a side, and its gradients."""
    import tensorflow as tf

    draw = np.random.default_rng(0)
    x = tf.Variable(draw.random((batch, side, side, channels), dtype=np.float32))
    drawn = draw.normal(size=(3, 3, channels, filters), scale=0.05)
    kernel = tf.Variable(drawn.astype(np.float32))
    dy = tf.constant(draw.normal(size=(batch, side - 2, side - 2, filters)).astype(np.float32))

    def differentiated(forward: Callable[[Any, Any], Any]) -> Part:
        def run() -> Any:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(forward(x, kernel) * dy)
            for variable, gradient in zip(
                (x, kernel), tape.gradient(loss, [x, kernel]), strict=True
            ):
                variable.assign_sub(1e-9 * gradient)
            return loss

        return run

    def products(x: Any, kernel: Any) -> Any:
        return winograd.convolve(x, tf.convert_to_tensor(kernel), padded=False)

    def direct(x: Any, kernel: Any) -> Any:
        return tf.nn.conv2d(x, kernel, 1, "VALID")

    ways = {"Winograd's filtering": products, "convolution": direct}
    kept = "Winograd's filtering"
    if not winograd.pays(side, side, channels, filters, padded=False):
        kept = "convolution"
    order = sorted(ways, key=lambda name: name != kept)
    return {f"{n} (kept)" if n == kept else n: differentiated(ways[n]) for n in order}


def dense_input_gradient(batch: int, n_in: int, n_out: int) -> dict[str, Part]:
    """Ways to compute ``dy W^T``."""
    import tensorflow as tf

    draw = np.random.default_rng(0)
    kernel = tf.Variable(draw.normal(size=(n_in, n_out), scale=0.01).astype(np.float32))
    dy = tf.constant(draw.normal(size=(batch, n_out)).astype(np.float32))
    ways: dict[str, Part] = {
        "(W dy^T)^T (kept)": lambda: tf.transpose(tf.matmul(kernel, dy, transpose_b=True)),
        "dy W^T": lambda: tf.matmul(dy, kernel, transpose_b=True),
        "dy times a transposed copy of W": lambda: tf.matmul(dy, tf.transpose(kernel)),
    }

    def changing(way: Part) -> Part:
        """The kernel changes a little each time, so that nothing is computed once for all."""

        def run() -> Any:
            result = way()
            kernel[0, 0].assign(result[0, 0])
            return result[0, 0]

        return run

    return {name: changing(way) for name, way in ways.items()}


def milliseconds(part: Part) -> Measurement:
    """Measurement of a part: its fastest of ten calls, one thread."""
    import tensorflow as tf

    @tf.function(autograph=False)
    def repeat() -> Any:
        def body(i: Any, total: Any) -> tuple[Any, Any]:
            return i + 1, total + part()

        return tf.while_loop(
            lambda i, _: i < REPEATS,
            body,
            (tf.constant(0), tf.constant(0.0)),
            parallel_iterations=1,
        )

    repeat()

    def measure(_round: int) -> dict[str, Any]:
        seconds = []
        for _ in range(10):
            began = time.perf_counter()
            repeat()
            seconds.append(time.perf_counter() - began)
        return {"ms": 1000 * min(seconds) / REPEATS}

    return measure


def whole_steps(snapshot: Path, environment: dict[str, str], without: str = "") -> Measurement:
    """Measurement of training steps in a process of their own, by architecture."""

    def measure(_round: int) -> dict[str, Any]:
        with tempfile.NamedTemporaryFile() as file:
            here = ["--steps-of", str(snapshot), "--steps-to", file.name, "--without", without]
            subprocess.run(
                [sys.executable, "-m", "benchmarks.variants", *here],
                cwd=ROOT,
                env={**os.environ, **environment},
                check=True,
                capture_output=True,
            )
            figures: dict[str, Any] = json.loads(Path(file.name).read_text())
        return figures

    return measure


def time_steps(snapshot: Path, without: str) -> dict[str, float]:
    """Milliseconds of a training step by architecture, here and now; the fastest epoch of eight."""
    if os.environ.get("NIGHTFOLD_BENCHMARK_PINNED"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if threads := os.environ.get("NIGHTFOLD_BENCHMARK_THREADS"):
        _allow_threads(int(threads), int(os.environ.get("NIGHTFOLD_BENCHMARK_AT_ONCE", threads)))
    backend.start()
    from nightfold import forward
    from nightfold.dataset import Dataset
    from nightfold.experiment import Candidate, Optimizer
    from nightfold.scaling import Scaler
    from nightfold.training import train

    if without:
        setattr(forward, without, lambda *_: {})
    dataset = Dataset.open(snapshot)
    rows = np.arange(len(dataset.train))
    found = {}
    for name in TRAINED:
        candidate = Candidate(
            name=name,
            architecture=name,
            epochs=8,
            optimizer=Optimizer(learning_rate=0.01, momentum=0.9),
        )
        trained = train(
            candidate,
            dataset,
            rows,
            rows[:0],
            scaler=Scaler(name="normalize", scale=1 / 255),
            seed=1,
        )
        found[name] = 1000 * min(epoch.seconds for epoch in trained.history) / (len(rows) / 32)
    return found


def _allow_threads(n: int, at_once: int) -> None:
    """Let TensorFlow compute with several threads, which training otherwise refuses."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(n)
    tf.config.threading.set_inter_op_parallelism_threads(at_once)
    tf.config.list_logical_devices()
    backend.require_one_thread = lambda: None


def main(
    minutes: Minutes = 6,
    results: Results = RESULTS,
    steps_of: Annotated[Path | None, typer.Option(hidden=True)] = None,
    steps_to: Annotated[Path | None, typer.Option(hidden=True)] = None,
    without: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure what was tried: parts of a step, rewrites, switches."""
    if steps_of is not None and steps_to is not None:
        steps_to.write_text(json.dumps(time_steps(steps_of, without)))
        return
    backend.start()
    parts = {
        f"3x3, {channels} to {filters} channels, {side}x{side} pixels, batch {batch}": (
            wide_convolution(side, channels, filters, batch)
        )
        for side, channels, filters, batch in CONVOLUTIONS
    }
    parts |= {
        "first block of the tutorial, batch 32": first_convolution(),
        "dense 5408 to 100, input gradient, batch 32": dense_input_gradient(32, 5408, 100),
        "dense 3136 to 3136, input gradient, batch 32": dense_input_gradient(32, 3136, 3136),
    }
    compare_parts(parts, minutes / 4, results)
    with work_folder() as work:
        snapshot = write_snapshot(work, 3200).path
        switched = {name: whole_steps(snapshot, values) for name, values in SWITCHES.items()}
        rewritten = {name: whole_steps(snapshot, {}, rewrite) for name, rewrite in WITHOUT.items()}
        steps = take_turns(switched | rewritten, minutes * 3 / 4)
    summary = [
        {"way": way}
        | {name: str(Spread.of(ratios(steps, name, way, AS_IT_IS))) for name in TRAINED}
        for way in [*SWITCHES, *WITHOUT]
        if way != AS_IT_IS
    ]
    publish(
        "variants_steps",
        "Whole training steps without a rewrite, and with switches, against what Nightfold does",
        steps,
        pd.DataFrame(summary),
        [
            "Batches of 32, one thread unless the row says otherwise; the other core is idle. "
            f"{READING}"
        ],
        results,
    )


def compare_parts(parts: dict[str, dict[str, Part]], minutes: float, results: Path) -> None:
    """Measure each part in all its ways; the first way is the one that was kept."""
    summary, rows = [], []
    for part, ways in parts.items():
        kept = next(iter(ways))
        measured = take_turns(
            {way: milliseconds(run) for way, run in ways.items()}, minutes / len(parts)
        )
        rows.append(measured.assign(part=part))
        for way in ways:
            against = "" if way == kept else str(Spread.of(ratios(measured, "ms", way, kept)))
            summary.append({"part": part, "way": way, "times as long as kept": against})
    publish(
        "variants_parts",
        "Other ways to compute a part of a training step, against the one that was kept",
        pd.concat(rows),
        pd.DataFrame(summary),
        [f"One thread. {READING}"],
        results,
    )


if __name__ == "__main__":
    typer.run(main)
