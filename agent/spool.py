"""A bounded queue on disk, for messages that cannot be sent now.

A spool is a folder of segment files, named by their number. A record is its length and its CRC-32 (two 32-bit
numbers, big-endian), then its bytes. Records are appended with one write each, so that the agent's death loses none;
sync(), called from time to time off the event loop, has the disk keep them through the machine's death too. What a
crash leaves half written at the end of a segment fails its CRC and is dropped. Once the bound is reached, the oldest
segment is dropped whole and its records are counted.

The file ``cursor`` says how far the oldest segment has been delivered. It may lag behind after a crash; then records
are delivered twice, which their sequence numbers tell.
"""

import bisect
import contextlib
import itertools
import os
import struct
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from fleetpulse.telemetry import logger

_log = logger(__name__)

HEADER: Final = struct.Struct(">II")
# A dropped segment is at most this share of the bound.
SEGMENTS: Final = 16
SMALLEST_SEGMENT_BYTES: Final = 4_096
LARGEST_RECORD_BYTES: Final = 16_777_216
SUFFIX: Final = ".segment"


class Position(NamedTuple):
    """Where a record ends. Later records have greater positions."""

    segment: int
    end: int


@dataclass(slots=True)
class _Segment:
    number: int
    path: Path
    size: int = 0
    delivered: int = 0  # end of the last delivered record
    ends: deque[int] = field(default_factory=deque)  # of the records not yet delivered


