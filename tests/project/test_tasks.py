import asyncio
import contextlib

import pytest

from fleetpulse.tasks import end


async def for_ever() -> None:
    await asyncio.Event().wait()


async def begun(work: "asyncio.Task[None]") -> "asyncio.Task[None]":
    """The task, once it runs: one that never ran is cancelled without a line of it."""
    await asyncio.sleep(0)
    return work


async def test_a_task_is_over_when_it_was_ended() -> None:
    task = await begun(asyncio.create_task(for_ever()))
    await end(task)
    assert task.cancelled()


async def test_a_task_that_was_over_before_is_no_error() -> None:
    task = asyncio.create_task(asyncio.sleep(0))
    await task
    await end(task)


@pytest.mark.parametrize("is_over", [False, True])
async def test_the_error_of_a_task_is_not_lost(is_over: bool) -> None:
    async def failing() -> None:
        if is_over:
            raise ValueError("lost?")
        try:
            await for_ever()
        finally:
            raise ValueError("lost?")

    task = await begun(asyncio.create_task(failing()))
    with pytest.raises(ValueError, match="lost"):
        await end(task)


async def test_whoever_is_cancelled_while_ending_a_task_is_cancelled() -> None:
    ending, may_end = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await for_ever()
        ending.set()
        await may_end.wait()

    async def owner(task: "asyncio.Task[None]") -> None:
        await end(task)

    task = await begun(asyncio.create_task(slow()))
    owning = asyncio.create_task(owner(task))
    await ending.wait()
    owning.cancel()
    await asyncio.wait({owning})
    assert owning.cancelled()
    may_end.set()
    await task
