"""The whole night through Prefect, on a slice of real MNIST: what it leaves, what it reuses."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.settings import PREFECT_API_URL

from flows.evaluate import evaluate
from flows.night import Run
from flows.retrain import retrain
from flows.settings import Settings
from nightfold import runlog, tables
from nightfold.bundle import Bundle
from nightfold.errors import DataRefused, UsageError
from nightfold.experiment import shipped
from nightfold.history import History
from nightfold.registry import Registry
from nightfold.scoretable import Earlier
from nightfold.statistics import score_interval
from nightfold.store import TEMPORARY, Store

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


LIMITS = {
    "min_holdout_accuracy": 0.3,
    "min_class_recall": 0.0,
    "max_class_loss": 1.0,
    "max_ece": 1.0,
    "max_milliseconds": 10_000,
}
"""What a network that saw 600 digits once can keep."""


def lax(experiment: str) -> str:
    for limit, value in LIMITS.items():
        experiment = re.sub(rf"^{limit} = .*$", f"{limit} = {value}", experiment, flags=re.M)
    return experiment


@pytest.fixture(scope="module")
def settings(small_parquet, tmp_path_factory):
    """A function that makes settings of a short night."""
    experiment = tmp_path_factory.mktemp("experiment") / "short.toml"
    experiment.write_text(lax(shipped("experiments", "tutorial.toml").read_text()))

    def make(artifacts, **changes):
        values = {
            "experiment": str(experiment),
            "dataset": f"parquet:{small_parquet}",
            "folds": 2,
            "epochs": 1,
            "candidates": ["baseline", "deep"],
            "runner": "sequential",
            "artifacts": str(artifacts),
        }
        return Settings(**{**values, **changes})

    return make


@pytest.fixture(scope="module")
def night(settings, prefect_server, tmp_path_factory):
    """One night with worker processes: its artifacts folder, summary and final state."""
    artifacts = tmp_path_factory.mktemp("night")
    state = retrain(settings(artifacts, runner="processes", workers=2), return_state=True)
    return artifacts, state.result(), state


def task_runs(state):
    run_id = state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        return client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])), limit=200
        )


def test_it_leaves_everything_the_contract_names(night):
    artifacts, summary, _ = night
    run = Store(artifacts).run(summary.run_id)
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "scores.parquet",
        "histories.parquet",
        "predictions.parquet",
        "verdicts.parquet",
        "foldplan.parquet",
        "validation.json",
        "summary.json",
        "report.html",
        "report.md",
        "figures",
    }
    latest = json.loads((artifacts / "latest.json").read_text())
    assert latest["run_id"] == summary.run_id
    assert Path(latest["path"]) == run
    assert not [p for p in artifacts.rglob("*") if p.name.startswith(TEMPORARY)]


def test_the_nights_after_it_can_learn_from_it(night):
    artifacts, summary, _ = night
    store = Store(artifacts)
    (told,) = History.read(store).nights
    answers = pd.read_parquet(store.run(summary.run_id) / "predictions.parquet")
    right = answers.query("candidate == @summary.best").eval("label == predicted")
    interval = score_interval(right.to_numpy())
    assert told.champion == summary.final.version
    assert (told.champion_score.low, told.champion_score.high) == pytest.approx(interval[1:])
    digests = [facts.digest for facts in summary.candidates]
    assert Earlier.read(store, summary.dataset.name).spread(*digests, n_test=300)[0] == "pair"


def test_its_log_tells_every_fold_and_epoch_from_whatever_process(night):
    artifacts, summary, state = night
    log = Store(artifacts).run(summary.run_id) / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["run_id"] for line in lines} == {summary.run_id}
    assert {line["flow_run_id"] for line in lines} == {str(state.state_details.flow_run_id)}
    places = [(c, 1, f) for c in ("baseline", "deep") for f in (1, 2)]
    for message in ("fold started", "epoch finished", "fold finished"):
        told = [line for line in lines if line["message"] == message and line["fold"]]
        assert sorted((n["candidate"], n["repeat"], n["fold"]) for n in told) == places
        assert {line["task"] for line in told} == {
            f"train {c} repeat {r} fold {f}" for c, r, f in places
        }
    assert lines[-1]["message"] == "Finished in state Completed()"


def test_its_report_says_what_it_takes_on_the_disk(night):
    artifacts, summary, _ = night
    disk = summary.disk
    parts = (disk.runs, disk.models, disk.folds, disk.datasets)
    assert all(parts)
    assert sum(parts) <= disk.total <= sum(p.stat().st_size for p in artifacts.rglob("*"))
    assert disk.free > 0
    folder = Store(artifacts).run(summary.run_id)
    assert f"models {disk.models / 1e6:.1f} MB" in (folder / "report.html").read_text()
    assert f"models {disk.models / 1e6:.1f} MB" in (folder / "report.md").read_text()


def test_tables_have_the_declared_schemas_and_every_row(night):
    artifacts, summary, _ = night
    run = Store(artifacts).run(summary.run_id)
    declared = {
        "scores": (tables.SCORES, 4),
        "histories": (tables.HISTORIES, 4),
        "predictions": (tables.predictions_schema(10), 1200),
        "verdicts": (tables.VERDICTS, 1),
    }
    for name, (schema, n_rows) in declared.items():
        table = pq.read_table(run / f"{name}.parquet")
        assert table.schema.equals(schema)
        assert table.num_rows == n_rows
        assert table.schema.metadata[b"nightfold.run_id"].decode() == summary.run_id


def test_scores_are_those_of_the_out_of_fold_predictions(night):
    artifacts, summary, _ = night
    run = Store(artifacts).run(summary.run_id)
    predictions = pd.read_parquet(run / "predictions.parquet")
    plan = pd.read_parquet(run / "foldplan.parquet")
    merged = predictions.merge(plan, on=["repeat", "row"], suffixes=("", "_planned"))
    assert (merged["fold"] == merged["fold_planned"]).all()
    right = (predictions["predicted"] == predictions["label"]).groupby(
        [predictions["candidate"], predictions["fold"]]
    )
    scores = pd.read_parquet(run / "scores.parquet").set_index(["candidate", "fold"])
    pd.testing.assert_series_equal(
        right.mean().sort_index(), scores["accuracy"].sort_index(), check_names=False
    )


def test_all_nights_read_as_one_table(settings, night):
    artifacts, summary, _ = night
    evaluate(settings(artifacts, candidates=["baseline"]))
    nights = pd.read_parquet(artifacts / "scores")
    assert nights["run_id"].nunique() >= 2
    assert (nights[nights["run_id"] == summary.run_id]["candidate"].value_counts() == 2).all()


def test_a_run_that_goes_on_behind_midnight_is_in_the_table_once(settings, night):
    artifacts, _, _ = night
    again = settings(artifacts, candidates=["baseline"], run_id="late")
    first = evaluate(again)
    (today,) = artifacts.glob("scores/*/late.parquet")
    yesterday = artifacts / "scores" / "run_date=2026-01-01"
    yesterday.mkdir()
    today.rename(yesterday / today.name)
    assert evaluate(again).candidates == first.candidates
    nights = pd.read_parquet(artifacts / "scores")
    assert len(nights[nights["run_id"] == "late"]) == 2


def test_the_promoted_model_predicts_what_it_scored(night, mnist):
    artifacts, summary, _ = night
    assert summary.promotion.promoted
    bundle = Bundle.load(Registry(Store(artifacts)).resolve("champion"))
    probabilities = bundle.predict(mnist.test.images[:50])
    assert probabilities.shape == (50, 10)
    assert bundle.manifest.holdout.accuracy == summary.final.holdout_accuracy > 0.3


def test_the_command_says_what_the_champion_says_and_loads_no_more_than_it_needs(
    night, mnist, tmp_path
):
    artifacts, _, _ = night
    digits = mnist.test.images[:3, :, :, 0]
    files = [tmp_path / f"{number}.png" for number in range(len(digits))]
    for file, digit in zip(files, digits, strict=True):
        Image.fromarray(digit).save(file)
    tell_modules = (
        "import sys; from flows import cli; cli.app(standalone_mode=False); "
        "print(*sys.modules, sep='\\n', file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", tell_modules, "predict", *files, "--json", "--artifacts", artifacts],
        capture_output=True,
        text=True,
        check=True,
    )
    champion = Bundle.load(Registry(Store(artifacts)).resolve("champion"))
    expected = champion.predict(mnist.test.images[:3]).argmax(axis=1)
    assert [answer["predicted"] for answer in json.loads(done.stdout)] == expected.tolist()
    loaded = set(done.stderr.splitlines())
    assert "keras" in loaded
    assert not loaded & {"matplotlib", "pandas", "sklearn", "prefect", "great_expectations"}


def test_runs_are_named_for_what_they_do_and_tagged(night):
    _, _, state = night
    runs = {run.name: run for run in task_runs(state)}
    expected = {f"train {c} repeat 1 fold {f}" for c in ("baseline", "deep") for f in (1, 2)}
    assert expected <= set(runs)
    assert {"train", "candidate:deep"} <= set(runs["train deep repeat 1 fold 2"].tags)


def test_logs_of_worker_processes_are_there_for_the_ui(night):
    _, _, state = night
    ours = LogFilterFlowRunId(any_=[state.state_details.flow_run_id])
    with get_client(sync_client=True) as client:
        messages = [log.message for log in client.read_logs(LogFilter(flow_run_id=ours))]
    for fold in (1, 2):
        assert any(m.startswith(f"deep repeat 1 fold {fold}: accuracy") for m in messages)
    assert any(m.startswith("hold-out accuracy") for m in messages)


def test_artifacts_are_there_for_the_ui(night):
    with get_client(sync_client=True) as client:
        keys = {artifact.key for artifact in client.read_artifacts(limit=200)}
    assert {"report", "scores", "validation", "folds"} <= keys


def test_with_one_candidate_to_choose_the_final_fit_is_the_first_job(settings, tmp_path):
    state = retrain(settings(tmp_path, candidates=["baseline"]), return_state=True)
    began = {run.name: run.start_time for run in task_runs(state)}
    folds = [f"train baseline repeat 1 fold {fold}" for fold in (1, 2)]
    assert began["fit baseline on all rows"] < min(began[fold] for fold in folds)
    assert state.result().final.candidate == "baseline"


def test_a_second_run_takes_every_fold_from_the_cache(settings, night):
    artifacts, summary, _ = night
    state = retrain(settings(artifacts), return_state=True)
    trained = [run for run in task_runs(state) if run.name.startswith("train ")]
    assert {run.state.name for run in trained} == {"Cached"}
    again = state.result()
    assert again.promotion.outcome == "keep"
    assert "is its own recipe, so there is nothing to prove" in again.promotion.reason
    assert [c.accuracy_mean for c in again.candidates] == [
        c.accuracy_mean for c in summary.candidates
    ]


def test_the_champion_defends_its_place_on_folds_that_are_there_already(settings, night):
    """Tonight's only candidate is the other one; while that is undecided a repeat is added."""
    artifacts, first, _ = night
    champion = first.promotion.champion
    (other,) = {"baseline", "deep"} - {first.best}
    (recipe,) = [c for c in first.candidates if c.name == first.best]
    state = retrain(settings(artifacts, candidates=[other]), return_state=True)
    summary = state.result()
    assert (summary.best, summary.guest) == (other, "champion")
    guest = next(c for c in summary.candidates if c.name == "champion")
    assert guest.digest == recipe.digest
    assert summary.promotion.outcome in ("keep", "undecided")
    assert summary.promotion.champion == champion == Registry(Store(artifacts)).champion().version
    assert f"The champion {champion} stays" in summary.promotion.reason
    assert len(Registry(Store(artifacts)).champion().looks) == summary.plan.repeats
    scores = pd.read_parquet(Store(artifacts).run(summary.run_id) / "scores.parquet")
    assert set(scores["candidate"].value_counts()) == {2 * summary.plan.repeats}
    old = pd.read_parquet(Store(artifacts).run(first.run_id) / "scores.parquet")
    once = scores[(scores["candidate"] == "champion") & (scores["repeat"] == 1)]
    assert set(once["started_at"]) == set(old[old["candidate"] == first.best]["started_at"])


