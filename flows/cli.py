"""The `nightfold` command: reads what the user wants, calls a flow or a noun, says what came out.

Nothing heavy is imported before a sub-command needs it, so help answers at once. What a program
reads goes to standard output, everything else to standard error.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nightfold.errors import NightfoldError, NotPromoted, UsageError

if TYPE_CHECKING:
    from flows.settings import Settings
    from nightfold.summary import Summary

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Retrain image classifiers every night and publish only what is proven.",
    epilog="Start here: `nightfold retrain` runs the whole night on the shipped MNIST.",
)
models = typer.Typer(no_args_is_help=True, help="List, show, promote and roll back models.")
app.add_typer(models, name="models")

SourceArgument = Annotated[
    str,
    typer.Argument(
        help="mnist, digits, a name under data/, idx:PATH, npz:PATH, parquet:PATH or folder:PATH",
        show_default=False,
    ),
]
ExperimentArgument = Annotated[
    str, typer.Argument(help="A shipped experiment's name or the path of a TOML file.")
]
DatasetOption = Annotated[
    str | None, typer.Option("--dataset", help="Source of the data, as for ingest.")
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", help="First N rows of a seeded shuffle of each split.")
]
CandidatesOption = Annotated[
    str | None, typer.Option("--candidates", help="Only these, separated by commas.")
]
FoldsOption = Annotated[int | None, typer.Option("--folds", help="Folds of the plan.")]
RepeatsOption = Annotated[int | None, typer.Option("--repeats", help="Repeats of the plan.")]
EpochsOption = Annotated[int | None, typer.Option("--epochs", help="Epochs of every candidate.")]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", help="Folds at once; by default one a core.")
]
RunnerOption = Annotated[
    str, typer.Option("--runner", help="processes, threads, sequential or dask.")
]
AddressOption = Annotated[
    str | None, typer.Option("--address", help="Dask scheduler, such as tcp://127.0.0.1:8786.")
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", help="Of initial weights and the order of rows.")
]
ArtifactsOption = Annotated[
    Path,
    typer.Option("--artifacts", envvar="NIGHTFOLD_ARTIFACTS", help="Folder that runs write to."),
]
RunIdOption = Annotated[
    str | None, typer.Option("--run-id", help="Name of the run; made up if left out.")
]
SizeOption = Annotated[
    str | None, typer.Option("--size", help="Height x width to resize to, such as 32x32.")
]
ChannelsOption = Annotated[int | None, typer.Option("--channels", help="1 for grey, 3 for colour.")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output and nothing else.")
]
ARTIFACTS = Path("artifacts")


def main() -> None:
    """Run the command; a user's mistake ends in one sentence and its exit code."""
    # Prefect ends its server only if the process ends in order.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        app()
    except NightfoldError as error:
        _tell(f"nightfold: {error}")
        sys.exit(error.exit_code)


