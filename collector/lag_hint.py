"""Offsets told to Kafka, so that lag tools show the collectors as a consumer group. Nobody reads from them."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from fleetpulse.settings import StreamSettings
from fleetpulse.stream.client import connection_options, start_client, stop_client
from fleetpulse.telemetry import logger

_log = logger(__name__)

GROUP: Final = "fleetpulse-collector"
INTERVAL_SECONDS: Final = 5.0


async def tell_offsets(
    settings: StreamSettings, client_id: str, committed: Callable[[], Mapping[TopicPartition, int]]
) -> None:
    """Every INTERVAL_SECONDS, for ever. A broker that does not take them is asked again the next time."""
    while True:
        await asyncio.sleep(INTERVAL_SECONDS)
        offsets = dict(committed())
        if not offsets:
            continue
        # A client for each time: none to keep alive through outages, and at this interval none is missed.
        consumer = AIOKafkaConsumer(
            **connection_options(settings, f"{client_id}-lag"), group_id=GROUP, enable_auto_commit=False
        )
        try:
            async with asyncio.timeout(settings.request_timeout_seconds):
                await start_client(consumer)
                consumer.assign(list(offsets))
                await consumer.commit(offsets)
        except (KafkaError, OSError, TimeoutError) as error:
            _log.debug("offsets not told", extra={"error": repr(error)})
        finally:
            await stop_client(consumer)
