"""Real MNIST rows for every test, and one Prefect server for all that run a flow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import pytest

from nightfold import sources
from nightfold.bundle import Bundle, seal
from nightfold.dataset import Dataset, DatasetHandle, Split
from nightfold.experiment import Candidate, Optimizer, PlanChoice, shipped
from nightfold.foldplan import FoldPlan, PlanHandle
from nightfold.foldresult import FoldJob, FoldResult, Scores, folder_of
from nightfold.manifest import BundleHandle, FoldScores, HoldoutScores, Manifest, ModelFacts
from nightfold.registry import Registry
from nightfold.scaling import Scaler, pixel_histogram
from nightfold.store import Store, sha256_file, write_json
from nightfold.summary import (
    CandidateFacts,
    DatasetFacts,
    FinalFacts,
    PlanFacts,
    PromotionFacts,
    Summary,
)
from nightfold.tables import SCORES, build_table, write_table
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
def small_parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the first 600 and 200 rows of MNIST, for which 70,000 need not be decoded."""
    folder = tmp_path_factory.mktemp("small") / "digits"
    folder.mkdir()
    for split, rows in (("train", 600), ("test", 200)):
        table = pq.read_table(shipped("data", "mnist", f"{split}.parquet"))
        pq.write_table(table.slice(0, rows), folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="session")
def small_mnist(small_parquet: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The first 600 and 200 rows of MNIST as a snapshot."""
    source = sources.read(f"parquet:{small_parquet}")
    return Dataset.write(
        tmp_path_factory.mktemp("small_mnist"),
        name="small-mnist",
        origin="mnist (first 600 and 200 rows)",
        class_names=source.class_names,
        train=source.train,
        test=source.test,
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


@pytest.fixture
def new_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A function that makes an Ed25519 key pair as openssl does and configures it.

    ``NAME.pem`` and ``NAME.pub.pem``; the passphrase, if there is one, is left to the test.
    """
    from cryptography.hazmat.primitives import serialization as pem
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    def make(name: str, *, public: bool = False, passphrase: str = "") -> Path:
        key = Ed25519PrivateKey.generate()
        lock = (
            pem.BestAvailableEncryption(passphrase.encode()) if passphrase else pem.NoEncryption()
        )
        secret, shown = tmp_path / f"{name}.pem", tmp_path / f"{name}.pub.pem"
        secret.write_bytes(key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, lock))
        shown.write_bytes(
            key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
        )
        monkeypatch.setenv("NIGHTFOLD_SIGNING_KEY", str(secret))
        if public:
            monkeypatch.setenv("NIGHTFOLD_PUBLIC_KEY", str(shown))
        return shown

    return make


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
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A command's server with a fresh database; Prefect's clients hold on to the first they meet.

    Not the one of `prefect_test_harness`, which may stand still for a minute while SQLite waits.
    """
    from prefect.context import _temporary_global_settings_context, get_settings_context
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_SERVER_DATABASE_CONNECTION_URL,
        temporary_settings,
    )

    from flows import server

    database = tmp_path_factory.mktemp("prefect") / "server.db"
    url = f"sqlite+aiosqlite:///{database}"
    with temporary_settings({PREFECT_SERVER_DATABASE_CONNECTION_URL: url}):
        started = server.start()
        started.wait(120)
        with (
            temporary_settings({PREFECT_API_URL: started.url}),
            # Threads that Prefect starts see no settings of ours, as in its own harness.
            _temporary_global_settings_context(get_settings_context()),
        ):
            yield  # it ends with this process, once Prefect has sent what it has to send


@pytest.fixture(scope="session")
def digit_plan(small_mnist: Dataset) -> FoldPlan:
    """Five folds of `small_mnist`, twice."""
    return FoldPlan.build(PlanChoice(folds=5, repeats=2), small_mnist)


@pytest.fixture(scope="session")
def digit_accuracies(small_mnist: Dataset, digit_plan: FoldPlan) -> dict[str, list[float]]:
    """Accuracies on `digit_plan` of three classifiers that take no time, in its order."""
    from sklearn.linear_model import RidgeClassifier
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier

    rows, labels = small_mnist.train.images.reshape(600, -1) / 255.0, small_mnist.train.labels
    models = {
        "neighbour": KNeighborsClassifier(1),
        "bayes": GaussianNB(var_smoothing=0.1),
        "ridge": RidgeClassifier(10),
    }
    places = [digit_plan.rows(r, f) for r in (1, 2) for f in range(1, 6)]
    return {
        name: [
            float(model.fit(rows[seen], labels[seen]).score(rows[unseen], labels[unseen]))
            for seen, unseen in places
        ]
        for name, model in models.items()
    }


@pytest.fixture(scope="session")
def fold_jobs() -> Callable[..., list[FoldJob]]:
    """A function that makes folds to train of rows that nobody will ask for."""

    def make(artifacts: Path, *candidates: Candidate, folds: int = 2) -> list[FoldJob]:
        digest = "0" * 64
        return [
            FoldJob(
                candidate=candidate,
                dataset=DatasetHandle(path="d", digest=digest, name="d", n_train=10, n_test=10),
                plan=PlanHandle(
                    path="p", digest=digest, folds=folds, repeats=1, n_rows=10,
                    repeat_digests=(digest,),
                ),
                scaler=Scaler(name="none"),
                repeat=1,
                fold=fold,
                seed=1,
                artifacts=str(artifacts),
            )
            for candidate in candidates
            for fold in range(1, folds + 1)
        ]  # fmt: skip

    return make


@pytest.fixture(scope="session")
def leave_fold() -> Callable[..., None]:
    """A function that leaves in the store what training a fold would."""

    def leave(
        store: Store, key: str, *, accuracy: float = 0.9, seconds: float, n_train: int, n_test: int
    ) -> None:
        folder = folder_of(store, key)
        folder.mkdir(parents=True)
        np.save(folder / "probabilities.npy", np.full((2, 10), 0.1, np.float32))
        now = datetime(2024, 1, 1, tzinfo=UTC)
        scores = Scores(
            seed=1, n_train=n_train, n_test=n_test, accuracy=accuracy, loss=0.3, log_loss=0.3,
            brier=0.2, ece=0.1, macro_f1=accuracy, epochs=2, train_seconds=seconds,
            images_per_second=100, peak_rss_bytes=1, parameters=1, started_at=now, finished_at=now,
            host="h", code_version="1", tensorflow_version="2", keras_version="3",
        )  # fmt: skip
        sha256 = sha256_file(folder / "probabilities.npy")
        result = FoldResult(key=key, scores=scores, history=(), probabilities_sha256=sha256)
        write_json(folder / "result.json", result.model_dump(mode="json"))

    return leave


@pytest.fixture(scope="session")
def write_scores() -> Callable[..., None]:
    """A function that adds a night's rows to the score table, as `aggregate` does."""

    def write(
        store: Store,
        run_id: str,
        started_at: datetime,
        plan: FoldPlan,
        accuracies: Mapping[Candidate, Sequence[float]],
        seconds: float = 6.0,
    ) -> None:
        """`accuracies` in the order of the plan; every fold took `seconds`."""
        rows = []
        for candidate, of_folds in accuracies.items():
            places = [(r, f) for r in range(1, plan.repeats + 1) for f in range(1, plan.folds + 1)]
            for (repeat, fold), accuracy in zip(places, of_folds, strict=True):
                seen, unseen = plan.rows(repeat, fold)
                rows.append(
                    {
                        "run_id": run_id,
                        "run_date": started_at.date(),
                        "dataset": "small-mnist",
                        "dataset_digest": plan.dataset_digest,
                        "plan_digest": plan.digest,
                        "candidate": candidate.name,
                        "candidate_digest": candidate.digest,
                        "architecture": candidate.architecture,
                        "scaling": candidate.scaling,
                        "repeat": repeat,
                        "fold": fold,
                        "seed": 100 * repeat + fold,
                        "n_train": len(seen),
                        "n_test": len(unseen),
                        "accuracy": accuracy,
                        "loss": 0.3,
                        "log_loss": 0.3,
                        "brier": 0.2,
                        "ece": 0.05,
                        "macro_f1": accuracy,
                        "epochs": candidate.epochs,
                        "train_seconds": seconds,
                        "images_per_second": len(seen) * candidate.total_epochs / seconds,
                        "peak_rss_bytes": 700_000_000,
                        "parameters": 542_230,
                        "started_at": started_at,
                        "finished_at": started_at + timedelta(seconds=seconds),
                        "host": "night-1",
                        "code_version": "0.1.0",
                        "tensorflow_version": "2.21.0",
                        "keras_version": "3.15.1",
                    }
                )
        table = build_table(rows, SCORES).drop_columns(["run_date"])
        day = store.scores / f"run_date={started_at.date()}"
        write_table(day / f"{run_id}.parquet", table, name="scores", run_id=run_id)

    return write


