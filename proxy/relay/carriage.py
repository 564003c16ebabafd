"""One request's way over the workers until one answers: on to another only while nothing was sent to the client."""

import asyncio
import time
from collections.abc import Callable
from typing import Final, TypeAlias

from proxy.call import Call
from proxy.errors import ProxyError
from proxy.fleet import Worker
from proxy.relay.answer import FAILURES
from proxy.relay.attempts import Attempt, Attempts
from proxy.relay.connection import EngineConnection
from proxy.relay.exchange import Ending, Exchange
from proxy.select import Choice

# Answers that another worker may not give. 429: this engine's queue is full.
RETRIED: Final = FAILURES | {429}
# An engine that closes a kept connection does so on its own timer, and not long after a request: then it has failed.
_UNHEARD_SECONDS: Final = 0.1

Result: TypeAlias = Attempt | Exception
"""The attempt that answered or broke off; or, while nothing was sent to the client, ProxyError (502, 503 or 504), or a
fault of our own."""


class Carriage:
    """One request's way over the workers; it is the lease at the one that has it. No task goes along with it."""

    __slots__ = (
        *("_attempts", "_call", "_choice", "_connecting", "_connection", "_exchange", "_losses", "_over", "_started"),
        *("_started_unix_nano", "_tried"),
    )

    def __init__(self, attempts: Attempts, call: Call, over: Callable[[Result], None]) -> None:
        self._attempts = attempts
        self._call = call
        self._over = over
        self._tried: list[Worker] = []
        self._losses = 0
        self._choice: Choice | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._connection: EngineConnection | None = None
        self._exchange: Exchange | None = None
        self._started = 0.0
        self._started_unix_nano = 0

    def go(self) -> None:
        """Try the first worker."""
        try:
            choice = self._attempts.select(self._call, self._tried)
        except ProxyError as error:
            self._over(error)
        else:
            self._try(choice)

    def cancel(self) -> None:
        """Nobody wants the answer any more."""
        if self._exchange is not None:
            self._exchange.abort()
        elif self._connecting is not None:
            self._connecting.cancel()
            self.ended(Ending("cancelled"))

    def client_gone(self) -> None:
        """While there is no connection to an engine; later the exchange is told."""
        self.cancel()

    def client_slow(self) -> None:
        """Nothing was written yet."""

    def client_ready(self) -> None:
        """Nothing was written yet."""

    def worker_lost(self, reason: str) -> None:
        """Connecting has a timeout of its own."""
        if self._exchange is not None:
            self._exchange.worker_lost(reason)

    def cut_off(self) -> None:
        """The proxy ends."""
        if self._exchange is not None:
            self._exchange.cut_off()

    def connected(self, connection: EngineConnection) -> None:
        """There is a connection: send the request."""
        assert self._choice is not None
        self._connecting, self._connection = None, connection
        self._exchange = self._attempts.send(self._call, self._choice, connection, self.ended)

    def ended(self, ending: Ending) -> None:
        """An attempt is over, whichever way: the answer, another worker, or a refusal."""
        try:
            self._go_on(ending)
        except Exception as error:  # noqa: BLE001 - whoever waits for the request hears of our own faults too
            self._over(error)

    def _try(self, choice: Choice) -> None:
        """One worker; its place is taken before there is a connection: requests of the same moment must see it."""
        self._choice, self._exchange = choice, None
        self._started, self._started_unix_nano = time.monotonic(), time.time_ns()
        choice.worker.hold(self)
        assert choice.worker.address is not None
        connection = self._attempts.pool.take(choice.worker.address)
        if connection is not None:
            self.connected(connection)
        else:
            self._connection = None
            self._call.client.listener = self
            self._connecting = self._attempts.connect(choice, self.connected, self.ended)

    def _go_on(self, ending: Ending) -> None:
        choice, exchange, call = self._choice, self._exchange, self._call
        assert choice is not None
        self._connecting = call.client.listener = None
        choice.worker.release(self)
        if self._connection is not None and self._connection.used and _went_unheard(exchange, ending):
            self._try(choice)
            return
        attempt = self._attempt(choice.worker, ending, exchange)
        self._tried.append(choice.worker)
        self._attempts.book(call, attempt)
        outcome = ending.outcome
        self._losses += outcome == "lost" and attempt.reached
        if outcome == "cancelled" or call.client.head_sent:
            self._over(attempt)
            return
        if outcome != "held" or attempt.status in RETRIED:
            another = self._attempts.another(call, self._tried, self._losses, costs=outcome in ("held", "timeout"))
            if another is not None:
                self._try(another)
                return
        if outcome != "held":
            self._over(_refusal(attempt))
            return
        assert exchange is not None
        _answer(call, exchange)
        self._over(attempt)

    def _attempt(self, worker: Worker, ending: Ending, exchange: Exchange | None) -> Attempt:
        duration = time.monotonic() - self._started
        number = len(self._tried) + 1
        if exchange is None:
            return Attempt(worker, number, self._started_unix_nano, duration, ending, False, None, None, 0, None)
        first = exchange.first_event_at
        return Attempt(
            worker=worker,
            number=number,
            started_unix_nano=self._started_unix_nano,
            duration_seconds=duration,
            ending=ending,
            reached=True,
            status=exchange.head.status if exchange.head is not None else None,
            usage=exchange.usage,
            events=exchange.events,
            first_seconds=first - self._started if first is not None else None,
        )


def _answer(call: Call, exchange: Exchange) -> None:
    """Send on an answer that was held back. Raises ProxyError in place of an engine's failure."""
    head = exchange.head
    assert head is not None
    if head.status in FAILURES:
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
