"""Revival: has the runtime of a dead worker started again, in case it is gone; heartbeats then prove it alive.

Where agent and engine run nothing happens, so it may be asked for as often as one likes. Recovery ends those that stay
dead.
"""

from control.jobs.framework.backoff import pause_seconds
from control.jobs.framework.calls import start_runtime
from control.jobs.framework.context import JobContext
from control.jobs.framework.item import Item, Outcome
from control.jobs.framework.job import Job
from control.jobs.framework.providers import provider_of
from fleetpulse.settings import JobSettings


def job(settings: JobSettings) -> Job:
    """The job."""
    interval = settings.revival_interval_seconds
    return Job(
        "revival",
        work,
        settings.health_check_timeout_seconds,
        interval,
        settings.revival_most_seconds,
        states=("worker_dead",),
        # What has died may be coming back by itself, as systemd's services do.
        delay_seconds=interval,
    )


async def work(context: JobContext, item: Item) -> Outcome:
    """One start. Raises ProviderError, also for a machine that is gone: that is the watch-dog's to conclude."""
    instance, settings = item.instance, context.settings
    if instance is None or instance.machine_id is None:
        return Outcome("gone", settings.revival_most_seconds)
    await start_runtime(context, item, instance, provider_of(context, instance.provider))
    starts = item.memory.get("starts", 0) + 1
    pause = pause_seconds(starts, settings.revival_interval_seconds, settings.revival_most_seconds)
    return Outcome("runtime_started", pause, memory={"starts": starts})
