"""Gate: may tonight's challenger take the champion's place? Policy and evidence in, decision out.

Pure: it reads no file, trains nothing and moves no pointer. Whatever is missing, not a number or
not proven speaks against the challenger. How the evidence is gathered is the business of the tasks
`challenge` and `promote`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from nightfold.experiment import PolicyChoice

Outcome = Literal["promote", "keep", "undecided", "refuse"]
"""`keep`: equivalent or worse; `refuse`: a limit is broken, or there is nothing to judge by."""

OUTCOMES: dict[Outcome, str] = {
    "promote": "promoted",
    "keep": "champion kept",
    "undecided": "undecided",
    "refuse": "refused",
}
"""What became of a night's challenger, in words."""


class Comparison(BaseModel):
    """What tonight's folds say of the challenger's recipe against the champion's.

    Attributes
    ----------
    mean_difference : float
        Of the policy's metric, challenger minus champion, over the same folds.
    p_worse, p_equivalent, p_better : float or None
        Posterior probabilities; None where there is no spread to judge by.
    repeats : int
        Repeats of the fold plan behind them.
    look : int
        How many different pieces of evidence were held against this champion so far, this one
        included.
    rivals : int
        Candidates of the night that the challenger was chosen from, the champion's recipe not
        among them.
    same_recipe : bool
        The challenger is the champion's own recipe.
    """

    model_config = ConfigDict(frozen=True)

    mean_difference: float
    p_worse: float | None
    p_equivalent: float | None
    p_better: float | None
    repeats: int = Field(1, ge=1)
    look: int = Field(1, ge=1)
    rivals: int = Field(1, ge=1)
    same_recipe: bool = False

    def required(self, policy: PolicyChoice) -> float:
        """Probability of being better that a promotion needs, see `required_probability`."""
        return required_probability(policy.probability, look=self.look, rivals=self.rivals)


class Evidence(BaseModel):
    """Everything that is known of a challenger when it asks for the champion's place.

    Attributes
    ----------
    candidate : str
    holdout_accuracy, ece : float
        Of the final model on the hold-out, fractions.
    megabytes : float
        Size of its file, 10**6 bytes.
    milliseconds : float
        Median time to answer one image.
    recalls : mapping of str to float
        By class: the part of its rows that was predicted right out of fold.
    champion : str, optional
        Version of the champion; None if there is none.
    champion_recalls : mapping of str to float
        The same of the champion's recipe on the same rows.
    comparison : Comparison, optional
        None only if there is no champion.
    """

    model_config = ConfigDict(frozen=True)

    candidate: str
    holdout_accuracy: float
    ece: float
    megabytes: float
    milliseconds: float
    recalls: Mapping[str, float]
    champion: str | None = None
    champion_recalls: Mapping[str, float] = {}
    comparison: Comparison | None = None


class Check(BaseModel):
    """One condition of the policy, in words: what was asked, what was found."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    passed: bool
    asked: str
    found: str


class Decision(BaseModel):
    """The outcome, why in one sentence, and every check behind it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    outcome: Outcome
    reason: str
    checks: tuple[Check, ...] = ()


def required_probability(probability: float, *, look: int, rivals: int = 1) -> float:
    r"""Posterior probability of being better that a promotion needs at this look.

    .. math:: 1 - \frac{1 - p}{m\, k\, (k + 1)}

    for the k-th look at one champion and the best of m rivals. The permitted errors sum up to no
    more than 1 - p over all looks there will ever be, since the sum of 1/(k(k+1)) is 1: alpha
    spending with a union bound, which holds however the looks depend on each other.

    Parameters
    ----------
    probability : float
        p, of the policy.
    look, rivals : int
        k and m, from 1.

    References
    ----------
    Lan, K. K. G., DeMets, D. L. (1983). Discrete sequential boundaries for clinical trials.
    Biometrika 70 (3), 659-663. Foster, D. P., Stine, R. A. (2008). Alpha-investing. JRSS B 70 (2),
    429-444.

    Examples
    --------
    >>> required_probability(0.95, look=1), round(required_probability(0.95, look=2), 4)
    (0.975, 0.9917)
    """
    return 1 - (1 - probability) / (rivals * look * (look + 1))


