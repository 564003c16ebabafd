"""Writing to the stream through broker outages: a producer that is rebuilt whenever aiokafka's cannot go on."""

import asyncio
import random
from collections.abc import Sequence
from typing import Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from fleetpulse.settings import StreamSettings
from fleetpulse.stream.client import connection_options, start_client, stop_client
from fleetpulse.stream.errors import NotDeliveredError
from fleetpulse.tasks import end
from fleetpulse.telemetry import logger

_log = logger(__name__)

RECONNECT_SECONDS: Final = 0.5
# Small enough that a heartbeat is never held up noticeably, large enough that a burst travels as one request.
LINGER_MILLISECONDS: Final = 5
BATCH_BYTES: Final = 262_144
REQUEST_BYTES: Final = 4_194_304


class StreamProducer:
    """Sends messages and says for each whether the broker has it.

    aiokafka's producer ends for good on some errors (a lost sequence after a broker's crash, a closed sender) and
    keeps waiting on others; this one replaces it, so that a caller only ever sees NotDeliveredError.
    """

    def __init__(self, settings: StreamSettings, client_id: str) -> None:
        self._settings = settings
        self._client_id = client_id
        self._producer: AIOKafkaProducer | None = None
        self._ready = asyncio.Event()
        self._broken = asyncio.Event()
        self._last_delivery = 0.0
        self._keeper: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        """Whether a producer is up; the broker may still have gone since the last message."""
        return self._ready.is_set()

    async def start(self) -> None:
        """Begin to connect, in the background, and keep at it until stop()."""
        self._keeper = asyncio.create_task(self._keep_connected(), name=f"{self._client_id}-producer")

    async def stop(self) -> None:
        """Flush, for a short while, and disconnect."""
        if self._keeper is not None:
            await end(self._keeper)
            self._keeper = None
        await self._close()

    async def send(
        self, topic: str, value: bytes | None, key: bytes | None = None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        """Return once the broker has acknowledged the message.

        Raises NotDeliveredError when it has not within ``request_timeout_seconds``.
        """
        timeout = self._settings.request_timeout_seconds
        started = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(timeout):
                await self._ready.wait()
                producer = self._producer
                assert producer is not None
                delivery = await producer.send(topic, value=value, key=key, headers=list(headers))
        except TimeoutError as error:
            raise NotDeliveredError(f"no broker at {self._settings.bootstrap} for {timeout:g} s") from error
        except (KafkaError, AssertionError) as error:
            self._suspect(producer=self._producer, since=started)
            raise NotDeliveredError(f"{topic}: {error!r}") from error
        await self._delivered(delivery, producer, topic, started)

    async def send_together(self, topic: str, messages: Sequence[tuple[bytes | None, bytes]]) -> int:
        """Send the first of these (key, value) pairs in one batch, and return how many, once the broker has them.

        For many small messages: in a batch one costs 2 µs, and 100 by itself. Raises NotDeliveredError when the broker
        has not acknowledged them within ``request_timeout_seconds``.
        """
        timeout = self._settings.request_timeout_seconds
        started = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(timeout):
                await self._ready.wait()
                producer = self._producer
                assert producer is not None
                partition = random.choice(sorted(await producer.partitions_for(topic)))
                batch = producer.create_batch()
                fit = 0
                for key, value in messages:
                    if batch.append(key=key, value=value, timestamp=None) is None:
                        break
                    fit += 1
                delivery = await producer.send_batch(batch, topic, partition=partition)
        except TimeoutError as error:
            raise NotDeliveredError(f"no broker at {self._settings.bootstrap} for {timeout:g} s") from error
        except (KafkaError, AssertionError) as error:
            self._suspect(producer=self._producer, since=started)
            raise NotDeliveredError(f"{topic}: {error!r}") from error
        await self._delivered(delivery, producer, topic, started)
        return fit

    async def _delivered(
        self, delivery: "asyncio.Future[object]", producer: AIOKafkaProducer, topic: str, started: float
    ) -> None:
        """Wait for the broker's acknowledgement. Raises NotDeliveredError."""
        timeout = self._settings.request_timeout_seconds
        # Not wait_for(): cancelling aiokafka's future would hide whether the message was sent.
        done, _ = await asyncio.wait({delivery}, timeout=timeout)
        if not done:
            self._suspect(producer, started)
            raise NotDeliveredError(f"{topic}: not acknowledged within {timeout:g} s")
        problem = delivery.exception()
        if problem is not None:
            self._suspect(producer, started)
            raise NotDeliveredError(f"{topic}: {problem!r}") from problem
        self._last_delivery = asyncio.get_running_loop().time()

    def _suspect(self, producer: AIOKafkaProducer | None, since: float) -> None:
        """Replace a producer that failed a message, unless it has delivered another one in the meantime."""
        if producer is self._producer and self._last_delivery < since:
            self._ready.clear()
            self._broken.set()

    async def _keep_connected(self) -> None:
        told = False
        while True:
            try:
                await self._connect()
            except (KafkaError, OSError) as error:
                if not told:
                    _log.warning(
                        "broker unreachable, retrying",
                        extra={"bootstrap": self._settings.bootstrap, "error": repr(error)},
                    )
                    told = True
                await asyncio.sleep(RECONNECT_SECONDS)
                continue
            _log.info("broker connected", extra={"bootstrap": self._settings.bootstrap, "client_id": self._client_id})
            told = False
            await self._broken.wait()
            await self._close()

    async def _connect(self) -> None:
        self._broken.clear()
        idempotent = self._settings.acks == "all"
        producer = AIOKafkaProducer(
            **connection_options(self._settings, self._client_id),
            acks="all" if idempotent else 1,
            enable_idempotence=idempotent,
            compression_type=None if self._settings.compression == "none" else self._settings.compression,
            linger_ms=LINGER_MILLISECONDS,
            max_batch_size=BATCH_BYTES,
            max_request_size=REQUEST_BYTES,
        )
        try:
            await start_client(producer)
        except BaseException:
            await stop_client(producer)
            raise
        self._producer = producer
        self._ready.set()

    async def _close(self) -> None:
        self._ready.clear()
        producer, self._producer = self._producer, None
        if producer is not None:
            await stop_client(producer)
