"""Racing stops for futility only, by a rule that was declared, after whole rounds of folds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightfold.errors import UsageError
from nightfold.experiment import Candidate, Experiment, PlanChoice, RacingChoice, load_experiment
from nightfold.racing import Race, futility_bound, hopeless, rule_in_words
from nightfold.statistics import bayesian_correlated_t

RULE = RacingChoice(min_folds=3, probability=0.05, difference=0.001)
SIZES = {"n_train": 48_000, "n_test": 12_000}
GOOD = [0.91, 0.93, 0.92, 0.94, 0.92]
CLOSE = [0.92, 0.92, 0.91, 0.95, 0.91]
LOST = [0.12, 0.09, 0.10, 0.11, 0.08]


def stopped(accuracies, rule=RULE, **changes):
    found = hopeless(rule, accuracies, **{"entered": len(accuracies), **SIZES, **changes})
    return [stop.candidate for stop in found]


def raced(accuracies, rule=RULE, kept=None, runners=None):
    """The whole race on these accuracies, and after how many folds there was a look."""
    total, looks = len(next(iter(accuracies.values()))), []
    race = Race(rule=rule, runners=tuple(runners or accuracies), kept=kept, total=total)
    while race.until < total:
        seen = {name: accuracies[name][: race.until] for name in race.running}
        race = race.after(seen, **SIZES)
        looks.append(race.complete)
    return race, looks


fractions = st.floats(0.05, 1, allow_nan=False)
nights = st.integers(2, 6).flatmap(
    lambda folds: st.lists(
        st.lists(fractions, min_size=folds, max_size=folds), min_size=1, max_size=6
    )
)


def test_the_hopeless_is_stopped_and_the_close_one_is_not():
    assert stopped({"good": GOOD, "close": CLOSE, "lost": LOST}) == ["lost"]


@given(nights, st.floats(0.001, 0.49))
@settings(deadline=None)
def test_the_leader_is_never_stopped(accuracies, probability):
    scores = {f"c{position}": of_folds for position, of_folds in enumerate(accuracies)}
    rule = RULE.model_copy(update={"min_folds": 2, "probability": probability})
    best = max(scores, key=lambda name: np.mean(scores[name]))
    assert best not in stopped(scores, rule)


@given(nights, st.floats(0.001, 0.49), st.floats(0.001, 0.49))
@settings(deadline=None)
def test_a_lower_bound_stops_nobody_whom_a_higher_one_lets_go_on(accuracies, one, other):
    scores = {f"c{position}": of_folds for position, of_folds in enumerate(accuracies)}
    lower, higher = (
        set(stopped(scores, RULE.model_copy(update={"probability": p})))
        for p in sorted((one, other))
    )
    assert lower <= higher


@given(nights, st.floats(0, 0.2), st.floats(0, 0.2))
@settings(deadline=None)
def test_asking_for_a_larger_lead_stops_no_fewer(accuracies, one, other):
    scores = {f"c{position}": of_folds for position, of_folds in enumerate(accuracies)}
    smaller, larger = (
        set(stopped(scores, RULE.model_copy(update={"difference": d})))
        for d in sorted((one, other))
    )
    assert smaller <= larger


def test_a_lead_that_is_not_worth_waiting_for_is_futile():
    far = RULE.model_copy(update={"difference": 0.2})
    assert stopped({"good": GOOD, "close": CLOSE}, far) == ["close"]
    assert stopped({"good": GOOD, "close": CLOSE}) == []


def test_nobody_is_stopped_before_the_declared_folds():
    for folds in (1, 2):
        seen = {"good": GOOD[:folds], "lost": LOST[:folds]}
        assert stopped(seen) == []
    assert stopped({"good": GOOD[:3], "lost": LOST[:3]}) == ["lost"]


def test_without_spread_there_is_nothing_to_judge_by():
    behind = [accuracy - 0.5 for accuracy in GOOD]
    assert stopped({"good": GOOD, "behind": behind, "twin": GOOD}) == []


def test_the_champions_recipe_is_never_stopped():
    scores = {"good": GOOD, "lost": LOST, "champion": LOST}
    assert stopped(scores, kept="champion") == ["lost"]


def test_a_stop_says_by_what_and_the_numbers_are_those_of_the_posterior():
    (stop,) = hopeless(RULE, {"good": GOOD[:3], "lost": LOST[:3]}, entered=2, **SIZES)
    assert (stop.leader, stop.folds, stop.difference, stop.bound) == ("good", 3, 0.001, 0.025)
    found = bayesian_correlated_t(np.subtract(LOST[:3], GOOD[:3]), rope=0.001, **SIZES)
    assert found.p_better < stop.bound
    assert stop.reason == (
        "stopped after 3 folds by the racing rule, as a lead of more than 0.1 point over good had "
        "become less probable than 2.5 %"
    )


def test_the_bounds_of_all_looks_and_rivals_together_are_the_declared_one():
    spent = [3 * futility_bound(0.05, look=k, rivals=3) for k in range(1, 2000)]
    assert 0.0499 < sum(spent) <= 0.05


def test_rounds_begin_with_the_declared_folds_and_go_fold_by_fold():
    race, looks = raced({"good": GOOD, "close": CLOSE, "lost": LOST})
    assert looks == [3, 4]
    assert [(stop.candidate, stop.folds) for stop in race.stops] == [("lost", 3)]


def test_the_last_fold_is_not_looked_at_as_nothing_is_left_to_save():
    race, looks = raced({"good": GOOD[:4], "close": CLOSE[:4]})
    assert looks == [3]
    assert (race.until, race.stops) == (4, ())


def test_with_nobody_left_to_stop_all_folds_are_due_at_once():
    race, looks = raced({"good": GOOD * 4, "lost": LOST * 4})
    assert looks == [3]
    assert (race.running, race.until) == (("good",), 20)
    alone = Race(rule=RULE, runners=("good",), total=5)
    defended = Race(rule=RULE, runners=("good",), kept="good", total=5)
    undeclared = Race(rule=None, runners=("good", "lost"), total=5)
    assert [r.until for r in (alone, defended, undeclared)] == [5, 5, 5]


def test_a_guest_neither_leads_nor_is_stopped():
    """The champion's recipe is far ahead, and still the night has a best of its own."""
    ahead = {"good": LOST, "close": [a + 0.01 for a in LOST], "champion": GOOD}
    race, _ = raced(ahead, kept="champion", runners=("good", "close"))
    assert race.stops == ()
    assert all(race.wants("champion", place) for place in (race.complete + 1, race.until))


