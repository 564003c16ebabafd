"""Trying workers until one answers: on to another only while nothing was sent to the client."""

import time
from collections.abc import Callable
from typing import Final

import msgspec

from fleetpulse.settings import ProxySettings
from fleetpulse.telemetry import logger
from proxy.body import COMPLETIONS, RESPONSES
from proxy.call import Call
from proxy.ejection import EjectionRules
from proxy.errors import ProxyError
from proxy.fleet import Fleet, Worker
from proxy.relay.connection import EngineConnection, Pool
from proxy.relay.exchange import Ending, Exchange, Timeouts
from proxy.relay.request import request_bytes
from proxy.relay.usage import Usage
from proxy.select import Bound, Choice, select

_log = logger(__name__)

# Answers that another worker may not give. 429: this engine's queue is full.
RETRIED: Final = frozenset({429, 500, 502, 503, 504})
# Retries because of answers and timeouts: so many may be saved up.
_BUDGET_MOST: Final = 100.0
# A request whose engine died under it twice may be the cause.
_LOSSES_MOST: Final = 2
# An engine that closes a kept connection does so on its own timer, and not long after a request: then it has failed.
_UNHEARD_SECONDS: Final = 0.1


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


class _Lease:
    """A request's place at a worker, taken before there is a connection: requests of the same moment must see it."""

    __slots__ = ("exchange",)

    def __init__(self) -> None:
        self.exchange: Exchange | None = None

    def worker_lost(self, reason: str) -> None:
        """Connecting has a timeout of its own."""
        if self.exchange is not None:
            self.exchange.worker_lost(reason)

    def cut_off(self) -> None:
        """The proxy ends."""
        if self.exchange is not None:
            self.exchange.cut_off()


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
        self._pool = pool
        self._told = told
        self._ejected = ejected
        self._timeouts = Timeouts(
            settings.first_byte_timeout_seconds,
            settings.chunk_timeout_seconds,
            settings.write_timeout_seconds,
            settings.keep_alive_seconds,
        )
        key = settings.engine_api_key
        self._authorization = f"Authorization: Bearer {key.get_secret_value()}\r\n" if key is not None else ""
        self._bound = Bound(settings.session_load_factor, settings.session_load_slack)
        self._ejection = EjectionRules(
            settings.ejection_seconds, settings.ejection_most_seconds, settings.ejection_failures
        )
        self._budget = Budget(settings.retry_share)

    async def carry(self, call: Call) -> Attempt:
        """Relay a request's answer to its client, and return the attempt that did it, or that broke off.

        Raises ProxyError while nothing was sent to the client: 502, 503 or 504.
        """
        self._budget.request()
        tried: list[Worker] = []
        losses = 0
        while True:
            choice = self._select(call, tried)
            attempt, exchange = await self._try(call, choice, len(tried) + 1)
            tried.append(choice.worker)
            outcome = attempt.ending.outcome
            losses += outcome == "lost" and attempt.reached
            if outcome == "held":
                assert exchange is not None
                assert exchange.head is not None
                if exchange.head.status in RETRIED and self._may_retry(call, tried, losses, costs=True):
                    continue
                self._answer(call, exchange)
                return attempt
            if call.client.head_sent:
                return attempt
            if outcome == "cancelled" or not self._may_retry(call, tried, losses, costs=outcome == "timeout"):
                raise _refusal(attempt)

    def _select(self, call: Call, tried: list[Worker]) -> Choice:
        return select(self._fleet, call.model.names, call.session, self._bound, time.monotonic(), tried)

    def _may_retry(self, call: Call, tried: list[Worker], losses: int, costs: bool) -> bool:
        """Whether to go on to another worker, if there is one."""
        if len(tried) >= self._settings.attempts or losses >= _LOSSES_MOST:
            return False
        try:
            self._select(call, tried)
        except ProxyError:
            return False
        return not costs or self._budget.take()

    async def _try(self, call: Call, choice: Choice, number: int) -> tuple[Attempt, Exchange | None]:
        """One attempt at one worker; once more on a new connection if the kept one was closed under it."""
        while True:
            started, started_unix_nano = time.monotonic(), time.time_ns()
            exchange: Exchange | None = None
            connection: EngineConnection | None = None
            ending = Ending("cancelled")
            lease = _Lease()
            choice.worker.hold(lease)
            try:
                connection = await self._connection(choice)
                exchange = lease.exchange = self._exchange(call, connection)
                exchange.start(request_bytes(call, choice, self._authorization))
                ending = await exchange.ended
            except (OSError, TimeoutError) as error:
                ending = Ending("lost", f"no connection ({type(error).__name__})", lost=True)
            finally:
                choice.worker.release(lease)
                if exchange is not None:
                    exchange.abort()
                    if exchange.ended.done() and not exchange.ended.cancelled():
                        ending = exchange.ended.result()
                stale = connection is not None and connection.used and _went_unheard(exchange, ending)
                if not stale:
                    attempt = self._over(call, choice, number, started, started_unix_nano, ending, exchange)
            if not stale:
                return attempt, exchange

    async def _connection(self, choice: Choice) -> EngineConnection:
        address = choice.worker.address
        assert address is not None
        return self._pool.take(address) or await self._pool.connect(address)

    def _exchange(self, call: Call, connection: EngineConnection) -> Exchange:
        is_completion = call.path in COMPLETIONS
        return Exchange(
            call.client,
            connection,
            self._timeouts,
            call.started_at + self._settings.total_timeout_seconds,
            needs="done" if is_completion else "response" if call.path == RESPONSES else "nothing",
            strips_usage=is_completion and not call.body.wants_usage,
            event_bytes=self._settings.event_bytes,
            release=self._release,
        )

    def _release(self, connection: EngineConnection) -> None:
        self._pool.put(connection, time.monotonic())

    def _over(
        self,
        call: Call,
        choice: Choice,
        number: int,
        started: float,
        started_unix_nano: int,
        ending: Ending,
        exchange: Exchange | None,
    ) -> Attempt:
        now = time.monotonic()
        head = exchange.head if exchange is not None else None
        self._judge(choice.worker, ending, head.status if head is not None else None, now)
        first = exchange.first_event_at if exchange is not None else None
        attempt = Attempt(
            worker=choice.worker,
            number=number,
            started_unix_nano=started_unix_nano,
            duration_seconds=now - started,
            ending=ending,
            reached=exchange is not None,
            status=head.status if head is not None else None,
            usage=exchange.usage if exchange is not None else None,
            events=exchange.events if exchange is not None else 0,
            first_seconds=first - started if first is not None else None,
        )
        self._told(call, attempt)
        return attempt

    def _judge(self, worker: Worker, ending: Ending, status: int | None, now: float) -> None:
        """What the attempt says about the worker."""
        outcome = ending.outcome
        if outcome in ("cancelled", "client_stalled", "silent"):
            return
        failed = outcome in ("lost", "broken", "timeout", "malformed") or (status is not None and status >= 500)
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

    def _answer(self, call: Call, exchange: Exchange) -> None:
        """Send on an answer that was held back. Raises ProxyError in place of an engine's 5xx."""
        head = exchange.head
        assert head is not None
        if head.status >= 500:
            status = head.status if head.status in (503, 504) else 502
            raise ProxyError(
                status,
                "worker_failed",
                f"the worker answered with status {head.status}",
                retry_after_seconds=1 if status == 503 else None,
            )
        headers = list(head.headers)
        if head.status == 429:
            headers.append((b"Retry-After", b"1"))
        call.client.answer(head.status, head.content_type, exchange.held, headers)


def _went_unheard(exchange: Exchange | None, ending: Ending) -> bool:
    """Whether a kept connection was closed before the engine could have seen the request."""
    if exchange is None or ending.outcome != "lost" or exchange.first_at is not None:
        return False
    return time.monotonic() - exchange.sent_at < _UNHEARD_SECONDS


def _refusal(attempt: Attempt) -> ProxyError:
    outcome = attempt.ending.outcome
    if outcome == "timeout":
        return ProxyError(504, "worker_timeout", "the worker did not answer in time")
    return ProxyError(502, "worker_failed", f"the worker failed: {attempt.ending.detail}")
