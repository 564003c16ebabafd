"""Keys that the last reading does not have. They may be newer, so the database is asked before they are refused.

It is asked about all of them together, and not often: whoever sends wrong keys learns soon that they are wrong, and
costs the database a look into an index now and then.
"""

import asyncio
from collections.abc import Collection, Container
from typing import Final

# Between the beginnings of two questions.
PAUSE_SECONDS: Final = 0.1
# A new key waits for the question and then for all keys to be read: a hundred thousand take a second.
WAIT_SECONDS: Final = 2.0
# So many may wait; further ones are refused at once, so that wrong keys cannot use up the room for requests.
ASKED_MOST: Final = 1_024
# Keys that the database did not know are remembered, up to so many.
_STRANGERS_MOST: Final = 10_000


class UnknownKeys:
    """Digests that requests ask about. ``wanted`` is set when the database is to be asked."""

    def __init__(self) -> None:
        self.wanted = asyncio.Event()
        self._asked: dict[bytes, asyncio.Future[None]] = {}
        self._strangers: set[bytes] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._next_at = 0.0

    async def ask(self, digest: bytes) -> None:
        """Wait until the database was asked about a key; not for long, and not at all where that is known already."""
        if digest in self._strangers:
            return
        answered = self._asked.get(digest)
        if answered is None:
            if len(self._asked) >= ASKED_MOST:
                return
            loop = asyncio.get_running_loop()
            answered = self._asked[digest] = loop.create_future()
            if self._timer is None:
                self._timer = loop.call_at(self._next_at, self.wanted.set)
        # Not wait_for(), which would cancel what others wait for too.
        await asyncio.wait({answered}, timeout=WAIT_SECONDS)

    def take(self) -> list[bytes]:
        """What is asked about now; answer() follows, or give_up()."""
        self.wanted.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._next_at = asyncio.get_running_loop().time() + PAUSE_SECONDS
        return list(self._asked)

    def answer(self, digests: Collection[bytes], known: Container[bytes]) -> None:
        """The database was asked about these, and knows ``known``."""
        if len(self._strangers) > _STRANGERS_MOST:
            self._strangers.clear()
        for digest in digests:
            if digest not in known:
                self._strangers.add(digest)
            self._tell(digest)

    def give_up(self) -> None:
        """The database cannot be asked."""
        for digest in self.take():
            self._tell(digest)

    def _tell(self, digest: bytes) -> None:
        answered = self._asked.pop(digest, None)
        if answered is not None and not answered.done():
            answered.set_result(None)
