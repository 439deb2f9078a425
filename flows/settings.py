"""What a caller may set for one run, shared by the flows, their deployments and the command.

Prefect shows these fields as the form of a deployment; unknown ones are refused.
"""

from __future__ import annotations

import os
import sys

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from nightfold import gpu
from nightfold.experiment import Experiment, Runner, load_experiment
from nightfold.images import Channels

MOST_A_CORE = 4
"""Workers a core at most: each needs half a gigabyte of its own (row D of docs/performance.md)."""


class Settings(BaseModel):
    """One run of `evaluate` or `retrain`; a value left empty is the experiment's own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    experiment: str = Field("night", description="name of a shipped experiment or a TOML file")
    dataset: str | None = Field(None, description="source URI, such as mnist or folder:PATH")
    size: tuple[int, int] | None = Field(None, description="height, width to resize images to")
    channels: Channels | None = Field(None, description="1 to read images as grey, 3 as colour")
    limit: int | None = Field(None, description="first N rows of a seeded shuffle of each split")
    candidates: list[str] | None = Field(None, description="only these candidates")
    folds: int | None = Field(None, description="folds of the plan")
    repeats: int | None = Field(None, description="repeats of the plan")
    epochs: int | None = Field(None, description="epochs of every candidate")
    seed: int | None = Field(None, description="of initial weights and order of rows")
    workers: int | None = Field(
        None, ge=1, description="folds at once; one a core if empty, on a GPU 4"
    )
    runner: Runner = Field("processes", description="where folds run")
    address: str | None = Field(None, description="Dask scheduler, such as tcp://127.0.0.1:8786")
    artifacts: str = Field("artifacts", description="folder that runs write to")
    wait: float = Field(60, ge=0, description="minutes to wait for another run on that folder")
    run_id: str | None = Field(None, description="name of the run; made up if empty")
    h5: bool = Field(False, description="also save the final model as HDF5")

    @field_validator("workers")
    @classmethod
    def _refuse_a_flood(cls, workers: int | None) -> int | None:
        if workers is not None and workers > MOST_A_CORE * cores():
            raise PydanticCustomError(
                "workers",
                "this machine has {cores} cores, give at most {most}",
                {"cores": cores(), "most": MOST_A_CORE * cores()},
            )
        return workers

    def load(self) -> Experiment:
        """The experiment with every given value in place of its own."""
        return load_experiment(self.experiment).overridden(
            dataset=self.dataset,
            size=self.size,
            channels=self.channels,
            limit=self.limit,
            candidates=self.candidates,
            folds=self.folds,
            repeats=self.repeats,
            epochs=self.epochs,
            seed=self.seed,
        )

    @property
    def n_workers(self) -> int:
        """Folds trained at once."""
        if self.runner == "sequential":
            return 1
        if self.workers is not None:
            return self.workers
        return cores() if gpu.name() is None else min(cores(), gpu.WORKERS)

    @property
    def at_once(self) -> int | None:
        """Folds that the runner trains at once; None of a Dask scheduler, which alone knows."""
        return None if self.runner == "dask" else self.n_workers


def cores() -> int:
    """Cores of this process: containers and batch systems may give it fewer than there are."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


DEFAULTS = Settings()
"""The main job: the default night on the shipped data."""
