"""Watching an engine: its state, its models, its readings, and what never arrived."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import aiohttp
import msgspec

from agent.engines.adapter import Adapter, EngineReading
from agent.engines.page import Page, parse
from fleetpulse.settings import AgentSettings
from fleetpulse.stream.heartbeat import Engine, EngineState
from fleetpulse.telemetry import logger

_log = logger(__name__)

# Pages of data-parallel vLLM with many models have been seen at 2 MB.
PAGE_BYTES: Final = 8_388_608
# Models change rarely, and listing them costs the engine's API server a request.
MODELS_EVERY_SECONDS: Final = 10.0
# A heartbeat holds this many.
MODELS_MOST: Final = 256
# More would make a sample too large for a broker.
READINGS_MOST: Final = 256
# The log has this much of a reason, for some errors of the HTTP client are pages long.
REASON_CHARACTERS: Final = 300
# What keeps an engine from being read is told once each until it is ready again, and no more than this many.
TOLD_MOST: Final = 16


class EngineUnreadableError(Exception):
    """The engine did not give a usable answer; the message says why. ``starting``: it said that it is not ready."""

    def __init__(self, message: str, starting: bool = False) -> None:
        super().__init__(message)
        self.starting = starting


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """An engine at one time. ``missing`` are columns that have not arrived since the agent's start."""

    state: EngineState
    kind: str | None = None
    url: str | None = None
    models: tuple[str, ...] = ()
    readings: Sequence[EngineReading] = ()
    missing: frozenset[str] = frozenset()

    def summary(self) -> Engine:
        """All models and indexes together, for a heartbeat."""
        kv_cache = self._values("kv_cache_usage_ratio")
        return Engine(
            state=self.state,
            kind=self.kind,
            url=self.url,
            models=self.models,
            requests_waiting=self._sum("requests_waiting"),
            requests_running=self._sum("requests_running"),
            # Work is placed by the fullest.
            kv_cache_usage_ratio=min(max(kv_cache), 1.0) if kv_cache and min(kv_cache) >= 0 else None,
            step_count=self._sum("steps_total"),
        )

    def _values(self, column: str) -> list[float]:
        return [reading.values[column] for reading in self.readings if column in reading.values]

    def _sum(self, column: str) -> int | None:
        values = self._values(column)
        total = sum(values)
        return int(total) if values and 0 <= total <= 2**53 else None


ABSENT: Final = EngineSnapshot("absent")


@dataclass(slots=True)
class EngineWatch:
    """Asks one engine, as often as poll() is called."""

    adapter: Adapter
    settings: AgentSettings
    session: aiohttp.ClientSession
    latest: EngineSnapshot = ABSENT
    _models: tuple[str, ...] = ()
    _models_at: float = float("-inf")
    _arrived: set[str] = field(default_factory=set)
    _told: frozenset[str] = frozenset()
    _failures_told: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.latest = self._snapshot("unreachable")

    async def poll(self) -> EngineSnapshot:
        """Ask once, for at most the timeout; the answer stays in ``latest``. Never raises for an engine's fault."""
        try:
            async with asyncio.timeout(self.settings.engine_timeout_seconds):
                snapshot = await self._ask()
        except EngineUnreadableError as error:
            snapshot = self._failed("starting" if error.starting else "unreachable", str(error))
        except TimeoutError:
            within = f"no whole answer within {self.settings.engine_timeout_seconds:g} s"
            snapshot = self._failed("unreachable", within)
        except (aiohttp.ClientError, OSError) as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())
            snapshot = self._failed("unreachable", why[:REASON_CHARACTERS])
        if snapshot.state == "ready" and self.latest.state != "ready":
            _log.info("engine ready", extra={"url": self._url, "models": list(snapshot.models)})
            self._failures_told.clear()
        self.latest = snapshot
        return snapshot

    @property
    def _url(self) -> str:
        return self.settings.engine_url.rstrip("/")

    async def _ask(self) -> EngineSnapshot:
        page = parse((await self._get("/metrics")).decode(errors="replace"), self.adapter.series)
        if time.monotonic() - self._models_at >= MODELS_EVERY_SECONDS or not self._models:
            self._models = _model_ids(await self._get("/v1/models"))
            self._models_at = time.monotonic()
        if not self._models:
            raise EngineUnreadableError("the engine lists no model yet", starting=True)
        readings = self.adapter.read(page, self._models)[:READINGS_MOST]
        self._note_missing(page, readings)
        return self._snapshot("ready", readings)

    async def _get(self, path: str) -> bytes:
        key = self.settings.engine_api_key
        headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key is not None else {}
        async with self.session.get(f"{self._url}{path}", headers=headers) as response:
            if response.status != 200:
                # Often what to do is in it: a flag that is missing, a key that is wanted.
                words = " ".join((await response.content.read(REASON_CHARACTERS)).decode(errors="replace").split())
                why = f"{path}: status {response.status} {words}".rstrip()
                raise EngineUnreadableError(why, starting=response.status == 503)
            body = await response.content.read(PAGE_BYTES + 1)
            while len(body) <= PAGE_BYTES and (more := await response.content.read(PAGE_BYTES + 1 - len(body))):
                body += more
            if len(body) > PAGE_BYTES:
                raise EngineUnreadableError(f"{path}: more than {PAGE_BYTES} bytes")
            return body

    def _note_missing(self, page: Page, readings: Sequence[EngineReading]) -> None:
        """A name that never came after an engine's upgrade would otherwise look like an idle engine."""
        self._arrived.update(*(reading.values for reading in readings))
        missing = self.adapter.columns - self._arrived
        if missing - self._told:
            _log.warning(
                "the engine does not report",
                extra={"kind": self.adapter.kind, "measures": sorted(missing - self._told), "series": len(page)},
            )
        self._told |= missing

    def _failed(self, state: EngineState, why: str) -> EngineSnapshot:
        if why not in self._failures_told and len(self._failures_told) < TOLD_MOST:
            _log.warning("engine not readable", extra={"url": self._url, "state": state, "error": why})
            self._failures_told.add(why)
        self._models, self._models_at = (), float("-inf")
        return self._snapshot(state)

    def _snapshot(self, state: EngineState, readings: Sequence[EngineReading] = ()) -> EngineSnapshot:
        missing = self.adapter.columns - self._arrived if state == "ready" else frozenset[str]()
        return EngineSnapshot(state, self.adapter.kind, self._url, self._models[:MODELS_MOST], readings, missing)


def _model_ids(body: bytes) -> tuple[str, ...]:
    try:
        named = (model.id[:400].replace("\0", "") for model in msgspec.json.decode(body, type=_Models).data)
        return tuple(name for name in named if name)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EngineUnreadableError(f"/v1/models: {error}") from error
