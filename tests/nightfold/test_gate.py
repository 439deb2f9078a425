"""What is not proven is not promoted: the gate with evidence of every kind."""

from typing import Any

import numpy as np
import pytest
from scipy.special import stdtrit

from nightfold import statistics
from nightfold.errors import UsageError
from nightfold.experiment import PolicyChoice, load_experiment, shipped
from nightfold.gate import Comparison, Evidence, decide, required_probability, weigh

POLICY = PolicyChoice(
    metric="accuracy",
    rope=0.001,
    probability=0.95,
    max_repeats=3,
    min_holdout_accuracy=0.98,
    min_class_recall=0.9,
    max_class_loss=0.02,
    max_ece=0.05,
    max_megabytes=10,
    max_milliseconds=20,
)
RECALLS = {str(digit): 0.985 for digit in range(10)}
BETTER = Comparison(mean_difference=0.004, p_worse=0.001, p_equivalent=0.005, p_better=0.994)
EQUAL = Comparison(mean_difference=0.0001, p_worse=0.01, p_equivalent=0.98, p_better=0.01)
WORSE = Comparison(mean_difference=-0.004, p_worse=0.99, p_equivalent=0.01, p_better=0.0)
UNDECIDED = Comparison(mean_difference=0.002, p_worse=0.05, p_equivalent=0.15, p_better=0.8)


def evidence(**changes: Any) -> Evidence:
    sound = {
        "candidate": "deep",
        "holdout_accuracy": 0.99,
        "ece": 0.01,
        "megabytes": 2.2,
        "milliseconds": 3.0,
        "recalls": RECALLS,
        "champion": "night-1",
        "champion_recalls": dict.fromkeys(RECALLS, 0.98),
        "comparison": BETTER,
    }
    return Evidence(**{**sound, **changes})


@pytest.mark.parametrize(
    ("comparison", "outcome", "says"),
    [
        (BETTER, "promote", "deep is better than the champion night-1: +0.40 points, probability"),
        (EQUAL, "keep", "The champion night-1 stays: deep is equivalent: +0.01 points"),
        (WORSE, "keep", "The champion night-1 stays: deep is worse: -0.40 points"),
        (UNDECIDED, "undecided", "80.00 % where 97.50 % is asked at look 1."),
        (None, "refuse", "nothing compares it"),
    ],
)
def test_four_outcomes_each_with_its_reason(comparison, outcome, says):
    decision = decide(POLICY, evidence(comparison=comparison))
    assert decision.outcome == outcome
    assert says in decision.reason


def test_the_first_model_needs_no_champion_but_keeps_the_limits():
    first = {"champion": None, "champion_recalls": {}, "comparison": None}
    assert decide(POLICY, evidence(**first)).outcome == "promote"
    refused = decide(POLICY, evidence(**first, holdout_accuracy=0.97))
    assert refused.outcome == "refuse"
    assert "hold-out accuracy: 97.00 %, asked at least 98.00 %" in refused.reason


def test_an_experiment_without_policy_promotes_nothing():
    decision = decide(None, evidence())
    assert (decision.outcome, decision.checks) == ("refuse", ())
    assert "states no [policy]" in decision.reason


@pytest.mark.parametrize("missing", ["max_ece", "rope", "max_milliseconds", "min_class_recall"])
def test_no_limit_has_a_default(missing, tmp_path):
    text = shipped("experiments", "night.toml").read_text()
    file = tmp_path / "mine.toml"
    file.write_text("\n".join(line for line in text.splitlines() if not line.startswith(missing)))
    with pytest.raises(UsageError, match=rf"policy\.{missing}: field required"):
        load_experiment(file)


@pytest.mark.parametrize("unreadable", ["nan", "inf", '"much"', "-1"])
def test_an_unreadable_limit_stops_before_anything_is_trained(unreadable, tmp_path):
    text = shipped("experiments", "night.toml").read_text()
    file = tmp_path / "mine.toml"
    file.write_text(text.replace("max_megabytes = 50", f"max_megabytes = {unreadable}"))
    with pytest.raises(UsageError, match=r"policy\.max_megabytes"):
        load_experiment(file)


@pytest.mark.parametrize("name", sorted(p.stem for p in shipped("experiments").glob("*.toml")))
def test_every_shipped_experiment_states_its_policy(name):
    assert load_experiment(name).policy is not None


def test_a_gain_on_average_does_not_buy_the_loss_of_a_class():
    decision = decide(POLICY, evidence(recalls=RECALLS | {"7": 0.94}))
    assert decision.outcome == "refuse"
    assert "class 7 against the champion: -4.00 points, from 98.00 % to 94.00 %" in decision.reason
    assert [check.name for check in decision.checks if not check.passed] == [
        "class 7 against the champion"
    ]


def test_a_loss_of_exactly_what_is_allowed_is_allowed():
    assert POLICY.max_class_loss == 0.02
    decision = decide(POLICY, evidence(recalls=RECALLS | {"7": 0.96}))
    assert decision.outcome == "promote"


@pytest.mark.parametrize("missing", [{"recalls": {}}, {"champion_recalls": {}}])
def test_recalls_that_are_missing_speak_against_the_challenger(missing):
    decision = decide(POLICY, evidence(**missing))
    assert decision.outcome == "refuse"
    assert "nan" in decision.reason


def test_a_probability_that_is_no_number_promotes_nothing():
    nan = float("nan")
    comparison = Comparison(mean_difference=nan, p_worse=nan, p_equivalent=nan, p_better=nan)
    decision = decide(POLICY, evidence(comparison=comparison))
    assert decision.outcome == "undecided"
    assert "nan %" in decision.reason


