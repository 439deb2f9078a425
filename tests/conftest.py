"""Real MNIST rows for every test, and one Prefect server for all that run a flow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nightfold import sources
from nightfold.dataset import Dataset, Split
from nightfold.experiment import shipped


@pytest.fixture(scope="session")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The shipped MNIST as a snapshot: 60,000 and 10,000 rows."""
    source = sources.read(f"parquet:{shipped('data', 'mnist')}")
    return Dataset.write(
        tmp_path_factory.mktemp("mnist"),
        name="mnist",
        origin="mnist",
        class_names=source.class_names,
        train=source.train,
        test=source.test,
    )


@pytest.fixture(scope="session")
def mnist_train(mnist: Dataset) -> Split:
    """The 60,000 rows of MNIST to learn from, mapped into memory."""
    return mnist.train


@pytest.fixture(scope="session")
def small_mnist(mnist: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The first 600 and 200 rows of MNIST as a snapshot."""
    return Dataset.write(
        tmp_path_factory.mktemp("small_mnist"),
        name="small-mnist",
        origin="mnist (first 600 and 200 rows)",
        class_names=mnist.class_names,
        train=Split(mnist.train.images[:600], mnist.train.labels[:600]),
        test=Split(mnist.test.images[:200], mnist.test.labels[:200]),
    )


@pytest.fixture
def small_idx(small_mnist: Dataset, tmp_path: Path) -> Path:
    """A folder of the four IDX files of `small_mnist`."""
    folder = tmp_path / "idx"
    folder.mkdir()
    for prefix, split in (("train", small_mnist.train), ("t10k", small_mnist.test)):
        for role, array in (("images-idx3", split.images[..., 0]), ("labels-idx1", split.labels)):
            header = b"\0\0\x08" + bytes([array.ndim])
            header += b"".join(size.to_bytes(4, "big") for size in array.shape)
            (folder / f"{prefix}-{role}-ubyte").write_bytes(
                header + array.astype("uint8").tobytes()
            )
    return folder


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A server with a fresh database; Prefect's clients hold on to the first they have met."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield
