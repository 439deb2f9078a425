"""Defend: enter the champion's recipe into the night, so that it is scored on tonight's folds.

Scores of other rows or other folds prove nothing, so the champion is not compared by what its
manifest says: its recipe is trained beside the others. The fold store makes that free in a night in
which neither data nor plan changed.
"""

from __future__ import annotations

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict, ValidationError

from nightfold.dataset import Dataset, DatasetHandle
from nightfold.errors import BundleRefused, UsageError
from nightfold.experiment import Candidate, Experiment
from nightfold.manifest import Manifest, verify
from nightfold.modules import import_trusted
from nightfold.registry import CHAMPION, Registry
from nightfold.store import Store
from nightfold.zoo import find, fingerprint

ENOUGH = 0.5
"""Part of the champion's training rows that tonight must have: a model of fewer proves nothing."""


class Defence(BaseModel):
    """Who defends the champion's place tonight.

    Attributes
    ----------
    experiment : Experiment
        Tonight's, with the champion's recipe among its candidates if it can be compared.
    version : str, optional
        The champion; None if there is none, or its pointer cannot be read.
    candidate : str, optional
        The candidate that is the champion's recipe.
    guest : bool
        That candidate is not one of the experiment's own.
    problem : str, optional
        Why the champion cannot be compared with anything.
    """

    model_config = ConfigDict(frozen=True)

    experiment: Experiment
    version: str | None = None
    candidate: str | None = None
    guest: bool = False
    problem: str | None = None

    @property
    def guest_name(self) -> str | None:
        """The candidate that runs only because it is the champion's recipe, if there is one."""
        return self.candidate if self.guest else None

    @property
    def rivals(self) -> int:
        """Candidates that a challenger is chosen from."""
        return max(1, sum(c.name != self.candidate for c in self.experiment.candidates))


@task(name="defend", cache_policy=NO_CACHE)
def defend(experiment: Experiment, dataset: DatasetHandle, run_id: str, artifacts: str) -> Defence:
    """Enter the champion of `artifacts` into `experiment`.

    Parameters
    ----------
    experiment : Experiment
        Without a policy nothing will be promoted, so nothing is entered.
    dataset : DatasetHandle
        Tonight's; a champion for other classes or images cannot be compared.
    run_id : str
        A run that was stopped after its own promotion and goes on is judged as before: against
        the champion whose place it took.
    artifacts : str
        Root of the store.
    """
    defence = enter(experiment, dataset.open(), Registry(Store(artifacts)), run_id)
    if defence.candidate:
        get_run_logger().info("%s defends the place of %s", defence.candidate, defence.version)
    return defence


def enter(
    experiment: Experiment, dataset: Dataset, registry: Registry, run_id: str | None = None
) -> Defence:
    """The experiment with the champion's recipe in it, or why that cannot be."""
    try:
        others = [entry for entry in registry.history() if entry.version != run_id]
    except BundleRefused as refused:
        return Defence(experiment=experiment, problem=str(refused))
    champion = others[-1] if others else None
    if champion is None or experiment.policy is None:
        return Defence(experiment=experiment, version=champion and champion.version)
    version = champion.version
    try:
        manifest = verify(registry.folder / version, manifest_sha256=champion.manifest_sha256)
        recipe = _recipe(manifest, dataset, experiment)
    except (BundleRefused, UsageError) as refused:
        return Defence(experiment=experiment, version=version, problem=str(refused))
    for candidate in experiment.candidates:
        if candidate.digest == recipe.digest:
            return Defence(experiment=experiment, version=version, candidate=candidate.name)
    taken = {candidate.name for candidate in experiment.candidates}
    guest = recipe.model_copy(update={"name": CHAMPION if CHAMPION not in taken else version[:64]})
    candidates = (*experiment.candidates, guest)
    return Defence(
        experiment=experiment.model_copy(update={"candidates": candidates}),
        version=version,
        candidate=guest.name,
        guest=True,
    )


def _recipe(manifest: Manifest, dataset: Dataset, experiment: Experiment) -> Candidate:
    """The candidate that the champion was, if it can be trained on `dataset`."""
    if (manifest.class_names, manifest.input_shape) != (dataset.class_names, dataset.image_shape):
        raise UsageError(
            f"it was made for other images or classes ({_by_sides(manifest.input_shape)}, "
            f"{len(manifest.class_names)} classes) than those of {dataset.name} "
            f"({_by_sides(dataset.image_shape)}, {len(dataset.class_names)} classes); keep the "
            "models of another task under another artifacts folder."
        )
    if manifest.n_train and len(dataset.train) < ENOUGH * manifest.n_train:
        raise UsageError(
            f"it was trained on {manifest.n_train:,} rows, and tonight has {len(dataset.train):,}: "
            "what is better on so few need not be on all; run without --limit, or try things under "
            "another artifacts folder."
        )
    try:
        recipe = Candidate.model_validate(manifest.candidate)
    except ValidationError as error:
        raise UsageError(f"this version does not know its recipe any more ({error}).") from error
    module, colon, _ = recipe.architecture.partition(":")
    if (
        colon
        and recipe.architecture not in {c.architecture for c in experiment.candidates}
        and module not in import_trusted()
    ):
        # A manifest is no word to import code by, even one that the pointer vouches for.
        raise UsageError(
            f"its network is {recipe.architecture!r}, which tonight's experiment does not use: "
            f"name {module!r} in NIGHTFOLD_MODULES to let it take part."
        )
    find(recipe.architecture)
    if manifest.architecture_source not in (None, fingerprint(recipe.architecture)):
        raise UsageError(
            f"its network {recipe.architecture!r} is another than the one it was trained with: "
            "undo that, or give the new network a name of its own."
        )
    return recipe


def _by_sides(shape: tuple[int, int, int]) -> str:
    return " x ".join(map(str, shape))
