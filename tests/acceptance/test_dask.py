"""Folds on a Dask cluster: a real scheduler and two worker processes give the same scores."""

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

from flows.evaluate import evaluate
from flows.settings import Settings
from nightfold.errors import UsageError

pytest.importorskip("prefect_dask")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(bench, free_port):
    """Where the scheduler listens; two workers of one thread each have joined it."""
    from distributed import Client

    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    bench.start("dask", "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
    for _ in range(2):
        bench.start("dask", "worker", address, "--nthreads", "1", "--no-dashboard")
    with Client(address, timeout=60) as client:
        client.wait_for_workers(2, timeout=60)
    return address


@pytest.fixture
def settings(small_parquet):
    def make(artifacts, **changes):
        return Settings(
            experiment="tutorial",
            dataset=f"parquet:{small_parquet}",
            limit=300,
            folds=3,
            epochs=1,
            candidates=["baseline", "deep"],
            artifacts=str(artifacts),
            **changes,
        )

    return make


def test_scores_are_those_of_one_fold_after_the_other(address, settings, tmp_path):
    """Promise 1: whatever the order and the workers."""
    alone = evaluate(settings(tmp_path / "alone", runner="sequential"))
    state = evaluate(settings(tmp_path / "dask", runner="dask", address=address), return_state=True)
    spread = state.result()
    for one, other in zip(alone.candidates, spread.candidates, strict=True):
        assert one.name == other.name
        assert (one.accuracy_mean, one.log_loss_mean) == (other.accuracy_mean, other.log_loss_mean)

    ours = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
    with get_client(sync_client=True) as client:
        steps = {step.name: step for step in client.read_task_runs(flow_run_filter=ours)}
    assert "candidate:deep" in steps["train deep repeat 1 fold 3"].tags


def test_a_scheduler_that_does_not_answer_is_named(bench, settings, free_port, tmp_path):
    nobody = f"tcp://127.0.0.1:{free_port()}"
    state = evaluate(settings(tmp_path, runner="dask", address=nobody), return_state=True)
    assert isinstance(state.result(raise_on_failure=False), UsageError)
    assert nobody in state.message