@app.command(epilog="Example: `nightfold ingest folder:photos --size 32x32 --name photos`")
def ingest(
    source: SourceArgument,
    name: Annotated[
        str | None, typer.Option(help="Also keep it as Parquet in data/NAME, to be used by name.")
    ] = None,
    size: SizeOption = None,
    channels: ChannelsOption = None,
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """Read a data set into a snapshot that workers share."""
    from tasks.ingest import take_in

    dataset = take_in(_choice(source, size, channels), str(artifacts), name=name)
    height, width, depth = dataset.image_shape
    _say(
        f"{dataset.name}: {len(dataset.train):,} training and {len(dataset.test):,} test images of "
        f"{height}x{width}x{depth}, {dataset.n_classes} classes"
    )
    _say(f"digest   {dataset.digest}")
    _say(f"snapshot {dataset.path}")
    if name:
        _say(f"kept in  data/{name} (use it as --dataset {name})")


@app.command(epilog="Example: `nightfold validate idx:downloads/fashion`")
def validate(
    source: SourceArgument,
    size: SizeOption = None,
    channels: ChannelsOption = None,
    folds: Annotated[int, typer.Option(help="Folds there must be enough rows for.")] = 5,
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """Check that a data set is sound; exit code 3 if it is not."""
    from nightfold.errors import DataRefused
    from nightfold.experiment import ValidationChoice
    from tasks.ingest import take_in
    from tasks.validate import check

    dataset = take_in(_choice(source, size, channels), str(artifacts))
    report = check(dataset, ValidationChoice(), folds)
    _show_checks(report)
    if not report.passed:
        raise DataRefused(report.refusal())


@app.command(epilog="Example: `nightfold evaluate night --limit 2000 --epochs 1 --folds 3`")
def evaluate(
    experiment: ExperimentArgument = "night",
    dataset: DatasetOption = None,
    limit: LimitOption = None,
    candidates: CandidatesOption = None,
    folds: FoldsOption = None,
    repeats: RepeatsOption = None,
    epochs: EpochsOption = None,
    workers: WorkersOption = None,
    runner: RunnerOption = "processes",
    address: AddressOption = None,
    seed: SeedOption = None,
    artifacts: ArtifactsOption = ARTIFACTS,
    run_id: RunIdOption = None,
) -> None:
    """Cross-validate candidates: tables and a report, no final model."""
    settings = _settings(**locals())
    _conclude(_run("evaluate", settings), settings)


@app.command(epilog="Example: `nightfold retrain tutorial --workers 2`")
def retrain(
    experiment: ExperimentArgument = "night",
    dataset: DatasetOption = None,
    limit: LimitOption = None,
    candidates: CandidatesOption = None,
    folds: FoldsOption = None,
    repeats: RepeatsOption = None,
    epochs: EpochsOption = None,
    workers: WorkersOption = None,
    runner: RunnerOption = "processes",
    address: AddressOption = None,
    seed: SeedOption = None,
    artifacts: ArtifactsOption = ARTIFACTS,
    run_id: RunIdOption = None,
    h5: Annotated[bool, typer.Option("--h5", help="Also save the model as HDF5.")] = False,
    require_promotion: Annotated[
        bool, typer.Option("--require-promotion", help="Exit with 4 unless promoted.")
    ] = False,
) -> None:
    """The whole night: cross-validate, fit the best on all rows, test it, promote it."""
    options = {k: v for k, v in locals().items() if k != "require_promotion"}
    settings = _settings(**options)
    summary = _run("retrain", settings)
    _conclude(summary, settings)
    if require_promotion and summary.promotion and not summary.promotion.promoted:
        raise NotPromoted(summary.promotion.reason)


@app.command(epilog="Example: `nightfold predict digit.png --json`")
def predict(
    images: Annotated[
        list[Path], typer.Argument(help="Image files, or one folder of them.", show_default=False)
    ],
    model: Annotated[
        str, typer.Option(help="champion, a version, or the path of a bundle.")
    ] = "champion",
    as_json: JsonOption = False,
    artifacts: ArtifactsOption = ARTIFACTS,
    run_id: RunIdOption = None,
) -> None:
    """Say what is on an image: class, probability and runner-up.

    A folder is classified by the batch flow, which writes a Parquet table of all images in it.
    """
    if any(path.is_dir() for path in images):
        if len(images) > 1:
            raise UsageError("Give image files or one folder of them, not both.")
        _predict_folder(images[0], model, artifacts, run_id, as_json)
        return
    for path in images:
        if not path.exists():
            raise UsageError(f"There is no image {path}: check the path.")
    from nightfold.bundle import Bundle
    from nightfold.prediction import classify
    from nightfold.registry import Registry
    from nightfold.store import Store

    bundle = Bundle.load(Registry(Store(artifacts)).resolve(model))
    results = classify(images, bundle)
    if as_json:
        _print_json([result.model_dump(mode="json") for result in results])
        return
    for result in results:
        _say(
            f"{result.path}: {result.class_name} ({100 * result.probability:.1f} %), "
            f"then {result.runner_up} ({100 * result.runner_up_probability:.1f} %)"
        )
        _tell(f"  {result.preparation}")


@app.command(epilog="Example: `nightfold report latest --json`")
def report(
    run_id: Annotated[str, typer.Argument(help="A run's id, or latest.")] = "latest",
    as_json: JsonOption = False,
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """Show a run's outcome, and build its report again from its tables."""
    from nightfold.store import Store
    from nightfold.summary import Summary
    from tasks.report import build_report

    folder = Store(artifacts).find_run(run_id)
    build_report(folder)
    summary = Summary.read(folder)
    if as_json:
        _print_json(summary.model_dump(mode="json"))
        return
    _show_outcome(summary, folder)


@models.command("list")
def list_models(as_json: JsonOption = False, artifacts: ArtifactsOption = ARTIFACTS) -> None:
    """List all models, newest last; the champion is marked."""
    from rich.table import Table

    from nightfold.registry import Registry
    from nightfold.store import Store

    versions = Registry(Store(artifacts)).versions()
    if as_json:
        _print_json(
            [
                {
                    "version": v.version,
                    "champion": v.champion,
                    "error": v.error,
                    "manifest": v.manifest.model_dump(mode="json") if v.manifest else None,
                }
                for v in versions
            ]
        )
        return
    if not versions:
        _tell(f"No models under {Store(artifacts).models} yet: 'nightfold retrain' makes one.")
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("", "version", "candidate", "data set"):
        table.add_column(column, no_wrap=True)
    for column in ("CV accuracy", "hold-out"):
        table.add_column(column, justify="right", no_wrap=True)
    for v in versions:
        if v.manifest is None:
            table.add_row("!", v.version, v.error)
            continue
        table.add_row(
            "*" if v.champion else "",
            v.version,
            str(v.manifest.candidate["name"]),
            v.manifest.dataset,
            f"{100 * v.manifest.cross_validated.mean:.3f} %",
            f"{100 * v.manifest.holdout.accuracy:.3f} %",
        )
    _console().print(table)
    _tell("* champion")


@models.command("show")
def show_model(
    model: Annotated[str, typer.Argument(help="champion, a version or a path.")] = "champion",
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """Verify a model's bundle and print its manifest as JSON."""
    from nightfold.bundle import verify
    from nightfold.registry import Registry
    from nightfold.store import Store

    manifest = verify(Registry(Store(artifacts)).resolve(model))
    _print_json(manifest.model_dump(mode="json"))


@models.command("promote", epilog="Example: `nightfold models promote 20261121-020000-1a2b3c`")
def promote_model(
    version: Annotated[str, typer.Argument(help="A version from the list.")],
    reason: Annotated[str, typer.Option(help="Kept in the history.")] = "promoted by hand",
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """Make a model the champion by hand."""
    from nightfold.registry import Registry
    from nightfold.store import Store

    entry = Registry(Store(artifacts)).promote(version, reason)
    _say(f"champion is now {entry.version}")


@models.command("rollback")
def rollback_model(
    version: Annotated[
        str | None, typer.Argument(help="Which earlier champion; the last one if left out.")
    ] = None,
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """Go back to an earlier champion; its bundle is verified first."""
    from nightfold.registry import Registry
    from nightfold.store import Store

    entry = Registry(Store(artifacts)).rollback(version)
    _say(f"champion is now {entry.version}")


def _settings(**options: Any) -> Settings:
    """Settings from the options; a value out of its limits is a usage error."""
    from pydantic import ValidationError

    from flows.settings import Settings
    from nightfold.store import new_run_id

    names = options.pop("candidates")
    options |= {
        "candidates": [name.strip() for name in names.split(",")] if names else None,
        "artifacts": str(options["artifacts"]),
        "run_id": options["run_id"] or new_run_id(),
    }
    try:
        settings = Settings(**options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise UsageError(f"{option}: {first['msg']} (given: {first['input']!r}).") from error
    settings.load()  # a mistake in the experiment is told before Prefect is started
    return settings


def _run(name: str, settings: Settings) -> Summary:
    """Run a flow in this process, showing its progress, and return its summary."""
    from flows.progress import watch
    from nightfold.store import Store

    assert settings.run_id is not None
    folder = Store(settings.artifacts).run(settings.run_id)
    with watch(folder, f"{name} {settings.experiment} as {settings.run_id}"):
        _prepare_prefect()
        if name == "retrain":
            from flows.retrain import retrain as flow
        else:
            from flows.evaluate import evaluate as flow
        try:
            state = flow(settings, return_state=True)
        except KeyboardInterrupt:
            _tell("nightfold: interrupted; the same command goes on behind the last epoch.")
            sys.exit(130)
    return _result(state)  # type: ignore[no-any-return]


def _result(state: Any) -> Any:
    """What a flow returned; what it raised, raised here."""
    result = state.result(raise_on_failure=False)
    if isinstance(result, BaseException):
        raise result
    return result


def _prepare_prefect() -> None:
    """Settings that must be there before Prefect is imported; the user's own stay.

    Without a server, Prefect starts one for the time of the run. On a fresh profile that takes
    longer than its own limit. Its log lines go to the run, which the UI shows, not to the terminal.
    """
    for name, value in {
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "DO_NOT_TRACK": "1",
    }.items():
        os.environ.setdefault(name, value)
    _start_server()


def _start_server() -> None:
    """Start Prefect's server for the time of the run, unless the user has one.

    Ctrl-C reaches every process of the terminal, but this one must stay to hear how the run ended,
    or Prefect waits for it for minutes: a blocked signal stays blocked in the processes one starts.
    """
    from prefect.settings import PREFECT_API_URL

    if PREFECT_API_URL.value():
        return
    from prefect.server.api.server import SubprocessASGIServer

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        SubprocessASGIServer().start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _predict_folder(
    folder: Path, model: str, artifacts: Path, run_id: str | None, as_json: bool
) -> None:
    from nightfold.store import new_run_id

    _prepare_prefect()
    from flows.predict import predict as flow

    handle = _result(
        flow(str(folder), model, str(artifacts), run_id or new_run_id(), return_state=True)
    )
    if as_json:
        _print_json(handle.model_dump(mode="json"))
        return
    _say(f"{handle.n_images:,} images, {handle.n_errors:,} unreadable")
    _say(f"table {handle.path}")


def _choice(source: str, size: str | None, channels: int | None) -> Any:
    from pydantic import ValidationError

    from nightfold.experiment import DatasetChoice

    height_width = None
    if size is not None:
        parts = size.lower().split("x")
        if len(parts) != 2 or not all(p.isdecimal() and 0 < int(p) <= 4096 for p in parts):
            raise UsageError(f"--size {size!r} is not height x width, such as 32x32.")
        height_width = (int(parts[0]), int(parts[1]))
    try:
        return DatasetChoice.model_validate(
            {"source": source, "size": height_width, "channels": channels}
        )
    except ValidationError as error:
        raise UsageError(f"--channels {channels} is not 1 or 3.") from error


def _conclude(summary: Summary, settings: Settings) -> None:
    from nightfold.store import Store

    _show_outcome(summary, Store(settings.artifacts).run(summary.run_id))


def _show_outcome(summary: Summary, folder: Path) -> None:
    for facts in summary.candidates:
        _say(
            f"{facts.name:<16} Accuracy: mean={100 * facts.accuracy_mean:.3f} "
            f"std={100 * facts.accuracy_std:.3f}, n={facts.n}"
        )
    if summary.final:
        final = summary.final
        _say(
            f"final model      {final.candidate}, {100 * final.holdout_accuracy:.3f} % "
            f"on {final.holdout_rows:,} hold-out images"
        )
    if summary.promotion:
        outcome = "promoted" if summary.promotion.promoted else "not promoted"
        _say(f"{outcome:<16} {summary.promotion.reason}")
    minutes, seconds = divmod(round(summary.seconds), 60)
    _say(f"took             {minutes} min {seconds} s")
    _say(f"report           {folder / 'report.html'}")


def _show_checks(report: Any) -> None:
    for check in report.checks:
        mark = "ok" if check.passed else check.severity
        _say(f"{mark:<9} {check.split:<6} {check.sentence}")


def _console() -> Any:
    from rich.console import Console

    return Console(soft_wrap=True)


def _say(text: str) -> None:
    typer.echo(text)


def _tell(text: str) -> None:
    typer.echo(text, err=True)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))
