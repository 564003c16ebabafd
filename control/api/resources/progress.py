"""``/instances/{instance_id}/progress``."""

from typing import Final

from control.api.call import Call
from control.api.endpoint import Endpoint
from control.api.fields import Nothing
from control.api.progress import Progress, Subject, expected_seconds
from control.api.progress import progress as of_instance
from control.api.resources.instances import TAG, missing

_INSTANCE: Final = """
SELECT instance_id, state, state_since, extract(epoch FROM now() - state_since)::float8, provider, instance_type
FROM instances
WHERE instance_id = %(instance_id)s AND (%(organization_id)s::uuid IS NULL OR organization_id = %(organization_id)s)
"""


async def progress(call: Call[Nothing, Nothing]) -> Progress:
    """How far it is."""
    instance_id = call.path["instance_id"]
    database = call.parts.database
    rows = await database.rows(
        _INSTANCE, {"instance_id": instance_id, "organization_id": call.caller.only_organization}
    )
    if not rows:
        raise missing(instance_id)
    *subject, provider, instance_type = rows[0]
    return of_instance(Subject(*subject), await expected_seconds(database, provider, instance_type))


ENDPOINTS: Final = (
    Endpoint("GET", "/instances/{instance_id}/progress", "How far it is on its way to ready", TAG, progress),
)