def weigh(
    policy: PolicyChoice, comparison: Comparison
) -> Literal["better", "equivalent", "worse", "undecided"]:
    """What the comparison proves; better only if it holds for this look.

    Examples
    --------
    >>> from nightfold.experiment import load_experiment
    >>> even = Comparison(mean_difference=0.0, p_worse=0.5, p_equivalent=0.0, p_better=0.5)
    >>> weigh(load_experiment("night").policy, even)
    'undecided'
    """
    worse, equal, better = comparison.p_worse, comparison.p_equivalent, comparison.p_better
    if worse is None or equal is None or better is None:
        return "undecided"
    asked = comparison.required(policy)
    if better >= asked:
        return "better"
    if equal >= policy.probability:
        return "equivalent"
    return "worse" if worse >= policy.probability else "undecided"


def decide(policy: PolicyChoice | None, evidence: Evidence) -> Decision:
    """Judge a challenger.

    Parameters
    ----------
    policy : PolicyChoice or None
        None if the experiment states none; then nothing is promoted.
    evidence : Evidence

    Returns
    -------
    Decision
        An equivalent or worse challenger leaves the champion where it is whatever else it lacks;
        otherwise a broken limit refuses it; otherwise better evidence is asked for or it is
        promoted. The first model needs only the limits.
    """
    if policy is None:
        return Decision(
            outcome="refuse",
            reason=_stays(evidence) + "the experiment states no [policy], so nothing is promoted.",
        )
    checks = limits(policy, evidence)
    broken = [check for check in checks if not check.passed]
    if evidence.champion is None:
        if broken:
            return Decision(outcome="refuse", reason=_refusal(evidence, broken), checks=checks)
        reason = "The first model: there was no champion to beat, and it keeps every limit."
        return Decision(outcome="promote", reason=reason, checks=checks)
    if evidence.comparison is None:
        reason = _stays(evidence) + "nothing compares it with the challenger."
        return Decision(outcome="refuse", reason=reason, checks=checks)
    verdict = weigh(policy, evidence.comparison)
    checks = (_proof(policy, evidence.comparison, verdict), *checks)
    told = _comparison_told(policy, evidence, verdict)
    if verdict in ("equivalent", "worse"):
        return Decision(outcome="keep", reason=told, checks=checks)
    if broken:
        return Decision(outcome="refuse", reason=_refusal(evidence, broken), checks=checks)
    outcome: Outcome = "promote" if verdict == "better" else "undecided"
    return Decision(outcome=outcome, reason=told, checks=checks)


def limits(policy: PolicyChoice, evidence: Evidence) -> tuple[Check, ...]:
    """Every limit of the policy held against the evidence; what is not a number breaks it."""
    return (
        _at_least("hold-out accuracy", evidence.holdout_accuracy, policy.min_holdout_accuracy),
        *_class_floors(policy, evidence),
        *_class_losses(policy, evidence),
        _at_most("calibration error", 100 * evidence.ece, 100 * policy.max_ece, "points"),
        _at_most("size", evidence.megabytes, policy.max_megabytes, "MB"),
        _at_most("time for one image", evidence.milliseconds, policy.max_milliseconds, "ms"),
    )


def _class_floors(policy: PolicyChoice, evidence: Evidence) -> list[Check]:
    """One check a class that has a floor, or one for all of them if they keep it."""
    if not evidence.recalls:
        return [_at_least("recall of every class", math.nan, policy.min_class_recall)]
    floors = dict.fromkeys(evidence.recalls, policy.min_class_recall) | policy.class_floors
    found = [
        _at_least(f"recall of class {name}", evidence.recalls.get(name, math.nan), floor)
        for name, floor in floors.items()
    ]
    if any(not check.passed for check in found) or not found:
        return [check for check in found if not check.passed]
    lowest = min(evidence.recalls, key=lambda name: evidence.recalls[name])
    return [
        Check(
            name="recall of every class",
            passed=True,
            asked=f"at least {_percent(policy.min_class_recall)}"
            + ", ".join(f"; {n} {_percent(f)}" for n, f in policy.class_floors.items()),
            found=f"lowest {_percent(evidence.recalls[lowest])} ({lowest})",
        )
    ]


def _class_losses(policy: PolicyChoice, evidence: Evidence) -> list[Check]:
    """Classes that lose too much recall against the champion; if none, the one that loses most."""
    if evidence.champion is None:
        return []
    before = {name: evidence.champion_recalls.get(name, math.nan) for name in evidence.recalls}
    losses = {name: before[name] - recall for name, recall in evidence.recalls.items()}
    found = [
        Check(
            name=f"class {name} against the champion",
            # 0.98 less 0.96 is more than 0.02 in floating point.
            passed=loss <= policy.max_class_loss + 1e-12,
            asked=f"a loss of at most {100 * policy.max_class_loss:.2f} points of recall",
            found=f"{-100 * loss:+.2f} points, from {_percent(before[name])} "
            f"to {_percent(evidence.recalls[name])}",
        )
        for name, loss in sorted(losses.items(), key=lambda item: -item[1])
    ]
    return [check for check in found if not check.passed] or found[:1]


