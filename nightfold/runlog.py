"""Run log: what happened in a run, one JSON object a line, for programs and for whoever greps.

The flow and its fold workers, on whatever machine, append to the same file; a line is one write,
so lines stay whole on a local disk. It is a convenience: a line that cannot be written is lost, and
the night goes on.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

NAME = "log.jsonl"
Level = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]


class RunLog(BaseModel):
    """Where a run's lines go, and which run that is.

    Attributes
    ----------
    folder : str
        Of the run; nothing is written before it is there.
    flow_run_id : str or None
        Prefect's.

    Examples
    --------
    >>> import tempfile
    >>> log = RunLog(folder=tempfile.mkdtemp())
    >>> log.write("epoch finished", candidate="deep", repeat=1, fold=3, epoch=2)
    >>> json.loads(Path(log.folder, NAME).read_text())["fold"]
    3
    """

    model_config = ConfigDict(frozen=True)

    folder: str
    flow_run_id: str | None = None

    def write(
        self,
        message: str,
        *,
        level: Level | str = "INFO",
        task: str | None = None,
        candidate: str | None = None,
        repeat: int | None = None,
        fold: int | None = None,
        **figures: Any,
    ) -> None:
        """Append a line.

        Parameters
        ----------
        message : str
        level : str
        task : str, optional
            Name of the task run, such as ``train deep repeat 1 fold 3``.
        candidate, repeat, fold : optional
            Which fold it is about, if any; `repeat` and `fold` from 1.
        **figures
            Whatever else is known, such as ``accuracy=0.99``.
        """
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "level": level,
            "run_id": Path(self.folder).name,
            "flow_run_id": self.flow_run_id,
            "task": task,
            "candidate": candidate,
            "repeat": repeat,
            "fold": fold,
            "message": message,
            **figures,
        }
        with suppress(OSError):
            descriptor = os.open(
                Path(self.folder, NAME), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644
            )
            try:
                os.write(descriptor, json.dumps(line).encode() + b"\n")
            finally:
                os.close(descriptor)
