"""One night, told in sentences that the flows share: begin, cross-validate, publish."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from prefect import get_run_logger, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRunPolicy, State
from prefect.states import Failed
from prefect.task_runners import TaskRunner

from flows import logs
from flows.settings import Settings
from nightfold import gpu, lock, signature
from nightfold.dataset import DatasetHandle
from nightfold.errors import NightfoldError
from nightfold.experiment import Experiment
from nightfold.finaljob import Ahead, FinalJob
from nightfold.foldplan import PlanHandle
from nightfold.foldresult import FoldHandle, FoldJob
from nightfold.racing import Race, Stop
from nightfold.record import Record
from nightfold.runlog import RunLog
from nightfold.store import Store, make_folder, write_json
from nightfold.summary import (
    CandidateFacts,
    DatasetFacts,
    DiskFacts,
    FinalFacts,
    PlanFacts,
    PromotionFacts,
    StoppedFacts,
    Summary,
    installed,
    refuse_another,
)
from nightfold.zoo import is_own
from tasks.aggregate import aggregate
from tasks.challenge import Contest, challenge, may_repeat
from tasks.compare import compare
from tasks.defend import Defence, defend
from tasks.hand_out import announce, train_all
from tasks.ingest import ingest
from tasks.race import accuracies, race
from tasks.rehearse import rehearse
from tasks.report import report
from tasks.scale import FittedScalers, scale
from tasks.split import split
from tasks.validate import validate


@dataclass(frozen=True)
class Run:
    """One execution of a flow: what was asked, under which name, since when."""

    flow: Literal["evaluate", "retrain"]
    settings: Settings
    experiment: Experiment
    run_id: str
    store: Store
    started_at: datetime

    @classmethod
    def begin(cls, flow: Literal["evaluate", "retrain"], settings: Settings) -> Run:
        """Read the experiment and name the run.

        The name comes from Prefect's flow run, so a retry of the flow continues the same run.
        """
        if flow == "retrain":
            signature.check_settings()
        scheduled = runtime.flow_run.scheduled_start_time or datetime.now(UTC)
        run_id = settings.run_id or (
            f"{scheduled:%Y%m%d-%H%M%S}-{str(runtime.flow_run.id or '').replace('-', '')[:6]}"
        )
        return cls(
            flow=flow,
            settings=settings,
            experiment=settings.load(),
            run_id=run_id,
            store=Store(settings.artifacts),
            started_at=datetime.now(UTC),
        )

    @contextmanager
    def turn(self) -> Iterator[Run]:
        """Have the artifacts folder alone, swept of what killed runs have left, and write there.

        Yields
        ------
        Run
            This one, begun now: its time does not count how long it had to wait.
        """
        advice = ", wait longer (--wait MINUTES), or choose another folder (--artifacts)"
        minutes = self.settings.wait
        with lock.alone(self.store, self.run_id, minutes=minutes, tell=tell, advice=advice):
            self.store.sweep()
            make_folder(self.folder)
            logs.keep(self.log)
            if (device := gpu.sentence()) is not None:
                tell(device)
            yield replace(self, started_at=datetime.now(UTC))

    @property
    def folder(self) -> Path:
        """The run's folder under the artifacts."""
        return self.store.run(self.run_id)

    @property
    def log(self) -> RunLog:
        """Where the flow and its folds leave their lines."""
        return RunLog(folder=str(self.folder), flow_run_id=runtime.flow_run.id)

    @property
    def artifacts(self) -> str:
        """The artifacts folder, absolute: workers may have another working directory."""
        return str(self.store.root)

    @property
    def workers(self) -> int:
        """Folds trained at once."""
        return self.settings.n_workers


