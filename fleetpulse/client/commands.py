"""What the commands that ask control do; ``chat``, which asks the proxy, is in a file of its own."""

import argparse
import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

import aiohttp

from fleetpulse.client import chat, shown
from fleetpulse.client.control import ControlClient, RefusedError
from fleetpulse.client.errors import AskError, silence
from fleetpulse.client.place import place
from fleetpulse.settings import ClientSettings, LocalSettings, SettingsError, load
from fleetpulse.stream.lifecycle import INSTANCE_STATES

LOOK_SECONDS: Final = 1.0
SENDS: Final = 3
# From these an instance does not become ready any more, not by itself.
_FAILED: Final = frozenset({"startup_failed", "worker_dead", "draining", "terminating", "terminated", "archived"})

_NO_CREDENTIAL: Final = 401
_COSTS_BY: Final = ("model", "machine")


def ask(work: Callable[[ControlClient], Awaitable[int]]) -> int:
    """Do some work with a connected client. Raises AskError, SettingsError."""
    where = place(load(ClientSettings), load(LocalSettings))

    async def run() -> int:
        async with ControlClient.connected(where.url, where.key) as client:
            return await work(client)

    try:
        return asyncio.run(run())
    except RefusedError as error:
        hint = "; FLEETPULSE_CONTROL_API_KEY says which key is sent" if error.status == _NO_CREDENTIAL else ""
        raise AskError(f"control refuses: {error}{hint}") from error
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise silence("control", where.url, "FLEETPULSE_CONTROL_URL", error) from error


def instances(asked: argparse.Namespace) -> int:
    """List the fleet."""
    states = asked.state or ([] if asked.all else [state for state in INSTANCE_STATES if state != "archived"])
    filters = [("provider", asked.provider), ("model", asked.model), ("deployment", asked.deployment)]
    query = [("state", state) for state in states] + [(name, value) for name, value in filters if value is not None]

    async def work(client: ControlClient) -> int:
        found = await client.all("/instances", "instances", query)
        _tell(asked, found, shown.instances(found, datetime.now(UTC)))
        return 0

    return ask(work)


def deploy(asked: argparse.Namespace) -> int:
    """Make instances; with --wait, until they are ready."""
    body = {"provider": asked.provider, "zone": asked.zone, "instance_type": asked.instance_type, "count": asked.count}
    body |= {"options": dict(asked.option)} if asked.option else {}
    body |= {name: value for name in ("model", "name") if (value := getattr(asked, name)) is not None}

    async def work(client: ControlClient) -> int:
        made = await _sent(client, body)
        deployment = await client.get(f"/deployments/{made['deployment_id']}")
        if asked.wait:
            deployment = await _settled(client, deployment, asked)
        _tell(asked, deployment, _told(deployment))
        ready = deployment["states"].get("ready", 0) == deployment["instance_count"]
        return 0 if ready or not asked.wait else 1

    return ask(work)


async def _sent(client: ControlClient, body: Mapping[str, Any]) -> dict[str, Any]:
    """Ask for the deployment, once, however often it has to be sent."""
    key = uuid.uuid4().hex
    for send in range(SENDS):
        try:
            return await client.post("/deployments", body, key)
        except RefusedError:
            raise
        except (aiohttp.ClientError, TimeoutError):
            if send == SENDS - 1:
                raise
        await asyncio.sleep(LOOK_SECONDS)
    raise AssertionError("unreachable")


async def _settled(client: ControlClient, deployment: dict[str, Any], asked: argparse.Namespace) -> dict[str, Any]:
    """The deployment once each instance is ready or has failed, or the time is over."""
    deadline = time.monotonic() + asked.timeout
    told = ""
    while time.monotonic() < deadline:
        if all(one["state"] == "ready" or one["state"] in _FAILED for one in deployment["instances"]):
            break
        line = shown.progress(deployment)
        if not asked.json and line != told:
            print(line, flush=True)
            told = line
        await asyncio.sleep(LOOK_SECONDS)
        deployment = await client.get(f"/deployments/{deployment['deployment_id']}")
    return deployment


def _told(deployment: Mapping[str, Any]) -> str:
    lines = [f"deployment {deployment['deployment_id']}", shown.progress(deployment)]
    lines += [f"{one['instance_id']}  {one['state']}" for one in deployment["instances"]]
    failed = [one["instance_id"] for one in deployment["instances"] if one["state"] in _FAILED]
    return "\n".join([*lines, *(f"see: fleetpulse why {instance_id}" for instance_id in failed[:1])])


def terminate(asked: argparse.Namespace) -> int:
    """End an instance."""

    async def work(client: ControlClient) -> int:
        instance = await client.post(f"/instances/{quote(asked.instance, safe='')}/terminate")
        _tell(asked, instance, f"{instance['instance_id']} is {instance['state']}")
        return 0

    return ask(work)


def why(asked: argparse.Namespace) -> int:
    """Tell an instance's story."""
    query = [("at", asked.at.isoformat())] if asked.at else []

    async def work(client: ControlClient) -> int:
        told = await client.get(f"/instances/{quote(asked.instance, safe='')}/why", query)
        _tell(asked, told, shown.story(told))
        return 0

    return ask(work)


def usage(asked: argparse.Namespace) -> int:
    """Tokens and money, or the ledger, or what machines cost. Raises AskError, SettingsError."""
    if asked.costs and asked.by not in _COSTS_BY:
        raise SettingsError(f"--by {asked.by} does not go with --costs: they are by {' or '.join(_COSTS_BY)}")
    if asked.by == "machine" and not asked.costs:
        raise SettingsError("--by machine goes with --costs alone; requests are by instance")
    query = [("window_s", str(asked.window))]

    async def work(client: ControlClient) -> int:
        if asked.ledger:
            answer = await client.get("/usage/ledger", query)
            _tell(asked, answer, shown.ledger(answer))
        elif asked.costs:
            answer = await client.get("/usage/costs", [*query, ("group_by", asked.by)])
            _tell(asked, answer, shown.costs(answer))
        else:
            answer = await client.get("/usage", [*query, ("group_by", asked.by)])
            _tell(asked, answer, shown.usage(answer))
        return 0

    return ask(work)


COMMANDS: Final[Mapping[str, Callable[[argparse.Namespace], int]]] = {
    "instances": instances,
    "deploy": deploy,
    "terminate": terminate,
    "why": why,
    "usage": usage,
    "chat": chat.chat,
}


def _tell(asked: argparse.Namespace, answer: Any, text: str) -> None:
    print(json.dumps(answer, indent=2) if asked.json else text)
