"""`nightfold prune` and `automate`: what keeps a server healthy while nobody looks."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.options import ARTIFACTS, ArtifactsOption, JsonOption
from flows.cli.output import print_json, say, tell
from nightfold.errors import UsageError

app = typer.Typer()


@app.command(epilog="Example: `nightfold prune --keep 30 --dry-run`")
def prune(
    keep: Annotated[int, typer.Option(help="Complete runs to keep, the newest.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
    as_json: JsonOption = False,
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """Remove old runs and what only they refer to; never a champion, past or present."""
    from nightfold.retention import prune as prune_store
    from nightfold.store import Store

    pruned = prune_store(Store(artifacts), keep, dry_run=dry_run)
    if as_json:
        print_json({"dry_run": dry_run, **pruned.model_dump(mode="json")})
        return
    counts = [f"{len(names):,} {area}" for area, names in pruned.removed.items()]
    say(f"{'would remove' if dry_run else 'removed':<16} {', '.join(counts)}")
    say(f"{'would free' if dry_run else 'freed':<16} {pruned.bytes / 1e6:,.1f} MB")
    say(f"{'kept':<16} {len(pruned.kept):,} runs, and every champion there was")
    for link in pruned.left_alone:
        tell(f"nightfold: {link} is a link and was left alone.")


@app.command(epilog="Example: `NIGHTFOLD_WEBHOOK=https://chat.example/hook nightfold automate`")
def automate(
    webhook: Annotated[
        str | None,
        typer.Option(
            envvar="NIGHTFOLD_WEBHOOK",
            help="URL to tell of runs in trouble; give it by the environment, it is a secret.",
        ),
    ] = None,
) -> None:
    """Let the Prefect server notice lost runs, start crashed ones once more, and tell of failures.

    Once after the deployments, and again after an upgrade.
    """
    from flows.cli.server import prepare_prefect

    _require_server()
    prepare_prefect()
    from flows.automations import install

    if webhook is not None and not webhook.startswith(("http://", "https://")):
        raise UsageError("NIGHTFOLD_WEBHOOK is no URL: it starts with http:// or https://.")
    for name in install(webhook):
        say(name)


def _require_server() -> None:
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        raise UsageError(
            "Automations need a Prefect server that stays: start one with 'prefect server start', "
            "and set PREFECT_API_URL."
        )
