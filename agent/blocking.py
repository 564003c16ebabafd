"""Blocking calls off the event loop, on a thread that may hang without holding up anything else.

A driver call can block for ever (a GPU in trouble, a dead disk). A thread pool would then hold up the end of the
process; this thread is a daemon, and says while it is still busy with the last call.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")


class StillBusyError(Exception):
    """The thread has not come back from an earlier call."""


class BlockingThread:
    """One thread that makes one call at a time."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._running: Future[Any] | None = None

    async def call(self, function: Callable[[], Result], timeout_seconds: float) -> Result:
        """The function's result or exception.

        Raises TimeoutError when it takes longer (it goes on, and its result is thrown away), and StillBusyError
        while an earlier call goes on.
        """
        if self._running is not None and not self._running.done():
            raise StillBusyError(f"{self._name} has not come back from its last call")
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        future: Future[Result] = Future()
        self._running = future
        self._calls.put((future, function))
        done, _ = await asyncio.wait({_waitable(future)}, timeout=timeout_seconds)
        if not done:
            raise TimeoutError(f"{self._name} took longer than {timeout_seconds:g} s")
        return future.result()

    async def stop(self, timeout_seconds: float) -> None:
        """Wait for the call in progress and let the thread end; one that hangs is left to the end of the process."""
        if self._thread is None:
            return
        if self._running is not None and not self._running.done():
            await asyncio.wait({_waitable(self._running)}, timeout=timeout_seconds)
        self._calls.put(None)
        self._thread = None

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            future, function = item
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001 - handed to the caller, whoever it is
                future.set_exception(error)


def _waitable(future: Future[Any]) -> asyncio.Future[Any]:
    """For the event loop to wait on. Its exception is looked at here, or asyncio would report it as overlooked."""
    waitable = asyncio.wrap_future(future)
    waitable.add_done_callback(lambda done: done.cancelled() or done.exception())
    return waitable
