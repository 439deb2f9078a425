"""What a night can detect, told from nights before it whose scores are of real digits."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from nightfold.experiment import Candidate, PlanChoice
from nightfold.foldplan import FoldPlan
from nightfold.gate import required_probability
from nightfold.planner import POWER, Look, plan_ahead
from nightfold.scoretable import ASSUMED_DISAGREEMENT, Earlier
from nightfold.statistics import bayesian_correlated_t, detectable_difference
from nightfold.store import Store

FIRST = datetime(2026, 11, 20, 2, tzinfo=UTC)
RULE = {"rope": 0.001, "sure": 0.95}
NEIGHBOUR = Candidate(name="neighbour", architecture="dense", epochs=2)
BAYES = Candidate(name="bayes", architecture="baseline", epochs=2)
RIDGE = Candidate(name="ridge", architecture="deep", epochs=2)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.fixture
def night(store, digit_plan, digit_accuracies, write_scores):
    """A function that runs a night of the given candidates, one a day."""
    days = iter(range(30))

    def run(*candidates, plan=digit_plan, first=0, **how):
        day = next(days)
        folds = plan.folds * plan.repeats
        scores = {c: digit_accuracies[c.name][first : first + folds] for c in candidates}
        write_scores(store, f"night-{day}", FIRST + timedelta(days=day), plan, scores, **how)

    return run


def look_ahead(store, plan, *candidates, look=None):
    earlier = Earlier.read(store, "small-mnist")
    return plan_ahead(candidates, plan, earlier, workers=2, look=look, **RULE)


def test_the_spread_is_that_of_the_same_two_on_the_same_folds(
    store, night, digit_plan, digit_accuracies
):
    night(NEIGHBOUR, BAYES)
    (pair,) = look_ahead(store, digit_plan, NEIGHBOUR, BAYES).pairs
    differences = np.subtract(digit_accuracies["bayes"], digit_accuracies["neighbour"])
    assert (pair.basis, pair.plans, pair.freedom) == ("pair", 1, 9)
    assert pair.deviation == pytest.approx(differences.std(ddof=1))


def test_candidates_of_different_nights_meet_on_an_equal_plan_digest(store, night, digit_plan):
    night(NEIGHBOUR)
    night(BAYES)
    (pair,) = look_ahead(store, digit_plan, NEIGHBOUR, BAYES).pairs
    assert pair.basis == "pair"


def test_scores_on_another_plan_are_never_paired(store, night, small_mnist, digit_plan):
    night(NEIGHBOUR)
    night(BAYES, plan=FoldPlan.build(PlanChoice(folds=5, repeats=2, seed=7), small_mnist))
    (pair,) = look_ahead(store, digit_plan, NEIGHBOUR, BAYES).pairs
    assert pair.basis == "assumed"


def test_a_night_that_had_nothing_to_train_tells_nothing_new(store, night, digit_plan):
    night(NEIGHBOUR, BAYES)
    once = look_ahead(store, digit_plan, NEIGHBOUR, BAYES).pairs
    night(NEIGHBOUR, BAYES)
    assert look_ahead(store, digit_plan, NEIGHBOUR, BAYES).pairs == once


def test_plans_are_pooled_by_their_degrees_of_freedom(
    store, night, small_mnist, digit_plan, digit_accuracies
):
    short = FoldPlan.build(PlanChoice(folds=5, seed=3), small_mnist)
    night(NEIGHBOUR, BAYES)
    night(NEIGHBOUR, BAYES, plan=short)
    (pair,) = look_ahead(store, digit_plan, NEIGHBOUR, BAYES).pairs
    differences = np.subtract(digit_accuracies["bayes"], digit_accuracies["neighbour"])
    variance = (9 * differences.var(ddof=1) + 4 * differences[:5].var(ddof=1)) / 13
    assert (pair.plans, pair.freedom) == (2, 13)
    assert pair.deviation == pytest.approx(np.sqrt(variance))


def test_what_is_called_detectable_gets_the_verdict(store, night, digit_plan, digit_accuracies):
    """A gain far above it is called better by the test of the verdicts, one below is not."""
    night(NEIGHBOUR, BAYES)
    (pair,) = look_ahead(store, digit_plan, NEIGHBOUR, BAYES).pairs
    noise = np.subtract(digit_accuracies["bayes"], digit_accuracies["neighbour"])
    noise -= noise.mean()
    sizes = {"n_train": 480, "n_test": 120, "rope": 0.001}
    gained = [
        bayesian_correlated_t(noise + gain * pair.tonight.difference, **sizes).p_better
        for gain in (0.5, 1.5)
    ]
    assert gained[0] < 0.95 < gained[1]
    assert pair.tonight.low < pair.tonight.difference < pair.tonight.high


def test_more_repeats_cost_in_proportion_and_buy_ever_less(store, night, digit_plan):
    night(NEIGHBOUR, BAYES, seconds=6.0)
    outlook = look_ahead(store, digit_plan, NEIGHBOUR, BAYES)
    # Two candidates, ten folds of six seconds, two at once: one minute for tonight's two repeats,
    # and nothing else, as the final model is fitted once however many repeats there are.
    assert [(e.repeats, e.folds, e.minutes) for e in outlook.efforts] == [
        (2, 10, pytest.approx(1)),
        (4, 20, pytest.approx(2)),
        (6, 30, pytest.approx(3)),
        (10, 50, pytest.approx(5)),
        (20, 100, pytest.approx(10)),
    ]
    found = [effort.detectable.difference for effort in outlook.efforts]
    assert found == sorted(found, reverse=True)
    assert found[-1] > outlook.floor > RULE["rope"]
    assert found[0] == outlook.pairs[0].tonight.difference


def test_the_table_of_repeats_is_about_the_pair_that_is_hardest_to_tell_apart(
    store, night, digit_plan
):
    night(NEIGHBOUR, BAYES, RIDGE)
    outlook = look_ahead(store, digit_plan, NEIGHBOUR, BAYES, RIDGE)
    deviations = [pair.deviation for pair in outlook.pairs]
    assert deviations == sorted(deviations, reverse=True)
    assert len(set(deviations)) == 3
    assert outlook.efforts[0].detectable == outlook.pairs[0].tonight


def test_without_an_earlier_night_the_assumption_is_said(store, digit_plan):
    outlook = look_ahead(store, digit_plan, NEIGHBOUR, BAYES)
    (pair,) = outlook.pairs
    assert (pair.basis, pair.plans, pair.tonight.low) == ("assumed", 0, None)
    assert pair.deviation == pytest.approx(np.sqrt(ASSUMED_DISAGREEMENT / 120))
    assert {effort.minutes for effort in outlook.efforts} == {None}
    said = " ".join(outlook.notes)
    assert "No earlier night has scored two candidates" in said
    assert "on 2 % of the rows" in said
    assert "No earlier night has trained neighbour, bayes" in said


def test_a_pair_that_never_met_is_taken_to_differ_as_others_do(store, night, digit_plan):
    night(NEIGHBOUR, BAYES)
    outlook = look_ahead(store, digit_plan, NEIGHBOUR, RIDGE)
    (pair,) = outlook.pairs
    (known,) = look_ahead(store, digit_plan, NEIGHBOUR, BAYES).pairs
    assert pair.basis == "others"
    assert pair.deviation == pytest.approx(known.deviation)
    assert pair.tonight.high is None
    assert "never met" in " ".join(outlook.notes)


def test_folds_of_another_size_are_scaled_and_it_is_said(store, night, small_mnist, digit_plan):
    night(NEIGHBOUR, BAYES)
    tens = FoldPlan.build(PlanChoice(folds=10), small_mnist)
    outlook = look_ahead(store, tens, NEIGHBOUR, BAYES)
    (known,) = look_ahead(store, digit_plan, NEIGHBOUR, BAYES).pairs
    assert outlook.pairs[0].deviation == pytest.approx(known.deviation * np.sqrt(2))
    assert outlook.seconds["bayes"] == pytest.approx(6.0 * 540 / 480)
    assert "another size" in " ".join(outlook.notes)


def test_fewer_and_larger_folds_detect_by_their_own_sizes(store, night, small_mnist, digit_plan):
    """The spread falls with the rows scored, but two folds share more and are fewer."""
    night(NEIGHBOUR, BAYES)
    halves = FoldPlan.build(PlanChoice(folds=2, repeats=3), small_mnist)
    (pair,) = look_ahead(store, halves, NEIGHBOUR, BAYES).pairs
    (known,) = look_ahead(store, digit_plan, NEIGHBOUR, BAYES).pairs
    assert pair.deviation == pytest.approx(known.deviation * np.sqrt(120 / 300))
    asked = {"n_train": 300, "n_test": 300, "power": POWER, **RULE}
    expected = detectable_difference(pair.deviation, 6, **asked)
    assert pair.tonight.difference == pytest.approx(expected)


def test_folds_of_tonights_size_tell_before_any_that_have_to_be_scaled(
    store, night, small_mnist, digit_plan
):
    night(NEIGHBOUR, BAYES)
    alone = look_ahead(store, digit_plan, NEIGHBOUR, BAYES)
    night(NEIGHBOUR, BAYES, plan=FoldPlan.build(PlanChoice(folds=10), small_mnist))
    after = look_ahead(store, digit_plan, NEIGHBOUR, BAYES)
    assert after.pairs == alone.pairs
    assert "another size" not in " ".join(after.notes)
    (stranger,) = look_ahead(store, digit_plan, NEIGHBOUR, RIDGE).pairs
    assert (stranger.basis, stranger.plans) == ("others", 1)


def test_the_time_of_a_new_recipe_is_that_of_its_architecture(store, night, digit_plan):
    night(NEIGHBOUR, BAYES, seconds=6.0)
    longer = BAYES.model_copy(update={"epochs": 10})
    outlook = look_ahead(store, digit_plan, NEIGHBOUR, longer)
    assert outlook.seconds == {"neighbour": pytest.approx(6), "bayes": pytest.approx(30)}
    assert "The time of bayes is that of its architecture" in " ".join(outlook.notes)


def test_the_time_of_an_ensemble_is_that_of_all_its_networks(store, night, digit_plan):
    three = BAYES.model_copy(update={"ensemble": 3})
    night(NEIGHBOUR, three, seconds=6.0)
    other = three.model_copy(update={"label_smoothing": 0.1})
    single = BAYES.model_copy(update={"name": "single"})
    outlook = look_ahead(store, digit_plan, other, single)
    assert outlook.seconds == {"bayes": pytest.approx(6), "single": pytest.approx(2)}


def test_the_newest_night_tells_the_time(store, night, digit_plan):
    night(NEIGHBOUR, BAYES, seconds=60.0)
    night(NEIGHBOUR, BAYES, seconds=6.0)
    assert look_ahead(store, digit_plan, NEIGHBOUR, BAYES).seconds["bayes"] == pytest.approx(6)


def test_a_single_recipe_has_nothing_to_be_told_from(store, digit_plan):
    alone = look_ahead(store, digit_plan, NEIGHBOUR)
    assert (alone.pairs, alone.efforts, alone.floor) == ((), (), 0.0)


def test_a_promotion_asks_for_more_at_every_look(store, night, digit_plan):
    night(NEIGHBOUR, BAYES, RIDGE)
    candidates = (NEIGHBOUR, BAYES, RIDGE)
    looks = [
        Look(champion="ridge", number=k, probability=required_probability(0.95, look=k))
        for k in (1, 2, 20)
    ]
    outlooks = [look_ahead(store, digit_plan, *candidates, look=look) for look in looks]
    asked = [outlook.promotion.difference for outlook in outlooks]
    against_champion = [
        pair.tonight.difference for pair in outlooks[0].pairs if "ridge" in (pair.a, pair.b)
    ]
    assert max(against_champion) < asked[0] < asked[1] < asked[2]
    assert look_ahead(store, digit_plan, *candidates).promotion is None


def test_a_plan_with_more_repeats_shares_folds_that_count_once(
    store, small_mnist, digit_plan, digit_accuracies, write_scores
):
    one = FoldPlan.build(PlanChoice(folds=5), small_mnist)
    for run_id, plan in (("short", one), ("long", digit_plan)):
        folds = plan.folds * plan.repeats
        scores = {c: digit_accuracies[c.name][:folds] for c in (NEIGHBOUR, BAYES)}
        write_scores(store, run_id, FIRST, plan, scores)
    (pair,) = look_ahead(store, digit_plan, NEIGHBOUR, BAYES).pairs
    assert (pair.plans, pair.freedom) == (1, 9)


def test_a_damaged_table_is_named_and_the_others_are_read(store, night, digit_plan):
    night(NEIGHBOUR, BAYES)
    damaged = store.scores / "run_date=2026-11-20" / "broken.parquet"
    damaged.write_bytes(b"PAR1")
    outlook = look_ahead(store, digit_plan, NEIGHBOUR, BAYES)
    assert outlook.pairs[0].basis == "pair"
    assert "run_date=2026-11-20/broken.parquet" in outlook.notes[0]


def test_other_data_sets_tell_nothing(store, night, digit_plan):
    night(NEIGHBOUR, BAYES)
    assert Earlier.read(store, "mnist").spreads == {}
