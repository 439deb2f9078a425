"""Experiment and Candidate: what to train, read from one TOML file.

Every value a user can set is declared here with its limits, and nowhere else; unknown keys and
values without effect are refused. Digests of these models decide what may be reused.
"""

from __future__ import annotations

import re
import reprlib
import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from nightfold.errors import UsageError
from nightfold.files import given
from nightfold.store import sha256_json

Runner = Literal["processes", "threads", "sequential", "dask"]
Fraction = Annotated[float, Field(gt=0, lt=1)]
MAX_BYTES = 64 * 2**10
"""Size of the largest TOML file that is read; the shipped ones have 2 KB."""
MAX_DOTS = 100
"""Most dots of a key: Python's reader takes memory by the square of them."""

Share = Annotated[float, Field(ge=0, le=1)]


ROPE = 0.001
"""Half width of practical equivalence: a tenth of a point of accuracy."""

SURE = 0.95
"""Posterior probability from which on a verdict is given."""


class Declared(BaseModel):
    """Base of everything read from TOML: immutable, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Optimizer(Declared):
    """An optimizer and its parameters, in Keras's terms."""

    name: Literal["sgd", "adam", "rmsprop", "adamw"] = "sgd"
    learning_rate: float = Field(0.01, gt=0, le=10)
    momentum: float | None = Field(None, ge=0, lt=1, description="sgd and rmsprop")
    nesterov: bool | None = Field(None, description="sgd with momentum")
    beta_1: float | None = Field(None, ge=0, lt=1, description="adam and adamw")
    beta_2: float | None = Field(None, ge=0, lt=1, description="adam and adamw")
    weight_decay: float | None = Field(None, ge=0, lt=1, description="adamw")

    @model_validator(mode="after")
    def _refuse_parameters_without_effect(self) -> Self:
        takes = {
            "sgd": {"momentum", "nesterov"},
            "adam": {"beta_1", "beta_2"},
            "rmsprop": {"momentum"},
            "adamw": {"beta_1", "beta_2", "weight_decay"},
        }[self.name]
        optional = {"momentum", "nesterov", "beta_1", "beta_2", "weight_decay"}
        for parameter in sorted(p for p in optional - takes if getattr(self, p) is not None):
            raise ValueError(f"{parameter} has no effect with {self.name}; leave it out")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class Schedule(Declared):
    """How the learning rate moves over the steps of training."""

    name: Literal["constant", "step", "cosine", "one_cycle"] = "constant"
    factor: float | None = Field(None, gt=0, lt=1, description="step: multiply by this")
    every: int | None = Field(None, ge=1, description="step: after so many epochs")
    warm_up: Fraction | None = Field(None, description="one_cycle: part of the steps that rise")

    @model_validator(mode="after")
    def _refuse_parameters_without_effect(self) -> Self:
        takes = {"step": {"factor", "every"}, "one_cycle": {"warm_up"}}.get(self.name, set())
        optional = {"factor", "every", "warm_up"}
        for parameter in sorted(p for p in optional - takes if getattr(self, p) is not None):
            raise ValueError(f"{parameter} has no effect with {self.name}; leave it out")
        return self


class EarlyStopping(Declared):
    """Stop when the loss on an inner part of the training rows no longer falls."""

    patience: int = Field(3, ge=1, description="epochs without improvement")
    fraction: Fraction = Field(0.1, description="part of the training rows set aside")
    min_delta: float = Field(0.0, ge=0, description="smallest fall of the loss that counts, nats")


class Augmentation(Declared):
    """Random moves of every training image, drawn anew each epoch, about its centre."""

    rotation: float = Field(0.0, ge=0, le=180, description="largest turn to either side, degrees")
    shift: float = Field(
        0.0, ge=0, lt=1, description="largest move along an axis, part of its side"
    )
    zoom: float = Field(0.0, ge=0, lt=1, description="largest change of size, 0.1 for 90 to 110 %")

    @model_validator(mode="after")
    def _refuse_to_do_nothing(self) -> Self:
        if not (self.rotation or self.shift or self.zoom):
            raise ValueError("it moves nothing; give rotation, shift or zoom, or leave it out")
        return self


