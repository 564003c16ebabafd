"""``/alerts``: what is wrong now."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from control.api import alerting, alertmanager
from control.api.alerting import SEVERITIES, Alert
from control.api.alertmanager import Alertmanager
from control.api.call import Call, Parts
from control.api.endpoint import Endpoint
from control.api.fields import Nothing
from control.database import UnavailableError


class Alerts(msgspec.Struct, frozen=True):
    """What control sees, worst first, and what Alertmanager says. ``summary`` counts control's by severity,
    each of many that are listed as one too."""

    summary: Mapping[str, int]
    alerts: Sequence[Alert]
    alertmanager: Alertmanager


async def alerts(call: Call[Nothing, Nothing]) -> Alerts:
    """All."""
    parts, now = call.parts, time.monotonic()
    silence = parts.view.mass_silence(now)
    remembered, elsewhere = await asyncio.gather(_remembered(parts), alertmanager.ask(parts.settings.alertmanager_url))
    found = [
        *alerting.of_pipeline(silence),
        *alerting.of_workers(parts.view.snapshot(now), mass_silence=silence.active),
        *remembered,
    ]
    counts = Counter(one.severity for one in found)
    return Alerts({severity: counts[severity] for severity in SEVERITIES}, alerting.shortened(found), elsewhere)


async def _remembered(parts: Parts) -> list[Alert]:
    """By the database; while it is away, that."""
    database = parts.database
    try:
        troubled = await database.rows(alerting.TROUBLED, {})
        late = await database.rows(alerting.LATE_JOBS, {"late": alerting.LATE_SECONDS})
        failed = await database.rows(alerting.FAILED_ACTIONS, {"seconds": alerting.FAILURES_SECONDS})
        failing = await database.rows(alerting.PROVIDERS, {})
        orphans = await database.rows(alerting.ORPHANS, {})
    except UnavailableError as error:
        return [alerting.of_database(error)]
    return [
        *alerting.of_instances(troubled, parts.jobs),
        *alerting.of_jobs(late, failed),
        *alerting.of_providers(failing, orphans),
    ]


ENDPOINTS: Final = (
    Endpoint("GET", "/alerts", "What is wrong now, by control and by Alertmanager", "Fleet", alerts, operators=True),
)
