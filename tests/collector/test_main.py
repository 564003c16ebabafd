"""A collector that is cancelled instead of told to stop."""

import asyncio

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
