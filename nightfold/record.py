"""Record: what a run was, in full, so that a later night can rebuild any part of it."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from nightfold.errors import UsageError
from nightfold.experiment import Experiment
from nightfold.foldresult import code_versions
from nightfold.store import write_json
from nightfold.zoo import fingerprint


class Record(BaseModel):
    """The experiment of a run and the code behind it.

    Attributes
    ----------
    experiment : Experiment
        As it was run: the champion's recipe and repeats that were added included.
    code : dict
        `nightfold.foldresult.code_versions` of that night.
    sources : dict
        Digest of the source of every architecture, by its name.
    """

    model_config = ConfigDict(frozen=True)

    experiment: Experiment
    code: dict[str, str | int]
    sources: dict[str, str]

    @classmethod
    def of(cls, experiment: Experiment) -> Self:
        """The record of a run of `experiment` with today's code."""
        names = {candidate.architecture for candidate in experiment.candidates}
        return cls(
            experiment=experiment,
            code=code_versions(),
            sources={name: fingerprint(name) for name in sorted(names)},
        )

    def write(self, folder: Path) -> None:
        """Write ``experiment.json`` into the run's folder, atomically."""
        write_json(folder / "experiment.json", self.model_dump(mode="json"))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read ``experiment.json`` from the run's folder.

        Raises
        ------
        UsageError
            If it is not there, or this version does not understand it.
        """
        path = folder / "experiment.json"
        try:
            return cls.model_validate_json(path.read_text())
        except FileNotFoundError as error:
            raise UsageError(
                f"The run {folder.name} did not record its experiment in full, as earlier versions "
                "did not: it cannot be taken apart; choose a later run."
            ) from error
        except (OSError, ValidationError, UnicodeDecodeError) as error:
            raise UsageError(
                f"{path} cannot be understood by this version, so the run {folder.name} cannot be "
                "taken apart: choose another run."
            ) from error
