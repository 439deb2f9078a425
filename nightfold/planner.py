"""Planner: what tonight's folds can tell, and what more of them would cost and buy.

It takes the spread of differences and the time of training from the score table of earlier nights
(`nightfold.scoretable`), and says so where it has to assume. It trains nothing and decides nothing;
the formula is `nightfold.statistics.detectable_difference`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from nightfold.experiment import Candidate
from nightfold.foldplan import FoldPlan
from nightfold.scoretable import ASSUMED_DISAGREEMENT, Basis, Earlier, Spread
from nightfold.statistics import LEVEL, detectable_difference

POWER = 0.8
"""How often a difference has to be found to be called detectable."""

MULTIPLES = (1, 2, 3, 5, 10)
"""Times tonight's repeats that are weighed against each other."""


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


class _Known(NamedTuple):
    """Two candidates, and how far they are known to differ from fold to fold."""

    a: str
    b: str
    basis: Basis
    spread: Spread


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
        _Known(a, b, *earlier.spread(digests[a], digests[b], sizes.n_test))
        for a, b in combinations(digests, 2)
    ]
    known.sort(key=lambda pair: -pair.spread.variance)
    timed = {c.name: earlier.seconds(c, sizes.n_train) for c in candidates}
    seconds = {name: found for name, (found, _) in timed.items()}
    per_repeat = _minutes(list(seconds.values()), plan.folds, workers)
    hardest = known[0].spread if known else None
    rivals = [pair.spread for pair in known if look and look.champion in (pair.a, pair.b)]
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
                a=pair.a,
                b=pair.b,
                basis=pair.basis,
                plans=pair.spread.plans,
                deviation=sizes.deviation(pair.spread),
                freedom=pair.spread.freedom,
                tonight=sizes.detectable(pair.spread, plan.folds * plan.repeats),
            )
            for pair in known
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
    known: Sequence[_Known],
    timed: dict[str, tuple[float | None, bool]],
    sizes: Sizes,
    earlier: Earlier,
) -> list[str]:
    said = []
    if earlier.unreadable:
        said.append(f"Left out, because unreadable: {', '.join(earlier.unreadable)}.")
    bases = {pair.basis for pair in known}
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
    if any(p.spread.sizes and round(sizes.n_test) not in p.spread.sizes for p in known):
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
