"""Planner: what tonight's folds can tell, and what more of them would cost and buy.

It learns the spread of differences and the time of training from the score table of earlier nights,
and says so where it has to assume. It trains nothing and decides nothing; the formula is
`nightfold.statistics.detectable_difference`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from nightfold.experiment import Candidate
from nightfold.foldplan import FoldPlan
from nightfold.statistics import LEVEL, detectable_difference
from nightfold.store import Store
from nightfold.tables import SCORES

if TYPE_CHECKING:
    import pandas as pd

POWER = 0.8
"""How often a difference has to be found to be called detectable."""

MULTIPLES = (1, 2, 3, 5, 10)
"""Times tonight's repeats that are weighed against each other."""

ASSUMED_DISAGREEMENT = 0.02
"""Part of the rows on which exactly one of two candidates is right, where no night tells."""

Basis = Literal["pair", "others", "assumed"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Detectable(_Part):
    """A difference of accuracy, a fraction, that gets the verdict better with `POWER`.

    Attributes
    ----------
    difference : float
    low, high : float or None
        95 % interval, because the spread is itself known from few folds only; None unless it is
        that of the same two candidates.
    """

    difference: float
    low: float | None = None
    high: float | None = None


class Pair(_Part):
    """What is known of two candidates, and what tonight's plan can detect between them.

    Attributes
    ----------
    a, b : str
        Their names.
    basis : {'pair', 'others', 'assumed'}
        Whether the spread is that of these two in earlier nights, of all other pairs that met on
        this data, or `ASSUMED_DISAGREEMENT`.
    plans : int
        Fold plans on which it was seen.
    deviation : float
        Standard deviation of the difference of accuracy between folds (ddof=1), a fraction.
    freedom : int
        Degrees of freedom behind it; 0 unless `basis` is ``pair``.
    tonight : Detectable
    """

    a: str
    b: str
    basis: Basis
    plans: int
    deviation: float
    freedom: int
    tonight: Detectable


class Effort(_Part):
    """A number of repeats, what it costs and what it can detect in the hardest pair.

    Attributes
    ----------
    repeats, folds : int
        Repeats, and folds to train for each candidate.
    minutes : float or None
        Of training, all workers busy; None if the time of a candidate is not known.
    detectable : Detectable
    """

    repeats: int
    folds: int
    minutes: float | None
    detectable: Detectable


class Look(_Part):
    """The next look at the champion; see `nightfold.gate.required_probability`.

    Attributes
    ----------
    champion : str
        The candidate that is its recipe.
    number : int
        Which look it is, from 1.
    probability : float
        Of being better by more than the region of practical equivalence, that it asks for.
    """

    champion: str
    number: int
    probability: float


class Outlook(_Part):
    """What `nightfold plan` says.

    Attributes
    ----------
    n_rows : int
        Training rows.
    rope, sure, power : float
        Of the verdict, fractions; see `nightfold.statistics.detectable_difference`.
    pairs : tuple of Pair
        The hardest to tell apart first.
    efforts : tuple of Effort
        For the first of `pairs`; tonight's repeats first.
    floor : float
        What no number of repeats can go below, since they share their rows.
    look, promotion : Look, Detectable or None
        What a promotion asks for, and which true gain over the champion meets it with `POWER`; of
        the candidate that is hardest to tell from the champion.
    seconds : dict of str to float or None
        Training of a fold of each candidate; None where no night tells.
    notes : tuple of str
        What was assumed or left out, a sentence each.
    """

    n_rows: int
    folds: int
    repeats: int
    workers: int
    rope: float
    sure: float
    power: float
    pairs: tuple[Pair, ...]
    efforts: tuple[Effort, ...]
    floor: float
    look: Look | None
    promotion: Detectable | None
    seconds: dict[str, float | None]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Spread:
    """Variance of the difference of accuracy times the rows scored in a fold, pooled over plans."""

    variance: float
    freedom: int
    plans: int
    sizes: frozenset[int]

    @classmethod
    def pooled(cls, parts: Sequence[Spread]) -> Spread:
        """The mean of `parts`, weighted by their degrees of freedom."""
        freedom = sum(part.freedom for part in parts)
        variance = sum(part.freedom * part.variance for part in parts) / freedom
        sizes = frozenset[int]().union(*(part.sizes for part in parts))
        return cls(variance, freedom, sum(part.plans for part in parts), sizes)


@dataclass(frozen=True)
class Earlier:
    """The score rows of earlier nights on one data set.

    Attributes
    ----------
    scores : DataFrame
        Columns of `COLUMNS`, oldest first.
    unreadable : tuple of str
        Files of the score table that could not be read.
    """

    COLUMNS = (
        "run_id",
        "dataset",
        "plan_digest",
        "candidate_digest",
        "architecture",
        "repeat",
        "fold",
        "seed",
        "n_train",
        "n_test",
        "accuracy",
        "train_seconds",
        "images_per_second",
        "started_at",
    )

    scores: pd.DataFrame
    unreadable: tuple[str, ...] = ()

    @classmethod
    def read(cls, store: Store, dataset: str) -> Earlier:
        """The rows of every run on the data set called `dataset`, whatever its digest was."""
        import pandas as pd
        import pyarrow as pa
        import pyarrow.parquet as pq

        tables, unreadable = [], []
        for path in sorted(store.scores.glob("run_date=*/[!.]*.parquet")):
            try:
                table = pq.read_table(path, columns=list(cls.COLUMNS), partitioning=None)
                if any(table.schema.field(n).type != SCORES.field(n).type for n in cls.COLUMNS):
                    raise OSError("its columns are of other types")
            except (OSError, KeyError, RuntimeError, pa.ArrowException):
                unreadable.append(f"{path.parent.name}/{path.name}")
            else:
                tables.append(table.to_pandas())
        scores = pd.concat(tables) if tables else pd.DataFrame(columns=list(cls.COLUMNS))
        scores = scores[scores["dataset"] == dataset].sort_values("started_at", kind="stable")
        return cls(scores, tuple(unreadable))

    @cached_property
    def spreads(self) -> dict[frozenset[str], list[Spread]]:
        """Of each pair of candidate digests, one entry a fold plan on which both were scored.

        A fold that several nights report, because none had to train it again, counts once.
        """
        found: dict[frozenset[str], list[Spread]] = {}
        counted: set[tuple[Any, ...]] = set()
        plans = [rows for _, rows in self.scores.groupby("plan_digest")]
        # A plan shares the folds of its first repeats with those that have fewer: largest first.
        for rows in sorted(plans, key=lambda rows: -len(rows)):
            place, digest = ["seed", "repeat", "fold"], "candidate_digest"
            newest = rows.drop_duplicates([*place, digest], keep="last")
            table = newest.pivot(index=place, columns=digest, values=["accuracy", "started_at"])
            n_test = float(rows["n_test"].mean())
            for a, b in combinations(table["accuracy"].columns, 2):
                pair = frozenset((a, b))
                both = table.loc[:, (slice(None), [a, b])].dropna()
                gains, starts = both["accuracy"][b] - both["accuracy"][a], both["started_at"]
                differences = []
                for *fold, gain in zip(both.index, starts[a], starts[b], gains, strict=True):
                    if (pair, *fold) not in counted:
                        counted.add((pair, *fold))
                        differences.append(gain)
                if len(differences) >= 2:
                    variance = float(np.var(differences, ddof=1)) * n_test
                    spread = Spread(variance, len(differences) - 1, 1, frozenset({round(n_test)}))
                    found.setdefault(pair, []).append(spread)
        return found

    def spread(self, a: str, b: str, n_test: float) -> tuple[Basis, Spread]:
        """The best that is known of two candidate digests, for folds that score `n_test` rows.

        Folds of that size tell all if there are any; otherwise those of other sizes do, though a
        trial on few rows differs from a whole night in more than its size.
        """
        if own := self.spreads.get(frozenset((a, b))):
            return "pair", Spread.pooled(_of_size(own, n_test))
        if every := [one for plans in self.spreads.values() for one in plans]:
            # Pairs of one plan share candidates, and none is this one: no degrees of freedom.
            return "others", replace(Spread.pooled(_of_size(every, n_test)), freedom=0)
        return "assumed", Spread(ASSUMED_DISAGREEMENT, 0, 0, frozenset())

    def seconds(self, candidate: Candidate, n_train: float) -> tuple[float | None, bool]:
        """Seconds to train a fold of `n_train` rows, and whether another recipe had to tell.

        They are those of the newest night that trained the candidate or, if none did, its
        architecture, in proportion to rows and epochs.
        """
        seen = self.scores["candidate_digest"] == candidate.digest
        if other := not seen.any():
            seen = self.scores["architecture"] == candidate.architecture
            if not seen.any():
                return None, True
        rows = self.scores[seen]
        rows = rows[rows["run_id"] == rows["run_id"].iloc[-1]]
        if other:
            per_row = candidate.total_epochs / float(rows["images_per_second"].mean())
        else:
            per_row = float((rows["train_seconds"] / rows["n_train"]).mean())
        return per_row * n_train, other


def _of_size(spreads: list[Spread], n_test: float) -> list[Spread]:
    """Those seen on folds that scored `n_test` rows, or all if there are none."""
    return [spread for spread in spreads if round(n_test) in spread.sizes] or spreads


def plan_ahead(
    candidates: Sequence[Candidate],
    plan: FoldPlan,
    earlier: Earlier,
    *,
    workers: int,
    rope: float,
    sure: float,
    look: Look | None = None,
) -> Outlook:
    """Say what a night can detect before it is run.

    Parameters
    ----------
    candidates : sequence of Candidate
        To be trained tonight, the champion's recipe among them.
    plan : FoldPlan
        Tonight's.
    earlier : Earlier
        Of the same data set.
    workers : int
        Folds trained at once.
    rope, sure : float
        Of the verdict, see `nightfold.statistics.detectable_difference`.
    look : Look, optional
        What a promotion asks for; None if there is no champion or nothing is promoted.

    Returns
    -------
    Outlook
        Without pairs and efforts, and with a floor of 0, if there is nothing to compare with.
    """
    digests = {candidate.name: candidate.digest for candidate in candidates}
    sizes = Sizes(plan.n_rows * (1 - 1 / plan.folds), plan.n_rows / plan.folds, rope, sure)
    known = [
        (a, b, *earlier.spread(digests[a], digests[b], sizes.n_test))
        for a, b in combinations(digests, 2)
    ]
    known.sort(key=lambda pair: -pair[3].variance)
    timed = {c.name: earlier.seconds(c, sizes.n_train) for c in candidates}
    seconds = {name: found for name, (found, _) in timed.items()}
    per_repeat = _minutes(list(seconds.values()), plan.folds, workers)
    hardest = known[0][3] if known else None
    rivals = [spread for a, b, _, spread in known if look and look.champion in (a, b)]
    return Outlook(
        n_rows=plan.n_rows,
        folds=plan.folds,
        repeats=plan.repeats,
        workers=workers,
        rope=rope,
        sure=sure,
        power=POWER,
        pairs=tuple(
            Pair(
                a=a,
                b=b,
                basis=basis,
                plans=spread.plans,
                deviation=sizes.deviation(spread),
                freedom=spread.freedom,
                tonight=sizes.detectable(spread, plan.folds * plan.repeats),
            )
            for a, b, basis, spread in known
        ),
        efforts=tuple(
            Effort(
                repeats=plan.repeats * times,
                folds=plan.folds * plan.repeats * times,
                minutes=None if per_repeat is None else per_repeat * plan.repeats * times,
                detectable=sizes.detectable(hardest, plan.folds * plan.repeats * times),
            )
            for times in MULTIPLES
            if hardest
        ),
        floor=sizes.detectable(hardest, math.inf).difference if hardest else 0.0,
        promotion=replace(sizes, sure=look.probability).detectable(
            rivals[0], plan.folds * plan.repeats
        )
        if look and rivals
        else None,
        look=look,
        seconds=seconds,
        notes=tuple(_notes(known, timed, sizes, earlier)),
    )


@dataclass(frozen=True)
class Sizes:
    """Rows of a fold, and the rule of the verdict."""

    n_train: float
    n_test: float
    rope: float
    sure: float

    def deviation(self, spread: Spread) -> float:
        """Standard deviation of the difference between folds of this size."""
        return math.sqrt(spread.variance / self.n_test)

    def detectable(self, spread: Spread, n_pairs: float) -> Detectable:
        """What so many folds can detect, with the interval that the chi-squared law gives."""
        from scipy.stats import chi2

        deviations = [self.deviation(spread)]
        if spread.freedom:
            tails = np.array([(1 + LEVEL) / 2, (1 - LEVEL) / 2])
            factors = np.sqrt(spread.freedom / chi2.ppf(tails, spread.freedom))
            deviations += [deviations[0] * float(factor) for factor in factors]
        found = [
            detectable_difference(
                deviation,
                n_pairs,
                n_train=self.n_train,
                n_test=self.n_test,
                rope=self.rope,
                sure=self.sure,
                power=POWER,
            )
            for deviation in deviations
        ]
        return Detectable(**dict(zip(("difference", "low", "high"), found, strict=False)))


def _minutes(seconds: Sequence[float | None], folds: int, workers: int) -> float | None:
    """Minutes of one repeat; None if the time of a candidate is not known."""
    known = [one for one in seconds if one is not None]
    return sum(known) * folds / workers / 60 if len(known) == len(seconds) else None


def _notes(
    known: Sequence[tuple[str, str, Basis, Spread]],
    timed: dict[str, tuple[float | None, bool]],
    sizes: Sizes,
    earlier: Earlier,
) -> list[str]:
    said = []
    if earlier.unreadable:
        said.append(f"Left out, because unreadable: {', '.join(earlier.unreadable)}.")
    bases = {basis for *_, basis, _ in known}
    if "assumed" in bases:
        said.append(
            "No earlier night has scored two candidates on the same folds of this data. Assumed: "
            f"on {100 * ASSUMED_DISAGREEMENT:g} % of the rows exactly one of two candidates is "
            "right; four times as many would double the spread."
        )
    if "others" in bases:
        said.append(
            "Pairs that never met on the same folds are taken to differ as much from fold to fold "
            "as all pairs that did."
        )
    if any(round(sizes.n_test) not in spread.sizes for *_, spread in known if spread.sizes):
        said.append(
            "Earlier folds had another size; the variance of a difference is taken to fall with "
            "the number of rows scored."
        )
    if strangers := [name for name, (found, _) in timed.items() if found is None]:
        said.append(
            f"No earlier night has trained {', '.join(strangers)}, so the minutes are not known."
        )
    if guessed := [name for name, (found, other) in timed.items() if found and other]:
        said.append(
            f"The time of {', '.join(guessed)} is that of its architecture in another recipe, in "
            "proportion to rows and epochs."
        )
    return said
