"""A night with a hopeless candidate, on real digits: it is stopped, and nothing is said of it."""

import json
import re

import pandas as pd
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

from flows.evaluate import evaluate
from flows.retrain import retrain
from flows.settings import Settings
from nightfold.experiment import RacingChoice
from nightfold.history import History
from nightfold.registry import Registry
from nightfold.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

RULE = """
[racing]
min_folds = 3
probability = 0.05
difference = 0.001
"""
POLICY = """
[policy]
metric = "accuracy"
rope = 0.001
probability = 0.95
max_repeats = 1
min_holdout_accuracy = 0.0
min_class_recall = 0.0
max_class_loss = 1.0
max_ece = 1.0
max_megabytes = 50
max_milliseconds = 10_000
"""
CANDIDATE = """
[[candidates]]
name = "{name}"
architecture = "dense"
epochs = 3
optimizer = {{ name = "sgd", learning_rate = {rate}, momentum = 0.9 }}
"""
RATES = {"lost": 1e-6, "good": 0.05, "other": 0.03}
NUMBERS = ["mean_difference", "interval_low", "interval_high", "t_corrected", "p_corrected"]
NUMBERS += ["p_holm", "p_worse", "p_equivalent", "p_better", "mcnemar_p"]
DECIDED = ["candidate_a", "candidate_b", "verdict", "sentence", "mean_difference"]


@pytest.fixture(scope="module")
def settings(small_parquet, tmp_path_factory):
    """A function that makes settings of a race over learning rates."""
    experiment = tmp_path_factory.mktemp("experiment") / "rates.toml"
    candidates = "".join(CANDIDATE.format(name=n, rate=r) for n, r in RATES.items())
    experiment.write_text(POLICY + RULE + candidates)

    def make(artifacts, **changes):
        values = {
            "experiment": str(experiment),
            "dataset": f"parquet:{small_parquet}",
            "runner": "sequential",
            "artifacts": str(artifacts),
        }
        return Settings(**{**values, **changes})

    return make


@pytest.fixture(scope="module")
def night(settings, prefect_server, tmp_path_factory):
    """One night with two workers: its artifacts, its summary and its tables."""
    artifacts = tmp_path_factory.mktemp("race")
    summary = retrain(settings(artifacts, runner="processes", workers=2))
    return artifacts, summary, tables(artifacts, summary)


def tables(artifacts, summary):
    run = Store(artifacts).run(summary.run_id)
    return {
        name: pd.read_parquet(run / f"{name}.parquet")
        for name in ("scores", "histories", "predictions", "verdicts")
    }


def trained(state):
    with get_client(sync_client=True) as client:
        ours = FlowRunFilterId(any_=[state.state_details.flow_run_id])
        runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=ours), limit=200)
    return [run for run in runs if run.name.startswith("train ")]


def test_the_hopeless_is_stopped_after_the_declared_folds(night):
    _, summary, found = night
    assert [c.name for c in summary.candidates] == ["good", "other"]
    (stopped,) = summary.stopped
    assert (stopped.name, stopped.n) == ("lost", 3)
    assert "stopped after 3 folds by the racing rule" in stopped.reason
    assert summary.racing == RacingChoice(min_folds=3, probability=0.05, difference=0.001)
    assert found["scores"]["candidate"].value_counts().to_dict() == {
        "lost": 3,
        "good": 5,
        "other": 5,
    }


def test_its_folds_stay_in_every_table_because_they_are_facts(night):
    _, _, found = night
    for name in ("scores", "histories", "predictions"):
        rows = found[name][found[name]["candidate"] == "lost"]
        assert sorted(rows["fold"].unique()) == [1, 2, 3]


