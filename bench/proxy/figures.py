"""From measurements to figures: medians over rounds, ratios of them, and which of them are not to be relied on."""

import statistics
from collections.abc import Iterable, Sequence

from cells import RequestsCell, StreamsCell

OURS, DIRECT = "fleetpulse", "direct"
# Rounds further from each other than this, as a share of their median, are named.
NOISY_SPREAD = 0.25
# A write that waits for the acknowledgement of the one before it waits for 40 ms.
BUMP_MS = 35.0
Streams = dict[tuple[str, int], list[StreamsCell]]
Requests = dict[tuple[str, int], list[RequestsCell]]


class Figures:
    """Of one run. Cells are by gateway and number of connections, one for each round."""

    def __init__(self, streams: Streams, requests: Requests) -> None:
        self._streams = streams
        self._requests = requests
        self.connections = sorted({connections for _, connections in streams})

    def event_microseconds(self, name: str, connections: int) -> float | None:
        return _median(cell.microseconds for cell in self._streams.get((name, connections), ()))

    def request_microseconds(self, name: str, connections: int) -> float | None:
        return _median(cell.microseconds for cell in self._requests.get((name, connections), ()))

    def requests_per_second(self, name: str, connections: int) -> float | None:
        return _median(cell.requests_per_second for cell in self._requests.get((name, connections), ()))

    def first_token_added_ms(self, name: str, connections: int) -> float | None:
        """The gateway's median minus the engine's own in the same round; the median of that over rounds."""
        cells = self._streams.get((name, connections), ())
        direct = self._streams.get((DIRECT, connections), ())
        return _median(
            statistics.median(cell.first_token_ms) - statistics.median(bare.first_token_ms)
            for cell, bare in zip(cells, direct, strict=False)
        )

    def first_token_p99_ms(self, name: str, connections: int) -> float | None:
        return _p99([each for cell in self._streams.get((name, connections), ()) for each in cell.first_token_ms])

    def bumps(self, name: str) -> int:
        """First events that came so late as if a write had waited for an acknowledgement."""
        return sum(
            each > BUMP_MS
            for (gateway, _), cells in self._streams.items()
            if gateway == name
            for cell in cells
            for each in cell.first_token_ms
        )

    def rss_per_stream_bytes(self, name: str, connections: int) -> float | None:
        """Of the first round: what was once allocated is used again."""
        cells = self._streams.get((name, connections))
        return cells[0].rss_per_stream_bytes if cells else None

    def noisy(self) -> list[str]:
        """Cells whose rounds differ too much."""
        found = []
        for what, cells in (("event", self._streams), ("request", self._requests)):
            for (name, connections), rounds in cells.items():
                values = [cell.microseconds for cell in rounds]
                if values and name != DIRECT and max(values) - min(values) > NOISY_SPREAD * statistics.median(values):
                    found.append(f"{what} CPU of {name} at {connections}: {min(values):.1f} to {max(values):.1f} µs")
        return found


def ratio(ours: float | None, theirs: float | None) -> float | None:
    """None where one of them was not measured, or is nothing."""
    return ours / theirs if ours is not None and theirs is not None and theirs > 0 else None


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None


def _p99(values: Sequence[float]) -> float | None:
    return statistics.quantiles(values, n=100, method="inclusive")[98] if len(values) > 1 else None
