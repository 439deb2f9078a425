"""The log lines of a run in Prefect's UI, kept in the run's folder as well."""

from __future__ import annotations

import logging

from nightfold.runlog import RunLog

LOGGERS = ("prefect.flow_runs", "prefect.task_runs")


class _Lines(logging.Handler):
    """Appends the lines of every run that is kept to that run's log."""

    def __init__(self) -> None:
        super().__init__()
        self.logs: dict[str, RunLog] = {}

    def emit(self, record: logging.LogRecord) -> None:
        log = self.logs.get(str(getattr(record, "flow_run_id", None)))
        if log is None:
            return
        try:
            message = self.format(record)
        except Exception:  # a line that cannot be formatted must not end a night
            self.handleError(record)
            return
        log.write(message, level=record.levelname, task=getattr(record, "task_run_name", None))


_LINES = _Lines()


def keep(log: RunLog) -> None:
    """Keep the lines of a run until this process ends.

    Not only until the flow's own code ends: how the run ended is said after that.
    """
    if log.flow_run_id is None:
        return
    _LINES.logs[log.flow_run_id] = log
    for name in LOGGERS:
        logging.getLogger(name).addHandler(_LINES)
