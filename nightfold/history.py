"""History: night after night, who was champion, how it scored, and what became of challengers.

It is read from what the runs left: their summaries (those of pruned runs, too), the registry's
pointer and the manifests of the bundles. A run that can no longer be read is named and left out.
Nothing is computed anew.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from nightfold import runlog
from nightfold.errors import BundleRefused, UsageError
from nightfold.gate import Outcome
from nightfold.registry import Entry, Registry
from nightfold.store import TEMPORARY, Store
from nightfold.summary import CandidateFacts, Summary
from nightfold.validation import ValidationReport


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Score(_Part):
    """Cross-validated accuracy of a recipe in one night, fractions.

    Attributes
    ----------
    candidate : str
        Its name that night.
    accuracy : float
        Mean over folds.
    low, high : float or None
        95 % interval over images (`nightfold.statistics.score_interval`); None in nights of
        versions that did not keep it.
    """

    candidate: str
    accuracy: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, facts: CandidateFacts) -> Score:
        """The score in a run's summary."""
        return cls(
            candidate=facts.name,
            accuracy=facts.accuracy_mean,
            low=facts.accuracy_low,
            high=facts.accuracy_high,
        )


class Night(_Part):
    """One complete run of `retrain`.

    Attributes
    ----------
    run_id, experiment, dataset : str
    started_at, finished_at : datetime
        UTC.
    dataset_digest, plan_digest : str
    data_changed : bool
        Whether the digest is not that of the night before on the data set of this name.
    champion : str or None
        Version in use when the night ended.
    champion_score : Score or None
        Of the champion's recipe on this night's folds; None if the night did not train it.
    challenger : Score
        Of the night's best candidate.
    outcome : {'promote', 'keep', 'undecided', 'refuse'}
        What the gate decided, see `nightfold.gate`.
    reason : str
        Why, in a sentence.
    """

    run_id: str
    experiment: str
    dataset: str
    started_at: datetime
    finished_at: datetime
    dataset_digest: str
    plan_digest: str
    data_changed: bool
    champion: str | None
    champion_score: Score | None
    challenger: Score
    outcome: Outcome
    reason: str


class Change(_Part):
    """A change of the champion by hand: a rollback, or a promotion that no night has made."""

    at: datetime
    action: str
    version: str
    reason: str


class LeftOut(_Part):
    """What could not be read, and why."""

    name: str
    reason: str


class History(_Part):
    """The nights of a store, oldest first, and what happened between them."""

    nights: tuple[Night, ...]
    changes: tuple[Change, ...]
    left_out: tuple[LeftOut, ...]

    @classmethod
    def read(
        cls, store: Store, *, dataset: str | None = None, until: datetime | None = None
    ) -> History:
        """Read what the runs under `store` left.

        Parameters
        ----------
        store : Store
        dataset : str, optional
            Only nights on the data set of this name.
        until : datetime, optional
            Only what had happened by then.
        """
        left_out: list[LeftOut] = []
        summaries = _summaries(store, left_out)
        entries = _entries(store, left_out)
        if until is not None:
            summaries = [summary for summary in summaries if summary.finished_at <= until]
            entries = [entry for entry in entries if entry.promoted_at <= until]
        recipes = _recipes(store, summaries)
        nights, before = [], dict[str, str]()
        for summary in summaries:
            facts = summary.dataset
            if dataset is None or facts.name == dataset:
                changed = before.get(facts.name, facts.digest) != facts.digest
                nights.append(_night(summary, recipes, changed))
            before[facts.name] = facts.digest
        return cls(
            nights=tuple(nights),
            changes=tuple(_by_hand(entries, summaries)),
            left_out=tuple(left_out),
        )


def _summaries(store: Store, left_out: list[LeftOut]) -> list[Summary]:
    """Of every run of `retrain` that can be read, oldest first."""
    found = []
    # A prune that was killed has left a summary in both places.
    folders = {path.name: path for root in (store.history, store.runs) for path in _folders(root)}
    for _, folder in sorted(folders.items()):
        try:
            summary = Summary.read(folder)
        except FileNotFoundError:
            # What `predict` leaves is no night, nor is what was refused before it had begun.
            left = {path.name for path in folder.glob("*")}
            if left != {runlog.NAME} and "classified.parquet" not in left:
                left_out.append(LeftOut(name=folder.name, reason=_why_incomplete(folder)))
        except (OSError, UsageError):
            left_out.append(LeftOut(name=folder.name, reason="its summary cannot be read"))
        else:
            if summary.flow == "retrain":
                found.append(summary)
    return sorted(found, key=lambda summary: summary.finished_at)


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return [p for p in root.iterdir() if p.is_dir() and not p.name.startswith(TEMPORARY)]


def _why_incomplete(folder: Path) -> str:
    with suppress(OSError, UsageError):
        if not ValidationReport.read(folder).passed:
            return "its data were refused"
    return "unfinished, or its summary is gone"


def _entries(store: Store, left_out: list[LeftOut]) -> list[Entry]:
    """Every change of the champion, oldest first."""
    registry = Registry(store)
    try:
        return registry.history()
    except BundleRefused:
        name = registry.pointer_path.name
        left_out.append(LeftOut(name=name, reason="it cannot be read"))
        return []


def _recipes(store: Store, summaries: list[Summary]) -> dict[str, str]:
    """Digest of the candidate behind each version, from its bundle or the run that made it."""
    recipes = {
        version.version: version.manifest.candidate_digest
        for version in Registry(store).versions()
        if version.manifest
    }
    for summary in summaries:
        for facts in summary.candidates:
            if summary.final and facts.name == summary.final.candidate:
                recipes.setdefault(summary.final.version, facts.digest)
    return recipes


def _night(summary: Summary, recipes: dict[str, str], data_changed: bool) -> Night:
    promotion = summary.promotion
    champion = promotion.champion if promotion else None
    of_champion = recipes.get(champion or "")
    scored = [facts for facts in summary.candidates if facts.digest == of_champion]
    best = next(facts for facts in summary.candidates if facts.name == summary.best)
    return Night(
        run_id=summary.run_id,
        experiment=summary.experiment,
        dataset=summary.dataset.name,
        started_at=summary.started_at,
        finished_at=summary.finished_at,
        dataset_digest=summary.dataset.digest,
        plan_digest=summary.plan.digest,
        data_changed=data_changed,
        champion=champion,
        champion_score=Score.of(scored[0]) if scored else None,
        challenger=Score.of(best),
        outcome=promotion.decided if promotion else "refuse",
        reason=promotion.reason if promotion else "",
    )


def _by_hand(entries: list[Entry], summaries: list[Summary]) -> list[Change]:
    """The entries of the pointer that no night has made."""
    made = {
        summary.final.version: summary
        for summary in summaries
        if summary.final and summary.promotion and summary.promotion.promoted
    }
    changes = []
    for entry in entries:
        # The first promotion of a version is its night's own, whenever the night that was stopped
        # behind it began again; a later one is somebody's.
        night = made.pop(entry.version, None) if entry.action == "promotion" else None
        at = entry.promoted_at
        if night and at <= night.finished_at:
            continue
        changes.append(
            Change(at=at, action=entry.action, version=entry.version, reason=entry.reason)
        )
    return changes