def test_a_complete_run_is_not_written_over_by_another(settings, night):
    artifacts, summary, _ = night
    folder = Store(artifacts).run(summary.run_id)

    def left():
        return {
            p: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != runlog.NAME
        }

    before = left()
    for flow, changes in ((retrain, {"epochs": 2}), (evaluate, {})):
        asked = settings(artifacts, run_id=summary.run_id, **changes)
        with pytest.raises(UsageError, match=f"{summary.run_id} is complete already"):
            flow(asked, return_state=True).result()
    assert left() == before
    assert retrain(settings(artifacts, run_id=summary.run_id)).best == summary.best


def test_waiting_for_another_run_is_no_time_of_this_one(settings, tmp_path):
    waiting = Run.begin("evaluate", settings(tmp_path, run_id="late"))
    with waiting.turn() as run:
        assert run.started_at > waiting.started_at


def test_its_log_says_which_gpu_folds_train_on(settings, night, monkeypatch):
    artifacts, _, _ = night
    monkeypatch.setattr("nightfold.gpu.sentence", lambda: "Folds train on the GPU (NVIDIA H200).")
    summary = evaluate(settings(artifacts, candidates=["baseline"]))
    assert "(NVIDIA H200)" in (Store(artifacts).run(summary.run_id) / "log.jsonl").read_text()