def test_what_is_asked_and_what_was_found_never_seem_to_meet():
    short = Comparison(mean_difference=0.002, p_worse=0.0, p_equivalent=0.02504, p_better=0.97496)
    told = decide(POLICY, evidence(comparison=short)).reason
    assert "97.49 % where 97.50 % is asked at look 1" in told
    late = Comparison(
        mean_difference=0.002, p_worse=0.0, p_equivalent=0.00007, p_better=0.99993, look=32
    )
    told = decide(POLICY, evidence(comparison=late)).reason
    assert "99.9930 % where 99.9953 % is asked at look 32" in told


def test_a_class_below_its_floor_is_named():
    decision = decide(POLICY, evidence(recalls=RECALLS | {"7": 0.89}, champion_recalls={}))
    assert "recall of class 7: 89.00 %, asked at least 90.00 %" in decision.reason
    own = POLICY.model_copy(update={"class_floors": {"3": 0.99}})
    assert "recall of class 3: 98.50 %, asked at least 99.00 %" in decide(own, evidence()).reason


def test_a_floor_for_a_class_that_does_not_exist_lets_nothing_through():
    policy = POLICY.model_copy(update={"class_floors": {"seven": 0.5}})
    assert "recall of class seven: nan" in decide(policy, evidence()).reason


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"ece": 0.06}, "calibration error: 6.00 points, asked at most 5 points"),
        ({"megabytes": 11.0}, "size: 11.00 MB, asked at most 10 MB"),
        ({"milliseconds": 21.0}, "time for one image: 21.00 ms, asked at most 20 ms"),
        ({"ece": float("nan")}, "calibration error: nan"),
        ({"holdout_accuracy": float("nan")}, "hold-out accuracy: nan"),
        ({"recalls": RECALLS | {"7": float("nan")}}, "recall of class 7: nan"),
    ],
)
def test_a_broken_limit_is_named_and_what_is_no_number_breaks_it(change, named):
    decision = decide(POLICY, evidence(**change))
    assert decision.outcome == "refuse"
    assert named in decision.reason


def test_without_spread_nothing_is_proven():
    constant = Comparison(mean_difference=0.1, p_worse=None, p_equivalent=None, p_better=None)
    decision = decide(POLICY, evidence(comparison=constant))
    assert decision.outcome == "undecided"
    assert "no spread to judge by" in decision.reason


def test_a_copy_with_a_twentieth_of_a_point_more_does_not_replace_the_champion():
    """Five folds, the noise of another seed, and +0.05 points in the mean."""
    differences = np.array([0.0012, -0.0003, 0.0009, -0.0006, 0.0013])
    assert differences.mean() == pytest.approx(0.0005)
    posterior = statistics.bayesian_correlated_t(differences, n_train=4, n_test=1, rope=0.001)
    copy = Comparison(
        mean_difference=0.0005,
        p_worse=posterior.p_worse,
        p_equivalent=posterior.p_equivalent,
        p_better=posterior.p_better,
    )
    assert decide(POLICY, evidence(comparison=copy)).outcome in ("keep", "undecided")


def test_later_looks_and_more_rivals_ask_for_more():
    asked = [required_probability(0.95, look=look) for look in range(1, 5)]
    assert asked == sorted(asked)
    assert required_probability(0.95, look=1, rivals=5) == pytest.approx(0.995)
    assert decide(POLICY, evidence()).outcome == "promote"
    late = BETTER.model_copy(update={"look": 30})
    assert decide(POLICY, evidence(comparison=late)).outcome == "undecided"


def test_all_looks_together_spend_no_more_than_the_policy_allows():
    spent = sum(1 - required_probability(0.95, look=look) for look in range(1, 20_000))
    assert 0.0499 < spent < 0.05


def test_a_year_of_nights_promotes_a_worse_model_in_under_five_percent_of_years():
    """The model of folds that the tests assume, nights that share nothing: the worst case.

    What the gate asks is compared in the scale of its posterior, for 365 x 2000 nights at once;
    that this is what `weigh` does is checked on a part of them.
    """
    k, years, nights = 5, 2000, 365
    rng = np.random.default_rng(4)
    shape = (years, nights)
    rho, sd, truth = 1 / k, 0.002, -0.0001
    shared = rng.standard_normal((*shape, 1)) * np.sqrt(rho)
    own = rng.standard_normal((*shape, k)) * np.sqrt(1 - rho)
    d = truth + sd * (shared + own)
    scale = np.sqrt((1 / k + rho / (1 - rho)) * d.var(axis=-1, ddof=1))
    t = (d.mean(axis=-1) - POLICY.rope) / scale
    asked = np.array([required_probability(0.95, look=look) for look in range(1, nights + 1)])
    promoted = t >= stdtrit(k - 1, asked)
    assert promoted.any(axis=1).mean() < 0.05
    assert (t >= stdtrit(k - 1, 0.95)).any(axis=1).mean() > 0.5
    places = [*zip(*np.nonzero(promoted), strict=True)][:20] + [(0, night) for night in range(80)]
    for year, night in places:
        found = statistics.bayesian_correlated_t(
            d[year, night], n_train=4, n_test=1, rope=POLICY.rope
        )
        comparison = Comparison(
            mean_difference=float(d[year, night].mean()),
            p_worse=found.p_worse,
            p_equivalent=found.p_equivalent,
            p_better=found.p_better,
            look=night + 1,
        )
        assert (weigh(POLICY, comparison) == "better") == promoted[year, night]
