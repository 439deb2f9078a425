"""Promote: let the gate decide about the sealed challenger, and move the pointer if it may.

What decides is in `nightfold.gate`, the pointer in `nightfold.registry`; here the last evidence is
gathered and both are held together under one lock.
"""

from __future__ import annotations

import math

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from nightfold import gate
from nightfold.errors import BundleRefused
from nightfold.experiment import PolicyChoice
from nightfold.manifest import MODEL, BundleHandle, Manifest
from nightfold.registry import Registry
from nightfold.store import Store
from nightfold.summary import PromotionFacts
from tasks.challenge import Contest


@task(name="promote", task_run_name="promote {bundle.version}", cache_policy=NO_CACHE)
def promote(
    bundle: BundleHandle,
    milliseconds: float | None,
    contest: Contest,
    policy: PolicyChoice | None,
    artifacts: str,
) -> PromotionFacts:
    """Promote `bundle` if the policy allows it.

    Parameters
    ----------
    bundle : BundleHandle
        The challenger, sealed under `artifacts`.
    milliseconds : float or None
        Median time it took to answer one image; not measured keeps no limit.
    contest : Contest
        How its recipe did against the champion's.
    policy : PolicyChoice or None
        The experiment's; nothing is promoted without.
    artifacts : str
        Root of the store.

    Returns
    -------
    PromotionFacts
        With the reason in a sentence; a challenger that is not promoted is no error.
    """
    facts = settle(bundle, milliseconds, contest, policy, Registry(Store(artifacts)))
    get_run_logger().info(facts.reason)
    return facts


def settle(
    bundle: BundleHandle,
    milliseconds: float | None,
    contest: Contest,
    policy: PolicyChoice | None,
    registry: Registry,
) -> PromotionFacts:
    """Judge the challenger and move the pointer, both under the registry's lock.

    What was proven against one champion proves nothing against another: if somebody else was
    promoted since the folds were compared, that one stays.
    """
    with registry.lock():
        try:
            champion = registry.champion()
        except BundleRefused as refused:
            return _refused(str(refused), None)
        current = champion.version if champion else None
        try:
            manifest = bundle.verify()
        except BundleRefused as refused:
            return _refused(f"The challenger is not sound: {refused}", current)
        decision = gate.decide(policy, _evidence(manifest, milliseconds, contest))
        if champion and champion.version == bundle.version:
            return _facts(decision, current).model_copy(
                update={"promoted": True, "outcome": "promote", "reason": champion.reason}
            )
        if contest.champion != current:
            now = f"The champion is now {current}" if current else "There is no champion any more"
            return _refused(
                f"{now}, and tonight's challenger was compared with "
                f"{contest.champion or 'none'}: run it again.",
                current,
            )
        if champion and manifest.candidate_digest in champion.deposed:
            return _refused(
                f"The champion {current} stays: the recipe of {manifest.candidate['name']} was "
                "rolled back from. Once the cause is mended, 'nightfold models promote "
                f"{bundle.version}' makes it champion.",
                current,
            )
        if contest.problem and current is None:
            return _refused(f"Nothing is promoted: {contest.problem}", current)
        if contest.problem:
            return _refused(
                f"The champion {current} stays, as it cannot be compared: {contest.problem} Until "
                "that is resolved, decide with 'nightfold models promote' or 'rollback'.",
                current,
            )
        if decision.outcome == "promote":
            registry.promote(bundle.version, decision.reason)
            current = bundle.version
        return _facts(decision, current)


def _facts(decision: gate.Decision, champion: str | None) -> PromotionFacts:
    promoted = decision.outcome == "promote"
    return PromotionFacts(promoted=promoted, champion=champion, **dict(decision))


def _refused(reason: str, champion: str | None) -> PromotionFacts:
    return PromotionFacts(promoted=False, reason=reason, champion=champion, outcome="refuse")


def _evidence(manifest: Manifest, milliseconds: float | None, contest: Contest) -> gate.Evidence:
    return gate.Evidence(
        candidate=str(manifest.candidate["name"]),
        holdout_accuracy=manifest.holdout.accuracy,
        ece=manifest.holdout.ece,
        megabytes=manifest.files[MODEL].bytes / 1e6,
        milliseconds=math.nan if milliseconds is None else milliseconds,
        recalls=contest.recalls,
        champion=contest.champion,
        champion_recalls=contest.champion_recalls,
        comparison=contest.comparison,
    )
