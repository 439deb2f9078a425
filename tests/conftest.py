"""Real MNIST rows for every test, and one Prefect server for all that run a flow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from nightfold import sources
from nightfold.bundle import (
    Bundle,
    BundleHandle,
    FoldScores,
    HoldoutScores,
    Manifest,
    ModelFacts,
    seal,
)
from nightfold.dataset import Dataset, Split
from nightfold.experiment import Candidate, Optimizer, shipped
from nightfold.registry import Registry
from nightfold.scaling import Scaler, pixel_histogram
from nightfold.store import Store, sha256_file, write_json
from nightfold.training import train

if TYPE_CHECKING:
    import keras


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
def facts() -> ModelFacts:
    """What a bundle says of its model, for tests to which it does not matter what."""
    recipe = Candidate(name="dense", architecture="dense")
    return ModelFacts(
        version="night-1",
        run_id="run-1",
        dataset="small-mnist",
        dataset_digest="0" * 64,
        plan_digest="1" * 64,
        class_names=tuple("0123456789"),
        scaling={"name": "normalize"},
        candidate=recipe.model_dump(mode="json"),
        candidate_digest=recipe.digest,
        cross_validated=FoldScores.of([0.8, 0.9]),
        holdout=HoldoutScores(rows=200, accuracy=0.85, log_loss=0.5, brier=0.2, ece=0.05),
    )


@pytest.fixture(scope="session")
def add_bundle(facts: ModelFacts) -> Callable[..., BundleHandle]:
    """A function that makes a bundle which verifies; it holds a real model only if given one."""

    def add(
        folder: Path,
        version: str,
        accuracies: tuple[float, ...] = (0.9, 0.95),
        plan: str = "1",
        like: Path | None = None,
        **changes: object,
    ) -> BundleHandle:
        bundle = folder / version
        bundle.mkdir(parents=True)
        for name in ("model.keras", "golden.npz", "README.md"):
            content = (like / name).read_bytes() if like else f"{name} of {version}".encode()
            (bundle / name).write_bytes(content)
        own = {
            "version": version,
            "plan_digest": plan * 64,
            "cross_validated": FoldScores.of(accuracies),
            **changes,
        }
        manifest = Manifest.describing(bundle, facts.model_copy(update=own), (28, 28, 1))
        write_json(bundle / "manifest.json", manifest.model_dump(mode="json"))
        digest = sha256_file(bundle / "manifest.json")
        return BundleHandle(path=str(bundle), version=version, manifest_sha256=digest)

    return add


@pytest.fixture(scope="session")
def model(small_mnist: Dataset) -> keras.Model:
    """A model that knows its digits: more than seven in ten, after a second of training."""
    rows = np.arange(600)
    quick = Optimizer(learning_rate=0.05, momentum=0.9)
    recipe = Candidate(name="dense", architecture="dense", optimizer=quick, epochs=4)
    scaler = Scaler.fit("normalize", pixel_histogram(small_mnist.train.images, rows))
    return train(recipe, small_mnist, rows, rows[:0], scaler=scaler, seed=1).model


@pytest.fixture(scope="session")
def store(
    model: keras.Model,
    facts: ModelFacts,
    small_mnist: Dataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Store:
    """A store whose champion, night-1, is that model. To be read only."""
    store = Store(tmp_path_factory.mktemp("artifacts"))
    seal(model, store.models, facts, np.asarray(small_mnist.test.images[:16]))
    Registry(store).promote("night-1", "The first model.")
    return store


@pytest.fixture(scope="session")
def champion(store: Store) -> Bundle:
    """The champion of `store`, loaded."""
    return Bundle.load(Registry(store).resolve("champion"))


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A server with a fresh database; Prefect's clients hold on to the first they have met."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield
