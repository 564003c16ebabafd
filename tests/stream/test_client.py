"""How clients are started and stopped while somebody is in a hurry."""

import asyncio
from collections.abc import Callable

import pytest

from fleetpulse.stream import client
from fleetpulse.stream.client import start_client, stop_client


class Inner:
    """The connections below a client."""

    closed = False

    async def close(self) -> None:
        self.closed = True


class SlowClient:
    """One whose start and stop take until they are released or cancelled, as with a broker that is gone."""

    def __init__(self) -> None:
        self.client = Inner()
        self.begun = asyncio.Event()
        self.release = asyncio.Event()
        self.over = ""

    async def start(self) -> None:
        await self._wait()

    async def stop(self) -> None:
        await self._wait()

    async def _wait(self) -> None:
        self.begun.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.over = "cut off"
            raise
        self.over = "done"


async def cancelled_twice(work: "asyncio.Task[None]", slow: SlowClient) -> None:
    await slow.begun.wait()
    for _ in range(2):
        work.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)


@pytest.mark.parametrize("act", [start_client, stop_client])
async def test_a_client_is_started_or_stopped_to_the_end_however_often_its_owner_is_cancelled(
    act: Callable[[SlowClient], "asyncio.Future[None]"],
) -> None:
    slow = SlowClient()
    work = asyncio.ensure_future(act(slow))
    await cancelled_twice(work, slow)
    assert not work.done()
    slow.release.set()
    await asyncio.wait({work})
    assert work.cancelled()
    assert slow.over == "done"


@pytest.mark.parametrize("act", [start_client, stop_client])
async def test_what_does_not_end_in_time_is_cut_off_and_leaves_nothing_open(
    act: Callable[[SlowClient], "asyncio.Future[None]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "STOP_SECONDS", 0.05)
    slow = SlowClient()
    work = asyncio.ensure_future(act(slow))
    await cancelled_twice(work, slow)
    await asyncio.wait({work})
    assert work.cancelled()
    assert slow.over == "cut off"
    assert slow.client.closed is (act is stop_client)
    assert asyncio.all_tasks() == {asyncio.current_task()}