def test_a_repeat_that_is_added_leaves_the_decisions_as_they_were():
    rng = np.random.default_rng(3)
    accuracies = {f"c{i}": (0.9 - 0.03 * i + rng.normal(0, 0.002, 10)).tolist() for i in range(5)}
    once, _ = raced({name: of_folds[:5] for name, of_folds in accuracies.items()})
    twice, _ = raced(accuracies)
    assert once.stops
    assert twice.stops[: len(once.stops)] == once.stops


def choice(accuracies, **race):
    """The race's certain winner on what there is, of five folds."""
    return Race(**{"rule": None, "runners": tuple(accuracies), "total": 5, **race}).winner(
        accuracies
    )


def test_the_winner_is_certain_once_no_missing_fold_can_change_it():
    assert choice({"good": [0.99] * 5, "slow": [0.98] * 4}) == "good"
    assert choice({"good": [0.99] * 4, "slow": [0.98] * 5}) is None  # its last fold may give 0
    assert choice({"good": [0.99] * 5, "slow": [0.985] * 3}) is None  # the last two may give 1
    assert choice({"good": [0.99] * 5, "twin": [0.99] * 5}) is None  # tables say who is the first
    assert choice({"good": [0.99] * 5, "slow": [0.98] * 4, "new": []}) is None


