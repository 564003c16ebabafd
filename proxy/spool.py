"""Usage records on their way to the stream: taken at once, sent in the background, kept while the broker is away.

At most so many are kept; then the oldest go, and are counted. With a folder, what is left at the end is on disk for
the next start.
"""

import asyncio
import os
from collections import deque
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from fleetpulse.stream import usage
from fleetpulse.stream.errors import MessageError, NotDeliveredError
from fleetpulse.stream.producer import StreamProducer
from fleetpulse.stream.topics import USAGE
from fleetpulse.stream.usage import UsageRecord
from fleetpulse.telemetry import logger

_log = logger(__name__)

# In flight at a time: the producer makes few requests of them.
BATCH_RECORDS: Final = 500
PAUSE_SECONDS: Final = 0.05
RETRY_SECONDS: Final = 0.5
_FILE: Final = "usage-{}.jsonl"


class Spool:
    """The queue. Records are sent at least once, under their own ids."""

    def __init__(self, producer: StreamProducer, most: int, registry: CollectorRegistry) -> None:
        self._producer = producer
        self._most = most
        self._records: deque[UsageRecord] = deque()
        self._sending: list[UsageRecord] = []
        self._wake = asyncio.Event()
        self._sent = Counter(
            "fleetpulse_proxy_usage_records_sent_total", "Usage records that the broker has", registry=registry
        )
        self._dropped = Counter(
            "fleetpulse_proxy_usage_records_dropped_total", "Usage records lost to the limit", registry=registry
        )
        waiting = Gauge("fleetpulse_proxy_usage_records_waiting", "Usage records not sent yet", registry=registry)
        waiting.set_function(lambda: len(self))

    def __len__(self) -> int:
        return len(self._records) + len(self._sending)

    def add(self, record: UsageRecord) -> None:
        """Take a record."""
        if len(self) >= self._most and self._records:
            self._records.popleft()
            self._dropped.inc()
        self._records.append(record)
        self._wake.set()

    async def send(self) -> None:
        """Send until cancelled."""
        while True:
            await self._wake.wait()
            # Records of the same moment travel together.
            await asyncio.sleep(PAUSE_SECONDS)
            self._wake.clear()
            while self._records and await self._send_batch():
                pass
            if self._records:
                self._wake.set()
                await asyncio.sleep(RETRY_SECONDS)

    async def flush(self, seconds: float) -> None:
        """Send what is left, for so long at most. Only while send() does not run."""
        try:
            async with asyncio.timeout(seconds):
                while self._records and await self._send_batch():
                    pass
        except TimeoutError:
            pass

    async def _send_batch(self) -> bool:
        """Send the oldest; whether the broker took some."""
        batch = self._sending = [self._records.popleft() for _ in range(min(BATCH_RECORDS, len(self._records)))]
        sent = 0
        try:
            messages = [(record.instance_id.encode(), usage.encode(record)) for record in batch]
            sent = await self._producer.send_together(USAGE.name, messages)
        except NotDeliveredError as error:
            _log.debug("usage records not delivered", extra={"error": str(error)})
        finally:
            self._records.extendleft(reversed(batch[sent:]))
            self._sending = []
            self._sent.inc(sent)
        return sent > 0

    def save(self, folder: Path | None) -> None:
        """Put what is left on disk."""
        if not self._records:
            return
        if folder is None:
            _log.error("usage records lost", extra={"records": len(self._records)})
            self._dropped.inc(len(self._records))
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / _FILE.format(os.getpid())
        with path.open("ab") as file:
            file.writelines(usage.encode(record) + b"\n" for record in self._records)
            file.flush()
            os.fsync(file.fileno())
        _log.warning("usage records left for the next start", extra={"records": len(self._records), "file": str(path)})
        self._records.clear()

    def load(self, folder: Path | None) -> None:
        """Take up what earlier runs left. Each file is taken by one process."""
        for path in sorted(folder.glob(_FILE.format("*"))) if folder is not None and folder.is_dir() else ():
            mine = path.with_suffix(f".taken-{os.getpid()}")
            try:
                path.rename(mine)
            except FileNotFoundError:
                continue
            for line in mine.read_bytes().splitlines():
                try:
                    self.add(usage.decode(line))
                except MessageError as error:
                    _log.warning("unreadable usage record", extra={"file": str(path), "error": str(error)})
            mine.unlink()
