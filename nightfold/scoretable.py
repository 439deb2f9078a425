"""Score table: what earlier nights tell of how candidates differ and how long they take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nightfold.experiment import Candidate
from nightfold.store import Store
from nightfold.tables import SCORES

if TYPE_CHECKING:
    import pandas as pd

ASSUMED_DISAGREEMENT = 0.02
"""Part of the rows on which exactly one of two candidates is right, where no night tells."""

Basis = Literal["pair", "others", "assumed"]


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
