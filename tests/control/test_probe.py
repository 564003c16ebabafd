"""Giving up a question to the database ends nothing but the question."""

import subprocess
import sys

from fleetpulse.settings import DatabaseSettings

# The loop is held up until both the driver's own look at its socket and our patience are due in one turn. An event loop
# that is then told to wait for a closed socket aborts the process, so it is a process of its own.
SCRIPT = """
import asyncio, sys, time
import uvloop
from control import probe
from control.database import UnavailableError
from fleetpulse.settings import DatabaseSettings

probe.TIMEOUT_SECONDS = 0.5

class Slow(probe.Probe):
    async def _ask(self):
        await super()._ask()
        await self._connection.execute("SELECT pg_sleep(30)")

async def main():
    async with Slow(DatabaseSettings(url=sys.argv[1])) as slow:
        for held_up_at in (0.35, 0.4, 0.45):
            asyncio.get_running_loop().call_later(held_up_at, time.sleep, 0.3)
            started = time.monotonic()
            try:
                await slow.ask()
            except UnavailableError as error:
                print(error, time.monotonic() - started < 5)
            await asyncio.sleep(0.05)

uvloop.run(main())
"""


def test_a_question_given_up_in_a_slow_moment_does_not_end_the_process(database_settings: DatabaseSettings) -> None:
    command = [sys.executable, "-c", SCRIPT, database_settings.url.get_secret_value()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == ["it does not answer within 0.5 s True"] * 3
