"""Holding a fair share of the partitions, by leases that are renewed while the collector lives."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any

import psycopg
from aiokafka import TopicPartition

from collector import offsets
from collector.database_thread import DatabaseThread
from collector.offsets import Claim
from fleetpulse.tasks import end
from fleetpulse.telemetry import logger

_log = logger(__name__)


class Ownership:
    """The claims of this collector. Only the ingest loop takes and gives back; leases are renewed in the background,
    on a connection of their own, so that a long write does not cost them."""

    def __init__(self, database: DatabaseThread, owner: str, lease_seconds: float) -> None:
        self._database = database
        self._owner = owner
        self._lease_seconds = lease_seconds
        self._interval_seconds = lease_seconds / 3
        self._next_balance = 0.0
        self._lost: set[TopicPartition] = set()
        self.claims: dict[TopicPartition, Claim] = {}

    def due(self) -> bool:
        """Whether it is time to balance."""
        return time.monotonic() >= self._next_balance or bool(self._lost)

    def seconds_until_due(self) -> float:
        """How long the ingest loop may wait for records."""
        return min(max(self._next_balance - time.monotonic(), 0.01), self._interval_seconds)

    async def begin(self) -> None:
        """Keep of the claims what the database says is still ours, at the offsets it has."""
        still = await self._database.run(offsets.reread, self._owner, self.claims.values()) if self.claims else []
        self.claims = {}
        self._held = {claim.partition: claim for claim in still}
        self._lost.clear()
        self._next_balance = 0.0

    async def balance(self, partitions: Collection[TopicPartition], settle: Callable[[], Awaitable[None]]) -> bool:
        """Move towards an equal share. ``settle`` finishes writes in progress before partitions are given back.
        Returns whether the claims have changed."""
        self._next_balance = time.monotonic() + self._interval_seconds
        changed = bool(self._held or self._lost)
        self.claims |= self._held
        self._held = {}
        for partition in self._lost & self.claims.keys():
            _log.warning("partition lost", extra={"topic": partition.topic, "partition": partition.partition})
            del self.claims[partition]
        self._lost.clear()
        collectors = await self._database.run(self._register, partitions)
        for topic, count in sorted(Counter(partition.topic for partition in partitions).items()):
            changed |= await self._balance_topic(topic, -(-count // max(1, collectors)), settle)
        return changed

    async def _balance_topic(self, topic: str, share: int, settle: Callable[[], Awaitable[None]]) -> bool:
        """Topic by topic, because topics differ in load and a collector should have its part of each."""
        mine = sorted(partition for partition in self.claims if partition.topic == topic)
        if len(mine) > share:
            await settle()
            surplus = [self.claims.pop(partition) for partition in mine[share:]]
            await self._database.run(offsets.release, self._owner, surplus)
            return True
        if len(mine) < share:
            taken = await self._database.run(offsets.take, self._owner, self._lease_seconds, topic, share - len(mine))
            self.claims |= {claim.partition: claim for claim in taken}
            return bool(taken)
        return False

    def _register(self, connection: psycopg.Connection[Any], partitions: Collection[TopicPartition]) -> int:
        offsets.add_partitions(connection, partitions)
        return offsets.register(connection, self._owner, self._lease_seconds)

    @contextlib.asynccontextmanager
    async def renewing(self) -> AsyncIterator[None]:
        """Renew leases while the block runs."""
        task = asyncio.create_task(self._renew_for_ever(), name="collector-leases")
        try:
            yield
        finally:
            await end(task)

    async def _renew_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._interval_seconds)
            claims = list(self.claims.values())
            try:
                kept = await self._database.run(offsets.renew, self._owner, self._lease_seconds, claims)
            except psycopg.Error as error:
                # The writer meets the same database and decides; a lease that lapses is caught by the fence.
                _log.debug("leases not renewed", extra={"error": str(error).strip()})
                continue
            self._lost |= {claim.partition for claim in claims} - kept - self._changed_since(claims)

    def _changed_since(self, claims: Collection[Claim]) -> set[TopicPartition]:
        """Partitions given back, or given back and taken again, while the renewal was under way."""
        return {
            claim.partition
            for claim in claims
            if claim.partition not in self.claims or self.claims[claim.partition].epoch != claim.epoch
        }

    async def release_all(self) -> None:
        """Give everything back, free for others at once."""
        claims, self.claims = list(self.claims.values()), {}
        await self._database.run(offsets.release, self._owner, claims)
        await self._database.run(offsets.unregister, self._owner)

    async def close(self) -> None:
        """Close the connection; leases not given back run out."""
        await self._database.close()
