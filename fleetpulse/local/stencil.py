"""Metrics messages of thousands of agents from one that the agent's own encoder made.

All messages of agents with the same hardware have the same bytes but for ids of the same length, the time and the
values. So one message is encoded with a mark in each of these places; where the marks are found, each later message
gets its own. That takes microseconds where encoding takes milliseconds.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from agent.encoder import Encoder
from agent.exporter import Exporter
from agent.identity import WorkerIdentity
from agent.instruments import Measurement

# Bit patterns that no real message holds: times, whole numbers and (as finite floats) fractions.
_TIME_MARK: Final = 0x1122_3344_5566_7788
_INTEGER_MARK: Final = 0x6F5E_4D3C_0000_0000
_FLOAT_MARK: Final = 0x4F5E_4D3C_0000_0000

Bytes = npt.NDArray[np.uint8]


class Stencil:
    """Makes messages like the one that ``measurements`` give.

    ``ids`` are the texts in it that belong to one agent alone: its worker id, its boot id, its GPUs' ids. ``host``
    dates the counters.
    """

    def __init__(
        self, identity: WorkerIdentity, measurements: Sequence[Measurement], ids: Sequence[str], boot_unix_nano: int
    ) -> None:
        self.integer = np.array([measurement.instrument.integer for measurement in measurements])
        marks = [_mark(place, bool(integer)) for place, integer in enumerate(self.integer)]
        exporter = Exporter(identity.resource_attributes(), identity.agent_version, boot_unix_nano, boot_unix_nano)
        # The message's sequence number is one that the exporter adds itself.
        exporter.exported = _INTEGER_MARK + len(measurements) - 1
        marked = [
            Measurement(measurement.instrument, measurement.attributes, mark)
            for measurement, mark in zip(measurements, marks, strict=True)
        ]
        message = Encoder().encode(exporter.build(marked, _TIME_MARK))
        self.points = len(measurements) + 1
        self._lay_out(message, ids, [*marks, _INTEGER_MARK + len(measurements)])

    def _lay_out(self, message: bytes, ids: Sequence[str], marks: Sequence[float]) -> None:
        """The source holds what differs, then the marked message; ``_gather`` says which byte of the source each byte
        of a message is."""
        varying = 8 * (1 + len(marks))
        ids_length = sum(len(text) for text in ids)
        start = varying + ids_length
        self._source: Bytes = np.zeros(start + len(message), np.uint8)
        self._source[start:] = np.frombuffer(message, np.uint8)
        self._numbers = self._source[:varying].view(np.int64)
        self._floats = self._source[:varying].view(np.float64)
        self._ids = self._source[varying:start]
        self._gather = np.arange(start, start + len(message))
        for place, mark in enumerate([_TIME_MARK, *marks]):
            self._redirect(message, np.array([mark]).tobytes(), 8 * place)
        offset = varying
        for text in ids:
            self._redirect(message, text.encode(), offset)
            offset += len(text)

    def _redirect(self, message: bytes, mark: bytes, source_offset: int) -> None:
        """Take the bytes of a mark, wherever it is in the message, from the source."""
        found = message.find(mark)
        if found < 0:
            raise ValueError(f"the encoder does not write {mark!r} as it is")
        while found >= 0:
            self._gather[found : found + len(mark)] = np.arange(source_offset, source_offset + len(mark))
            found = message.find(mark, found + len(mark))

    def message(self, ids: Bytes, time_unix_nano: int, values: npt.NDArray[np.float64], sequence: int) -> bytes:
        """An agent's message. ``ids`` are its ids' bytes one after the other, ``values`` are in the order of the
        measurements."""
        self._ids[:] = ids
        self._numbers[0] = time_unix_nano
        self._floats[1:-1] = values
        self._numbers[1:-1][self.integer] = values[self.integer].astype(np.int64)
        self._numbers[-1] = sequence
        return self._source.take(self._gather).tobytes()


def _mark(place: int, integer: bool) -> float:
    """A number whose 8 bytes are found nowhere else."""
    if integer:
        return _INTEGER_MARK + place
    return float(np.array([_FLOAT_MARK + place], np.int64).view(np.float64)[0])