def test_a_cached_fold_whose_files_are_gone_is_trained_again(settings, night):
    artifacts, summary, _ = night
    jobs = json.loads((artifacts / "runs" / summary.run_id / "jobs.json").read_text())
    (Path(jobs[0]["folder"]) / "probabilities.npy").unlink()
    state = evaluate(settings(artifacts), return_state=True)
    states = [run.state.name for run in task_runs(state) if run.name.startswith("train ")]
    assert sorted(states) == ["Cached", "Cached", "Cached", "Completed"]
    assert state.result().candidates == tuple(
        c.model_copy(update={"train_seconds": a.train_seconds})
        for c, a in zip(summary.candidates, state.result().candidates, strict=True)
    )


def test_scores_do_not_depend_on_the_runner(settings, night, tmp_path):
    """Promise 1: whatever the order and the workers."""
    _, summary, _ = night
    deep = next(c for c in summary.candidates if c.name == "deep")
    for runner in ("threads", "sequential"):
        alone = settings(tmp_path / runner, runner=runner, workers=2, candidates=["deep"])
        (other,) = evaluate(alone).candidates
        assert (other.accuracy_mean, other.log_loss_mean) == (
            deep.accuracy_mean,
            deep.log_loss_mean,
        )


def test_a_fold_in_two_parts_leaves_the_scores_of_one_in_one_go(settings, tmp_path, monkeypatch):
    """Five folds on two workers; building a network again shall cost nothing here."""
    asked = {"candidates": ["baseline"], "folds": 5, "epochs": 2}
    whole = evaluate(settings(tmp_path / "whole", **asked))
    monkeypatch.setattr("nightfold.waiting.REBUILD", 0.0)
    state = evaluate(
        settings(tmp_path / "parted", runner="processes", workers=2, **asked), return_state=True
    )
    parted = state.result()
    assert parted.candidates == tuple(
        c.model_copy(update={"train_seconds": p.train_seconds})
        for c, p in zip(whole.candidates, parted.candidates, strict=True)
    )
    log = (Store(tmp_path / "parted").run(parted.run_id) / "log.jsonl").read_text()
    assert log.count("fold put aside") == log.count("fold started") - 5 > 0
    names = [run.name for run in task_runs(state)]
    assert any(re.fullmatch(r"begin baseline repeat 1 fold \d to epoch 1", n) for n in names)


