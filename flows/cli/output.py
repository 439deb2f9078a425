"""What the command says: results to standard output, everything else to standard error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from nightfold.errors import NightfoldError

if TYPE_CHECKING:
    from rich.table import Table

    from nightfold.summary import Summary

PIPED_WIDTH = 200
"""Columns where there is no terminal to say how many it has."""


def say(text: str) -> None:
    """A line of the result."""
    with _written():
        typer.echo(text)


def show_table(table: Table) -> None:
    """A table of the result, as wide as the terminal or, for a program, as `PIPED_WIDTH`."""
    from rich.console import Console

    console = Console(soft_wrap=True, markup=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    with _written():
        console.print(table)


def aligned(*columns: str, wrapped: int = 0) -> Table:
    """A table of which only the column at `wrapped` gives way on a narrow terminal."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for position, column in enumerate(columns):
        table.add_column(
            column, justify="right" if position > wrapped else "left", no_wrap=position != wrapped
        )
    return table


@contextmanager
def _written() -> Iterator[None]:
    """Say it in a sentence if standard output takes nothing, as on a full disk."""
    try:
        yield
    except BrokenPipeError:
        raise  # whoever read it has seen enough
    except OSError as error:
        raise NightfoldError(
            f"Standard output could not be written ({error.strerror}): make room or send it "
            "elsewhere."
        ) from error


def tell(text: str) -> None:
    """A line beside the result, which a program that reads the result does not see."""
    typer.echo(text, err=True)


def print_json(value: Any) -> None:
    """The result as one JSON document."""
    say(json.dumps(value, indent=2))


def show_outcome(summary: Summary, folder: Path) -> None:
    """How a run ended, and where its report is."""
    for facts in summary.candidates:
        say(
            f"{facts.name:<16} Accuracy: mean={100 * facts.accuracy_mean:.3f} "
            f"std={100 * facts.accuracy_std:.3f}, n={facts.n}"
        )
    for stopped in summary.stopped:
        say(f"{stopped.name:<16} {stopped.reason}")
    if summary.final:
        final = summary.final
        say(
            f"final model      {final.candidate}, {100 * final.holdout_accuracy:.3f} % "
            f"on {final.holdout_rows:,} hold-out images"
        )
    if summary.promotion:
        outcome = "promoted" if summary.promotion.promoted else "not promoted"
        say(f"{outcome:<16} {summary.promotion.reason}")
    minutes, seconds = divmod(round(summary.seconds), 60)
    say(f"took             {minutes} min {seconds} s")
    say(f"report           {folder / 'report.html'}")
