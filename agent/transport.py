"""The two ways out: the Kafka brokers, and the collector's HTTP door."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import aiohttp

from fleetpulse.settings import AgentSettings, SettingsError
from fleetpulse.stream import topics
from fleetpulse.stream.errors import NotDeliveredError

Kind = Literal["heartbeats", "metrics"]
KINDS: Final[tuple[Kind, ...]] = ("heartbeats", "metrics")

# The door's answers that are about the moment or about us rather than about the message: the message is kept.
KEPT_STATUSES: Final = frozenset({401, 403, 404, 408, 429})
HTTP_TIMEOUT_SECONDS: Final = 10.0
KAFKA_MESSAGES_AT_ONCE: Final = 32


class RefusedError(Exception):
    """The message will never be taken; the message of the error says why."""


class Transport(Protocol):
    """Takes messages in order and says for each whether it has arrived."""

    @property
    def connected(self) -> bool:
        """Whether it is worth trying."""

    @property
    def at_once(self) -> int:
        """How many messages may be under way together without losing their order."""

    async def send(self, kind: Kind, value: bytes) -> None:
        """Return once the message has arrived. Raises NotDeliveredError to keep it, RefusedError to drop it."""


class Producer(Protocol):
    """What of `fleetpulse.stream.producer.StreamProducer` is used here."""

    @property
    def connected(self) -> bool:
        """Whether a broker is there."""

    async def send(
        self, topic: str, value: bytes, key: bytes | None = None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        """Raises NotDeliveredError."""


@dataclass(frozen=True, slots=True)
class KafkaTransport:
    """Into the topics of the health stream, keyed so that a worker's messages keep their order."""

    producer: Producer
    worker_id: str
    instance_id: str

    @property
    def connected(self) -> bool:
        """See Transport."""
        return self.producer.connected

    @property
    def at_once(self) -> int:
        """See Transport. The producer keeps the order of a partition."""
        return KAFKA_MESSAGES_AT_ONCE

    async def send(self, kind: Kind, value: bytes) -> None:
        """See Transport."""
        if kind == "heartbeats":
            await self.producer.send(topics.HEARTBEATS.name, value, self.instance_id.encode())
        else:
            await self.producer.send(topics.METRICS.name, value, self.worker_id.encode())


@dataclass(frozen=True, slots=True)
class HttpTransport:
    """Through the collector's HTTP door, for workers that cannot reach Kafka."""

    session: aiohttp.ClientSession
    url: str
    token: str | None

    @property
    def connected(self) -> bool:
        """There is no connection to look at: always worth trying."""
        return True

    @property
    def at_once(self) -> int:
        """See Transport. Requests that are under way together may overtake each other."""
        return 1

    async def send(self, kind: Kind, value: bytes) -> None:
        """See Transport."""
        path, content_type = (
            ("/internal/worker/heartbeat", "application/json")
            if kind == "heartbeats"
            else ("/v1/metrics", "application/x-protobuf")
        )
        headers = {"Content-Type": content_type}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        try:
            async with asyncio.timeout(HTTP_TIMEOUT_SECONDS):
                async with self.session.post(f"{self.url}{path}", data=value, headers=headers) as response:
                    status, text = response.status, (await response.content.read(400)).decode(errors="replace")
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise NotDeliveredError(f"{self.url}{path}: {error!r}") from error
        if 400 <= status < 500 and status not in KEPT_STATUSES:
            raise RefusedError(f"{path}: status {status}: {text}")
        if status >= 300:
            raise NotDeliveredError(f"{self.url}{path}: status {status}: {text}")


def http_transport(settings: AgentSettings, session: aiohttp.ClientSession) -> HttpTransport:
    """Raises SettingsError when the setting that it needs is missing."""
    if not settings.collector_url:
        raise SettingsError("FLEETPULSE_AGENT_COLLECTOR_URL: must be set for the http transport")
    token = settings.worker_token.get_secret_value() if settings.worker_token else None
    return HttpTransport(session, settings.collector_url.rstrip("/"), token)