def test_refused_data_fails_the_run_once_and_names_the_rows(settings, tmp_path):
    """What the user must mend is not retried."""
    import pyarrow as pa

    for split in ("train", "test"):
        table = pq.read_table(shipped("data", "mnist", f"{split}.parquet")).slice(0, 200)
        if split == "train":
            labels = table["label"].to_numpy().copy()
            labels[17] = 12
            table = table.set_column(1, table.schema.field("label"), pa.array(labels))
        pq.write_table(table, tmp_path / f"{split}.parquet")
    broken = settings(tmp_path / "a", dataset=f"parquet:{tmp_path}")
    state = evaluate(broken, return_state=True)
    assert state.is_failed()
    assert isinstance(state.result(raise_on_failure=False), DataRefused)
    assert "17 (" in state.message
    names = [run.name for run in task_runs(state)]
    assert len(names) == len(set(names))
    assert not (tmp_path / "a" / "latest.json").exists()


def test_a_floor_for_a_class_that_there_is_not_is_refused_before_any_fold(settings, tmp_path):
    shipped_text = lax(shipped("experiments", "tutorial.toml").read_text())
    experiment = tmp_path / "experiment.toml"
    experiment.write_text(
        shipped_text.replace("[policy]", "[policy]\nclass_floors = { seven = 0.5 }", 1)
    )
    state = retrain(settings(tmp_path / "a", experiment=str(experiment)), return_state=True)
    with pytest.raises(UsageError, match="class_floors name 'seven', and the classes are 0, 1"):
        state.result()
    assert not (tmp_path / "a" / "folds").exists()


