"""What the user may write behind a sub-command, where more than one takes it.

Values out of their limits are refused by the models they end in; here they only get the name that
the user knows them by.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec

import typer

from nightfold.errors import UsageError

if TYPE_CHECKING:
    from flows.settings import Settings
    from nightfold.experiment import DatasetChoice

P = ParamSpec("P")
ARTIFACTS = Path("artifacts")

SourceArgument = Annotated[
    str,
    typer.Argument(
        help="mnist, digits, a name under data/, idx:PATH, npz:PATH, parquet:PATH or folder:PATH",
        show_default=False,
    ),
]
SizeOption = Annotated[
    str | None, typer.Option("--size", help="Height x width to resize to, such as 32x32.")
]
ChannelsOption = Annotated[int | None, typer.Option("--channels", help="1 for grey, 3 for colour.")]
ArtifactsOption = Annotated[
    Path,
    typer.Option("--artifacts", envvar="NIGHTFOLD_ARTIFACTS", help="Folder that runs write to."),
]
RunIdOption = Annotated[
    str | None, typer.Option("--run-id", help="Name of the run; made up if left out.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output and nothing else.")
]


@dataclass(frozen=True)
class NightOptions:
    """The options of `evaluate`, `retrain` and `plan`, one a field; those left out are None."""

    experiment: Annotated[
        str, typer.Argument(help="A shipped experiment's name or the path of a TOML file.")
    ] = "night"
    dataset: Annotated[str | None, typer.Option(help="Source of the data, as for ingest.")] = None
    size: SizeOption = None
    channels: ChannelsOption = None
    limit: Annotated[
        int | None, typer.Option(help="First N rows of a seeded shuffle of each split.")
    ] = None
    candidates: Annotated[str | None, typer.Option(help="Only these, separated by commas.")] = None
    folds: Annotated[int | None, typer.Option(help="Folds of the plan.")] = None
    repeats: Annotated[int | None, typer.Option(help="Repeats of the plan.")] = None
    epochs: Annotated[int | None, typer.Option(help="Epochs of every candidate.")] = None
    workers: Annotated[
        int | None, typer.Option(help="Folds at once; by default one a core, on a GPU 4.")
    ] = None
    runner: Annotated[str, typer.Option(help="processes, threads, sequential or dask.")] = (
        "processes"
    )
    address: Annotated[
        str | None, typer.Option(help="Dask scheduler, such as tcp://127.0.0.1:8786.")
    ] = None
    seed: Annotated[int | None, typer.Option(help="Of initial weights and the order of rows.")] = (
        None
    )
    artifacts: ArtifactsOption = ARTIFACTS
    wait: Annotated[
        float, typer.Option(help="Minutes to wait while another run has the artifacts; 0: refuse.")
    ] = 60
    run_id: RunIdOption = None

    def settings(self, h5: bool = False) -> Settings:
        """Settings of the flows.

        Raises
        ------
        UsageError
            If a value is out of its limits, or the experiment cannot be read with it.
        """
        from nightfold.store import new_run_id

        names = self.candidates
        values = asdict(self) | {
            "size": _height_width(self.size),
            "candidates": names if names is None else [n.strip() for n in names.split(",")],
            "artifacts": str(self.artifacts),
            "run_id": self.run_id or new_run_id(),
        }
        settings = checked(**values, h5=h5)
        settings.load()  # a mistake in the experiment is told before Prefect is started
        return settings


def checked(**values: Any) -> Settings:
    """Settings of the flows from values of options.

    Raises
    ------
    UsageError
        If a value is out of its limits; the option is named.
    """
    from pydantic import ValidationError

    from flows.settings import Settings

    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise UsageError(f"{option}: {first['msg']} (given: {first['input']!r}).") from error


def with_night_options(
    command: Callable[Concatenate[NightOptions, P], None], without: Collection[str] = ()
) -> Callable[..., None]:
    """A command that takes every field of `NightOptions` as an option of its own.

    Those in `without`, which would have no effect on it, stay at their defaults.

    Typer reads options off a signature, so the command gets one in which the fields stand where its
    first parameter was.
    """
    fields = inspect.signature(NightOptions, eval_str=True).parameters
    shared = {name: field for name, field in fields.items() if name not in without}
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    @wraps(command)
    def spread(**values: Any) -> None:
        options = NightOptions(**{name: values.pop(name) for name in shared})
        command(options, **values)  # type: ignore[call-arg]

    spread.__signature__ = inspect.Signature([*shared.values(), *own])  # type: ignore[attr-defined]
    return spread


def dataset_choice(source: str, size: str | None, channels: int | None) -> DatasetChoice:
    """The choice of a data set.

    Raises
    ------
    UsageError
        If size or channels cannot be understood.
    """
    from pydantic import ValidationError

    from nightfold.experiment import DatasetChoice

    try:
        return DatasetChoice.model_validate(
            {"source": source, "size": _height_width(size), "channels": channels}
        )
    except ValidationError as error:
        if error.errors()[0]["loc"][0] == "channels":
            raise UsageError(f"--channels {channels} is not 1 or 3.") from error
        raise UsageError(f"The source {source!r} has a name that cannot be decoded.") from error


def _height_width(size: str | None) -> tuple[int, int] | None:
    if size is None:
        return None
    parts = size.lower().split("x")
    if len(parts) != 2 or not all(
        p.isdecimal() and len(p) < 5 and 0 < int(p) <= 4096 for p in parts
    ):
        raise UsageError(f"--size {size!r} is not height x width, such as 32x32.")
    return int(parts[0]), int(parts[1])
