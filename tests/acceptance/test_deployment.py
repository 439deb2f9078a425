"""Retraining as its users run it: a server, a pool, deployments, a worker; read as the UI does."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from prefect.cli.deploy._models import (
    ConcurrencyLimitSpec,
    DeploymentConfig,
    PrefectYamlModel,
    RawScheduleConfig,
    WorkPoolConfig,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.exceptions import PrefectHTTPStatusError

from flows.settings import Settings
from nightfold.experiment import shipped

slow = pytest.mark.slow
DECLARED = yaml.safe_load(shipped("prefect.yaml").read_text())
BY_NAME = {f"retrain/{one['name']}": one for one in DECLARED["deployments"]}


def unknown(given, model):
    """Keys that Prefect would ignore without a word."""
    return set(given) - {field.alias or name for name, field in model.model_fields.items()}


def test_prefect_knows_every_key_of_prefect_yaml():
    assert not unknown(DECLARED, PrefectYamlModel)
    for deployment in DECLARED["deployments"]:
        assert not unknown(deployment, DeploymentConfig)
        assert not unknown(deployment["work_pool"], WorkPoolConfig)
        assert not unknown(deployment["concurrency_limit"], ConcurrencyLimitSpec)
        for schedule in deployment.get("schedules", []):
            assert not unknown(schedule, RawScheduleConfig)


def test_every_deployment_has_settings_that_the_flow_takes():
    for deployment in DECLARED["deployments"]:
        assert set(deployment["parameters"]) == {"settings"}
        Settings(**deployment["parameters"]["settings"]).load()


@pytest.fixture(scope="module")
def deployed(bench):
    """The server after the pool was made and everything deployed."""
    bench.prefect("work-pool", "create", "nightfold", "--type", "process")
    bench.prefect("deploy", "--all")
    return bench


@pytest.fixture(scope="module")
def on_demand(deployed, small_parquet, tmp_path_factory):
    """A finished run that a worker has taken from the pool, and its artifacts folder."""
    artifacts = tmp_path_factory.mktemp("artifacts")
    settings = {
        "dataset": f"parquet:{small_parquet}",
        "limit": 300,
        "folds": 2,
        "epochs": 1,
        "candidates": ["baseline"],
        "workers": 2,
        "artifacts": str(artifacts),
    }
    parameter = f"settings={json.dumps(settings)}"
    deployed.prefect("deployment", "run", "retrain/on-demand", "--param", parameter)
    deployed.start("prefect", "worker", "start", "--pool", "nightfold")

    def the_run():
        (run,) = runs_of("retrain/on-demand")
        return run

    deployed.wait_until(lambda: the_run().state.is_final(), "the end of the run", 300)
    run = the_run()
    assert run.state_name == "Completed", deployed.tell()
    return run, artifacts


def read_deployment(name):
    with get_client(sync_client=True) as client:
        return client.read_deployment_by_name(name)


def runs_of(name):
    ours = DeploymentFilter(id=DeploymentFilterId(any_=[read_deployment(name).id]))
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(deployment_filter=ours)


@slow
@pytest.mark.parametrize("name", BY_NAME)
def test_deployments_arrive_as_they_are_written(deployed, name):
    deployment, written = read_deployment(name), BY_NAME[name]
    assert deployment.entrypoint == written["entrypoint"]
    assert deployment.description == written["description"]
    assert deployment.tags == written["tags"]
    assert deployment.work_pool_name == "nightfold"
    assert deployment.global_concurrency_limit.limit == 1
    assert deployment.concurrency_options.collision_strategy == "ENQUEUE"


@slow
def test_runs_start_in_the_checkout_that_was_deployed_from(deployed):
    (step,) = read_deployment("retrain/nightly").pull_steps
    assert step == {
        "prefect.deployments.steps.set_working_directory": {"directory": str(shipped())}
    }


@slow
def test_the_schedule_creates_runs_for_the_nights_to_come(deployed):
    deployed.wait_until(lambda: runs_of("retrain/nightly"), "a scheduled run", 60)
    runs = runs_of("retrain/nightly")
    times = sorted(run.expected_start_time.astimezone(UTC) for run in runs)
    assert {run.state_name for run in runs} == {"Scheduled"}
    assert {f"{time:%H:%M:%S}" for time in times} == {"02:00:00"}
    assert times[0] - datetime.now(UTC) <= timedelta(days=1)


@slow
def test_the_form_has_every_setting_and_refuses_a_misspelt_one(deployed):
    deployment = read_deployment("retrain/on-demand")
    form = deployment.parameter_openapi_schema["definitions"]["Settings"]
    assert set(form["properties"]) == set(Settings.model_fields)
    misspelt = {"settings": {"epoch": 1}}
    with (
        get_client(sync_client=True) as client,
        pytest.raises(PrefectHTTPStatusError, match="epoch"),
    ):
        client.create_flow_run_from_deployment(deployment.id, parameters=misspelt)


@slow
def test_a_worker_runs_the_night_and_leaves_it_on_disk(on_demand):
    run, artifacts = on_demand
    latest = json.loads((artifacts / "latest.json").read_text())
    assert latest["run_id"].endswith(run.id.hex[:6])
    left = {path.name for path in Path(latest["path"]).iterdir()}
    assert {"scores.parquet", "report.html", "summary.json"} <= left
    assert (artifacts / "models" / "champion.json").exists()


@slow
def test_the_ui_shows_steps_by_name_and_tag(on_demand):
    run, _ = on_demand
    assert run.name == "retrain night"
    assert {"nightfold", "on-demand"} <= set(run.tags)
    ours = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
    with get_client(sync_client=True) as client:
        steps = {step.name: step for step in client.read_task_runs(flow_run_filter=ours)}
    assert {f"train baseline repeat 1 fold {fold}" for fold in (1, 2)} <= set(steps)
    assert {"train", "candidate:baseline"} <= set(steps["train baseline repeat 1 fold 2"].tags)
    assert {step.state_name for step in steps.values()} == {"Completed"}


@slow
def test_the_ui_shows_report_scores_and_validation(on_demand):
    run, _ = on_demand
    ours = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
    with get_client(sync_client=True) as client:
        found = {one.key: one for one in client.read_artifacts(artifact_filter=ours)}
    assert {"report", "scores", "validation", "folds"} <= set(found)
    assert found["report"].type == "markdown"
    assert "baseline" in found["report"].data
    assert found["scores"].type == "table"
    assert "baseline" in json.dumps(json.loads(found["scores"].data))


@slow
def test_a_cancelled_run_ends_soon_and_leaves_no_process(
    on_demand, deployed, processes_of, small_parquet, tmp_path
):
    settings = {
        "dataset": f"parquet:{small_parquet}",
        "epochs": 5000,
        "candidates": ["baseline"],
        "artifacts": str(tmp_path),
    }
    with get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(
            read_deployment("retrain/on-demand").id, parameters={"settings": settings}
        )
        deployed.wait_until(lambda: [*tmp_path.glob("folds/*/checkpoint.npz")], "an epoch", 200)
        assert processes_of(run)
        deployed.prefect("flow-run", "cancel", str(run.id))
        deployed.wait_until(lambda: client.read_flow_run(run.id).state.is_final(), "the end", 60)
        assert client.read_flow_run(run.id).state_name == "Cancelled"
    deployed.wait_until(lambda: not processes_of(run), "the end of its processes", 30)
