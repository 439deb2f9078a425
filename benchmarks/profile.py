"""Where the time of a training step goes, operation by operation.

Trains through `nightfold.training.train` for six epochs: the first traces, the second is watched by
TensorFlow's profiler, the others are timed without it. Peak is a large single-precision matrix
product on the same one thread, in the same process.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from benchmarks.digits import write_snapshot
from benchmarks.measure import RESULTS, Results, publish, work_folder
from nightfold import backend
from nightfold.dataset import Dataset
from nightfold.experiment import Candidate, Optimizer
from nightfold.scaling import Scaler
from nightfold.training import Epoch, train

MATRIX = 2048
EPOCHS, WATCHED_EPOCH = 6, 2


@dataclass(frozen=True)
class Profile:
    """One architecture's step.

    Attributes
    ----------
    step_ms : float
        Of the fastest epoch timed without the profiler.
    flops_per_step : float
        As `training_flops` counts.
    operations : DataFrame
        ``operation`` (its kind), ``name_in_graph``, ``calls`` a step, and ``ms`` a step: the
        median call, which another process's work does not move, times the calls.
    """

    step_ms: float
    flops_per_step: float
    operations: pd.DataFrame

    @property
    def gflops(self) -> float:
        """Achieved arithmetic, 1e9 floating-point operations a second."""
        return self.flops_per_step / self.step_ms / 1e6


def training_flops(model: Any) -> float:
    """Floating-point operations to train one image once.

    A multiply-add is two. Counted are convolutions and dense layers: forward, gradient of the
    weights, and gradient of the input but for the first layer with weights, which needs none.
    Everything else (pooling, activations, normalisation, loss, optimizer) is not.
    """
    total, first = 0.0, True
    for layer in model.layers:
        kernel = getattr(layer, "kernel", None)
        if kernel is None:
            continue
        places = np.prod(layer.output.shape[1:-1]) if len(kernel.shape) == 4 else 1
        total += 2 * float(np.prod(kernel.shape) * places) * (2 if first else 3)
        first = False
    return total


def measure_peak() -> float:
    """GFLOP/s of a product of two 2048 x 2048 matrices of float32; the best of ten."""
    import tensorflow as tf

    matrix = tf.random.uniform((MATRIX, MATRIX))
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        tf.linalg.matmul(matrix, matrix).numpy()
        seconds.append(time.perf_counter() - began)
    return 2 * MATRIX**3 / min(seconds) / 1e9


def profile(architecture: str, dataset: Dataset, batch_size: int) -> Profile:
    """Train `architecture` on the whole training split of `dataset` and take its steps apart."""
    import tensorflow as tf

    candidate = Candidate(
        name=architecture.replace(":", "."),
        architecture=architecture,
        epochs=EPOCHS,
        batch_size=batch_size,
        optimizer=Optimizer(learning_rate=0.01, momentum=0.9),
    )
    steps = -(-len(dataset.train) // batch_size)
    with tempfile.TemporaryDirectory() as folder:

        def on_epoch(epoch: Epoch) -> None:
            if epoch.epoch == WATCHED_EPOCH - 1:
                tf.profiler.experimental.start(folder)
            elif epoch.epoch == WATCHED_EPOCH:
                tf.profiler.experimental.stop()

        trained = train(
            candidate,
            dataset,
            np.arange(len(dataset.train)),
            np.arange(0),
            scaler=Scaler(name="normalize", scale=1 / 255),
            seed=1,
            on_epoch=on_epoch,
        )
        [path] = Path(folder).rglob("*.xplane.pb")
        operations = read_operations(path, steps)
    seconds = min(epoch.seconds for epoch in trained.history[WATCHED_EPOCH:])
    flops = training_flops(trained.model) * len(dataset.train) / steps
    return Profile(1000 * seconds / steps, flops, operations)


def read_operations(path: Path, steps: int) -> pd.DataFrame:
    """Operations that a profile saw on the processor, longest first.

    An event of an operation is named ``name:Kind``. One that contains others, such as a loop or a
    call, is given only what they leave.
    """
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace()
    space.ParseFromString(path.read_bytes())
    picoseconds: dict[str, list[int]] = defaultdict(list)
    for plane in space.planes:
        if plane.name != "/host:CPU":
            continue
        for line in plane.lines:
            named = [(plane.event_metadata[e.metadata_id].name, e) for e in line.events]
            operations = [(n, e) for n, e in named if ":" in n and "::" not in n and " " not in n]
            for name, own in _own_times(operations):
                picoseconds[name].append(own)
    rows = [
        {
            "operation": name.rpartition(":")[2],
            "name_in_graph": name.rpartition(":")[0],
            "calls": len(durations) / steps,
            "ms": float(np.median(durations)) / 1e9 * len(durations) / steps,
        }
        for name, durations in picoseconds.items()
    ]
    return pd.DataFrame(rows).sort_values("ms", ascending=False, ignore_index=True)


def _own_times(events: list[tuple[str, Any]]) -> list[tuple[str, int]]:
    """Duration of each event of one thread less the events inside it, picoseconds."""
    own: list[list[Any]] = []
    inside: list[tuple[int, int]] = []  # end and position in `own` of the events that are open
    for name, event in sorted(events, key=lambda e: (e[1].offset_ps, -e[1].duration_ps)):
        while inside and inside[-1][0] <= event.offset_ps:
            inside.pop()
        if inside:
            own[inside[-1][1]][1] -= event.duration_ps
        inside.append((event.offset_ps + event.duration_ps, len(own)))
        own.append([name, event.duration_ps])
    return [(name, duration) for name, duration in own]


def main(
    architectures: Annotated[list[str] | None, typer.Argument()] = None,
    rows: Annotated[int, typer.Option(help="Digits an epoch.")] = 6_400,
    batch_size: int = 32,
    top: Annotated[int, typer.Option(help="Operations to list.")] = 20,
    results: Results = RESULTS,
) -> None:
    """Profile architectures, by default the tutorial's three."""
    backend.start()
    with work_folder() as work:
        dataset = write_snapshot(work, rows)
        for architecture in architectures or ["baseline", "batch_norm", "deep"]:
            peak = measure_peak()
            found = profile(architecture, dataset, batch_size)
            _publish(architecture, found, max(peak, measure_peak()), batch_size, top, results)