def test_who_has_no_rival_is_the_winner_from_the_start():
    assert choice({"alone": []}) == "alone"
    assert choice({"alone": []}, kept="alone") == "alone"
    race, _ = raced({"good": GOOD, "lost": LOST})
    assert race.winner({"good": GOOD[:3]}) == "good"


@given(nights, st.data())
@settings(deadline=None)
def test_a_winner_who_was_certain_is_the_best_in_the_end(accuracies, data):
    whole = {f"c{position}": of_folds for position, of_folds in enumerate(accuracies)}
    total = len(accuracies[0])
    so_far = {name: whole[name][: data.draw(st.integers(0, total))] for name in whole}
    winner = Race(rule=None, runners=tuple(whole), total=total).winner(so_far)
    if winner is not None:
        means = {name: np.mean(whole[name]) for name in whole}
        assert means[winner] == max(means.values())


def test_a_stopped_candidate_is_due_no_more():
    race, _ = raced({"good": GOOD, "close": CLOSE, "lost": LOST})
    assert not race.wants("lost", race.until)
    assert race.wants("close", race.until)
    assert not race.wants("close", race.complete)


def test_the_best_is_stopped_as_rarely_as_declared_and_work_is_saved():
    """Normal differences with the correlation the posterior assumes; see docs/statistics.md."""
    rng = np.random.default_rng(7)
    rule = RULE.model_copy(update={"difference": 0.0})
    truth, deviation, draws = np.array([0.990, 0.989, 0.988, 0.980]), 0.001, 400
    lost_best, trained = 0, 0
    for _ in range(draws):
        # Folds of five share a fifth of their variance.
        shared, own = rng.normal(0, [[0.2**0.5]] * 4), rng.normal(0, 0.8**0.5, (4, 10))
        scores = truth[:, None] + deviation * (shared + own) / 2**0.5
        race, _ = raced({f"c{i}": list(row) for i, row in enumerate(scores)}, rule)
        lost_best += "c0" in race.stopped
        trained += sum(s.folds for s in race.stops) + 10 * len(race.running)
    assert lost_best / draws <= 0.05
    assert trained / (draws * 40) < 0.9


def night(**changes):
    candidates = tuple(Candidate(name=name, architecture="dense") for name in ("a", "b"))
    document = {"name": "mine", "candidates": candidates, "plan": PlanChoice(folds=5), **changes}
    return Experiment(**document)


def test_the_rule_is_part_of_the_digest_only_if_there_is_one():
    plain = night()
    assert plain.digest[:16] == "6572be88eb342ab1"
    assert night(racing=RULE).digest != plain.digest
    other = RULE.model_copy(update={"probability": 0.01})
    assert night(racing=other).digest != night(racing=RULE).digest


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("min_folds = 3\nprobability = 0.05", ["racing.difference", "required"]),
        ("min_folds = 1\nprobability = 0.05\ndifference = 0", ["racing.min_folds"]),
        ("min_folds = 3\nprobability = 0.5\ndifference = 0", ["racing.probability"]),
        ("min_folds = 3\nprobability = nan\ndifference = 0", ["racing.probability"]),
        ("min_folds = 5\nprobability = 0.05\ndifference = 0", ["min_folds = 5", "at most 5 folds"]),
    ],
)
def test_a_rule_that_cannot_be_used_is_refused_by_name(tmp_path, rule, words):
    path = tmp_path / "mine.toml"
    path.write_text(f'[racing]\n{rule}\n[[candidates]]\nname = "a"\narchitecture = "dense"\n')
    with pytest.raises(UsageError) as refused:
        load_experiment(path)
    assert "\n" not in str(refused.value)
    for word in words:
        assert word in str(refused.value)


def test_the_rule_is_told_in_a_sentence():
    assert rule_in_words(RULE) == (
        "After 3 folds of every candidate, and after each fold from then on, a candidate is "
        "stopped if a lead of more than 0.1 point over the leader has become improbable; one that "
        "truly has it over all others is stopped with a probability of at most 5 %, over all looks "
        "and rivals together."
    )
    assert "if any lead over" in rule_in_words(RULE.model_copy(update={"difference": 0.0}))
