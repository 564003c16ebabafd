"""Hearing from other processes that access has changed."""

import asyncio
from typing import Final

import psycopg

from control.access.admission import Admission
from fleetpulse.database import DatabaseError
from fleetpulse.database.connect import connect
from fleetpulse.settings import DatabaseSettings
from fleetpulse.telemetry import logger

_log = logger(__name__)

CHANNEL: Final = "fleetpulse_access"
RECONNECT_SECONDS: Final = 1.0


async def listen(settings: DatabaseSettings, admission: Admission) -> None:
    """Have access looked up anew whenever anybody changed it, until cancelled.

    While the database is away nothing is heard, and what was looked up is used for as long as the cache keeps it.
    """
    told = False
    while True:
        try:
            async with await connect(settings, "fleetpulse-control-access") as connection:
                await connection.execute(f"LISTEN {CHANNEL}")
                # What happened before is not told.
                admission.forget()
                told = False
                async for _ in connection.notifies():
                    admission.forget()
        except (DatabaseError, psycopg.Error, OSError) as error:
            if not told:
                _log.warning("changes of access are not heard", extra={"reason": str(error).split("\n")[0]})
                told = True
        await asyncio.sleep(RECONNECT_SECONDS)
