"""The `nightfold` command: reads what the user wants, calls a flow or a noun, says what came out.

One file a subject: `data` (ingest, validate), `nights` (evaluate, retrain, report), `plan`,
`history`, `diff`, `predict`, `operations` (prune, automate) and `models`; `options` holds what
several of them take. Nothing heavy is imported before a sub-command needs it, so help answers at
once.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading

import typer

from flows.cli import data, diff, history, models, nights, operations, plan, predict
from flows.cli.output import tell
from nightfold.errors import NightfoldError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Retrain image classifiers every night and publish only what is proven.",
    epilog="Start here: `nightfold retrain` runs the whole night on the shipped MNIST.",
)
for subject in (data, nights, plan, history, diff, predict, operations):
    app.add_typer(subject.app)
app.add_typer(models.app, name="models")


def main() -> None:
    """Run the command; a user's mistake ends in one sentence and its exit code."""
    # Prefect ends its server only if the process ends in order.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.unraisablehook = _signal_again
    for stream in (sys.stdout, sys.stderr):
        # What a terminal has no letters for, such as a name that cannot be decoded, is escaped.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    ending = _Ending()
    try:
        app()
    except NightfoldError as error:
        tell(f"nightfold: {error}")
        ending.exit_code = error.exit_code
        sys.exit(error.exit_code)
    except SystemExit as exited:
        ending.exit_code = exited.code if isinstance(exited.code, int) else bool(exited.code)
        raise


class _Ending:
    """End this process for good once the exit handlers registered from now on have run.

    Python would then take thousands of modules apart, one object after the other, for seconds
    behind a night and half a second behind a prediction.
    """

    exit_code: int = 1
    """Python's own for an exception that nobody catches, until `main` knows better."""

    def __init__(self) -> None:
        atexit.register(self.leave)  # handlers run last in, first out

    def leave(self) -> None:
        """What Python does at its end that others see, and no more."""
        logging.shutdown()
        try:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
        except OSError:
            if not self.exit_code:
                return  # Python says what is lost, and ends with an exit code for it
        os._exit(self.exit_code)


def _signal_again(lost: sys.UnraisableHookArgs) -> None:
    """Signal once more if what a signal has raised was lost.

    Python drops an exception that comes up while it runs a destructor, and imports run thousands.
    """
    if lost.exc_type in (KeyboardInterrupt, SystemExit):
        number = signal.SIGINT if lost.exc_type is KeyboardInterrupt else signal.SIGTERM
        main_thread = threading.main_thread().ident
        threading.Timer(0.1, signal.pthread_kill, [main_thread, number]).start()
    else:
        sys.__unraisablehook__(lost)