def test_a_pair_with_it_is_stopped_and_has_no_number(night):
    _, _, found = night
    verdicts = found["verdicts"].set_index(["candidate_a", "candidate_b"])
    assert verdicts.loc[("good", "other"), "verdict"] != "stopped"
    for pair in (("lost", "good"), ("lost", "other")):
        row = verdicts.loc[pair]
        assert (row["verdict"], row["n_pairs"]) == ("stopped", 3)
        assert row[NUMBERS].isna().all()
        assert "after 3 folds" in row["sentence"]


def test_nowhere_is_there_a_mean_of_it(night):
    """Neither under a name of its own nor as a number: in no file that people or programs read."""
    artifacts, summary, found = night
    lost = found["scores"].query("candidate == 'lost'")
    means = {f"{100 * lost[c].mean():.3f}" for c in ("accuracy", "log_loss")} | {
        f"{lost[c].mean():.{digits}f}" for c in ("accuracy", "log_loss") for digits in (4, 6)
    }
    run = Store(artifacts).run(summary.run_id)
    document = json.loads((run / "summary.json").read_text())
    assert not [key for key in document["stopped"][0] if "accuracy" in key or "loss" in key]
    files = [run / "summary.json", run / "report.md", run / "report.html"]
    files += [artifacts / "latest.json", artifacts / "models" / "champion.json"]
    for file in files:
        text = file.read_text()
        # A fold's own score may look like the mean by chance; the table of folds is of facts.
        text = re.sub(r"(?s)## Folds.*|<h2 id=\"folds\">.*?</table>|<svg.*?</svg>", "", text)
        assert not [mean for mean in means if mean in text], file.name
    told = History.read(Store(artifacts)).model_dump_json()
    assert "lost" not in told


def test_the_report_says_who_was_stopped_and_by_which_rule(night):
    artifacts, summary, _ = night
    run = Store(artifacts).run(summary.run_id)
    for name in ("report.md", "report.html"):
        text = (run / name).read_text()
        assert "after 3 of 5 folds" in text
        assert "Racing, declared before the run: after 3 folds of every candidate" in text


def test_the_final_model_and_the_champion_are_of_one_that_was_not_stopped(night):
    artifacts, summary, _ = night
    assert summary.best == summary.final.candidate != "lost"
    assert Registry(Store(artifacts)).champion().version == summary.final.version


def test_a_second_run_trains_nothing_and_decides_the_same(settings, night):
    artifacts, summary, found = night
    state = retrain(settings(artifacts), return_state=True)
    runs = trained(state)
    assert {run.state.name for run in runs} == {"Cached"}
    assert len(runs) == 13
    again = state.result()
    assert (again.stopped, again.candidates) == (summary.stopped, summary.candidates)
    verdicts = tables(artifacts, again)["verdicts"]
    pd.testing.assert_frame_equal(verdicts[DECIDED], found["verdicts"][DECIDED])


def test_one_worker_decides_as_two_do(settings, night, tmp_path):
    """Promise 1, with rounds."""
    _, summary, found = night
    alone = evaluate(settings(tmp_path))
    assert [(s.name, s.n, s.reason) for s in alone.stopped] == [
        (s.name, s.n, s.reason) for s in summary.stopped
    ]
    same = tables(tmp_path, alone)
    columns = ["candidate", "repeat", "fold", "accuracy", "log_loss"]
    pd.testing.assert_frame_equal(same["scores"][columns], found["scores"][columns])
    pd.testing.assert_frame_equal(same["verdicts"][DECIDED], found["verdicts"][DECIDED])


def test_the_champions_recipe_is_never_stopped(settings, tmp_path):
    """However hopeless it is, as a candidate of the night or as its guest."""
    first = retrain(settings(tmp_path, candidates=["lost"]))
    own = retrain(settings(tmp_path))
    Registry(Store(tmp_path)).promote(first.final.version, "To defend its place once more.")
    guest = retrain(settings(tmp_path, candidates=["good", "other"]))
    assert (own.guest, guest.guest) == (None, "champion")
    assert {c.name: c.n for c in own.candidates}["lost"] == 5
    assert {c.name: c.n for c in guest.candidates}["champion"] == 5
