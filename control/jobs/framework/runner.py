"""The runner of all jobs: looks for due work, claims it, works on it, and puts it back.

Any number of control processes may run one. Work that this process holds is kept by renewing its lease; a process that
dies or freezes loses it, and what it finds out afterwards is not written.
"""

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Sequence
from typing import Final

from control.database import UnavailableError
from control.jobs.framework import work
from control.jobs.framework.backoff import jittered, pause_seconds
from control.jobs.framework.context import JobContext
from control.jobs.framework.item import Item, LostLeaseError, Outcome
from control.jobs.framework.job import Job
from control.jobs.framework.tracing import span
from control.lifecycle import LifecycleError
from control.providers.interface import ProviderError
from fleetpulse.telemetry import correlation_id, logger

_log = logger(__name__)

# How often the plan is compared with the instances: an instance made before this version of control lacks new jobs.
PLAN_SECONDS: Final = 60.0
# What is done within this time is put back in one statement.
GATHER_SECONDS: Final = 0.05
RETRY_SECONDS: Final = 1.0


class Runner:
    """Runs jobs until cancelled."""

    def __init__(self, context: JobContext, jobs: Sequence[Job]) -> None:
        self._context = context
        self._settings = context.settings
        self._metrics = context.metrics
        self._jobs = {job.name: job for job in jobs}
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._tasks: dict[str, set[asyncio.Task[None]]] = {job.name: set() for job in jobs}
        self._held: dict[int, Item] = {}
        self._done: list[work.Release] = []
        self._some_done = asyncio.Event()
        self._look_again = asyncio.Event()
        self._backlog: set[str] = set()
        self._planned_at = float("-inf")
        self._outage: str | None = None

    async def run(self) -> None:
        """For ever; a database that is away is waited for."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._renew(), name="jobs-renew")
                group.create_task(self._put_back(), name="jobs-put-back")
                group.create_task(self._look(), name="jobs-look")
        finally:
            tasks = [task for running in self._tasks.values() for task in running]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._hand_over()

    async def _hand_over(self) -> None:
        """At the end: what was not finished is due at once, for another process."""
        done = {one.item.token for one in self._done}
        unfinished = [item for token, item in self._held.items() if token not in done]
        releases = [*self._done, *(work.Release(item, 0.0, item.attempts, item.memory) for item in unfinished)]
        try:
            if releases:
                await work.release(self._context.database, releases)
        except UnavailableError as error:
            _log.debug("work not handed over, its lease has to end", extra={"error": str(error)})

    async def _look(self) -> None:
        while True:
            self._look_again.clear()
            try:
                await self.look()
                self._outage = None
            except UnavailableError as error:
                if self._outage is None:
                    _log.warning("jobs wait for the database", extra={"reason": str(error)})
                self._outage = str(error)
            try:
                await asyncio.wait_for(self._look_again.wait(), self._settings.poll_interval_seconds)
            except TimeoutError:
                continue

    async def look(self) -> int:
        """Claim what is due, as much as may be worked on at once; returns how much. Raises UnavailableError."""
        jobs = list(self._jobs.values())
        if time.monotonic() - self._planned_at >= PLAN_SECONDS:
            await work.plan(self._context.database, jobs, list(self._context.providers))
            self._planned_at = time.monotonic()
        ages, ran_out = await work.due(self._context.database, jobs)
        if ran_out:
            self._metrics.leases_expired.inc(await work.take_back(self._context.database))
        self._backlog.clear()
        claimed = 0
        for job in jobs:
            self._metrics.oldest_due_seconds.labels(job.name).set(ages.get(job.name, 0.0))
            if job.name in ages:
                claimed += await self._claim(job)
        return claimed

    async def _claim(self, job: Job) -> int:
        free = self._settings.concurrent_items - len(self._tasks[job.name])
        most = min(free, self._settings.batch_items)
        items = []
        if most > 0:
            items = await work.claim(self._context.database, job, self._owner, most, self._settings.lease_seconds)
        if len(items) >= most:
            self._backlog.add(job.name)
        if not items:
            return 0
        self._metrics.runs.labels(job.name).inc()
        self._metrics.claimed.labels(job.name).inc(len(items))
        run = f"{job.name}-{secrets.token_hex(4)}"
        _log.debug("job claimed", extra={"job": job.name, "items": len(items), "run": run})
        for item in items:
            self._metrics.lateness_seconds.labels(job.name).observe(item.late_seconds)
            self._held[item.token] = item
            task = asyncio.create_task(self._work(job, item, run), name=f"{job.name} of {item.subject}")
            self._tasks[job.name].add(task)
            task.add_done_callback(self._tasks[job.name].discard)
        return len(items)

    async def _work(self, job: Job, item: Item, run: str) -> None:
        """Work on an item and say what came of it, whatever that was."""
        correlation_id.set((item.instance.correlation_id if item.instance is not None else None) or run)
        started = time.monotonic()
        outcome = await self._outcome(job, item)
        self._metrics.duration_seconds.labels(job.name).observe(time.monotonic() - started)
        self._metrics.outcomes.labels(job.name, outcome.result).inc()
        if outcome.result == "lost":
            self._held.pop(item.token, None)
        else:
            self._done.append(
                work.Release(
                    item,
                    jittered(outcome.again_seconds),
                    item.attempts + 1 if outcome.failed else 0,
                    item.memory if outcome.memory is None else outcome.memory,
                )
            )
            self._some_done.set()
        if job.name in self._backlog:
            self._look_again.set()

    async def _outcome(self, job: Job, item: Item) -> Outcome:
        told = {"job": job.name, "subject": item.subject}
        try:
            with span(item):
                async with asyncio.timeout(job.timeout_seconds):
                    return await job.work(self._context, item)
        except LostLeaseError:
            _log.info("work lost to another one", extra=told)
            return Outcome("lost", 0.0)
        except TimeoutError:
            _log.warning("job took too long", extra={**told, "timeout_seconds": job.timeout_seconds})
            result = "timeout"
        except ProviderError as error:
            _log.warning("provider failed", extra={**told, "error": str(error), "retryable": error.retryable})
            result = "provider_error"
        except UnavailableError as error:
            _log.debug("no database for a job", extra={**told, "error": str(error)})
            result = "database_away"
        except LifecycleError as error:
            _log.warning("job wanted what cannot be", extra={**told, "error": str(error)})
            result = "refused"
        # Providers may come from anybody: one item's error must not end the others.
        except Exception:  # noqa: BLE001 - told with its traceback, and the item is tried again
            _log.exception("job failed", extra=told)
            result = "error"
        return Outcome(result, pause_seconds(item.attempts + 1, job.retry_seconds, job.most_seconds), failed=True)

    async def _put_back(self) -> None:
        while True:
            await self._some_done.wait()
            await asyncio.sleep(GATHER_SECONDS)
            self._some_done.clear()
            releases, self._done = self._done, []
            try:
                await work.release(self._context.database, releases)
            except UnavailableError:
                # Kept while the lease can still be renewed; later they are no longer ours and stay as they are.
                self._done = [*releases, *self._done]
                self._some_done.set()
                await asyncio.sleep(RETRY_SECONDS)
                continue
            for one in releases:
                self._held.pop(one.item.token, None)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._settings.lease_seconds / 3)
            if not self._held:
                continue
            try:
                await work.renew(self._context.database, list(self._held.values()), self._settings.lease_seconds)
            except UnavailableError as error:
                _log.debug("leases not renewed", extra={"error": str(error)})
