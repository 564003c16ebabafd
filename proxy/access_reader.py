"""Keeping the snapshot of access: read from PostgreSQL when a change is told, when a request has a key that is new, and
now and then in case no change was told.

While the database is away the last snapshot holds.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Collection
from typing import Any, Final, TypeAlias
from uuid import UUID

import psycopg

from fleetpulse.database import DatabaseError
from fleetpulse.database.connect import Connection, connect
from fleetpulse.settings import DatabaseSettings
from fleetpulse.telemetry import logger
from proxy.access import Key, Model, Offering, Snapshot
from proxy.unknown_keys import UnknownKeys

_log = logger(__name__)

CHANNEL: Final = "fleetpulse_access"
RECONNECT_SECONDS: Final = 1.0
READ_TIMEOUT_SECONDS: Final = 10.0
# Changes come in bursts; what follows the first so closely is read with it.
SETTLE_SECONDS: Final = 0.02

# One statement is one view of the database: no key without its organisation, no offering without its model.
_READ: Final = """
SELECT
    (SELECT coalesce(json_agg(json_build_array(
        k.key_id, k.prefix, encode(k.digest, 'hex'), k.organization_id, o.slug, k.scopes, k.model_ids,
        k.requests_per_minute, k.tokens_per_minute, k.tokens_per_month, extract(epoch FROM k.expires_at)
    ) ORDER BY k.key_id), '[]')::text FROM api_keys AS k JOIN organizations AS o USING (organization_id)
    WHERE k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())),
    (SELECT coalesce(json_agg(json_build_array(
        m.model_id, m.hugging_face_id, m.name, m.public, m.active, extract(epoch FROM m.created_at),
        (SELECT coalesce(json_agg(a.alias ORDER BY a.alias), '[]') FROM model_aliases AS a
         WHERE a.model_id = m.model_id),
        (SELECT coalesce(json_agg(g.organization_id ORDER BY g.organization_id), '[]') FROM model_access AS g
         WHERE g.model_id = m.model_id)
    ) ORDER BY m.hugging_face_id), '[]')::text FROM models AS m),
    (SELECT coalesce(json_agg(json_build_array(
        o.slug || '/' || f.code, f.organization_id, f.model_id, f.active, extract(epoch FROM f.created_at)
    ) ORDER BY o.slug, f.code), '[]')::text FROM offerings AS f JOIN organizations AS o USING (organization_id))
