"""Promote: give the challenger the champion's place if it has proven to be better.

The pointer itself is kept by `nightfold.registry`; here is only the decision.
"""

from __future__ import annotations

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from nightfold.bundle import BundleHandle, Manifest, verify
from nightfold.errors import BundleRefused
from nightfold.registry import Registry
from nightfold.store import Store
from nightfold.summary import PromotionFacts


@task(name="promote", task_run_name="promote {bundle.version}", cache_policy=NO_CACHE)
def promote(bundle: BundleHandle, artifacts: str) -> PromotionFacts:
    """Promote `bundle` if there is no champion or it is more accurate on the same folds.

    Parameters
    ----------
    bundle : BundleHandle
        The challenger, sealed under `artifacts`.
    artifacts : str
        Root of the store.

    Returns
    -------
    PromotionFacts
        With the reason in a sentence; a challenger that is not promoted is no error.
    """
    facts = decide(bundle, Registry(Store(artifacts)))
    get_run_logger().info(facts.reason)
    return facts


def decide(bundle: BundleHandle, registry: Registry) -> PromotionFacts:
    """Judge the challenger and move the pointer, both under the registry's lock.

    What is not proven is not promoted: a champion scored on other folds, or one whose bundle does
    not verify, stays until somebody promotes or rolls back by hand.
    """
    with registry.lock():
        try:
            champion = registry.champion()
        except BundleRefused as refused:
            return PromotionFacts(promoted=False, reason=str(refused), champion=None)
        current = champion.version if champion else None
        if champion and champion.version == bundle.version:
            return PromotionFacts(promoted=True, reason=champion.reason, champion=current)
        try:
            challenger = bundle.verify()
        except BundleRefused as refused:
            return PromotionFacts(
                promoted=False, reason=f"The challenger is not sound: {refused}", champion=current
            )
        if champion is None:
            promoted, reason = True, "The first model: there was no champion to beat."
        else:
            try:
                holder = verify(
                    registry.folder / champion.version, manifest_sha256=champion.manifest_sha256
                )
                promoted, reason = judge(holder, challenger)
            except BundleRefused as refused:
                promoted, reason = (
                    False,
                    (
                        f"The champion {champion.version} cannot be compared: {refused} "
                        "Until then 'nightfold models promote' or 'rollback' decides."
                    ),
                )
        if promoted:
            registry.promote(bundle.version, reason)
            current = bundle.version
        return PromotionFacts(promoted=promoted, reason=reason, champion=current)


def judge(champion: Manifest, challenger: Manifest) -> tuple[bool, str]:
    """Whether the challenger's mean accuracy is higher on the same fold plan, and why."""
    if champion.plan_digest != challenger.plan_digest:
        return False, (
            f"The champion {champion.version} stays: it was scored on other folds (plan "
            f"{champion.plan_digest[:12]}) than the challenger (plan "
            f"{challenger.plan_digest[:12]}), so neither is proven better."
        )
    old, new = champion.cross_validated, challenger.cross_validated
    scores = f"{new.mean:.3%} against {old.mean:.3%} on the same {new.n} folds"
    if new.mean > old.mean:
        return True, f"More accurate than the champion {champion.version}: {scores}."
    return False, f"The champion {champion.version} stays: the challenger has {scores}."
