"""Racing: which candidates can hardly become the best any more and are stopped before their end.

A rule declared before the run is asked after whole rounds of folds only, so what it decides follows
from the scores and from nothing else: not from the number of workers, nor from who finished first.
It stops for futility, never for success, and trains nothing; who must not be stopped is told to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from nightfold.experiment import RacingChoice
from nightfold.statistics import HALF_A_ROW, bayesian_correlated_t


class Stop(BaseModel):
    """One candidate stopped, and by what.

    Attributes
    ----------
    candidate, leader : str
        Who was stopped, and who was ahead by then.
    folds : int
        Folds that both had complete; the candidate has no other.
    difference : float
        Lead over the leader, a fraction of accuracy, that the candidate can hardly have.
    bound : float
        The probability of such a lead was below this.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    candidate: str
    leader: str
    folds: int
    difference: float
    bound: float

    @property
    def reason(self) -> str:
        """Why, as the rest of a sentence about the candidate."""
        return (
            f"stopped after {self.folds} folds by the racing rule, as {_lead(self.difference)} "
            f"over {self.leader} had become less probable than {100 * self.bound:.2g} %"
        )


def rule_in_words(rule: RacingChoice) -> str:
    """The rule in one sentence."""
    return (
        f"After {rule.min_folds} folds of every candidate, and after each fold from then on, a "
        f"candidate is stopped if {_lead(rule.difference)} over the leader has become improbable; "
        "one that truly has it over all others is stopped with a probability of at most "
        f"{100 * rule.probability:g} %, over all looks and rivals together."
    )


def _lead(difference: float) -> str:
    return f"a lead of more than {100 * difference:g} point" if difference else "any lead"


def futility_bound(probability: float, *, look: int, rivals: int = 1) -> float:
    r"""Probability of a lead below which a candidate is stopped at this look.

    .. math:: \frac{p}{m\, k\, (k + 1)}

    for the k-th look and m rivals, any of which may lead. Over all looks and rivals the bounds sum
    up to no more than p, as in `nightfold.gate.required_probability`. So a candidate that is truly
    better than every other by the rule's difference is stopped with a probability of at most p,
    by a union bound that holds however the looks depend on each other, as far as the posterior of
    `nightfold.statistics.bayesian_correlated_t` is the p value it is taken for. A look's bound does
    not depend on how many follow: a repeat that is added later leaves the decisions as they were.

    Parameters
    ----------
    probability : float
        p, of the rule.
    look, rivals : int
        k and m, from 1.

    References
    ----------
    Lan, K. K. G., DeMets, D. L. (1983). Discrete sequential boundaries for clinical trials.
    Biometrika 70 (3), 659-663.

    Examples
    --------
    >>> futility_bound(0.05, look=1), round(futility_bound(0.05, look=2, rivals=4), 5)
    (0.025, 0.00208)
    """
    return probability / (rivals * look * (look + 1))


def hopeless(
    rule: RacingChoice,
    accuracies: Mapping[str, Sequence[float]],
    *,
    entered: int,
    n_train: float,
    n_test: float,
    kept: str | None = None,
) -> list[Stop]:
    """The candidates to stop, by the folds that all of them have complete.

    Parameters
    ----------
    rule : RacingChoice
    accuracies : mapping of str to sequence of float
        Of every candidate still racing, on the same folds in the same order.
    entered : int
        Candidates the race began with.
    n_train, n_test : float
        Rows trained on and rows scored in a fold.
    kept : str, optional
        A candidate that is never stopped: the champion's recipe, which everybody is held against.

    Returns
    -------
    list of Stop
        Never the leader, who has the highest mean, the first among equals; nobody before
        ``rule.min_folds``; nobody whose differences have no spread to judge by.

    Notes
    -----
    The candidates race in pairs on the same folds, against the leader (Moore and Lee's blocked
    races), and are compared by the posterior of the verdicts. The multiplicity of looks and rivals
    is paid for by `futility_bound`.

    References
    ----------
    Maron, O., Moore, A. W. (1994). Hoeffding races: accelerating model selection search for
    classification and function approximation. NIPS 6, 59-66. Moore, A. W., Lee, M. S. (1994).
    Efficient algorithms for minimizing cross validation error. ICML, 190-198. Birattari, M.,
    Stützle, T., Paquete, L., Varrentrapp, K. (2002). A racing algorithm for configuring
    metaheuristics. GECCO, 11-18. Kuhn, M. (2014). Futility analysis in the cross-validation of
    machine learning models. arXiv:1405.6974.

    Examples
    --------
    >>> rule = RacingChoice(min_folds=3, probability=0.05, difference=0.001)
    >>> scores = {"good": [0.98, 0.97, 0.99], "lost": [0.11, 0.10, 0.09]}
    >>> [stop.candidate for stop in hopeless(rule, scores, entered=2, n_train=480, n_test=120)]
    ['lost']
    """
    scores = {name: np.asarray(of_folds, np.float64) for name, of_folds in accuracies.items()}
    leader = max(scores, key=lambda name: scores[name].mean())
    folds = len(scores[leader])
    if folds < rule.min_folds:
        return []
    bound = futility_bound(
        rule.probability, look=folds - rule.min_folds + 1, rivals=max(1, entered - 1)
    )
    stops = []
    for name in scores:
        gains = scores[name] - scores[leader]
        if name in (leader, kept) or not np.any(gains):
            continue
        posterior = bayesian_correlated_t(
            gains,
            n_train=n_train,
            n_test=n_test,
            rope=rule.difference,
            resolution=HALF_A_ROW / n_test,
        )
        if posterior.p_better is not None and posterior.p_better < bound:
            stops.append(
                Stop(
                    candidate=name,
                    leader=leader,
                    folds=folds,
                    difference=rule.difference,
                    bound=bound,
                )
            )
    return stops