"""
# Which of these keys the statement above would find: a look into the index.
_KNOWN: Final = """
SELECT k.digest FROM api_keys AS k JOIN organizations AS o USING (organization_id)
WHERE k.digest = ANY(%s) AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())
"""
_Rows: TypeAlias = list[list[Any]]


class Access:
    """The newest snapshot. ``lacking`` says why there is none yet; ``failing`` why it may be old."""

    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self.read_at: float | None = None
        self.failing: str | None = "not read yet"
        self._read_last: Any = None
        self._unknown = UnknownKeys()

    @property
    def lacking(self) -> str | None:
        """Why nobody can be let in; None once there was a snapshot."""
        return self.failing if self.read_at is None else None

    async def look_for(self, digest: bytes) -> None:
        """Have the database asked for a key that the snapshot lacks, for it may be new. While the database is away, the
        snapshot is all there is."""
        if self.failing is None:
            await self._unknown.ask(digest)

    async def keep(self, settings: DatabaseSettings, poll_seconds: float) -> None:
        """Follow the database until cancelled."""
        while True:
            try:
                connection = await connect(settings, "fleetpulse-proxy")
                try:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    await self._read(connection)
                    while True:
                        if await self._is_due(connection, poll_seconds):
                            await self._read(connection)
                        else:
                            await self._look_up(connection)
                finally:
                    await _close(connection)
            except (DatabaseError, psycopg.Error, TimeoutError) as error:
                self._failed(error)
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _is_due(self, connection: Connection, poll_seconds: float) -> bool:
        """Wait: True when a change was told or the time is up, False when a request has a key that is not known."""
        left = poll_seconds if self.read_at is None else self.read_at + poll_seconds - time.monotonic()
        told = asyncio.create_task(_changed(connection, max(0.0, left)), name="access changes")
        wanted = asyncio.create_task(self._unknown.wanted.wait(), name="unknown keys")
        try:
            await asyncio.wait({told, wanted}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # A change that is told from here on is told to the next who listens on this connection.
            told.cancel()
            wanted.cancel()
            await asyncio.wait({told, wanted})
        if told.cancelled():
            return False
        if told.result():
            await _settled(connection)
        return True

    async def _look_up(self, connection: Connection) -> None:
        """Ask about the unknown keys; where there is one that the database knows, read everything."""
        asked = self._unknown.take()
        async with asyncio.timeout(READ_TIMEOUT_SECONDS):
            known = await self._known(connection, asked)
        self._unknown.answer([digest for digest in asked if digest not in known], known)
        if known:
            await self._read(connection)

    async def _known(self, connection: Connection, digests: list[bytes]) -> Collection[bytes]:
        rows = await (await connection.execute(_KNOWN, (digests,))).fetchall()
        return {row[0] for row in rows}

    async def _read(self, connection: Connection) -> None:
        asked = self._unknown.take()
        async with asyncio.timeout(READ_TIMEOUT_SECONDS):
            row = await (await connection.execute(_READ)).fetchone()
        assert row is not None
        if row != self._read_last:
            # A hundred thousand keys take a second, in which requests go on.
            self.snapshot = await asyncio.to_thread(_snapshot_of_texts, row)
            self._read_last = row
        if self.failing is not None:
            _log.info("keys and models read", extra={"keys": len(self.snapshot.keys)})
        self.read_at, self.failing = time.monotonic(), None
        self._unknown.answer(asked, self.snapshot.keys)

    def _failed(self, error: Exception) -> None:
        if self.failing is None or self.read_at is None:
            _log.warning("keys and models cannot be read; the last ones hold", extra={"error": str(error)})
        self.failing = f"the database cannot be read ({type(error).__name__})"
        self._unknown.give_up()


async def _changed(connection: Connection, seconds: float) -> bool:
    """Wait until a change is told (True), or the time is up."""
    told = False
    async for _ in connection.notifies(timeout=seconds, stop_after=1):
        told = True
    return told


async def _settled(connection: Connection) -> None:
    """Take what follows the first change closely."""
    await asyncio.sleep(SETTLE_SECONDS)
    async for _ in connection.notifies(timeout=0):
        pass


async def _close(connection: Connection) -> None:
    """Close without waiting for a server that is gone."""
    with contextlib.suppress(psycopg.Error, TimeoutError):
        async with asyncio.timeout(1):
            await connection.close()


def _snapshot_of_texts(row: tuple[str, str, str]) -> Snapshot:
    return snapshot(*map(json.loads, row))


def snapshot(keys: _Rows, models: _Rows, offerings: _Rows) -> Snapshot:
    """Rows of the database as a snapshot. A Hugging Face id is nearer than an alias of the same name."""
    by_id: dict[str, Model] = {}
    by_name: dict[str, Model] = {}
    for row in models:
        model = by_id[row[0]] = _model(row)
        for alias in row[6]:
            by_name.setdefault(alias, model)
    for model_id, model in by_id.items():
        by_name[model_id] = by_name[model.hugging_face_id] = model
    found = [_key(row) for row in keys]
    return Snapshot(
        keys={key.digest: key for key in found},
        models=by_name,
        offerings={row[0]: Offering(row[0], UUID(row[1]), by_id[row[2]], row[3], int(row[4])) for row in offerings},
    )


def _model(row: list[Any]) -> Model:
    model_id, hugging_face_id, name, public, active, created, aliases, organization_ids = row
    return Model(
        model_id=UUID(model_id),
        hugging_face_id=hugging_face_id,
        names=tuple(dict.fromkeys((hugging_face_id, name, *aliases, model_id))),
        public=public,
        active=active,
        created_unix=int(created),
        organization_ids=frozenset(map(UUID, organization_ids)),
        model_text=model_id,
    )


def _key(row: list[Any]) -> Key:
    key_id, prefix, digest, organization_id, organization, scopes, model_ids, requests, minute, month, expires = row
    return Key(
        key_id=UUID(key_id),
        prefix=prefix,
        digest=bytes.fromhex(digest),
        organization_id=UUID(organization_id),
        organization=organization,
        scopes=frozenset(scopes),
        model_ids=None if model_ids is None else frozenset(map(UUID, model_ids)),
        requests_per_minute=requests,
        tokens_per_minute=minute,
        tokens_per_month=month,
        expires_unix=None if expires is None else float(expires),
        key_text=key_id,
        organization_text=organization_id,
    )
