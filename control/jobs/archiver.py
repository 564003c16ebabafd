"""Archiver: puts away instances whose life has been over for a while; their last message is a tombstone."""

from control.jobs.framework.context import JobContext
from control.jobs.framework.item import Item, Outcome
from control.jobs.framework.job import Job
from control.lifecycle import transition
from fleetpulse.settings import JobSettings


def job(settings: JobSettings) -> Job:
    """The job."""
    return Job(
        "archiver",
        work,
        timeout_seconds=30.0,
        retry_seconds=5.0,
        most_seconds=300.0,
        states=("terminated",),
        delay_seconds=settings.archive_after_seconds,
    )


async def work(context: JobContext, item: Item) -> Outcome:
    """Archive one instance, unless the wait was made longer since it was planned."""
    if item.instance is None:
        return Outcome("gone", 0.0)
    seconds = item.instance.state_seconds
    wait = context.settings.archive_after_seconds - seconds
    if wait > 0:
        return Outcome("too_early", wait)
    async with context.fenced(item) as connection:
        await transition(
            connection,
            item.subject,
            "archived",
            reason="kept_long_enough",
            detail=f"It was terminated {seconds:.0f} s ago.",
            evidence={"terminated_for_seconds": seconds},
            actor=item.actor,
            from_states={"terminated"},
        )
    return Outcome("archived", 0.0)
