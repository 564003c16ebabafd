"""Starts the parts of the stack stage by stage, brings back those that end, and stops them in the reverse order."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from fleetpulse.local.parts import Part
from fleetpulse.local.processes import StartError

_LOOK_SECONDS: Final = 0.2
_FIRST_DELAY_SECONDS: Final = 0.5
_LONGEST_DELAY_SECONDS: Final = 30.0
# A part that ran this long was well: its next restart is prompt again.
_WELL_AFTER_SECONDS: Final = 60.0


class Supervisor:
    """Owns the parts from their start to their end.

    ``tell`` gets a line for people about each unexpected end; ``changed`` is called after each restart.
    """

    def __init__(self, tell: Callable[[str], None], changed: Callable[[], None]) -> None:
        self._tell = tell
        self._changed = changed
        self._stages: list[Sequence[Part]] = []
        self._keepers: asyncio.TaskGroup | None = None
        self._keeping: list[asyncio.Task[None]] = []

    def pids(self) -> dict[str, int]:
        """Process of each part that was started."""
        return {part.name: part.child().pid for stage in self._stages for part in stage}

    @contextlib.asynccontextmanager
    async def supervising(self) -> AsyncIterator[None]:
        """While the block runs, parts that end are brought back; at its end, all are stopped."""
        try:
            async with asyncio.TaskGroup() as self._keepers:
                try:
                    yield
                finally:
                    for keeper in self._keeping:
                        keeper.cancel()
        except BaseExceptionGroup as problems:
            # A single problem, such as a part that does not start, is told as what it is.
            if len(problems.exceptions) == 1:
                raise problems.exceptions[0] from None
            raise
        finally:
            await self._stop()

    async def start(self, *stage: Part) -> None:
        """Start some parts at once. Raises StartError when one does not come up."""
        assert self._keepers is not None
        self._stages.append(stage)
        # All of them to the end, so that what did start is known when another one did not.
        results = await asyncio.gather(*(part.begin() for part in stage), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        self._keeping += [self._keepers.create_task(self._keep(part), name=f"keep-{part.name}") for part in stage]

    async def _keep(self, part: Part) -> None:
        started, ends = time.monotonic(), 0
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if part.child().running:
                continue
            ends = 1 if time.monotonic() - started > _WELL_AFTER_SECONDS else ends + 1
            delay_seconds = min(_FIRST_DELAY_SECONDS * 2 ** (ends - 1), _LONGEST_DELAY_SECONDS)
            self._tell(f"{part.name} ended and is started again in {delay_seconds:g} s (log: {part.log_file})")
            await asyncio.sleep(delay_seconds)
            try:
                await part.end()  # lets go of what it held
                await part.begin()
            except StartError as error:
                self._tell(str(error))
            started = time.monotonic()
            self._changed()

    async def _stop(self) -> None:
        for stage in reversed(self._stages):
            await asyncio.gather(*(part.end() for part in stage))