def _publish(
    architecture: str, found: Profile, peak: float, batch_size: int, top: int, results: Path
) -> None:
    operations = found.operations
    seen = operations.ms.sum()
    longest = operations.head(top)
    summary = pd.DataFrame(
        {
            "operation": longest.operation,
            "ms a step": longest.ms.map("{:.3f}".format),
            "share, %": (100 * longest.ms / seen).map("{:.1f}".format),
            "calls": longest.calls.map("{:.1f}".format),
            "name": longest.name_in_graph.map(lambda name: "/".join(name.split("/")[-2:])),
        }
    )
    publish(
        f"profile_{architecture.replace(':', '.')}",
        f"Profile of {architecture}, batches of {batch_size}, one thread",
        operations.assign(
            architecture=architecture,
            step_ms=found.step_ms,
            gflops=found.gflops,
            peak_gflops=peak,
        ),
        summary,
        [
            f"{found.step_ms:.2f} ms a step; {found.flops_per_step / 1e6:,.0f} MFLOP a step at "
            f"{found.gflops:.1f} GFLOP/s, {100 * found.gflops / peak:.0f} % of the "
            f"{peak:.0f} GFLOP/s that a {MATRIX} x {MATRIX} matrix product reaches on one thread "
            "here.",
            f"Operations seen by the profiler sum to {seen:.2f} ms a step, watched in another "
            "epoch than the one timed. Counted as FLOP: multiply and add of convolutions and dense "
            "layers, forward, weight gradient and input gradient (none for the first); nothing "
            "else.",
        ],
        results,
    )


if __name__ == "__main__":
    typer.run(main)
