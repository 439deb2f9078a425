"""Summary: what one run did, in one JSON document that people and programs read first.

It holds facts and figures, never tables: those are in the Parquet files beside it.
"""

from __future__ import annotations

import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError, model_validator

from nightfold import __version__
from nightfold.dataset import Dataset
from nightfold.errors import UsageError, first_line
from nightfold.experiment import PlanChoice, RacingChoice
from nightfold.gate import Check, Outcome
from nightfold.store import Store, bytes_below, write_json


class Fact(BaseModel):
    """Base of the parts of a summary: immutable, nothing unknown."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DatasetFacts(Fact):
    """Which rows were used."""

    name: str
    origin: str
    path: str
    digest: str
    n_train: int
    n_test: int
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """Those of a snapshot."""
        return cls(
            name=dataset.name,
            origin=dataset.origin,
            path=str(dataset.path),
            digest=dataset.digest,
            n_train=len(dataset.train),
            n_test=len(dataset.test),
            image_shape=dataset.image_shape,
            class_names=dataset.class_names,
        )


class PlanFacts(Fact):
    """Which fold plan; results compare only where `digest` is equal."""

    digest: str
    scheme: str
    folds: int
    repeats: int
    seed: int

    @classmethod
    def of(cls, plan: PlanChoice, digest: str) -> Self:
        """Those of a plan with this digest."""
        return cls(
            digest=digest,
            scheme=plan.scheme,
            folds=plan.folds,
            repeats=plan.repeats,
            seed=plan.seed,
        )


class RecipeFacts(Fact):
    """Who took part: the recipe, and what its `n` folds cost."""

    name: str
    digest: str
    architecture: str
    scaling: str
    epochs: int
    n: int
    train_seconds: float
    parameters: int


class CandidateFacts(RecipeFacts):
    """Cross-validated scores of one candidate; fractions, not percent.

    `accuracy_std` is the sample standard deviation over folds (ddof=1); `accuracy_low` and
    `accuracy_high` are the ends of `nightfold.statistics.score_interval` over images.
    """

    accuracy_mean: float
    accuracy_std: float
    log_loss_mean: float
    accuracy_low: float | None = None
    accuracy_high: float | None = None


class StoppedFacts(RecipeFacts):
    """A candidate that was raced out. A mean of some folds is none, so there is no score.

    `reason` says after how many folds and by which rule.
    """

    reason: str


class FinalFacts(Fact):
    """The final model and its one test on the hold-out.

    `milliseconds` is the median time to answer one image, on the machine that fitted it.
    """

    candidate: str
    version: str
    path: str
    holdout_rows: int
    holdout_accuracy: float
    holdout_log_loss: float
    train_seconds: float
    milliseconds: float | None = None


class PromotionFacts(Fact):
    """What became of the challenger, why, and every check behind it.

    `champion` is the version in use after the decision. Runs of earlier versions of Nightfold have
    neither outcome nor checks.
    """

    promoted: bool
    reason: str
    champion: str | None
    outcome: Outcome | None = None
    checks: tuple[Check, ...] = ()

    @property
    def decided(self) -> Outcome:
        """The gate's word; runs before there was a gate either promoted or refused."""
        return self.outcome or ("promote" if self.promoted else "refuse")


class DiskFacts(Fact):
    """What the artifacts take on the disk when the run ends, and what is left; bytes.

    `datasets` are the snapshots with the fold plans; `runs` come without the score table, which is
    in `total` as well.
    """

    runs: int
    models: int
    folds: int
    datasets: int
    total: int
    free: int

    @classmethod
    def of(cls, store: Store) -> Self:
        """Measure it: one look at every file."""
        return cls(
            runs=bytes_below(store.runs),
            models=bytes_below(store.models),
            folds=bytes_below(store.folds),
            datasets=bytes_below(store.datasets) + bytes_below(store.plans),
            total=bytes_below(store.root),
            free=shutil.disk_usage(store.root).free,
        )


def installed() -> dict[str, str]:
    """Versions of what scores depend on, by name."""
    return {
        "nightfold": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("tensorflow", "keras", "prefect", "numpy")},
    }


class Summary(Fact):
    """Everything about a run that fits a page.

    `best` is the best of the experiment's own candidates; `guest` names the one, if any, that was
    trained only because it is the champion's recipe. `stopped` are those that `racing` ended before
    their last fold; they are not among `candidates`.
    """

    run_id: str
    flow: Literal["evaluate", "retrain"]
    experiment: str
    experiment_description: str
    experiment_digest: str
    started_at: AwareDatetime
    finished_at: AwareDatetime
    host: str
    processors: int
    workers: int
    runner: str
    versions: dict[str, str]
    dataset: DatasetFacts
    plan: PlanFacts
    candidates: tuple[CandidateFacts, ...]
    stopped: tuple[StoppedFacts, ...] = ()
    racing: RacingChoice | None = None
    best: str
    guest: str | None = None
    final: FinalFacts | None = None
    promotion: PromotionFacts | None = None
    disk: DiskFacts | None = None

    @model_validator(mode="after")
    def _best_is_a_candidate(self) -> Self:
        if self.best not in [candidate.name for candidate in self.candidates]:
            raise ValueError("the best is none of the candidates")
        return self

    @property
    def recipes(self) -> tuple[RecipeFacts, ...]:
        """Everyone who took part, those that were stopped last."""
        return (*self.candidates, *self.stopped)

    @property
    def seconds(self) -> float:
        """Wall time of the run."""
        return (self.finished_at - self.started_at).total_seconds()

    def write(self, folder: Path) -> None:
        """Write ``summary.json`` into the run's folder, atomically."""
        write_json(folder / "summary.json", self.model_dump(mode="json"))

    @classmethod
    def read(cls, folder: Path) -> Summary:
        """Read ``summary.json`` from the run's folder.

        Raises
        ------
        UsageError
            If it is not the summary of a run.
        """
        file = folder / "summary.json"
        try:
            return cls.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise UsageError(
                f"{file} is not the summary of a run ({first_line(error)}): restore it or look at "
                "another run."
            ) from error


def refuse_another(folder: Path, *, flow: str, experiment: str, dataset: str) -> None:
    """Refuse to begin a run in the folder of another that is complete; the same may go on there.

    Parameters
    ----------
    folder : Path
        Of the run that is about to begin.
    flow : str
        ``evaluate`` or ``retrain``.
    experiment, dataset : str
        Their digests.

    Raises
    ------
    UsageError
        If what is complete there is of another flow, experiment or data set, or cannot be read.
    """
    if not (folder / "summary.json").exists():
        return
    there = Summary.read(folder)
    if (there.flow, there.experiment_digest, there.dataset.digest) != (flow, experiment, dataset):
        raise UsageError(
            f"The run {folder.name} is complete already, with another command, experiment or "
            "data set: choose another run id."
        )
