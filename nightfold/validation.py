"""ValidationReport: what the checks of a data set found, in one JSON document.

It holds findings and words them for people; it checks nothing itself. `tasks.validate` fills it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError, computed_field

from nightfold.errors import UsageError, first_line
from nightfold.store import write_json

Severity = Literal["critical", "warning", "info"]


class RowName(BaseModel):
    """A row as people can find it: position in its split and the start of its pixels' sha256."""

    model_config = ConfigDict(frozen=True)

    index: int
    digest: str

    def __str__(self) -> str:
        return f"{self.index} ({self.digest})"


class Check(BaseModel):
    """The outcome of one expectation on one split.

    Attributes
    ----------
    name : str
        Stable name of the expectation, as listed in ``docs/validation.md``.
    split : str
        ``train`` or ``test``.
    sentence : str
        What holds, or what is wrong if the check did not pass.
    remedy : str
        What to do about it; empty if the check passed.
    severity : {'critical', 'warning', 'info'}
        Only a critical check that did not pass refuses the data.
    passed : bool
    observed : str
        What was found, in words and figures.
    rows : tuple of RowName
        The first ten rows at fault; empty where the fault is not in single rows.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    split: str
    sentence: str
    remedy: str = ""
    severity: Severity
    passed: bool
    observed: str
    rows: tuple[RowName, ...] = ()


class ValidationReport(BaseModel):
    """All checks of one data set.

    Attributes
    ----------
    dataset, digest : str
        Name and digest of the snapshot.
    class_rows : dict
        For each split the number of rows of each class name.
    checks : tuple of Check
        In order of weight: the first that fails is the likeliest cause of the others.
    """

    model_config = ConfigDict(frozen=True)

    dataset: str
    digest: str
    class_rows: dict[str, dict[str, int]]
    checks: tuple[Check, ...]

    @property
    def criticals(self) -> tuple[Check, ...]:
        """Critical checks that did not pass."""
        return self._failed("critical")

    @property
    def warnings(self) -> tuple[Check, ...]:
        """Warning checks that did not pass."""
        return self._failed("warning")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Whether the data may be trained on: no critical check failed."""
        return not self.criticals

    @computed_field  # type: ignore[prop-decorator]
    @property
    def counts(self) -> dict[str, int]:
        """Number of checks that passed, and of those that did not by severity."""
        return {
            "passed": sum(check.passed for check in self.checks),
            "critical": len(self.criticals),
            "warning": len(self.warnings),
            "info": len(self._failed("info")),
        }

    def refusal(self) -> str:
        """The sentence for `DataRefused`: split, what is wrong, which rows, what to do.

        Raises
        ------
        ValueError
            If nothing is to be refused.
        """
        if self.passed:
            raise ValueError(f"the data set {self.dataset!r} passed")
        first, *others = self.criticals
        rows = f", rows {', '.join(map(str, first.rows))}" if first.rows else ""
        also = ", ".join(f"{check.split} {check.name}" for check in others)
        return (
            f"The {first.split} split of {self.dataset!r} was refused: {first.sentence} "
            f"({first.observed}){rows}: {first.remedy}"
            f"{f' (also failed: {also})' if also else ''}."
        )

    def write(self, folder: Path) -> Path:
        """Write ``validation.json`` into the run's folder, atomically, and return its path."""
        target = folder / "validation.json"
        write_json(target, self.model_dump(mode="json"))
        return target

    @classmethod
    def read(cls, folder: Path) -> ValidationReport:
        """Read ``validation.json`` from the run's folder.

        Raises
        ------
        UsageError
            If it does not say what validation found.
        """
        file = folder / "validation.json"
        try:
            return cls.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise UsageError(
                f"{file} does not say what validation found ({first_line(error)}): restore it or "
                "look at another run."
            ) from error

    def _failed(self, severity: Severity) -> tuple[Check, ...]:
        return tuple(c for c in self.checks if c.severity == severity and not c.passed)