def test_a_network_that_cannot_be_sealed_is_refused_before_any_fold(
    settings, tmp_path, monkeypatch
):
    (tmp_path / "unsealable.py").write_text(
        "from keras import layers\n"
        "def doubled(images, n_classes):\n"
        "    x = layers.Lambda(lambda pixels: 2 * pixels)(images)\n"
        "    return layers.Dense(n_classes, activation='softmax')(layers.Flatten()(x))\n"
    )
    experiment = tmp_path / "experiment.toml"
    experiment.write_text(
        'name = "own"\ndataset = {source = "mnist"}\nplan = {folds = 2}\n'
        '[[candidates]]\nname = "doubled"\narchitecture = "unsealable:doubled"\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = settings(tmp_path / "a", experiment=str(experiment), candidates=None)
    state = retrain(own, return_state=True)
    assert state.is_failed()
    assert "could not be published after its training: " in state.message
    assert "holds the layer Lambda" in state.message
    names = [run.name for run in task_runs(state)]
    assert "rehearse doubled" in names
    assert not [name for name in names if name.startswith("train")]


def start(settings):
    values = settings.model_dump()
    code = (
        "from flows.evaluate import evaluate; from flows.settings import Settings\n"
        f"if __name__ == '__main__': evaluate(Settings(**{values!r}))"
    )
    script = Path(settings.artifacts).with_suffix(".py")
    script.write_text(code)
    # The server of the tests: one of its own would outlive a killed flow.
    environment = {**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value()}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, str(script)], env=environment, **quiet)


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


def copied(flow):
    """The process that the workers are copies of."""
    children = psutil.Process(flow.pid).children()
    return next(child for child in children if "forkserver" in " ".join(child.cmdline()))


def workers_of(flow):
    return copied(flow).children()


LONG = {"epochs": 10, "candidates": ["deep"]}
"""Seconds of training behind the first epoch, so that what is killed is in the middle of a fold."""


@pytest.fixture(scope="module")
def undisturbed(settings, prefect_server, tmp_path_factory):
    summary = evaluate(settings(tmp_path_factory.mktemp("calm") / "a", **LONG))
    return [(c.accuracy_mean, c.log_loss_mean) for c in summary.candidates]


def test_workers_die_with_their_flow_and_the_next_run_finishes_alike(
    settings, undisturbed, tmp_path
):
    """Promise 2, for a flow that is killed behind the first epoch of a fold."""
    artifacts = tmp_path / "a"
    flow = start(settings(artifacts, runner="processes", workers=2, **LONG))
    wait_for(lambda: list(artifacts.glob("folds/*/checkpoint.npz")))
    workers = workers_of(flow)
    flow.kill()
    flow.wait()
    assert workers
    assert list(artifacts.glob("folds/*/checkpoint.npz"))
    wait_for(lambda: not any(worker.is_running() for worker in workers), seconds=5)

    summary = evaluate(settings(artifacts, **LONG))
    assert [(c.accuracy_mean, c.log_loss_mean) for c in summary.candidates] == undisturbed


@pytest.mark.parametrize("killed", ["a worker", "what workers are copies of"])
def test_a_killed_process_breaks_the_pool_and_the_flow_retries(
    settings, undisturbed, tmp_path, killed
):
    artifacts = tmp_path / "a"
    flow = start(settings(artifacts, runner="processes", workers=2, **LONG))
    wait_for(lambda: list(artifacts.glob("folds/*/checkpoint.npz")))
    workers = workers_of(flow)
    (workers[-1] if killed == "a worker" else copied(flow)).kill()
    wait_for(lambda: not any(worker.is_running() for worker in workers), seconds=20)
    assert flow.wait(timeout=240) == 0
    scores = pd.read_parquet(artifacts / "scores")
    assert [(scores["accuracy"].mean(), scores["log_loss"].mean())] == undisturbed
