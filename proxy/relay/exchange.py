"""One request on one connection to an engine: what comes in goes out to the client in the same breath.

No task, queue or future stands between a read from the engine and the write to the client.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from proxy import errors
from proxy.errors import ProxyError
from proxy.relay.answer import FAILURES, HEAD_BYTES, Head, MalformedAnswerError, last_head, parse_again, parse_head
from proxy.relay.client import Client
from proxy.relay.connection import EngineConnection
from proxy.relay.events import Events
from proxy.relay.framing import Chunked, Framing, framing_of
from proxy.relay.usage import Usage, usage_of_answer

# An answer this small goes out in one piece: until then another worker could still be tried.
HELD_BYTES: Final = 65_536
# Enough of a large answer's end for its usage.
TAIL_BYTES: Final = 65_536
# After [DONE] the end of the body is a formality; a connection that does not get there is not kept.
REST_SECONDS: Final = 1.0
KEEP_ALIVE: Final = b": keep-alive\n\n"

Outcome = Literal["relayed", "held", "lost", "timeout", "malformed", "silent", "broken", "client_stalled", "cancelled"]
"""relayed: the whole answer is with the client. held: it is in ``held``, not yet sent. lost, timeout, malformed,
silent: nothing was sent to the client. broken, client_stalled: some of it was. cancelled: the client has gone."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds, as in the settings."""

    first_byte: float
    chunk: float
    write: float
    keep_alive: float

    @property
    def least(self) -> float:
        """The first that can be due after a request was sent."""
        return min(self.first_byte, self.chunk, self.keep_alive)


class Ending(msgspec.Struct, frozen=True):
    """How an exchange ended. ``lost``: by the end of the engine's connection."""

    outcome: Outcome
    detail: str = ""
    lost: bool = False


def _tell_nobody(_: Ending) -> None:
    """What an exchange has to tell after its end."""