def _at_least(name: str, value: float, floor: float) -> Check:
    # Not "<": what is not a number keeps no limit.
    return Check(
        name=name,
        passed=value >= floor,
        asked=f"at least {_percent(floor)}",
        found=_percent(value),
    )


def _at_most(name: str, value: float, ceiling: float, unit: str) -> Check:
    return Check(
        name=name,
        passed=value <= ceiling,
        asked=f"at most {ceiling:g} {unit}",
        found=f"{value:.2f} {unit}",
    )


def _proof(policy: PolicyChoice, comparison: Comparison, verdict: str) -> Check:
    asked = comparison.required(policy)
    return Check(
        name=f"better than the champion by at least {_margin(policy)}",
        passed=verdict == "better",
        asked=f"a probability of at least {_chance(asked, up=True)} at look {comparison.look}",
        found="no spread to judge by"
        if comparison.p_better is None
        else f"{_chance(comparison.p_better)} ({100 * comparison.mean_difference:+.2f} points)",
    )


def _comparison_told(policy: PolicyChoice, evidence: Evidence, verdict: str) -> str:
    comparison, name = evidence.comparison, evidence.candidate
    assert comparison is not None
    if comparison.same_recipe:
        return _stays(evidence) + f"{name} is its own recipe, so there is nothing to prove."
    points = f"{100 * comparison.mean_difference:+.2f} points"
    if comparison.p_worse is None or comparison.p_equivalent is None or comparison.p_better is None:
        return (
            _stays(evidence)
            + f"{name} differs by {points} in every fold alike, so there is no spread to judge by."
        )
    better = (
        f"probability of being better by at least {_margin(policy)} {_chance(comparison.p_better)}"
    )
    asked = comparison.required(policy)
    if verdict == "better":
        return f"{name} is better than the champion {evidence.champion}: {points}, {better}."
    if verdict == "undecided":
        return (
            _stays(evidence)
            + f"whether {name} is better is undecided: {points}, {better} where "
            + f"{_chance(asked, up=True)} is asked at look {comparison.look}."
        )
    if verdict == "equivalent":
        return (
            _stays(evidence)
            + f"{name} is equivalent: {points}, probability of differing by less than "
            + f"{_margin(policy)} {_chance(comparison.p_equivalent)}."
        )
    return (
        _stays(evidence)
        + f"{name} is worse: {points}, probability of being worse by at least {_margin(policy)} "
        + f"{_chance(comparison.p_worse)}."
    )


def _refusal(evidence: Evidence, broken: list[Check]) -> str:
    told = "; ".join(f"{check.name}: {check.found}, asked {check.asked}" for check in broken)
    gained = evidence.comparison.mean_difference if evidence.comparison else 0.0
    average = f"gains {100 * gained:+.2f} points on average but " if gained > 0 else ""
    return _stays(evidence) + f"{evidence.candidate} {average}breaks the policy ({told})."


def _stays(evidence: Evidence) -> str:
    return f"The champion {evidence.champion} stays: " if evidence.champion else "No champion yet: "


def _margin(policy: PolicyChoice) -> str:
    return f"{100 * policy.rope:g} point"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def _chance(probability: float, *, up: bool = False) -> str:
    """A probability for people, with the digits that tell it from certainty.

    What was found is rounded down and what is asked up, so that the two never seem to meet.

    Examples
    --------
    >>> _chance(0.97496), _chance(0.99995265, up=True), _chance(1.0)
    ('97.49 %', '99.9953 %', '100.00 %')
    """
    if math.isnan(probability):
        return "nan %"
    digits = 2
    if 0 < 1 - probability < 0.001:
        digits = min(12, math.ceil(-math.log10(1 - probability)) - 1)
    # What floating point adds or loses in the sixteenth digit is no reason to round further.
    scaled = round(100 * probability * 10**digits, 6 if digits < 8 else 2)
    rounded = (math.ceil if up else math.floor)(scaled) / 10**digits
    return f"{rounded:.{digits}f} %"
