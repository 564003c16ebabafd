"""How a collector starts and ends."""

import asyncio
import os
import subprocess
import sys

import pytest

from collector import main
from collector.main import Collector
from fleetpulse.settings import CollectorSettings, DatabaseSettings, StreamSettings


async def test_a_collector_cancelled_while_it_prepares_the_database_leaves_no_task_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    preparing = asyncio.Event()

    async def never(_: DatabaseSettings) -> None:
        preparing.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(main, "prepare", never)
    stream = StreamSettings(bootstrap="127.0.0.1:1")
    database = DatabaseSettings(url="postgresql://nobody@127.0.0.1:1/nothing")
    working = asyncio.create_task(Collector(CollectorSettings(port=0), stream, database).work(asyncio.Event()))
    await preparing.wait()
    working.cancel()
    await asyncio.wait({working})
    assert working.cancelled()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("service", ["collector", "control"])
def test_no_door_is_opened_with_the_parser_that_is_less_strict(service: str) -> None:
    environment = os.environ | {
        "AIOHTTP_NO_EXTENSIONS": "1",
        "FLEETPULSE_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing",
        "FLEETPULSE_KAFKA_BOOTSTRAP": "127.0.0.1:1",
    }
    command = [sys.executable, "-m", "fleetpulse", service]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("fleetpulse: aiohttp runs without its compiled HTTP parser")