class Exchange:
    """The state of one attempt. ``told`` hears once how it ended, whatever happens. Times are monotonic seconds."""

    __slots__ = (
        *("_buffer", "_chunks", "_client", "_connection", "_deadline", "_events", "_framing", "_is_streaming", "_loop"),
        *("_needs", "_release", "_rest", "_slow_since", "_tail", "_timeouts", "_timer", "_told", "_touched"),
        *("first_at", "first_event_at", "head", "is_over", "sent_at", "usage"),
    )

    def __init__(
        self,
        client: Client,
        connection: EngineConnection,
        timeouts: Timeouts,
        deadline: float,
        needs: Literal["done", "response", "nothing"],
        strips_usage: bool,
        event_bytes: int,
        release: Callable[[EngineConnection], None],
        told: Callable[[Ending], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._client = client
        self._connection = connection
        self._timeouts = timeouts
        self._deadline = deadline
        self._needs = needs
        self._events = Events(strips_usage, event_bytes)
        self._release = release
        self._told = told
        self._chunks: Chunked | None = None
        """Set while the engine's chunks may pass as they are."""
        self._framing: Framing | None = None
        self._buffer = bytearray()
        self._tail = bytearray()
        self._slow_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_streaming = False
        self._rest = False
        self.is_over = False
        self.head: Head | None = None
        self.usage: Usage | None = None
        self.sent_at = 0.0
        self.first_at: float | None = None
        """When the first byte of the answer came."""
        self.first_event_at: float | None = None
        self._touched = 0.0

    @property
    def held(self) -> bytes:
        """The body of an answer that was not sent on."""
        return bytes(self._buffer)

    @property
    def events(self) -> int:
        """Events relayed."""
        return self._events.count

    def start(self) -> None:
        """The request was sent; the answer comes by itself."""
        self._connection.reader = self
        self._client.listener = self
        self.sent_at = self._touched = time.monotonic()
        # As soon as anything can be due; most answers are over by then.
        self._arm(min(self._timeouts.least, self._deadline - self.sent_at))

    def received(self, data: bytes) -> None:
        """Bytes of the engine."""
        self._touched = time.monotonic()
        chunks = self._chunks
        if chunks is not None and chunks.is_whole_chunk(data) and self._events.passes_whole(data):
            self._client.write(data)
            return
        try:
            if self._rest:
                self._feed_rest(data)
            elif self._framing is None:
                self._feed_head(data)
            else:
                self._feed_body(self._framing, data)
        except MalformedAnswerError as error:
            self._fail("malformed", str(error))

    def closed(self, error: Exception | None) -> None:
        """The engine's connection has ended."""
        if self._rest or self.is_over:
            return
        if self._framing is not None and self._framing.end_of_connection():
            self._body_ended()
        else:
            self._fail("lost", "the connection was lost" if error is not None else "the connection was closed")

    def worker_lost(self, reason: str) -> None:
        """The worker is known to have gone. A stream that has begun is left to its own timeouts."""
        if not self._client.head_sent:
            self._fail("silent", f"the worker is {reason}")

    def cut_off(self) -> None:
        """The proxy ends."""
        self._fail("silent", "the proxy is being stopped")

    def client_slow(self) -> None:
        """Stop reading from the engine."""
        if self._slow_since is None and not self.is_over and not self._connection.transport.is_closing():
            self._slow_since = time.monotonic()
            self._connection.transport.pause_reading()
            self._arm(self._timeouts.write)

    def client_ready(self) -> None:
        """Read on."""
        if self._slow_since is not None:
            self._slow_since = None
            self._touched = time.monotonic()
            if not self._connection.transport.is_closing():
                self._connection.transport.resume_reading()
            self._arm(min(self._timeouts.chunk, self._timeouts.keep_alive))

    def client_gone(self) -> None:
        """Nobody wants the answer: closing the connection is how an engine learns of it."""
        self._end(Ending("cancelled"))

    def abort(self) -> None:
        """End in whatever state this is, and free the connection; does nothing after the end."""
        self._end(Ending("cancelled"))

    def _feed_head(self, data: bytes) -> None:
        if self.first_at is None:
            self.first_at = self._touched
        if self._buffer:
            data = bytes(self._buffer) + data
            self._buffer.clear()
        while (end := data.find(b"\r\n\r\n")) >= 0:
            head, data = self._head_of(data[:end]), data[end + 4 :]
            if head.status >= 200:
                break
            if head.status == 101:
                raise MalformedAnswerError("it switches protocols, which nobody asked for")
        else:
            if len(data) > HEAD_BYTES:
                raise MalformedAnswerError("its head is too large")
            self._buffer += data
            return
        if 300 <= head.status < 400:
            raise MalformedAnswerError("it redirects")
        self.head = head
        self._is_streaming = head.is_stream
        self._framing = framing_of(head)
        self._feed_body(self._framing, data)

    def _head_of(self, data: bytes) -> Head:
        last = self._connection.last_head
        head = parse_again(last, data) if last is not None else None
        if head is None:
            head = parse_head(data)
            if head.is_stream:
                self._connection.last_head = last_head(data, head)
        return head

    def _feed_body(self, framing: Framing, data: bytes) -> None:
        if self._is_streaming and self.first_event_at is None and self._passes_first(framing, data):
            return
        body = framing.feed(data) if data else b""
        if body:
            if self._is_streaming:
                self._pass_events(self._events.feed(body))
            else:
                self._pass(body)
        if self.is_over:
            return
        if framing.ended or (self._events.done and self._needs == "done"):
            self._body_ended()

    def _passes_first(self, framing: Framing, data: bytes) -> bool:
        """Whether a stream's first bytes are a whole chunk with whole events; then they went on as they are."""
        if not (self._client.is_chunked and isinstance(framing, Chunked)):
            return False
        if not (framing.is_whole_chunk(data) and self._events.passes_whole(data)):
            return False
        self._begin_stream(data)
        return True

    def _pass_events(self, events: bytes) -> None:
        if not events:
            return
        out = self._client.frame(events)
        if self.first_event_at is None:
            self._begin_stream(out)
        else:
            self._client.write(out)

    def _begin_stream(self, first: bytes) -> None:
        client, head = self._client, self.head
        assert head is not None
        self.first_event_at = self._touched
        client.head_sent = True
        if client.is_chunked and isinstance(self._framing, Chunked):
            self._chunks = self._framing
        client.write(client.head(200, head.content_type, None, head.headers) + first)

    def _pass(self, body: bytes) -> None:
        """An answer that is no stream: held while it is small."""
        client, head = self._client, self.head
        assert head is not None
        if not client.head_sent:
            self._buffer += body
            if len(self._buffer) <= HELD_BYTES:
                return
            if head.status in FAILURES:
                self._end(Ending("held"))
                return
            body = self.held
            self._buffer.clear()
            client.head_sent = True
            client.write(client.head(head.status, head.content_type, head.length, head.headers))
        self._tail += body
        del self._tail[:-TAIL_BYTES]
        client.write(body if head.length is not None else client.frame(body))

    def _body_ended(self) -> None:
        head, client = self.head, self._client
        assert head is not None
        if self._is_streaming:
            self._stream_ended()
        elif client.head_sent:
            self.usage = usage_of_answer(bytes(self._tail), is_whole=False)
            client.finish(client.end() if head.length is None else b"")
            self._end(Ending("relayed"), keep=True)
        else:
            if head.status < 400:
                self.usage = usage_of_answer(self.held, is_whole=True)
            self._end(Ending("held"), keep=True)

    def _stream_ended(self) -> None:
        events, client = self._events, self._client
        self.usage = events.usage
        if not events.is_between or not (events.failed or self._has_end()):
            self._fail("lost", "the stream ended before it was complete")
        elif not client.head_sent:
            self._fail("malformed", "the stream is empty")
        elif events.failed:
            client.break_off()
            self._end(Ending("broken", "the engine told of an error in the stream"))
        else:
            client.finish(client.end())
            self._end(Ending("relayed"), keep=True)

    def _has_end(self) -> bool:
        """Whether the stream's last event is there, where it is known which one that is."""
        events = self._events
        return events.done if self._needs == "done" else events.ends_response or self._needs == "nothing"

    def _fail(self, outcome: Literal["lost", "timeout", "malformed", "silent"], detail: str) -> None:
        """The answer will not be whole."""
        client = self._client
        if not client.head_sent:
            self._end(Ending(outcome, detail, outcome == "lost"))
            return
        self.usage = self._events.usage
        error = ProxyError(504 if outcome == "timeout" else 502, "stream_broken", f"the answer broke off: {detail}")
        tell = self._is_streaming and not self._events.failed and not self._events.done
        client.break_off(errors.event(error, client.correlation_id) if tell else b"")
        self._end(Ending("broken", detail, outcome == "lost"))

    def _end(self, ending: Ending, keep: bool = False) -> None:
        """The one way out. ``keep``: the connection may carry another request."""
        if self.is_over:
            return
        self.is_over = True
        self._chunks = None
        self._client.listener = None
        if self._timer is not None:
            self._timer.cancel()
        if self._slow_since is not None and keep:
            self._connection.transport.resume_reading()
        connection, framing = self._connection, self._framing
        if not keep or self.head is None or framing is None or not self.head.keeps_alive or framing.surplus:
            connection.reader = None
            connection.transport.abort()
        elif framing.ended:
            self._release(connection)
        else:
            self._rest = True
            self._timer = self._loop.call_later(REST_SECONDS, connection.transport.abort)
        # Who is told holds this exchange: both would wait for the garbage collector, and the prompt with them.
        told, self._told = self._told, _tell_nobody
        told(ending)

    def _feed_rest(self, data: bytes) -> None:
        """Formalities after [DONE]."""
        framing = self._framing
        assert framing is not None
        try:
            framing.feed(data)
        except MalformedAnswerError:
            self._connection.transport.abort()
            return
        if framing.ended and self._timer is not None:
            self._timer.cancel()
            if framing.surplus:
                self._connection.transport.abort()
            else:
                self._release(self._connection)

    def _arm(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(0.001, seconds), self._look)

    def _look(self) -> None:
        """One timer for all timeouts: see which is due, and sleep until the next can be."""
        now, limits = time.monotonic(), self._timeouts
        if self._slow_since is not None:
            due = self._slow_since + limits.write
            if now >= due:
                self._client.abort()
                self._end(Ending("client_stalled", "the client does not read"))
                return
            self._arm(due - now)
            return
        # Engines send the head at once and then think.
        has_body = self._client.head_sent or (self._framing is not None and self._buffer)
        due = self._touched + limits.chunk if has_body else self.sent_at + limits.first_byte
        due = min(due, self._deadline)
        if now >= due:
            self._fail("timeout", "the engine did not answer in time")
            return
        if self._is_streaming and self._client.head_sent:
            quiet = now - self._touched
            if quiet >= limits.keep_alive:
                self._client.write(self._client.frame(KEEP_ALIVE))
                due = min(due, now + limits.keep_alive)
            else:
                due = min(due, self._touched + limits.keep_alive)
        self._arm(due - now)
