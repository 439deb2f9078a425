"""Difference: why a score moved between two nights, one cause after the other.

The way from night A to night B changes one factor at a time: the code, then the data with its
folds, then the candidate, then the seed. Between them lie corners, such as A's recipe and seed on
B's data. A corner whose folds are in the store costs nothing, another has to be trained; the flow
does that. What was not measured is said to be so, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from nightfold.dataset import DatasetHandle
from nightfold.errors import DataRefused, UsageError
from nightfold.experiment import Candidate
from nightfold.foldplan import FoldPlan, PlanHandle
from nightfold.foldresult import FoldResult, code_behind, code_versions, fold_key, folder_of
from nightfold.record import Record
from nightfold.scoretable import Earlier
from nightfold.statistics import (
    HALF_A_ROW,
    CorrectedT,
    corrected_resampled_t,
    corrected_unpaired_t,
)
from nightfold.store import Store, write_json
from nightfold.summary import Summary
from nightfold.zoo import find, fingerprint

if TYPE_CHECKING:
    import pandas as pd

Factor = Literal["code", "data", "candidate", "seed"]
Reading = Literal["unchanged", "clear", "within the noise", "no spread", "not measured"]
Source = Literal["recorded", "in the store", "trained", "left out"]

ORDER: tuple[Factor, ...] = ("code", "data", "candidate", "seed")
"""In which the factors change on the way from A to B; the data bring their folds with them."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


@dataclass(frozen=True)
class Measured:
    """Accuracy on every fold of a plan, in its order, and where it comes from.

    Attributes
    ----------
    accuracies : ndarray of float64, shape (folds * repeats,)
    n_train, n_test : float
        Rows trained on and scored in a fold, means.
    plan : str
        Digest of the plan; only scores of the same are paired.
    source : {'recorded', 'in the store', 'trained'}
    """

    accuracies: NDArray[np.float64]
    n_train: float
    n_test: float
    plan: str
    source: Source

    @property
    def mean(self) -> float:
        """Over folds and repeats."""
        return float(self.accuracies.mean())

    def until(self, other: Measured) -> CorrectedT:
        """Difference `other` less this one: paired by fold on the same plan, else unpaired."""
        if self.plan == other.plan:
            return corrected_resampled_t(
                other.accuracies - self.accuracies,
                n_train=self.n_train,
                n_test=self.n_test,
                resolution=HALF_A_ROW / self.n_test,
            )
        return corrected_unpaired_t(
            self.accuracies,
            other.accuracies,
            n_train=(self.n_train, other.n_train),
            n_test=(self.n_test, other.n_test),
            resolution=(HALF_A_ROW / self.n_test, HALF_A_ROW / other.n_test),
        )


@dataclass(frozen=True)
class Night:
    """One of the two runs, as far as one of its candidates is concerned."""

    label: Literal["A", "B"]
    summary: Summary
    record: Record
    candidate: Candidate
    plan: PlanHandle
    scores: pd.DataFrame
    store: Store

    @classmethod
    def read(
        cls, store: Store, label: Literal["A", "B"], summary: Summary, candidate: str
    ) -> Night:
        """Read what the run left of `candidate`.

        Raises
        ------
        UsageError
            If the run has no such candidate, has not scored it on every fold, or did not record
            its experiment.
        DataRefused
            If its plan or its scores cannot be read.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder = store.run(summary.run_id)
        record = Record.read(folder)
        recipe = record.experiment.candidate(candidate)
        plan = FoldPlan.open(folder / "foldplan.parquet")
        path = folder / "scores.parquet"
        try:
            table = pq.read_table(path, columns=[*Earlier.COLUMNS, "candidate"])
        except (OSError, pa.ArrowException) as error:
            raise DataRefused(
                f"The scores {path} cannot be read ({error}): run the same experiment again; "
                "finished folds are not trained anew."
            ) from error
        scores = table.to_pandas().query("candidate == @candidate").sort_values(["repeat", "fold"])
        if len(scores) != plan.folds * plan.repeats:
            raise UsageError(
                f"The run {summary.run_id} scored {candidate} on {len(scores)} of "
                f"{plan.folds * plan.repeats} folds: compare a candidate that it scored on all."
            )
        handle = plan.handle(folder / "foldplan.parquet")
        return cls(label, summary, record, recipe, handle, scores, store)

    @property
    def recorded(self) -> Measured:
        """What the night itself has measured."""
        return Measured(
            self.scores["accuracy"].to_numpy(np.float64),
            float(self.scores["n_train"].mean()),
            float(self.scores["n_test"].mean()),
            self.plan.digest,
            "recorded",
        )

    @property
    def dataset(self) -> DatasetHandle:
        """The night's snapshot, where this store has it."""
        facts = self.summary.dataset
        return DatasetHandle(
            path=str(self.store.datasets / facts.digest[:16]),
            digest=facts.digest,
            name=facts.name,
            n_train=facts.n_train,
            n_test=facts.n_test,
        )

    def code_behind(self, candidate: Candidate) -> dict[str, str | int]:
        """What the night's code was for `candidate`; a source it did not meet is today's."""
        name = candidate.architecture
        source = self.record.sources.get(name, fingerprint(name))
        return {"architecture_source": source, **self.record.code}