@dataclass(frozen=True)
class Prepared:
    """Sound data, cut into folds, with a scaling for each, who is scored on them, by which code."""

    dataset: DatasetHandle
    plan: PlanHandle
    scalers: FittedScalers
    defence: Defence
    record: Record

    @property
    def experiment(self) -> Experiment:
        """Tonight's, as it is run: with the champion's recipe and the repeats that were added."""
        return self.defence.experiment

    def jobs(self, run: Run) -> list[FoldJob]:
        """Every fold of every candidate, in the order of the experiment and the plan."""
        return [
            FoldJob(
                candidate=candidate,
                dataset=self.dataset,
                plan=self.plan,
                scaler=self.scalers.of(candidate.scaling, repeat, fold),
                repeat=repeat,
                fold=fold,
                seed=run.experiment.seed,
                artifacts=run.artifacts,
                source=self.record.sources[candidate.architecture],
                log=run.log,
            )
            for candidate in self.experiment.candidates
            for repeat in range(1, self.plan.repeats + 1)
            for fold in range(1, self.plan.folds + 1)
        ]

    @property
    def race(self) -> Race:
        """Who races by which rule; the champion's recipe is never stopped."""
        guest = self.defence.guest_name
        return Race(
            rule=self.experiment.racing,
            runners=tuple(c.name for c in self.experiment.candidates if c.name != guest),
            kept=self.defence.candidate,
            total=self.plan.folds * self.plan.repeats,
        )

    def final_job(self, run: Run, name: str) -> FinalJob:
        """The fit of one of the experiment's own candidates on all rows."""
        candidate = run.experiment.candidate(name)
        return FinalJob(
            candidate=candidate,
            dataset=self.dataset,
            plan=self.plan,
            scaler=self.scalers.final[candidate.scaling],
            seed=run.experiment.seed,
            run_id=run.run_id,
            artifacts=run.artifacts,
            source=self.record.sources[candidate.architecture],
            h5=run.settings.h5,
            log=run.log,
        )


@dataclass(frozen=True)
class CrossValidation:
    """What the evaluation leaves for the steps after it."""

    data: Prepared
    folds: list[FoldHandle]
    candidates: list[CandidateFacts]
    stopped: list[StoppedFacts]

    @property
    def best(self) -> CandidateFacts:
        """The experiment's own candidate with the highest mean accuracy; the first among equals.

        One that was stopped has no mean and is never it.
        """
        own = (facts for facts in self.candidates if facts.name != self.guest)
        return max(own, key=lambda facts: facts.accuracy_mean)

    @property
    def guest(self) -> str | None:
        """The candidate that runs only because it is the champion's recipe."""
        return self.data.defence.guest_name

    def accuracies(self, candidate: str) -> tuple[float, ...]:
        """Accuracy of every fold of one candidate, in the order of the plan."""
        return accuracies(self.folds, candidate)


def prepare(run: Run) -> Prepared:
    """From the source to folds that may be trained; in a `retrain` the champion takes part."""
    experiment = run.experiment
    dataset = ingest(experiment.dataset, run.artifacts)
    refuse_another(run.folder, flow=run.flow, experiment=experiment.digest, dataset=dataset.digest)
    if experiment.policy is not None:
        experiment.policy.require_known(dataset.open().class_names)
    validate(dataset, experiment.validation, experiment.plan.folds, str(run.folder))
    defence = Defence(experiment=experiment)
    if run.flow == "retrain":
        defence = defend(experiment, dataset, run.run_id, run.artifacts)
    if defence.problem:
        tell(f"The champion cannot be compared, so nothing will be promoted: {defence.problem}")
    return cut(run, dataset, defence)


def cut(run: Run, dataset: DatasetHandle, defence: Defence) -> Prepared:
    """Rows to folds, and a scaling for each."""
    experiment = defence.experiment
    plan = split(dataset, experiment.plan, run.artifacts)
    scalings = [candidate.scaling for candidate in experiment.candidates]
    scalers = scale(dataset, plan, scalings, str(run.folder))
    return Prepared(dataset, plan, scalers, defence, Record.of(experiment))


def rehearse_own(run: Run, data: Prepared, runner: TaskRunner[Any]) -> None:
    """Try on the workers whether networks of the user's own could be published at all."""
    own = [c for c in run.experiment.candidates if is_own(c.architecture)]
    beside = [candidate.architecture for candidate in own]
    jobs = [data.final_job(run, candidate.name) for candidate in own]
    for future in [runner.submit(rehearse, {"job": job, "beside": beside}) for job in jobs]:
        future.result()


def with_another_repeat(run: Run, data: Prepared) -> Prepared:
    """The same with one repeat more; folds of the repeats so far need no training."""
    experiment = data.experiment.overridden(repeats=data.plan.repeats + 1)
    return cut(run, data.dataset, data.defence.model_copy(update={"experiment": experiment}))


