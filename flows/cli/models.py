"""`nightfold models`: list, show, verify, sign, promote and roll back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import ARTIFACTS, ArtifactsOption, JsonOption
from flows.cli.output import print_json, say, show_table, tell
from nightfold.errors import BundleRefused, printable

app = typer.Typer(
    no_args_is_help=True, help="List, show, verify, sign, promote and roll back models."
)


@app.command("list")
def list_models(as_json: JsonOption = False, artifacts: ArtifactsOption = ARTIFACTS) -> None:
    """List all models, newest last; the champion is marked."""
    from rich.table import Table

    from nightfold.registry import Registry
    from nightfold.store import Store

    registry = Registry(Store(artifacts))
    versions = registry.versions()
    try:
        registry.champion()
    except BundleRefused as refused:
        tell(str(refused))
    if as_json:
        print_json(
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
        tell(f"No models under {Store(artifacts).models} yet: 'nightfold retrain' makes one.")
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
            printable(str(v.manifest.candidate.get("name", ""))),
            printable(v.manifest.dataset),
            f"{100 * v.manifest.cross_validated.mean:.3f} %",
            f"{100 * v.manifest.holdout.accuracy:.3f} %",
        )
    show_table(table)
    tell("* champion")


@app.command("show")
def show_model(
    model: Annotated[str, typer.Argument(help="champion, a version or a path.")] = "champion",
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """Verify a model's bundle and print its manifest as JSON."""
    from nightfold.registry import Registry
    from nightfold.store import Store

    manifest = Registry(Store(artifacts)).verify(model)
    print_json(manifest.model_dump(mode="json"))


@app.command("verify")
def verify_model(
    model: Annotated[str, typer.Argument(help="champion, a version or a path.")] = "champion",
    public_key: Annotated[
        Path | None,
        typer.Option(
            envvar="NIGHTFOLD_PUBLIC_KEY", help="PEM file of the key that must have signed it."
        ),
    ] = None,
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """Compare every byte of a model's bundle with its manifest; load nothing.

    Exit code 0 if it is whole, and signed if a key is given; 1 if it is refused.
    """
    from nightfold.registry import Registry
    from nightfold.store import Store

    manifest = Registry(Store(artifacts)).verify(model, public_key)
    signed = f"signed by the key {public_key}" if public_key else "signature not asked for"
    say(f"{manifest.version} is whole: {len(manifest.files)} files as in its manifest, {signed}")


@app.command("sign")
def sign_model(
    model: Annotated[str, typer.Argument(help="champion, a version or a path.")],
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """Sign a bundle with the key that NIGHTFOLD_SIGNING_KEY names, after verifying it.

    Nights sign what they seal by themselves; this is for bundles from before there was a key.
    """
    from nightfold.registry import Registry
    from nightfold.store import Store

    say(f"{Registry(Store(artifacts)).sign(model).version} is signed")


@app.command("promote", epilog="Example: `nightfold models promote 20261121-020000-1a2b3c`")
def promote_model(
    version: Annotated[str, typer.Argument(help="A version from the list.")],
    reason: Annotated[str, typer.Option(help="Kept in the history.")] = "promoted by hand",
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """Make a model the champion by hand."""
    from nightfold.registry import Registry
    from nightfold.store import Store

    entry = Registry(Store(artifacts)).promote(version, reason)
    say(f"champion is now {entry.version}")


@app.command("rollback")
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
    say(f"champion is now {entry.version}")