@dataclass(frozen=True)
class Corner:
    """A training that no night need have run: each factor from A or from B.

    Attributes
    ----------
    code, data, candidate, seed : Night
        Where each factor comes from.
    """

    code: Night
    data: Night
    candidate: Night
    seed: Night

    @property
    def letters(self) -> str:
        """``BAAA``: whose code, data, candidate and seed."""
        return "".join(getattr(self, factor).label for factor in ORDER)

    @property
    def recipe(self) -> Candidate:
        """The candidate to train."""
        return self.candidate.candidate

    @property
    def seed_value(self) -> int:
        """The experiment's seed."""
        return self.seed.record.experiment.seed

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Key of every fold result; two corners with the same keys are one."""
        plan, code = self.data.plan, self.code.code_behind(self.recipe)
        return tuple(
            fold_key(
                self.recipe, self.data.dataset.digest, plan, repeat, fold, self.seed_value, code
            )
            for repeat in range(1, plan.repeats + 1)
            for fold in range(1, plan.folds + 1)
        )

    def stored(self) -> list[FoldResult | None]:
        """Result of every fold that is whole in the store."""
        return [
            result if result is not None and result.key == key else None
            for key in self.keys
            for result in [FoldResult.read(folder_of(self.data.store, key))]
        ]

    def obstacle(self) -> str | None:
        """Why it cannot be trained here and now, whatever the budget."""
        then, now = self.code.record.code, code_versions()
        if then != now:
            versions = (", ".join(f"{k} {v}" for k, v in code.items()) for code in (then, now))
            return "it needs the code of night {} ({}), and this is {}".format(
                self.code.label, *versions
            )
        if self.code.code_behind(self.recipe) != code_behind(self.recipe):
            own = self.recipe.architecture
            return f"it needs the source of {own} as it was in night {self.code.label}"
        dataset = self.data.dataset
        if not (Path(dataset.path) / "dataset.json").exists():
            return (
                f"the snapshot {dataset.digest[:12]} of {dataset.name} of night {self.data.label} "
                "is no longer in the store"
            )
        try:
            find(self.recipe.architecture)
        except UsageError as error:
            return str(error).rstrip(".")
        return None


class Step(_Part):
    """One factor's part of the change; accuracies are fractions.

    Attributes
    ----------
    factor : {'code', 'data', 'candidate', 'seed'}
    what : tuple of str
        What changed; empty if nothing did.
    difference : float or None
        Mean accuracy behind the step less that before it; exactly 0 if nothing changed, None if it
        was not measured.
    low, high : float or None
        95 % interval; None if nothing changed, nothing was measured or nothing tells the spread.
    paired : bool or None
        Whether by fold, on the same rows and folds.
    reading : {'unchanged', 'clear', 'within the noise', 'no spread', 'not measured'}
        Clear if the interval leaves out zero.
    reason : str or None
        Why it was not measured.
    """

    factor: Factor
    what: tuple[str, ...]
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    paired: bool | None = None
    reading: Reading
    reason: str | None = None


class CornerFacts(_Part):
    """A corner, its score, and where that is from.

    Attributes
    ----------
    corner : str
        Whose code, data, candidate and seed, such as ``BBAA``.
    accuracy : float or None
        Mean over folds, a fraction; None if it was left out.
    source : {'recorded', 'in the store', 'trained', 'left out'}
    minutes : float or None
        Of training that a corner left out would take; None if it cannot be trained.
    """

    corner: str
    accuracy: float | None
    source: Source
    minutes: float | None = None


class Side(_Part):
    """One of the two nights."""

    run_id: str
    candidate: str
    candidate_digest: str
    accuracy: float


class Difference(_Part):
    """The change of a score between two nights, taken apart.

    Attributes
    ----------
    a, b : Side
    difference, low, high, paired
        Of the whole, B less A, as in `Step`; its two ends are what the nights recorded.
    steps : tuple of Step
        In `ORDER`; if all were measured, they sum up to `difference`.
    corners : tuple of CornerFacts
        On the way from A to B, each once.
    rest : float
        `difference` less the steps that were measured: what those not measured make together. If
        nothing changed, what should be 0.
    minutes : float
        The budget.
    notes : tuple of str
    """

    a: Side
    b: Side
    difference: float
    low: float | None
    high: float | None
    paired: bool
    reading: Reading
    order: tuple[Factor, ...] = ORDER
    steps: tuple[Step, ...]
    corners: tuple[CornerFacts, ...]
    rest: float
    minutes: float
    notes: tuple[str, ...]

    def write(self, folder: Path) -> None:
        """Write ``difference.json`` into the folder of run B, atomically."""
        write_json(folder / "difference.json", self.model_dump(mode="json"))


@dataclass(frozen=True)
class Question:
    """Why is B's score not A's?"""

    a: Night
    b: Night

    @classmethod
    def read(
        cls, store: Store, a: str | None = None, b: str = "latest", candidate: str | None = None
    ) -> Question:
        """Read two runs.

        Parameters
        ----------
        store : Store
        a : str, optional
            A run's id; the run before `b` of the same experiment and data set if left out.
        b : str
            A run's id, or ``latest``.
        candidate : str, optional
            Its name in both runs. If left out, the best of `b`, and the candidate of `a` with that
            name, or its best if it has none.

        Raises
        ------
        UsageError
            If there is no such run or candidate, or both runs are the same.
        DataRefused
            If what a run left cannot be read.
        """
        later = _summary(store, b)
        earlier = _summary(store, a) if a is not None else _run_before(store, later)
        if earlier.run_id == later.run_id:
            raise UsageError(f"Both runs are {later.run_id}: name two different ones.")
        tasks = [(run.dataset.class_names, run.dataset.image_shape) for run in (earlier, later)]
        if tasks[0] != tasks[1]:
            raise UsageError(
                f"The runs {earlier.run_id} on {earlier.dataset.name} and {later.run_id} on "
                f"{later.dataset.name} are of other classes or image shapes: compare runs of one "
                "task."
            )
        name = candidate or later.best
        known = [facts.name for facts in earlier.candidates]
        of_a = name if candidate or name in known else earlier.best
        return cls(Night.read(store, "A", earlier, of_a), Night.read(store, "B", later, name))

    @property
    def folder(self) -> Path:
        """Where the training of corners leaves its scalers and can be watched."""
        return self.b.store.run(self.b.summary.run_id) / "difference"

    @cached_property
    def path(self) -> list[Corner]:
        """From A to B, one factor after the other."""
        return [
            Corner(*(self.b,) * changed, *(self.a,) * (len(ORDER) - changed))
            for changed in range(len(ORDER) + 1)
        ]

    def measured(self, corner: Corner) -> Measured | None:
        """What is known of a corner: from a night's own tables, or else from the store."""
        for night, end in ((self.a, self.path[0]), (self.b, self.path[-1])):
            if corner.keys == end.keys:
                return night.recorded
        found = [result.scores for result in corner.stored() if result is not None]
        if len(found) < len(corner.keys):
            return None
        return Measured(
            np.array([scores.accuracy for scores in found]),
            float(np.mean([scores.n_train for scores in found])),
            float(np.mean([scores.n_test for scores in found])),
            corner.data.plan.digest,
            "in the store",
        )

    def minutes(self, corner: Corner, workers: int) -> float:
        """Minutes of training that its missing folds take, as fast as in these nights."""
        import pandas as pd

        both = pd.concat([self.a.scores, self.b.scores]).sort_values("started_at", kind="stable")
        plan = corner.data.plan
        seconds, _ = Earlier(both).seconds(corner.recipe, plan.n_rows * (1 - 1 / plan.folds))
        assert seconds is not None, "the candidate of a night was trained in it"
        return seconds * corner.stored().count(None) / workers / 60

    def affordable(self, minutes: float, workers: int) -> list[Corner]:
        """The corners that have to be trained and can be, in the order of the way from A to B.

        Parameters
        ----------
        minutes : float
            Of training, all workers busy; a corner that does not fit what is left is left out.
        workers : int
            Folds trained at once.
        """
        chosen: dict[tuple[str, ...], Corner] = {}
        for corner in self.path:
            if corner.keys in chosen or self.measured(corner) or corner.obstacle():
                continue
            if (cost := self.minutes(corner, workers)) <= minutes:
                chosen[corner.keys] = corner
                minutes -= cost
        return list(chosen.values())

    def answer(self, minutes: float, workers: int, trained: Sequence[Corner] = ()) -> Difference:
        """Take the change apart with what is measured by now.

        Parameters
        ----------
        minutes, workers
            As in `affordable`.
        trained : sequence of Corner
            Those that were trained for this answer.
        """
        just_now = {corner.keys for corner in trained}
        # The end of the way is what B recorded, even where nothing changed and A's score is known.
        known = [self.measured(corner) for corner in self.path[:-1]] + [self.b.recorded]
        steps = tuple(
            self._step(factor, before, after, workers)
            for factor, before, after in zip(
                ORDER, pairwise(self.path), pairwise(known), strict=True
            )
        )
        whole = self.a.recorded.until(self.b.recorded)
        difference = self.b.recorded.mean - self.a.recorded.mean
        measured = [step.difference for step in steps if step.difference is not None]
        complete = len(measured) == len(steps) and any(
            step.reading != "unchanged" for step in steps
        )
        return Difference(
            a=_side(self.a),
            b=_side(self.b),
            difference=difference,
            low=whole.low,
            high=whole.high,
            paired=self.a.plan.digest == self.b.plan.digest,
            reading=_reading(whole),
            steps=steps,
            corners=tuple(self._corners(known, just_now, workers)),
            rest=0.0 if complete else difference - sum(measured),
            minutes=minutes,
            notes=tuple(self._notes()),
        )

    def _step(
        self,
        factor: Factor,
        corners: tuple[Corner, Corner],
        known: tuple[Measured | None, Measured | None],
        workers: int,
    ) -> Step:
        if corners[0].keys == corners[1].keys:
            return Step(factor=factor, what=(), difference=0.0, reading="unchanged")
        what = tuple(self._what(factor))
        before, after = known
        if before is None or after is None:
            missing = [c for c, found in zip(corners, known, strict=True) if found is None]
            reason = self._why_not(missing, workers)
            return Step(factor=factor, what=what, reading="not measured", reason=reason)
        test = before.until(after)
        return Step(
            factor=factor,
            what=what,
            difference=after.mean - before.mean,
            low=test.low,
            high=test.high,
            paired=before.plan == after.plan,
            reading=_reading(test),
        )

    def _why_not(self, missing: Sequence[Corner], workers: int) -> str:
        obstacles = dict.fromkeys(reason for c in missing if (reason := c.obstacle()))
        if obstacles:
            return "; ".join(obstacles)
        minutes = sum({c.keys: self.minutes(c, workers) for c in missing}.values())
        return f"would take {minutes:.1f} minutes"

    def _what(self, factor: Factor) -> Iterator[str]:
        """What changed between the nights, a phrase each."""
        a, b = self.a, self.b
        experiment_a, experiment_b = a.record.experiment, b.record.experiment
        if factor == "code":
            yield from _changes(a.record.code, b.record.code)
            own = a.candidate.architecture
            if (
                a.code_behind(a.candidate)["architecture_source"]
                != (b.code_behind(a.candidate)["architecture_source"])
            ):
                yield f"source of {own}"
        elif factor == "data":
            if a.dataset.digest != b.dataset.digest:
                yield (
                    f"images {a.dataset.n_train:,} -> {b.dataset.n_train:,} "
                    f"({a.dataset.digest[:8]} -> {b.dataset.digest[:8]})"
                )
            yield from _changes(experiment_a.plan.model_dump(), experiment_b.plan.model_dump())
        elif factor == "candidate":
            one, other = (n.candidate.model_dump(exclude={"name"}) for n in (a, b))
            yield from _changes(one, other)
        else:
            yield f"{experiment_a.seed} -> {experiment_b.seed}"

    def _corners(
        self,
        known: Sequence[Measured | None],
        just_now: set[tuple[str, ...]],
        workers: int,
    ) -> Iterator[CornerFacts]:
        """Both nights, and between them every corner that is neither of them, each once."""
        told = {self.path[0].keys, self.path[-1].keys}
        for corner, found in zip(self.path, known, strict=True):
            if corner.letters not in ("AAAA", "BBBB"):
                if corner.keys in told:
                    continue
                told.add(corner.keys)
            if found is None:
                cost = None if corner.obstacle() else self.minutes(corner, workers)
                yield CornerFacts(
                    corner=corner.letters, accuracy=None, source="left out", minutes=cost
                )
            else:
                source: Source = "trained" if corner.keys in just_now else found.source
                yield CornerFacts(corner=corner.letters, accuracy=found.mean, source=source)

    def _notes(self) -> Iterator[str]:
        a, b = self.a, self.b
        if self.path[0].keys == self.path[-1].keys:
            same = np.array_equal(a.recorded.accuracies, b.recorded.accuracies)
            yield (
                "Neither code, data, candidate nor seed changed, so the scores must be equal: "
                + ("they are." if same else "they are not; look at the machines.")
            )
        machines = [(n.summary.host, n.summary.processors) for n in (a, b)]
        if machines[0] != machines[1]:
            told = " and ".join(f"{host} with {cores} processors" for host, cores in machines)
            yield (
                f"The nights ran on {told}; scores are equal to the bit only on one kind of "
                "machine, so a step may hold what the machine does."
            )
        if a.candidate.name != b.candidate.name:
            yield (
                f"Night A has no score of {b.candidate.name}, so its best, {a.candidate.name}, "
                "stands for it."
            )


