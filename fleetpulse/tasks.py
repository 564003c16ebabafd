"""How a background task ends with whoever owns it."""

import asyncio


async def end(task: "asyncio.Task[object]") -> None:
    """Cancel a task and wait until it is over. Raises the task's own error, if it had one.

    Not ``suppress(CancelledError)`` around ``await task``: that also swallows a cancellation of the caller, who would
    then go on as if nothing had been asked of it.
    """
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.result()