def contest(run: Run, data: Prepared, runner: TaskRunner[Any]) -> tuple[CrossValidation, Contest]:
    """Cross-validate, and repeat while it is undecided whether the champion is beaten."""
    begun: set[str] = set()
    while True:
        scored = cross_validate(run, data, runner, begun)
        found = challenge(
            str(run.folder),
            scored.best.name,
            data.defence,
            data.dataset,
            data.plan,
            run.artifacts,
        )
        if not may_repeat(found, run.experiment.policy, data.plan):
            return scored, found
        data = with_another_repeat(run, data)


def cross_validate(
    run: Run, data: Prepared, runner: TaskRunner[Any], begun: set[str] | None = None
) -> CrossValidation:
    """From folds to the tables of the run.

    Parameters
    ----------
    run : Run
    data : Prepared
    runner : TaskRunner
    begun : set of str, optional
        Candidates whose final fit was begun, to which is added; without it none is.
    """
    folds, stops = train_folds(run, data, runner, begun)
    candidates, stopped = aggregate(
        folds,
        data.experiment,
        data.dataset,
        data.plan,
        run_id=run.run_id,
        started_at=run.started_at,
        artifacts=run.artifacts,
        stops=stops,
    )
    compare(str(run.folder), **run.experiment.verdict, stops=stops)
    return CrossValidation(data, folds, candidates, stopped)


def train_folds(
    run: Run, data: Prepared, runner: TaskRunner[Any], begun: set[str] | None
) -> tuple[list[FoldHandle], tuple[Stop, ...]]:
    """Every fold of every candidate, in rounds if some may be stopped; and who was.

    Returns
    -------
    folds : list of FoldHandle
        In the order of the experiment and the plan, whatever the rounds were.
    stops : tuple of Stop
    """
    jobs, standing = data.jobs(run), data.race
    done: dict[str, FoldHandle] = {}
    while True:
        jobs = [j for j in jobs if j.label in done or j.candidate.name not in standing.stopped]
        due = [job for job in jobs if standing.wants(job.candidate.name, job.place)]
        announce(jobs, run.folder)
        last_round = standing.until == standing.total
        handles = train_all(
            runner,
            due,
            run.settings.at_once,
            earlier=list(done.values()),
            total=len(jobs),
            final=None
            if begun is None or not last_round
            else Ahead(standing, partial(data.final_job, run), begun),
        )
        done |= {job.label: handle for job, handle in zip(due, handles, strict=True)}
        folds = [done[job.label] for job in jobs if job.label in done]
        if last_round:
            return folds, standing.stops
        standing = race(standing, folds, data.plan)


def publish(
    run: Run,
    scored: CrossValidation,
    final: FinalFacts | None = None,
    promotion: PromotionFacts | None = None,
) -> Summary:
    """Write the summary and the report, then point ``latest.json`` to the run."""
    data = scored.data
    data.record.write(run.folder)
    summary = Summary(
        run_id=run.run_id,
        flow=run.flow,
        experiment=run.experiment.name,
        experiment_description=run.experiment.description,
        experiment_digest=run.experiment.digest,
        started_at=run.started_at,
        finished_at=datetime.now(UTC),
        host=platform.node(),
        processors=os.cpu_count() or 1,
        workers=run.workers,
        runner=run.settings.runner,
        versions=installed(),
        dataset=DatasetFacts.of(data.dataset.open()),
        plan=PlanFacts.of(data.experiment.plan, data.plan.digest),
        candidates=tuple(scored.candidates),
        stopped=tuple(scored.stopped),
        racing=run.experiment.racing,
        best=scored.best.name,
        guest=scored.guest,
        final=final,
        promotion=promotion,
        disk=DiskFacts.of(run.store),
    )
    summary.write(run.folder)
    report(str(run.folder))
    latest = {
        "run_id": run.run_id,
        "path": str(run.folder),
        "finished_at": summary.finished_at.isoformat(),
    }
    write_json(run.store.latest, latest)
    return summary


def tell(sentence: str) -> None:
    """To the run's log, and to whoever sits before it: Prefect keeps logs off the terminal."""
    get_run_logger().info(sentence)
    print(sentence, file=sys.stderr, flush=True)


def refuse(error: NightfoldError) -> State[Any]:
    """The final state of a run that waits for the user: failed, and not tried again.

    Prefect retries a flow whatever made it fail, so what was promised to this run is taken back.
    """
    with get_client(sync_client=True) as client:
        client.update_flow_run(runtime.flow_run.id, empirical_policy=FlowRunPolicy(retries=0))
    return Failed(message=str(error), data=error)