class Candidate(Declared):
    """A recipe: everything that decides what a model becomes when it meets training rows."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    architecture: str
    scaling: str = "normalize"
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    epochs: int = Field(10, ge=1, le=10_000)
    batch_size: int = Field(32, ge=1, le=65_536)
    early_stopping: EarlyStopping | None = None
    augmentation: Augmentation | None = None
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="part of each label spread evenly over all classes"
    )
    average_epochs: int | None = Field(
        None, ge=2, description="keep the mean of the weights after each of the last so many epochs"
    )
    ensemble: int = Field(
        1, ge=1, le=100, description="networks from different seeds, their probabilities averaged"
    )

    @model_validator(mode="after")
    def _refuse_averages_that_cannot_be(self) -> Self:
        if self.average_epochs is None:
            return self
        if self.early_stopping is not None:
            raise ValueError("average_epochs has no effect with early_stopping; leave one out")
        if self.average_epochs > self.epochs:
            raise ValueError(f"average_epochs is more than the {self.epochs} epochs there are")
        return self

    @field_validator("scaling")
    @classmethod
    def _scaling_exists(cls, name: str) -> str:
        from nightfold.scaling import SCALERS

        if name not in SCALERS:
            raise ValueError(f"there is no such scaling; choose one of {', '.join(SCALERS)}")
        return name

    @field_validator("architecture")
    @classmethod
    def _architecture_exists(cls, name: str) -> str:
        from nightfold.zoo import architectures, is_own

        if not is_own(name) and name not in architectures():
            known = ", ".join(architectures())
            raise ValueError(
                f"there is no such architecture; choose one of {known}, or module:function"
            )
        return name

    @property
    def digest(self) -> str:
        """sha256 over everything but the name.

        Fields at their default are left out, so that a field that later versions add leaves the
        digests of earlier nights as they are; in return a default must never change.
        """
        return sha256_json(self.model_dump(mode="json", exclude={"name"}, exclude_defaults=True))

    @property
    def total_epochs(self) -> int:
        """Epochs of all networks of the ensemble together, at most."""
        return self.epochs * self.ensemble


class DatasetChoice(Declared):
    """Which data, in what shape."""

    source: str = "mnist"
    size: tuple[int, int] | None = Field(None, description="height, width to resize images to")
    channels: Literal[1, 3] | None = None
    holdout: Fraction | None = Field(
        None, description="part held out for the final test when the source has no test split"
    )
    holdout_seed: int = Field(1, ge=0, lt=2**31)
    limit: int | None = Field(None, ge=1, description="rows of each split, after a seeded shuffle")

    @field_validator("source")
    @classmethod
    def _source_is_local(cls, source: str) -> str:
        if "://" in source:
            # Not repeated: it may hold a password, and this sentence ends up in logs.
            raise UsageError(
                "The source of the data set is a remote address (it has '://'): download the data "
                "and give its local path; an address with a password would be kept with every run."
            )
        return source


class PlanChoice(Declared):
    """How rows are assigned to folds."""

    scheme: Literal["kfold", "stratified"] = "kfold"
    folds: int = Field(5, ge=2, le=1000)
    repeats: int = Field(1, ge=1, le=1000)
    seed: int = Field(1, ge=0, lt=2**31)
    duplicates: Literal["anywhere", "together"] = Field(
        "anywhere", description="'together' keeps exact duplicates in one fold"
    )


class ValidationChoice(Declared):
    """What the data must satisfy beyond being sound; see `tasks.validate`."""

    min_rows_per_class: int = Field(2, ge=1, description="in the training split")
    max_imbalance: float = Field(
        1.5,
        ge=1,
        description="warn if a class has this many times more or fewer rows than its share",
    )
    reference_balance: dict[str, float] | None = Field(
        None, description="expected share of each class; uniform if left out"
    )
    duplicates: Literal["warning", "critical"] = "warning"
    leakage: Literal["warning", "critical"] = "critical"


class PolicyChoice(Declared):
    """What a model must prove before it is published; see `nightfold.gate`.

    No limit has a default: one that nobody has set must not let a model through.
    """

    metric: Literal["accuracy"] = Field(description="what the challenger must be better at")
    rope: Fraction = Field(description="half width of the region of practical equivalence")
    probability: float = Field(
        gt=0.5, lt=1, description="of being better, over all looks at one champion together"
    )
    max_repeats: int = Field(
        ge=1, le=1000, description="while undecided, repeats are added up to so many"
    )
    min_holdout_accuracy: Share = Field(description="of the final model")
    min_class_recall: Share = Field(description="of every class, out of fold")
    class_floors: dict[str, Share] = Field({}, description="recall of single classes, instead")
    max_class_loss: Share = Field(description="recall a class may lose against the champion")
    max_ece: Share = Field(description="calibration error of the final model on the hold-out")
    max_megabytes: float = Field(gt=0, description="size of the model's file, 10**6 bytes")
    max_milliseconds: float = Field(gt=0, description="median time to answer one image")

    def require_known(self, class_names: tuple[str, ...]) -> None:
        """Refuse a floor for a class that there is not, which no model could reach.

        Raises
        ------
        UsageError
            Naming it, and the classes.
        """
        if unknown := sorted(set(self.class_floors) - set(class_names)):
            raise UsageError(
                f"The policy's class_floors name {unknown[0]!r}, and the classes are "
                f"{', '.join(class_names)}: correct the experiment."
            )


class RacingChoice(Declared):
    """When a hopeless candidate is stopped before its last fold; see `nightfold.racing`.

    No key has a default: what may end a candidate is declared before the run, or not done.
    """

    min_folds: int = Field(ge=2, description="nothing is stopped before every candidate has these")
    probability: float = Field(
        gt=0, lt=0.5, description="of ever stopping the best, over all looks and rivals, at most"
    )
    difference: float = Field(
        ge=0, lt=1, description="a lead over the leader up to this is not worth waiting for"
    )


class Experiment(Declared):
    """One TOML file: data, fold plan, candidates and limits."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    description: str = ""
    seed: int = Field(1, ge=0, lt=2**31, description="of initial weights and order of rows")
    dataset: DatasetChoice = DatasetChoice()
    validation: ValidationChoice = ValidationChoice()
    plan: PlanChoice = PlanChoice()
    policy: PolicyChoice | None = Field(None, description="without one nothing is promoted")
    racing: RacingChoice | None = Field(None, description="without one every fold is trained")
    candidates: tuple[Candidate, ...] = Field(min_length=1, max_length=1000)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [candidate.name for candidate in self.candidates]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two candidates are named {name!r}; give each its own name")
        return self

    @model_validator(mode="after")
    def _racing_can_stop_something(self) -> Self:
        most = self.plan.folds * max(
            self.plan.repeats, self.policy.max_repeats if self.policy else 1
        )
        if self.racing and self.racing.min_folds >= most:
            raise ValueError(
                f"racing.min_folds = {self.racing.min_folds} has no effect, as a candidate has at "
                f"most {most} folds; ask for fewer, or leave [racing] out"
            )
        return self

    @property
    def verdict(self) -> dict[str, float]:
        """What the comparison of any two candidates needs to know, as keywords of `compare`."""
        if self.policy is None:
            return {"rope": ROPE, "sure": SURE}
        return {"rope": self.policy.rope, "sure": self.policy.probability}

    @property
    def digest(self) -> str:
        """sha256 over the whole experiment; a part that later versions added only if it is set."""
        unset = {"racing"} if self.racing is None else None
        return sha256_json(self.model_dump(mode="json", exclude=unset))

    def candidate(self, name: str) -> Candidate:
        """The candidate called `name`.

        Raises
        ------
        UsageError
            If there is none; the message lists those there are.
        """
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        known = ", ".join(candidate.name for candidate in self.candidates)
        raise UsageError(
            f"The experiment {self.name!r} has no candidate {name!r}; it has: {known}."
        )

    def overridden(
        self,
        *,
        dataset: str | None = None,
        size: tuple[int, int] | None = None,
        channels: Literal[1, 3] | None = None,
        limit: int | None = None,
        candidates: list[str] | None = None,
        folds: int | None = None,
        repeats: int | None = None,
        epochs: int | None = None,
        seed: int | None = None,
    ) -> Experiment:
        """A copy in which each given value replaces the experiment's own.

        Parameters
        ----------
        dataset : str, optional
            Source URI.
        size : tuple of int, optional
            Height and width to resize images to.
        channels : {1, 3}, optional
        limit, folds, repeats, epochs, seed : int, optional
        candidates : list of str, optional
            Names to keep, in the order of the experiment.

        Raises
        ------
        UsageError
            If a value is out of its limits or a candidate does not exist.
        """
        document = self.model_dump(mode="json", exclude_unset=True)
        if dataset is not None:
            document["dataset"] = {**document.get("dataset", {}), "source": dataset}
            if dataset.partition(":")[0] != self.dataset.source.partition(":")[0]:
                # Another kind of source has its own shape and splits; the limit still holds.
                kept = {k: v for k, v in document["dataset"].items() if k in ("source", "limit")}
                document["dataset"] = kept
        for key, value in (("size", size), ("channels", channels), ("limit", limit)):
            if value is not None:
                document.setdefault("dataset", {})[key] = value
        if candidates is not None:
            wanted = {self.candidate(name).name for name in candidates}
            document["candidates"] = [c for c in document["candidates"] if c["name"] in wanted]
        for key, value in (("folds", folds), ("repeats", repeats)):
            if value is not None:
                document.setdefault("plan", {})[key] = value
        if epochs is not None:
            for candidate in document["candidates"]:
                candidate["epochs"] = epochs
        if seed is not None:
            document["seed"] = seed
        return _validated(document, "the command line")


