"""A change of a score taken apart, with scores of real digits left where nights leave theirs."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from nightfold.dataset import Dataset, Split
from nightfold.difference import Corner, Question
from nightfold.errors import UsageError
from nightfold.experiment import Candidate, Experiment, PlanChoice
from nightfold.foldplan import FoldPlan
from nightfold.foldresult import FoldJob, folder_of
from nightfold.record import Record
from nightfold.retention import TRASH
from nightfold.scaling import Scaler
from nightfold.statistics import corrected_resampled_t, corrected_unpaired_t
from nightfold.store import Store, write_json
from nightfold.summary import DatasetFacts, Summary
from nightfold.training import ENGINE

FIRST = datetime(2026, 11, 20, 2, tzinfo=UTC)
SLOW = Candidate(name="dense", architecture="dense", epochs=2)
FAST = SLOW.model_copy(update={"epochs": 4})
PLAN = PlanChoice(folds=5, repeats=2)
SECONDS = 6.0


def experiment(candidate=SLOW, seed=1, plan=PLAN):
    return Experiment(name="night", seed=seed, plan=plan, candidates=(candidate,))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.fixture(scope="module")
def accuracies(digit_accuracies):
    """Of five trainings, ten folds each: those of three classifiers and two mixtures."""
    neighbour, bayes, ridge = (np.array(scores) for scores in digit_accuracies.values())
    return [neighbour, bayes, ridge, (neighbour + bayes) / 2, (bayes + 3 * ridge) / 4]


@pytest.fixture
def fewer_digits(store, small_mnist):
    """The data of another night, in the store: 500 of the 600 rows."""
    return snapshot(store, small_mnist, 500)


@pytest.fixture
def digits(store, small_mnist):
    return snapshot(store, small_mnist, 600)


def snapshot(store, dataset, rows):
    train = Split(dataset.train.images[:rows], dataset.train.labels[:rows])
    return Dataset.write(
        store.datasets,
        name="small-mnist",
        origin="mnist",
        class_names=dataset.class_names,
        train=train,
        test=dataset.test,
    )


@pytest.fixture
def night(store, digits, write_night, write_scores):
    """A function that leaves what a run leaves, one a day."""
    days = iter(range(30))

    def leave(scores, of=None, data=digits, code=None, **changes):
        of = of or experiment()
        started_at = FIRST + timedelta(days=next(days))
        (candidate,) = of.candidates
        summary = write_night(
            store, started_at, {candidate: float(np.mean(scores))}, None, flow="evaluate"
        )
        facts = DatasetFacts(
            **summary.dataset.model_dump(exclude={"name", "digest", "n_train"}),
            name=data.name,
            digest=data.digest,
            n_train=len(data.train),
        )
        folder = store.run(summary.run_id)
        summary.model_copy(update={"dataset": facts, **changes}).write(folder)
        record = Record.of(of)
        record.model_copy(update={"code": {**record.code, **(code or {})}}).write(folder)
        plan = FoldPlan.build(of.plan, data)
        plan.save(folder).rename(folder / "foldplan.parquet")
        write_scores(store, summary.run_id, started_at, plan, {candidate: scores}, SECONDS)
        (table,) = store.scores.glob(f"*/{summary.run_id}.parquet")
        (folder / "scores.parquet").write_bytes(table.read_bytes())
        write_json(store.latest, {"run_id": summary.run_id})
        return summary.run_id

    return leave


@pytest.fixture
def train(leave_fold):
    def train(corner: Corner, accuracies):
        """Leave in the store what training the corner would."""
        n_test = corner.data.plan.n_rows // 5
        for key, accuracy in zip(corner.keys, accuracies, strict=True):
            leave_fold(
                corner.data.store, key, accuracy=accuracy, seconds=SECONDS,
                n_train=4 * n_test, n_test=n_test,
            )  # fmt: skip

    return train


def answer(question, minutes=0.0, trained=()):
    return question.answer(minutes, workers=2, trained=trained)


def steps_of(difference):
    return {step.factor: step for step in difference.steps}


@pytest.fixture
def all_changed(store, night, fewer_digits, accuracies):
    """Two nights that differ in data, candidate and seed."""
    a = night(accuracies[0])
    b = night(accuracies[4], of=experiment(FAST, seed=2), data=fewer_digits)
    return Question.read(store, a, b)


def test_if_only_the_seed_changed_everything_else_is_exactly_zero(store, night, accuracies):
    night(accuracies[0])
    night(accuracies[1], of=experiment(seed=2))
    question = Question.read(store)
    assert question.affordable(1000, workers=2) == []
    found = answer(question)
    for factor in ("code", "data", "candidate"):
        step = steps_of(found)[factor]
        assert (step.difference, step.reading, step.what) == (0.0, "unchanged", ())
    seed = steps_of(found)["seed"]
    expected = corrected_resampled_t(accuracies[1] - accuracies[0], n_train=480, n_test=120)
    assert seed.what == ("1 -> 2",)
    assert seed.difference == found.difference == np.mean(accuracies[1]) - np.mean(accuracies[0])
    assert (seed.low, seed.high, seed.paired) == (expected.low, expected.high, True)
    assert found.rest == 0
    assert [corner.corner for corner in found.corners] == ["AAAA", "BBBB"]


def test_all_parts_sum_up_to_the_whole(all_changed, accuracies, train):
    a, data, recipe, b = (accuracies[i] for i in (0, 1, 2, 4))
    train(all_changed.path[2], data)
    train(all_changed.path[3], recipe)
    found = answer(all_changed)
    steps = steps_of(found)
    assert steps["code"].reading == "unchanged"
    assert steps["data"].difference == pytest.approx(data.mean() - a.mean())
    assert steps["candidate"].difference == pytest.approx(recipe.mean() - data.mean())
    assert steps["seed"].difference == pytest.approx(b.mean() - recipe.mean())
    assert sum(s.difference for s in found.steps) == pytest.approx(found.difference, abs=1e-15)
    assert steps["candidate"].what == ("epochs 2 -> 4",)
    assert [(c.corner, c.source) for c in found.corners] == [
        ("AAAA", "recorded"),
        ("BBAA", "in the store"),
        ("BBBA", "in the store"),
        ("BBBB", "recorded"),
    ]


def test_other_rows_are_not_paired_and_the_same_are(all_changed, accuracies, train):
    train(all_changed.path[2], accuracies[1])
    train(all_changed.path[3], accuracies[2])
    steps = steps_of(answer(all_changed))
    unpaired = corrected_unpaired_t(
        accuracies[0], accuracies[1], n_train=(480, 400), n_test=(120, 100)
    )
    paired = corrected_resampled_t(accuracies[2] - accuracies[1], n_train=400, n_test=100)
    assert [steps[f].paired for f in ("data", "candidate", "seed")] == [False, True, True]
    assert (steps["data"].low, steps["data"].high) == (unpaired.low, unpaired.high)
    assert (steps["candidate"].low, steps["candidate"].high) == (paired.low, paired.high)


def test_a_step_is_clear_only_if_its_interval_leaves_out_zero(store, night, accuracies):
    noise = accuracies[0] - accuracies[0].mean()
    readings = []
    for gain in (0.001, 0.5):
        a = night(np.full(10, 0.4))
        b = night(0.4 + gain + noise, of=experiment(seed=2))
        readings.append(steps_of(answer(Question.read(store, a, b)))["seed"].reading)
    assert readings == ["within the noise", "clear"]


def test_a_change_that_is_the_same_in_every_fold_has_no_spread_to_judge_by(store, night):
    night(np.full(10, 0.4))
    night(np.full(10, 0.5), of=experiment(seed=2))
    seed = steps_of(answer(Question.read(store)))["seed"]
    assert (seed.reading, seed.low) == ("no spread", None)


def test_what_does_not_fit_into_the_budget_is_not_guessed(all_changed):
    assert all_changed.affordable(0, workers=2) == []
    found = answer(all_changed, minutes=0)
    # 400 of 480 rows: five seconds a fold; SLOW and FAST were both timed by their own nights.
    for factor, reason in {
        "data": "would take 0.4 minutes",
        "candidate": "would take 0.9 minutes",
        "seed": "would take 0.5 minutes",
    }.items():
        step = steps_of(found)[factor]
        assert (step.difference, step.reading, step.reason) == (None, "not measured", reason)
    assert found.rest == found.difference
    assert {(c.corner, c.source) for c in found.corners} > {
        ("BBAA", "left out"),
        ("BBBA", "left out"),
    }


def test_the_budget_is_spent_in_the_order_of_the_way(all_changed):
    def chosen(minutes):
        return [c.letters for c in all_changed.affordable(minutes, workers=2)]

    assert chosen(30) == ["BBAA", "BBBA"]
    assert chosen(0.5) == ["BBAA"]
    assert all_changed.minutes(all_changed.path[2], 2) == pytest.approx(10 * 5 / 2 / 60)


def test_folds_that_are_there_already_cost_nothing(all_changed, accuracies, train):
    corner = all_changed.path[2]
    train(corner, accuracies[1])
    (folder_of(corner.data.store, corner.keys[3]) / "result.json").unlink()
    assert all_changed.measured(corner) is None
    assert all_changed.minutes(corner, 2) == pytest.approx(5 / 2 / 60)


def test_what_is_left_out_leaves_the_rest_exact(all_changed, accuracies, train):
    train(all_changed.path[2], accuracies[1])
    found = answer(all_changed, trained=[all_changed.path[2]])
    assert [step.reading == "not measured" for step in found.steps] == [False, False, True, True]
    assert found.rest == pytest.approx(accuracies[4].mean() - accuracies[1].mean())
    assert [c.source for c in found.corners][1:3] == ["trained", "left out"]


def test_the_part_of_the_code_is_the_old_recipe_trained_anew(store, night, accuracies, train):
    night(accuracies[0], code={"engine": 1})
    night(accuracies[1], of=experiment(seed=2))
    question = Question.read(store)
    (corner,) = question.affordable(30, workers=2)
    assert corner.letters == "BAAA"
    train(corner, accuracies[2])
    steps = steps_of(answer(question))
    assert steps["code"].what == (f"engine 1 -> {ENGINE}",)
    assert steps["code"].difference == pytest.approx(accuracies[2].mean() - accuracies[0].mean())
    assert steps["seed"].difference == pytest.approx(accuracies[1].mean() - accuracies[2].mean())


def test_code_that_is_not_here_cannot_be_run(store, night, accuracies):
    night(accuracies[0])
    night(accuracies[1], of=experiment(FAST, seed=2), code={"tensorflow": "2.99"})
    question = Question.read(store)
    assert question.affordable(1000, workers=2) == []
    code = steps_of(answer(question))["code"]
    assert code.reading == "not measured"
    assert "needs the code of night B" in code.reason
    assert "tensorflow 2.99" in code.reason


def test_two_nights_of_one_old_version_need_no_new_training(store, night, accuracies):
    night(accuracies[0], code={"engine": 1})
    night(accuracies[1], of=experiment(FAST), code={"engine": 1})
    found = answer(Question.read(store))
    assert [s.reading == "unchanged" for s in found.steps] == [True, True, False, True]
    assert steps_of(found)["candidate"].difference == found.difference


def test_data_that_were_pruned_are_named(store, night, digits, accuracies):
    night(accuracies[0], code={"engine": 1})
    night(accuracies[1], of=experiment(seed=2))
    (store.datasets / digits.digest[:16] / "dataset.json").unlink()
    code = steps_of(answer(Question.read(store), minutes=30))["code"]
    assert code.reading == "not measured"
    assert f"snapshot {digits.digest[:12]} of small-mnist of night A is no longer" in code.reason


def test_other_folds_of_the_same_rows_belong_to_the_data(store, night, digit_accuracies):
    scores = np.array(digit_accuracies["bayes"])
    night(scores[:5], of=experiment(plan=PlanChoice(folds=5)))
    night(scores)
    data = steps_of(answer(Question.read(store)))["data"]
    assert (data.what, data.paired) == (("repeats 1 -> 2",), False)


def test_if_nothing_changed_the_scores_must_be_equal(store, night, accuracies):
    night(accuracies[0])
    night(accuracies[0])
    same = answer(Question.read(store))
    assert (same.difference, same.rest) == (0, 0)
    assert "must be equal: they are." in same.notes[0]
    night(accuracies[1])
    other = answer(Question.read(store))
    assert {step.reading for step in other.steps} == {"unchanged"}
    assert other.rest == other.difference != 0
    assert "must be equal: they are not" in other.notes[0]


def test_other_machines_are_named(store, night, accuracies):
    night(accuracies[0])
    night(accuracies[1], of=experiment(seed=2), host="big", processors=64)
    (note,) = answer(Question.read(store)).notes
    assert "big with 64 processors" in note


def test_a_corner_has_the_keys_of_the_folds_that_it_trains(all_changed):
    corner = all_changed.path[3]
    jobs = [
        FoldJob(
            candidate=corner.recipe, dataset=corner.data.dataset, plan=corner.data.plan,
            scaler=Scaler(name="normalize"), repeat=repeat, fold=fold, seed=corner.seed_value,
            artifacts=str(corner.data.store.root),
        )
        for repeat in (1, 2) for fold in range(1, 6)
    ]  # fmt: skip
    assert tuple(job.key for job in jobs) == corner.keys
    assert jobs[0].dataset.open().digest == all_changed.b.summary.dataset.digest


def test_the_run_before_is_the_last_of_the_same_experiment_and_data_set(store, night, accuracies):
    night(accuracies[0])
    before = night(accuracies[0])
    night(accuracies[0], experiment="other")
    b = night(accuracies[1])
    night(accuracies[1])
    question = Question.read(store, b=b)
    assert question.a.summary.run_id == before


def test_what_a_killed_prune_has_left_is_no_run(store, night, accuracies):
    before, pruned, b = (night(accuracies[0]) for _ in range(3))
    store.run(pruned).rename(store.runs / f"{TRASH}1a2b3c4d-{pruned}")
    assert Question.read(store, b=b).a.summary.run_id == before


def test_a_run_before_whose_summary_cannot_be_read_is_passed_over(store, night, accuracies):
    before, damaged, b = (night(accuracies[0]) for _ in range(3))
    (store.run(damaged) / "summary.json").write_text('{"run_id": "')
    assert Question.read(store, b=b).a.summary.run_id == before
    with pytest.raises(UsageError, match=f"{damaged}/summary.json is not the summary of a run"):
        Question.read(store, damaged, b)


def test_the_first_run_has_nothing_to_be_compared_with(store, night, accuracies):
    only = night(accuracies[0])
    with pytest.raises(UsageError, match="no run of night on small-mnist before"):
        Question.read(store, b=only)
    with pytest.raises(UsageError, match="two different ones"):
        Question.read(store, only, only)


def test_runs_of_two_tasks_are_not_compared(store, night, accuracies):
    a, b = night(accuracies[0]), night(accuracies[1])
    summary = Summary.read(store.run(a))
    shapes = summary.dataset.model_copy(update={"class_names": ("circle", "square")})
    summary.model_copy(update={"dataset": shapes}).write(store.run(a))
    with pytest.raises(UsageError, match=f"{a} on small-mnist and {b} on .* other classes"):
        Question.read(store, a, b)


def test_a_run_of_a_version_that_recorded_less_is_refused(store, night, accuracies):
    a, b = night(accuracies[0]), night(accuracies[1])
    (store.run(a) / "experiment.json").unlink()
    with pytest.raises(UsageError, match=f"run {a} did not record its experiment in full"):
        Question.read(store, a, b)
    (store.run(b) / "experiment.json").write_text('{"experiment": 3}')
    with pytest.raises(UsageError, match="cannot be understood by this version"):
        Record.read(store.run(b))


def test_a_candidate_under_another_name_stands_for_it_and_is_named(store, night, accuracies):
    night(accuracies[0])
    night(accuracies[1], of=experiment(FAST.model_copy(update={"name": "new"})))
    found = answer(Question.read(store))
    assert (found.a.candidate, found.b.candidate) == ("dense", "new")
    assert "Night A has no score of new" in found.notes[0]
    with pytest.raises(UsageError, match="no candidate 'new'"):
        Question.read(store, candidate="new")


def test_the_source_of_an_own_architecture_is_code(store, night, accuracies, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "own_nets.py"
    module.write_text("def build(images, n_classes): return 1\n")
    own = Candidate(name="own", architecture="own_nets:build")
    night(accuracies[0], of=experiment(own))
    module.write_text("def build(images, n_classes): return 2\n")
    night(accuracies[1], of=experiment(own))
    found = answer(Question.read(store))
    assert steps_of(found)["code"].what == ("source of own_nets:build",)
    assert steps_of(found)["code"].difference == found.difference

    module.write_text("def build(images, n_classes): return 3\n")
    night(accuracies[2], of=experiment(own, seed=2))
    module.write_text("def build(images, n_classes): return 4\n")
    code = steps_of(answer(Question.read(store)))["code"]
    assert "needs the source of own_nets:build as it was in night B" in code.reason
