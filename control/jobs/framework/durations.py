"""How long instances of a type usually are in a state on the way to ready, from the history."""

import time
from typing import Final

from control.database import Database
from fleetpulse.stream.lifecycle import InstanceState

LEAST_SAMPLES: Final = 20
REFRESH_SECONDS: Final = 300.0
# Twice what all but one in a hundred needed.
FACTOR: Final = 2.0

_LEARN: Final = """
SELECT i.provider, i.instance_type, t.from_state,
    percentile_cont(0.99) WITHIN GROUP (ORDER BY extract(epoch FROM t.at - before.at)::float8)
FROM instance_transitions AS t
JOIN instance_transitions AS before ON before.instance_id = t.instance_id AND before.version = t.version - 1
JOIN instances AS i ON i.instance_id = t.instance_id
WHERE t.to_state IN ('booting', 'installing', 'starting', 'ready')
    AND t.from_state IN ('provisioning', 'booting', 'installing', 'starting') AND t.at > now() - interval '30 days'
GROUP BY i.provider, i.instance_type, t.from_state
HAVING count(*) >= %(least)s
"""


class Durations:
    """What was learned, refreshed now and then."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, str, str], float] = {}
        self._read_at = float("-inf")

    async def refresh(self, database: Database) -> None:
        """Read the history again, at most every REFRESH_SECONDS. Raises UnavailableError."""
        if time.monotonic() - self._read_at < REFRESH_SECONDS:
            return
        rows = await database.rows(_LEARN, {"least": LEAST_SAMPLES})
        self._seconds = {(row[0], row[1], row[2]): FACTOR * row[3] for row in rows}
        self._read_at = time.monotonic()

    def learned(self, provider: str, instance_type: str, state: InstanceState) -> float | None:
        """Seconds beyond which such an instance is unusual; None with fewer than LEAST_SAMPLES."""
        return self._seconds.get((provider, instance_type, state))
