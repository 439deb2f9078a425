"""`nightfold ingest` and `nightfold validate`: a data set before anything is trained on it."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.options import (
    ARTIFACTS,
    ArtifactsOption,
    ChannelsOption,
    SizeOption,
    SourceArgument,
    dataset_choice,
)
from flows.cli.output import say

app = typer.Typer()


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

    dataset = take_in(dataset_choice(source, size, channels), str(artifacts), name=name)
    height, width, depth = dataset.image_shape
    say(
        f"{dataset.name}: {len(dataset.train):,} training and {len(dataset.test):,} test images of "
        f"{height}x{width}x{depth}, {dataset.n_classes} classes"
    )
    say(f"digest   {dataset.digest}")
    say(f"snapshot {dataset.path}")
    if name:
        say(f"kept in  data/{name} (use it as --dataset {name})")


@app.command(epilog="Example: `nightfold validate idx:downloads/fashion`")
def validate(
    source: SourceArgument,
    size: SizeOption = None,
    channels: ChannelsOption = None,
    folds: Annotated[int, typer.Option(min=2, help="Folds there must be enough rows for.")] = 5,
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """Check that a data set is sound; exit code 3 if it is not."""
    from nightfold.errors import DataRefused
    from nightfold.experiment import ValidationChoice
    from tasks.ingest import take_in
    from tasks.validate import check

    dataset = take_in(dataset_choice(source, size, channels), str(artifacts))
    report = check(dataset, ValidationChoice(), folds)
    for one in report.checks:
        mark = "ok" if one.passed else one.severity
        say(f"{mark:<9} {one.split:<6} {one.sentence}")
    if not report.passed:
        raise DataRefused(report.refusal())
