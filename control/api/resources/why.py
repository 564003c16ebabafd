"""``/instances/{instance_id}/why``: the story of an instance in sentences."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
from pydantic import AwareDatetime, Field

from control.api.call import Call
from control.api.endpoint import Endpoint
from control.api.fields import Nothing, Query
from control.api.problems import FieldError, unprocessable
from control.api.resources.instances import TAG, found, missing
from control.lifecycle import NoSuchInstanceError
from control.lifecycle.why import story
from fleetpulse.stream.lifecycle import InstanceState

# Before that there was nothing to tell, and far dates overflow somewhere.
YEARS: Final = range(2000, 2200)


class Sentence(msgspec.Struct, frozen=True):
    """One thing that happened."""

    at: datetime
    text: str
    evidence: Any


class Why(msgspec.Struct, frozen=True):
    """Why an instance is, or was, in its state."""

    instance_id: str
    state: InstanceState
    sentences: Sequence[Sentence]


class WhyQuery(Query):
    """When."""

    at: Annotated[AwareDatetime | None, Field(description="As of this time; now when missing")] = None


async def why(call: Call[WhyQuery, Nothing]) -> Why:
    """The story."""
    at = call.query.at
    if at is not None and at.year not in YEARS:
        raise unprocessable([FieldError("at", f"must be between the years {YEARS[0]} and {YEARS[-1]}")])
    await found(call)
    try:
        told = await story(call.parts.database, call.path["instance_id"], at)
    except NoSuchInstanceError as error:
        raise missing(call.path["instance_id"]) from error
    sentences = [Sentence(one.at, one.text, one.evidence) for one in told.sentences]
    return Why(told.instance_id, told.state, sentences)


ENDPOINTS: Final = (Endpoint("GET", "/instances/{instance_id}/why", "Why it is, or was, in its state", TAG, why),)
