"""Steps that people ask for: terminate, drain, archive."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from control.actions import log_action
from control.api.call import Call
from control.api.endpoint import Endpoint
from control.api.fields import Nothing
from control.api.problems import ProblemError
from control.api.resources.instances import ONE, TAG, Instance, missing
from control.lifecycle import IllegalTransitionError, NoSuchInstanceError, transition
from fleetpulse.stream.lifecycle import InstanceState

Step = Callable[[Call[Nothing, Nothing]], Awaitable[Instance]]


def step(verb: str, to_state: InstanceState) -> Step:
    """The handler of a step. Asked for again while the instance is in that state already, it changes nothing."""

    async def taken(call: Call[Nothing, Nothing]) -> Instance:
        instance_id = call.path["instance_id"]
        before = await _shown(call)
        try:
            version = await transition(
                call.connection,
                instance_id,
                to_state,
                reason=f"{verb}_requested",
                detail=f"{call.caller.actor} asked to {verb} it",
                evidence={"request": {"method": call.request.method, "path": call.request.path}},
                actor=call.caller.actor,
            )
        except NoSuchInstanceError as error:
            raise missing(instance_id) from error
        except IllegalTransitionError as error:
            raise ProblemError(409, f"instance {instance_id} is {before.state}: {verb} is not possible") from error
        if version is None:
            return await _shown(call)
        await log_action(
            call.connection,
            verb,
            succeeded=True,
            instance_id=instance_id,
            provider=before.provider,
            actor=call.caller.actor,
            detail={"from_state": before.state, "to_state": to_state},
        )
        return await _shown(call)

    return taken


async def _shown(call: Call[Any, Any]) -> Instance:
    """The instance in the path, as this transaction sees it. Raises ProblemError (404)."""
    instance_id = call.path["instance_id"]
    cursor = await call.connection.execute(
        ONE, {"instance_id": instance_id, "organization_id": call.caller.only_organization}
    )
    row = await cursor.fetchone()
    if row is None:
        raise missing(instance_id)
    return Instance(*row)


def _endpoint(verb: str, to_state: InstanceState, summary: str, refusal: str) -> Endpoint:
    return Endpoint(
        "POST",
        f"/instances/{{instance_id}}/{verb}",
        summary,
        TAG,
        step(verb, to_state),
        scope="admin",
        refusals={409: refusal},
    )


ENDPOINTS: Final = (
    _endpoint("terminate", "terminating", "End it: its machine is deleted", "It is terminated or archived"),
    _endpoint("drain", "draining", "Send it no new requests, and end it when it is idle", "It is not ready"),
    _endpoint("archive", "archived", "Put it out of sight", "It is not terminated"),
)
