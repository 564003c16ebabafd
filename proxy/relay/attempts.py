"""What all attempts at workers have in common: whom to try, on which connection, and what is made of how it ended."""

import asyncio
import time
from collections.abc import Callable, Collection
from typing import Final

import msgspec

from fleetpulse.settings import ProxySettings
from fleetpulse.tasks import end
from fleetpulse.telemetry import logger
from proxy.body import COMPLETIONS, RESPONSES
from proxy.call import Call
from proxy.ejection import EjectionRules
from proxy.errors import ProxyError
from proxy.fleet import Fleet, Worker
from proxy.relay.answer import FAILURES
from proxy.relay.connection import EngineConnection, Pool
from proxy.relay.exchange import Ending, Exchange, Timeouts
from proxy.relay.request import request_bytes
from proxy.relay.usage import Usage
from proxy.select import Bound, Choice, select

_log = logger(__name__)

# Retries because of answers and timeouts: so many may be saved up.
_BUDGET_MOST: Final = 100.0
# A request whose engine died under it twice may be the cause.
_LOSSES_MOST: Final = 2


class Attempt(msgspec.Struct, frozen=True):
    """One attempt that is over. ``reached`` is whether an engine had the request."""

    worker: Worker
    number: int
    started_unix_nano: int
    duration_seconds: float
    ending: Ending
    reached: bool
    status: int | None
    usage: Usage | None
    events: int
    first_seconds: float | None
    """Time to the first event of a stream."""


class Budget:
    """Retries that are no reaction to a dead worker are a share of all requests, or an overload would feed itself."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._saved = _BUDGET_MOST / 10

    def request(self) -> None:
        """A request came in."""
        self._saved = min(_BUDGET_MOST, self._saved + self._share)

    def take(self) -> bool:
        """Whether there is a retry left; it is taken."""
        if self._saved < 1:
            return False
        self._saved -= 1
        return True


class Attempts:
    """Carries requests to workers. ``told`` gets every attempt that has ended; ``ejected`` is called for each worker
    that is taken off the route."""

    def __init__(
        self,
        settings: ProxySettings,
        fleet: Fleet,
        pool: Pool,
        told: Callable[[Call, Attempt], None],
        ejected: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._fleet = fleet
        self.pool = pool
        self._told = told
        self._ejected = ejected
        self._timeouts = Timeouts(
            settings.first_byte_timeout_seconds,
            settings.chunk_timeout_seconds,
            settings.write_timeout_seconds,
            settings.keep_alive_seconds,
        )
        self._total_seconds, self._event_bytes = settings.total_timeout_seconds, settings.event_bytes
        key = settings.engine_api_key
        self._authorization = f"Authorization: Bearer {key.get_secret_value()}\r\n" if key is not None else ""
        self._bound = Bound(settings.session_load_factor, settings.session_load_slack)
        self._ejection = EjectionRules(
            settings.ejection_seconds, settings.ejection_most_seconds, settings.ejection_failures
        )
        self._budget = Budget(settings.retry_share)
        self._connecting: set[asyncio.Task[None]] = set()

    def begin(self) -> None:
        """A request came in."""
        self._budget.request()

    async def close(self) -> None:
        """Give up the connections that are being made."""
        for task in tuple(self._connecting):
            await end(task)

    def select(self, call: Call, tried: Collection[Worker]) -> Choice:
        """A worker that was not tried. Raises ProxyError."""
        return select(self._fleet, call.model.names, call.session, self._bound, time.monotonic(), tried)

    def another(self, call: Call, tried: Collection[Worker], losses: int, costs: bool) -> Choice | None:
        """A worker to go on to, if there is one and the request may. ``costs`` is whether that counts as a retry."""
        if len(tried) >= self._settings.attempts or losses >= _LOSSES_MOST:
            return None
        try:
            choice = self.select(call, tried)
        except ProxyError:
            return None
        return choice if not costs or self._budget.take() else None

    def connect(
        self, choice: Choice, connected: Callable[[EngineConnection], None], told: Callable[[Ending], None]
    ) -> "asyncio.Task[None]":
        """Make a connection, in the background."""
        task = asyncio.create_task(self._connect(choice, connected, told), name="connect")
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        return task

    async def _connect(
        self, choice: Choice, connected: Callable[[EngineConnection], None], told: Callable[[Ending], None]
    ) -> None:
        assert choice.worker.address is not None
        try:
            connection = await self.pool.connect(choice.worker.address)
        except (OSError, TimeoutError) as error:
            told(Ending("lost", f"no connection ({type(error).__name__})", lost=True))
        else:
            connected(connection)

    def send(
        self, call: Call, choice: Choice, connection: EngineConnection, told: Callable[[Ending], None]
    ) -> Exchange:
        """Send the request on a connection; what is to become of the answer is seen to while the engine reads it."""
        call.client.outbox.put(connection.transport, request_bytes(call, choice, self._authorization))
        is_completion = call.path in COMPLETIONS
        exchange = Exchange(
            call.client,
            connection,
            self._timeouts,
            call.started_at + self._total_seconds,
            needs="done" if is_completion else "response" if call.path == RESPONSES else "nothing",
            strips_usage=is_completion and not call.body.wants_usage,
            event_bytes=self._event_bytes,
            release=self._release,
            told=told,
        )
        exchange.start()
        return exchange

    def _release(self, connection: EngineConnection) -> None:
        self.pool.put(connection, time.monotonic())

    def book(self, call: Call, attempt: Attempt) -> None:
        """Take note of an attempt that is over."""
        self._judge(attempt.worker, attempt.ending, attempt.status, time.monotonic())
        self._told(call, attempt)

    def _judge(self, worker: Worker, ending: Ending, status: int | None, now: float) -> None:
        """What the attempt says about the worker."""
        outcome = ending.outcome
        if outcome in ("cancelled", "client_stalled", "silent"):
            return
        failed = outcome in ("lost", "broken", "timeout", "malformed") or status in FAILURES
        if failed:
            if worker.ejection.failed(now, ending.lost, self._ejection):
                self._ejected()
                _log.warning(
                    "worker off the route",
                    extra={
                        "instance_id": worker.instance_id,
                        "reason": ending.detail or f"status {status}",
                        "seconds": worker.ejection.pause_seconds,
                    },
                )
        else:
            worker.ejection.succeeded(now)