class Race(BaseModel):
    """Where a race stands; an experiment without a rule is one whose first round is the last.

    Attributes
    ----------
    rule : RacingChoice, optional
    runners : tuple of str
        The experiment's own candidates, in its order. A guest is not among them: it neither leads
        nor is stopped.
    kept : str, optional
        The one of them, if any, that is never stopped; see `hopeless`.
    total : int
        Folds of the whole plan, all repeats counted.
    complete : int
        Folds that everyone still racing has complete.
    stops : tuple of Stop
    """

    model_config = ConfigDict(frozen=True)

    rule: RacingChoice | None
    runners: tuple[str, ...]
    kept: str | None = None
    total: int
    complete: int = 0
    stops: tuple[Stop, ...] = ()

    @property
    def running(self) -> tuple[str, ...]:
        """Who is still racing."""
        stopped = self.stopped
        return tuple(name for name in self.runners if name not in stopped)

    @property
    def stopped(self) -> frozenset[str]:
        """Who is not."""
        return frozenset(stop.candidate for stop in self.stops)

    @property
    def until(self) -> int:
        """Folds that everyone still racing shall have complete by the end of this round.

        All there are if the rule can stop nobody any more: then nobody need wait for a look.
        """
        alone = len(self.running) < 2 or set(self.running) <= {self.kept}
        if self.rule is None or alone:
            return self.total
        return min(max(self.rule.min_folds, self.complete + 1), self.total)

    def wants(self, candidate: str, place: int) -> bool:
        """Whether a fold is due in this round; `place` is that of the fold in the plan, from 1."""
        return candidate not in self.stopped and self.complete < place <= self.until

    def winner(self, accuracies: Mapping[str, Sequence[float]]) -> str | None:
        """Who will have the highest mean of all, whatever the missing folds give.

        Parameters
        ----------
        accuracies : mapping of str to sequence of float
            Of `running`, of the folds that each has so far.

        Returns
        -------
        str or None
            None as long as it depends on missing folds: any of them may give 0 or 1.

        Examples
        --------
        >>> race = Race(rule=None, runners=("slow", "swift"), total=3)
        >>> race.winner({"slow": [0.98, 0.98], "swift": [0.99, 0.99, 0.99]})
        'swift'
        >>> race.winner({"slow": [0.98], "swift": [0.99, 0.99, 0.99]}) is None
        True
        """
        least = {name: sum(accuracies[name]) for name in self.running}
        most = {name: least[name] + (self.total - len(accuracies[name])) for name in least}
        leader = max(least, key=lambda name: least[name])
        rivals = [name for name in least if name != leader]
        return leader if all(most[rival] < least[leader] for rival in rivals) else None

    def leader(self, accuracies: Mapping[str, Mapping[tuple[int, int], float]]) -> str | None:
        """Who has the highest mean on the folds that all have, the first among equals.

        Parameters
        ----------
        accuracies : mapping of str to mapping of tuple to float
            Of `running`, by repeat and fold.

        Returns
        -------
        str or None
            None as long as there is no such fold.

        Examples
        --------
        >>> race = Race(rule=None, runners=("slow", "swift"), total=3)
        >>> race.leader({"slow": {(1, 1): 0.98}, "swift": {(1, 1): 0.99, (1, 2): 0.1}})
        'swift'
        """
        common = set.intersection(*(set(accuracies[name]) for name in self.running))
        if not common:
            return None
        return max(self.running, key=lambda name: sum(accuracies[name][at] for at in common))

    def after(
        self, accuracies: Mapping[str, Sequence[float]], *, n_train: float, n_test: float
    ) -> Race:
        """The race after this round, which must not be the last.

        Parameters
        ----------
        accuracies : mapping of str to sequence of float
            Of `running`, of every fold so far, in the order of the plan.
        n_train, n_test : float
            Rows trained on and rows scored in a fold.
        """
        assert self.rule is not None
        found = hopeless(
            self.rule,
            {name: accuracies[name] for name in self.running},
            entered=len(self.runners),
            n_train=n_train,
            n_test=n_test,
            kept=self.kept,
        )
        return self.model_copy(update={"complete": self.until, "stops": (*self.stops, *found)})
