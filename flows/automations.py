"""What Prefect's server does about a night on its own: notice, start once more, tell.

A process that was killed can neither say so nor start itself again, so this is left to automations
on the server, which outlives it. A server that a run has started for itself keeps none.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import get_client
from prefect.events.schemas.automations import AutomationCore

FLOWS = ["retrain", "evaluate", "predict"]
TAG = "nightfold"
"""Of the deployments whose crashed runs are started once more."""

SILENCE = timedelta(minutes=10)
"""After which a run is lost; Prefect's flows send a heartbeat every 3 minutes."""

PATIENCE = timedelta(hours=12)
"""In which a deployment is started once more only once, so that one that always crashes ends."""

BLOCK = "nightfold-failures"

PAYLOAD = """\
{% set text = flow_run.name ~ " is " ~ flow_run.state.name ~ ": " ~ flow_run.state.message %}
{
  "text": {{ text | tojson }},
  "flow": {{ flow.name | tojson }},
  "flow_run": {{ flow_run.name | tojson }},
  "flow_run_id": {{ flow_run.id | string | tojson }},
  "state": {{ flow_run.state.name | tojson }},
  "message": {{ flow_run.state.message | tojson }},
  "at": {{ event.occurred | string | tojson }},
  "url": {{ flow_run | ui_url | tojson }}
}
"""
"""`text` is what chats show; the rest is for programs."""

ENDS = [f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")]


def install(webhook: str | None = None, silence: timedelta = SILENCE) -> list[str]:
    """Create the automations on the server, or bring them up to date.

    Parameters
    ----------
    webhook : str, optional
        URL that is told of runs that failed, crashed or did not start. It is kept in a block of
        the server, encrypted; without it an automation of an earlier call stays as it is.
    silence : timedelta
        Without a heartbeat, after which a run is lost: more than the time between two of them.

    Returns
    -------
    list of str
        Names of the automations.
    """
    wanted = [_lost(silence), _once_more()]
    if webhook is not None:
        block = Webhook(
            url=webhook,  # type: ignore[arg-type]
            headers={"Content-Type": "application/json"},  # type: ignore[arg-type]
        )
        wanted.append(_notification(UUID(str(block.save(BLOCK, overwrite=True)))))
    with get_client(sync_client=True) as client:
        for document in wanted:
            automation = AutomationCore.model_validate(document)
            existing = client.read_automations_by_name(automation.name)
            if existing:
                client.update_automation(existing[0].id, automation)
            else:
                client.create_automation(automation)
    return [document["name"] for document in wanted]


def _lost(silence: timedelta) -> dict[str, Any]:
    beat = "prefect.flow-run.heartbeat"
    return {
        "name": "nightfold: a silent run has crashed",
        "description": "A run whose machine or processes are gone cannot say so itself.",
        "enabled": True,
        "trigger": _trigger(
            posture="Proactive",
            after=[beat],
            expect=[beat, *ENDS],
            within=silence.total_seconds(),
        ),
        "actions": [
            {
                "type": "change-flow-run-state",
                "state": "CRASHED",
                "name": "Crashed",
                "message": f"No heartbeat for {silence.total_seconds():.0f} seconds.",
            }
        ],
    }


def _once_more() -> dict[str, Any]:
    # Fires on the first crash and then rests for the time in `within`. The run itself is not
    # started again but another one with its parameters: a worker reports a crash more than once,
    # and a late report would end what has just begun.
    trigger = _trigger(
        posture="Reactive",
        after=[],
        expect=["prefect.flow-run.Crashed"],
        within=PATIENCE.total_seconds(),
    )
    deployment = {"for_each": ["related:deployment:prefect.resource.id"]}
    tag = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}
    return {
        "name": "nightfold: a crashed run starts once more",
        "description": "It goes on behind the last finished epoch of every fold.",
        "enabled": True,
        "trigger": {**trigger, **deployment, "match_related": tag},
        "actions": [
            {
                "type": "run-deployment",
                "source": "inferred",
                "parameters": {"settings": "{{ flow_run.parameters.settings }}"},
            }
        ],
    }


def _notification(block: UUID) -> dict[str, Any]:
    states = ("Failed", "Crashed", "TimedOut", "Late")
    return {
        "name": "nightfold: a run in trouble is told",
        "description": f"Calls the webhook in the block {BLOCK}.",
        "enabled": True,
        "trigger": _trigger(
            posture="Reactive",
            after=[],
            expect=[f"prefect.flow-run.{state}" for state in states],
            within=0,
        ),
        "actions": [{"type": "call-webhook", "block_document_id": str(block), "payload": PAYLOAD}],
    }


def _trigger(**own: Any) -> dict[str, Any]:
    """A trigger that looks at every run of Nightfold by itself."""
    return {
        "type": "event",
        "match": {"prefect.resource.id": "prefect.flow-run.*"},
        "match_related": {"prefect.resource.role": "flow", "prefect.resource.name": FLOWS},
        "for_each": ["prefect.resource.id"],
        "threshold": 1,
        **own,
    }