class Spool:
    """Records in the order of append(). Not for two processes at once. ``bound_bytes`` 0 keeps nothing.

    Raises OSError when the folder cannot be made or read; later trouble with the disk is logged and counted.
    """

    def __init__(self, folder: Path, bound_bytes: int) -> None:
        self._folder = folder
        self._bound = bound_bytes
        self._segment_bytes = max(bound_bytes // SEGMENTS, SMALLEST_SEGMENT_BYTES)
        self._segments: deque[_Segment] = deque()
        self._writing: int | None = None  # file descriptor of the last segment
        self._unsynced: set[Path] = set()
        self._next_number = 1
        self._disk_failed = False
        self.dropped = 0
        if bound_bytes:
            folder.mkdir(parents=True, exist_ok=True)
            self._recover()

    @property
    def messages(self) -> int:
        """Records not yet delivered."""
        return sum(len(segment.ends) for segment in self._segments)

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return sum(segment.size for segment in self._segments)

    @property
    def empty(self) -> bool:
        """Whether everything has been delivered or dropped."""
        return not any(segment.ends for segment in self._segments)

    def append(self, value: bytes) -> Position | None:
        """Add a record; None when it could not be kept, which is counted in ``dropped``."""
        record = HEADER.pack(len(value), zlib.crc32(value)) + value
        if len(record) > self._bound or len(value) > LARGEST_RECORD_BYTES:
            self.dropped += 1
            return None
        while self.size_bytes + len(record) > self._bound:
            self._drop_oldest()
        try:
            segment = self._segment_for(len(record))
            self._write(segment, record)
        except OSError as error:
            self._note_disk_failure(error)
            self.dropped += 1
            return None
        self._disk_failed = False
        segment.size += len(record)
        segment.ends.append(segment.size)
        return Position(segment.number, segment.size)

    def peek(self, most: int, most_bytes: int = 1_048_576) -> list[tuple[Position, bytes]]:
        """The oldest records, at least one if there is any, about ``most_bytes`` at most."""
        found: list[tuple[Position, bytes]] = []
        size = 0
        for segment in list(self._segments):
            for end, value in self._read(segment, most - len(found)):
                found.append((Position(segment.number, end), value))
                size += len(value)
                if len(found) >= most or size >= most_bytes:
                    return found
        return found

    def advance(self, delivered: Position) -> None:
        """Forget the records up to and including the one at this position."""
        while self._segments and self._segments[0].number < delivered.segment:
            self._remove(self._segments.popleft())
        if self._segments and self._segments[0].number == delivered.segment:
            first = self._segments[0]
            while first.ends and first.ends[0] <= delivered.end:
                first.delivered = first.ends.popleft()
            if not first.ends:
                self._remove(self._segments.popleft())
            else:
                self._keep_cursor(delivered)

    def sync(self) -> None:
        """Have the disk keep what was appended. Blocks for as long as the disk takes; call it on another thread."""
        while self._unsynced:
            path = self._unsynced.pop()
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def close(self) -> None:
        """Sync and close; the records stay for the next start."""
        self._stop_writing()
        try:
            self.sync()
        except OSError as error:
            self._note_disk_failure(error)

    def _recover(self) -> None:
        cursor = self._read_cursor()
        self._next_number = cursor.segment + 1  # a number is never used again while the cursor may mean it
        paths = sorted(self._folder.glob(f"*{SUFFIX}"), key=lambda path: int(path.stem))
        for path in paths:
            segment = _Segment(int(path.stem), path)
            self._next_number = segment.number + 1
            ends = [end for end, _ in _records(path, 0)]
            cut = bisect.bisect_right(ends, cursor.end) if segment.number == cursor.segment else 0
            segment.ends.extend(ends[cut:])
            segment.delivered = ends[cut - 1] if cut else 0
            segment.size = ends[-1] if ends else 0
            if segment.number < cursor.segment or not segment.ends:
                self._remove(segment)
            else:
                self._cut_torn_tail(segment)
                self._segments.append(segment)

    def _cut_torn_tail(self, segment: _Segment) -> None:
        torn_bytes = segment.path.stat().st_size - segment.size
        if torn_bytes:
            _log.warning("spool: torn record dropped", extra={"file": str(segment.path), "bytes": torn_bytes})
            os.truncate(segment.path, segment.size)

    def _segment_for(self, record_bytes: int) -> _Segment:
        """The last segment while there is room in it and it is open, else a new one."""
        last = self._segments[-1] if self._segments else None
        if last is not None and self._writing is not None and last.size + record_bytes <= self._segment_bytes:
            return last
        self._stop_writing()
        segment = _Segment(self._next_number, self._folder / f"{self._next_number:012d}{SUFFIX}")
        self._writing = os.open(segment.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._next_number += 1
        self._segments.append(segment)
        return segment

    def _write(self, segment: _Segment, record: bytes) -> None:
        assert self._writing is not None
        written = os.write(self._writing, record)
        if written != len(record):
            os.ftruncate(self._writing, segment.size)
            raise OSError(f"wrote {written} of {len(record)} bytes")
        self._unsynced.add(segment.path)

    def _read(self, segment: _Segment, most: int) -> list[tuple[int, bytes]]:
        """The oldest records of a segment that are not delivered."""
        if not segment.ends:
            return []
        try:
            found = list(itertools.islice(_records(segment.path, segment.delivered), most))
        except OSError as error:
            self._note_disk_failure(error)
            found = []
        if not found:
            self.dropped += len(segment.ends)
            self._segments.remove(segment)
            self._remove(segment)
        return found

    def _drop_oldest(self) -> None:
        segment = self._segments.popleft()
        self.dropped += len(segment.ends)
        _log.warning("spool full, oldest dropped", extra={"folder": str(self._folder), "messages": len(segment.ends)})
        self._remove(segment)

    def _remove(self, segment: _Segment) -> None:
        if not self._segments:
            self._stop_writing()
        self._unsynced.discard(segment.path)
        segment.path.unlink(missing_ok=True)

    def _stop_writing(self) -> None:
        descriptor, self._writing = self._writing, None
        if descriptor is not None:
            os.close(descriptor)

    def _keep_cursor(self, delivered: Position) -> None:
        made = self._folder / "cursor.new"
        try:
            made.write_text(f"{delivered.segment} {delivered.end}", encoding="ascii")
            made.replace(self._folder / "cursor")
        except OSError as error:
            self._note_disk_failure(error)

    def _read_cursor(self) -> Position:
        try:
            segment, end = (self._folder / "cursor").read_text(encoding="ascii").split()
            return Position(int(segment), int(end))
        except (FileNotFoundError, ValueError):
            return Position(0, 0)

    def _note_disk_failure(self, error: OSError) -> None:
        if not self._disk_failed:
            _log.error("spool: disk trouble", extra={"folder": str(self._folder), "error": repr(error)})
        self._disk_failed = True


def _records(path: Path, start: int) -> Iterator[tuple[int, bytes]]:
    """End and value of each whole record from an offset on; ends at the first that is not whole."""
    end = start
    with path.open("rb") as file:
        file.seek(start)
        while len(header := file.read(HEADER.size)) == HEADER.size:
            length, checksum = HEADER.unpack(header)
            if length > LARGEST_RECORD_BYTES:
                return
            value = file.read(length)
            if len(value) < length or zlib.crc32(value) != checksum:
                return
            end += HEADER.size + length
            yield end, value