def _reading(test: CorrectedT) -> Reading:
    if test.low is None or test.high is None:
        return "no spread"
    return "within the noise" if test.low <= 0 <= test.high else "clear"


def _side(night: Night) -> Side:
    return Side(
        run_id=night.summary.run_id,
        candidate=night.candidate.name,
        candidate_digest=night.candidate.digest,
        accuracy=night.recorded.mean,
    )


def _summary(store: Store, run_id: str) -> Summary:
    folder = store.find_run(run_id)
    try:
        return Summary.read(folder)
    except OSError as error:
        raise UsageError(
            f"The summary of the run {folder.name} cannot be read: choose another run."
        ) from error


def _run_before(store: Store, later: Summary) -> Summary:
    """The newest complete run of the same experiment and data set that ended before `later`."""
    found = []
    for path in store.runs.glob("[!.]*/summary.json"):
        try:
            summary = Summary.read(path.parent)
        except (OSError, UsageError):
            continue
        same = (summary.experiment, summary.dataset.name) == (later.experiment, later.dataset.name)
        if same and summary.finished_at < later.finished_at:
            found.append(summary)
    if not found:
        raise UsageError(
            f"There is no run of {later.experiment} on {later.dataset.name} before {later.run_id} "
            f"under {store.runs}: name the run to compare it with."
        )
    return max(found, key=lambda summary: summary.finished_at)


def _changes(a: Mapping[str, Any], b: Mapping[str, Any], inside: str = "") -> Iterator[str]:
    """Every value that differs: ``optimizer.learning_rate 0.01 -> 0.05``."""
    for key in dict.fromkeys([*a, *b]):
        one, other = a.get(key), b.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _changes(one, other, f"{inside}{key}.")
        elif one != other:
            yield f"{inside}{key} {one} -> {other}"
