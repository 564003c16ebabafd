"""What Alertmanager says, read by the service, so that a browser talks to one address only."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal

import aiohttp
import msgspec

TIMEOUT_SECONDS: Final = 3.0
BYTES_MAXIMUM: Final = 4_000_000
MOST: Final = 200
_QUERY: Final = {"active": "true", "silenced": "false", "inhibited": "false"}
_LABELS: Final = ("worker_id", "instance_id", "model", "job", "instance")


class FiringAlert(msgspec.Struct, frozen=True):
    """An alert that Alertmanager holds to be firing, neither silenced nor inhibited."""

    name: str
    severity: str
    subject: str | None
    summary: str
    since: datetime | None
    runbook_url: str | None


class Alertmanager(msgspec.Struct, frozen=True):
    """Its alerts, newest first. Unless it answered, there is nothing to say about them: that is not "no alerts"."""

    state: Literal["not_configured", "answered", "unreachable"]
    detail: str | None
    alerts: Sequence[FiringAlert]


async def ask(url: str | None) -> Alertmanager:
    """Its alerts now."""
    if not url:
        return Alertmanager("not_configured", None, ())
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, raise_for_status=True) as session,
            session.get(f"{url.rstrip('/')}/api/v2/alerts", params=_QUERY) as answer,
        ):
            body = bytearray()
            async for chunk in answer.content.iter_any():
                body += chunk
                if len(body) > BYTES_MAXIMUM:
                    raise ValueError(f"its answer is longer than {BYTES_MAXIMUM} bytes")
            return Alertmanager("answered", None, _alerts(msgspec.json.decode(body, type=list[dict[str, Any]])))
    except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError, ValueError) as error:
        return Alertmanager("unreachable", f"{type(error).__name__}: {error}"[:300].rstrip(": "), ())


def _alerts(found: Sequence[Mapping[str, Any]]) -> list[FiringAlert]:
    newest_first = sorted(found, key=lambda one: str(one.get("startsAt", "")), reverse=True)
    return [_alert(one) for one in newest_first[:MOST]]


def _alert(one: Mapping[str, Any]) -> FiringAlert:
    labels, notes = _texts(one.get("labels")), _texts(one.get("annotations"))
    runbook = notes.get("runbook_url", "")
    return FiringAlert(
        labels.get("alertname", "unnamed"),
        labels.get("severity", "none"),
        next((labels[name] for name in _LABELS if name in labels), None),
        notes.get("description") or notes.get("summary") or "",
        _time(one.get("startsAt")),
        # Whatever else a label may hold is not for a browser to follow.
        runbook if runbook.startswith(("https://", "http://")) else None,
    )


def _texts(found: Any) -> dict[str, str]:
    return {str(name): str(text) for name, text in found.items()} if isinstance(found, Mapping) else {}


def _time(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(str(text))
    except ValueError:
        return None
