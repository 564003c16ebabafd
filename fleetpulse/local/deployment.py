"""The workers of ``fleetpulse up``: deployed by control's API like anybody's, at the provider mock."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fleetpulse.client.control import ControlClient, RefusedError

PROVIDER: Final = "mock"
MODEL: Final = "mock-model"
INFERENCE_KEY_NAME: Final = "fleetpulse up"
# Machines of the second worker, the third, and so on, with the load of their engines; then from the start again.
_MACHINES: Final = (("mock-h100-8", 4.0), ("mock-l40s-4", 2.0), ("mock-h100-2", 0.5))
_ENDED: Final = frozenset({"terminating", "terminated", "archived"})


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker that is there or on its way."""

    name: str
    instance_id: str
    state: str


def deployment_name(place: int) -> str:
    """Name of the deployment of the worker at a place, counted from 0."""
    return f"worker-{place + 1}"


async def deploy(client: ControlClient, workers: int) -> list[Worker]:
    """See to it that there are this many workers; returns them by place. Raises what ControlClient raises.

    Workers of an earlier start are kept, surplus ones terminated.
    """
    await _ensure_model(client)
    there = await _there(client)
    wanted = [deployment_name(place) for place in range(workers)]
    for place, name in enumerate(wanted):
        if name not in there:
            await client.post("/deployments", {"name": name, **_machine(place)})
    for name in there.keys() - set(wanted):
        await client.post(f"/instances/{there[name].instance_id}/terminate")
    there = await _there(client)
    return [there[name] for name in wanted if name in there]


async def is_offered(client: ControlClient) -> bool:
    """Whether control has read what the provider offers."""
    return bool(await client.all("/instance-types", "instance_types", [("provider", PROVIDER)]))


async def unready(client: ControlClient) -> list[str]:
    """One line for each worker that is not ready, with the reason where there is one."""
    return [
        f"{each['instance_id']} is {each['state']}" + (f" ({each['failure']})" if each["failure"] else "")
        for each in await client.all("/instances", "instances", [("provider", PROVIDER)])
        if each["state"] not in {"ready", *_ENDED}
    ]


async def inference_key(client: ControlClient, kept: str) -> str:
    """A key for the proxy: the one kept from an earlier start while it is valid, else a new one."""
    for key in await client.all("/api-keys", "api_keys"):
        if key["name"] == INFERENCE_KEY_NAME and key["revoked_at"] is None:
            if kept.startswith(key["prefix"]):
                return kept
            await client.delete(f"/api-keys/{key['key_id']}")
    made = await client.post("/api-keys", {"name": INFERENCE_KEY_NAME, "scopes": ["inference"]})
    return str(made["key"])


def _machine(place: int) -> Mapping[str, Any]:
    """What is asked for: the first worker reads this host, the others pretend to have GPUs and an engine."""
    asked = {"provider": PROVIDER, "zone": "mock-east-1"}
    if place == 0:
        return {**asked, "instance_type": "mock-cpu", "options": {"host": True}}
    machine, load = _MACHINES[(place - 1) % len(_MACHINES)]
    options = {"engine_requests_per_second": load}
    return {**asked, "instance_type": machine, "model": MODEL, "options": options}


async def _ensure_model(client: ControlClient) -> None:
    try:
        await client.post("/models", {"hugging_face_id": MODEL})
    except RefusedError as error:
        if error.status != 409:
            raise


async def _there(client: ControlClient) -> dict[str, Worker]:
    """Instances of ours that have not ended, by the name of their deployment."""
    names = {each["deployment_id"]: each["name"] for each in await client.all("/deployments", "deployments")}
    instances = await client.all("/instances", "instances", [("provider", PROVIDER)])
    found = {}
    for each in instances:
        name = names.get(each["deployment_id"])
        if name is not None and name.startswith("worker-") and each["state"] not in _ENDED:
            found[name] = Worker(name, each["instance_id"], each["state"])
    return found