def shipped(*parts: str) -> Path:
    """Path of something that comes with the project, such as ``experiments/night.toml``."""
    return Path(__file__).resolve().parent.parent.joinpath(*parts)


def load_experiment(name: str | Path) -> Experiment:
    """Read an experiment by the name of a shipped one or by the path of a TOML file.

    Raises
    ------
    UsageError
        If there is no such file, or with file, key and limit if a value cannot be used.
    """
    path = given(name)
    if not path.is_file():  # a folder may have the name of an experiment
        path = shipped("experiments", f"{name}.toml")
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in shipped("experiments").glob("*.toml")))
        raise UsageError(
            f"There is no experiment {str(name)!r}: give the path of a TOML file or one of {known}."
        )
    if path.stat().st_size > MAX_BYTES:
        raise UsageError(
            f"{path} is larger than {MAX_BYTES // 1024:,} KiB, so it is no experiment: check the "
            "path."
        )
    try:
        # Some editors begin a file with a byte order mark.
        text = path.read_text(encoding="utf-8-sig")
        if any(part.count(".") > MAX_DOTS for part in re.split("[=\n]", text)):
            raise ValueError(f"a key has more than {MAX_DOTS} dots")
        document = tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): check it.") from error
    except RecursionError as error:
        raise UsageError(f"{path} is not valid TOML: its values are nested too deep.") from error
    except ValueError as error:  # of decoding, of TOML, or of an integer without end
        raise UsageError(f"{path} is not valid TOML: {str(error)[:200].rstrip('.')}.") from error
    document.setdefault("name", path.stem)
    return _validated(document, str(path))


def _validated(document: dict[str, object], where: str) -> Experiment:
    try:
        return Experiment.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        whole = first["type"] == "missing" or isinstance(first["input"], dict)
        value = "" if whole else f" (given: {reprlib.repr(first['input'])})"
        what = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            what = "there is no such key, check its spelling in docs/experiments.md"
        what = what[:1].lower() + what[1:]
        raise UsageError(f"In {where}, {key or 'the experiment'}: {what}{value}.") from error