@pytest.fixture(scope="session")
def write_night() -> Callable[..., Summary]:
    """A function that leaves the summary of a night as `retrain` does, the model apart."""

    def write(
        store: Store,
        started_at: datetime,
        accuracies: Mapping[Candidate, float],
        promotion: PromotionFacts | None,
        *,
        data: str = "a",
        dataset: str = "mnist",
        **changes: object,
    ) -> Summary:
        """`accuracies` are of 60,000 images; `data` is one digit of the data's digest."""
        run_id = f"{started_at:%Y%m%d-%H%M%S}-1a2b3c"
        candidates = tuple(
            CandidateFacts(
                name=candidate.name,
                digest=candidate.digest,
                architecture=candidate.architecture,
                scaling=candidate.scaling,
                epochs=candidate.epochs,
                n=5,
                accuracy_mean=accuracy,
                accuracy_std=0.001,
                log_loss_mean=0.05,
                train_seconds=50.0,
                parameters=542_230,
                accuracy_low=accuracy - 1.96 * (accuracy * (1 - accuracy) / 60_000) ** 0.5,
                accuracy_high=accuracy + 1.96 * (accuracy * (1 - accuracy) / 60_000) ** 0.5,
            )
            for candidate, accuracy in accuracies.items()
        )
        best = max(candidates, key=lambda facts: facts.accuracy_mean).name
        summary = Summary(
            run_id=run_id,
            flow="retrain",
            experiment="night",
            experiment_description="",
            experiment_digest="e" * 64,
            started_at=started_at,
            finished_at=started_at + timedelta(minutes=14),
            host="night-1",
            processors=2,
            workers=2,
            runner="processes",
            versions={"nightfold": "0.1.0"},
            dataset=DatasetFacts(
                name=dataset,
                origin=dataset,
                path="",
                digest=data * 64,
                n_train=60_000,
                n_test=10_000,
                image_shape=(28, 28, 1),
                class_names=tuple("0123456789"),
            ),
            plan=PlanFacts(digest=data * 64, scheme="kfold", folds=5, repeats=1, seed=1),
            candidates=candidates,
            best=best,
            final=FinalFacts(
                candidate=best,
                version=run_id,
                path="",
                holdout_rows=10_000,
                holdout_accuracy=0.99,
                holdout_log_loss=0.03,
                train_seconds=60.0,
            ),
            promotion=promotion,
        ).model_copy(update=changes)
        summary.write(store.run(run_id))
        return summary

    return write
