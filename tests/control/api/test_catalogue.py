"""What can be had and served: providers, models, offerings, organisations and who may use what."""

import time
from typing import Any

import pytest

from control.api.resources.runtime_models import loaded
from fleetpulse.stream.fleet_view import FleetView
from fleetpulse.stream.heartbeat import Engine, Heartbeat

NOBODY = "00000000-0000-0000-0000-000000000000"


async def test_the_catalogue_is_shown_with_prices_and_in_parts(fleet: Any) -> None:
    (provider,) = (await fleet.get("/providers"))["providers"]
    assert (provider["provider"], provider["failure"]) == ("mock", None)
    zones = (await fleet.get("/zones", provider="mock"))["zones"]
    assert [(one["zone"], one["available"]) for one in zones] == [("here", True), ("there", False)]
    small = {one["instance_type"]: one for one in (await fleet.get("/instance-types"))["instance_types"]}["small"]
    assert (small["price_per_hour"], small["gpu_model"], small["zones"]) == (0.85, "L4", ["here"])
    there = (await fleet.get("/instance-types", zone="there"))["instance_types"]
    assert [(one["instance_type"], one["price_per_hour"]) for one in there] == [("elsewhere", 0.01), ("large", None)]
    assert await every(fleet, "/instance-types", "instance_types", "instance_type") == [
        *("elsewhere", "gone", "large", "small"),
    ]


async def every(api: Any, path: str, name: str, field: str, **query: Any) -> list[Any]:
    """A field of all elements, one part of one element after the other."""
    found, place = [], {}
    while True:
        part = await api.get(path, limit=1, **query, **place)
        found += [one[field] for one in part[name]]
        if part["next_cursor"] is None:
            return found
        place = {"cursor": part["next_cursor"]}


async def test_a_model_is_made_known_changed_and_forgotten(api: Any) -> None:
    new = {"hugging_face_id": "o/m", "aliases": ["m", "m", "latest"], "context_tokens": 8192}
    made = await api.ask("POST", "/models", 201, json=new)
    assert (made["name"], made["aliases"], made["public"], made["active"]) == ("o/m", ["latest", "m"], True, True)
    await api.ask("POST", "/models", 409, json=new)
    await api.ask("POST", "/models", 409, json={"hugging_face_id": "o/other", "aliases": ["m"]})
    path = f"/models/{made['model_id']}"
    changed = await api.ask("PATCH", path, json={"active": False, "aliases": ["new"]})
    assert changed == made | {"active": False, "aliases": ["new"]}
    assert await api.get(path) == changed
    await api.ask("DELETE", path, 204)
    for method, body in (("GET", None), ("DELETE", None), ("PATCH", {})):
        await api.ask(method, path, 404, json=body)
    await api.ask("GET", "/models/no-uuid", 422)


async def test_a_model_that_is_in_use_is_not_forgotten(fleet: Any, deploy: Any) -> None:
    made = await fleet.ask("POST", "/models", 201, json={"hugging_face_id": "o/m"})
    await deploy(model="o/m")
    problem = await fleet.ask("DELETE", f"/models/{made['model_id']}", 409)
    assert "in use" in problem["detail"]


@pytest.mark.parametrize(
    "body",
    [
        *({}, {"hugging_face_id": ""}, {"hugging_face_id": "a b"}, {"hugging_face_id": None}),
        *({"hugging_face_id": "a", "context_tokens": 0}, {"hugging_face_id": "a", "public": "yes"}),
        {"hugging_face_id": "a", "aliases": "x"},
    ],
)
async def test_a_bad_model_is_refused(api: Any, body: Any) -> None:
    assert (await api.ask("POST", "/models", 422, json=body))["errors"]


async def test_lists_go_on_where_the_part_before_ended(api: Any) -> None:
    for number in range(3):
        await api.ask("POST", "/models", 201, json={"hugging_face_id": f"o/{number}"})
        await api.ask("POST", "/organizations", 201, json={"slug": f"org-{number}", "name": "O"})
        await api.ask("POST", "/offerings", 201, json={"code": f"c{number}", "model": f"o/{number}"})
        await api.ask("POST", "/api-keys", 201, json={"name": f"k{number}", "scopes": ["read"]})
    assert await every(api, "/models", "models", "hugging_face_id") == ["o/0", "o/1", "o/2"]
    assert await every(api, "/organizations", "organizations", "slug") == ["default", "org-0", "org-1", "org-2"]
    assert await every(api, "/offerings", "offerings", "name") == ["default/c0", "default/c1", "default/c2"]
    assert await every(api, "/api-keys", "api_keys", "name") == ["k2", "k1", "k0"]
    assert await every(api, "/actions", "actions", "action", action="create_key") == ["create_key"] * 3


async def test_a_private_model_is_for_those_who_were_granted_it(fleet: Any, new_key: Any) -> None:
    tenant = (await fleet.ask("POST", "/organizations", 201, json={"slug": "acme", "name": "A"}))["organization_id"]
    key = await new_key("admin", organization_id=tenant)
    model = await fleet.ask("POST", "/models", 201, json={"hugging_face_id": "o/m", "public": False})
    offering = {"code": "ours", "model": "o/m"}
    await fleet.ask("POST", "/offerings", 422, key, json=offering)
    access = f"/models/{model['model_id']}/access"
    for _ in range(2):
        await fleet.ask("PUT", f"{access}/{tenant}", 204)
    assert [one["slug"] for one in (await fleet.get(access))["grants"]] == ["acme"]
    assert len((await fleet.ask("GET", "/models", 200, key))["models"]) == 1
    made = await fleet.ask("POST", "/offerings", 201, key, json=offering)
    assert (made["name"], made["model"]) == ("acme/ours", "o/m")
    await fleet.ask("POST", "/offerings", 409, key, json=offering)
    wanted = {"provider": "mock", "zone": "here", "instance_type": "small", "model": "acme/ours"}
    assert (await fleet.ask("POST", "/deployments", 201, key, json=wanted))["model"] == "o/m"
    switched = await fleet.ask("PATCH", f"/offerings/{made['offering_id']}", 200, key, json={"active": False})
    assert switched == made | {"active": False}
    await fleet.ask("POST", "/deployments", 422, key, json=wanted)
    await fleet.ask("DELETE", f"/offerings/{made['offering_id']}", 204, key)
    await fleet.ask("DELETE", f"/offerings/{made['offering_id']}", 404, key)
    for _ in range(2):
        await fleet.ask("DELETE", f"{access}/{tenant}", 204)
    assert (await fleet.ask("GET", "/models", 200, key))["models"] == []
    await fleet.ask("PUT", f"{access}/{NOBODY}", 409)
    acts = [one["action"] for one in (await fleet.get("/actions"))["actions"]]
    assert acts == [
        *("withdraw_model", "withdraw_model", "delete_offering", "change_offering", "deploy", "create_offering"),
        *("grant_model", "grant_model", "create_model", "create_key", "create_organization"),
    ]


async def test_an_organisation_goes_when_nothing_is_left_of_it(api: Any, new_key: Any) -> None:
    tenant = await api.ask("POST", "/organizations", 201, json={"slug": "acme", "name": "A"})
    await api.ask("POST", "/organizations", 409, json={"slug": "acme", "name": "B"})
    await api.ask("POST", "/organizations", 422, json={"slug": "Not A Slug", "name": "B"})
    path = f"/organizations/{tenant['organization_id']}"
    assert await api.get(path) == tenant
    await api.ask("DELETE", path, 204)
    await api.ask("DELETE", path, 404)
    busy = await api.ask("POST", "/organizations", 201, json={"slug": "busy", "name": "B"})
    await new_key("read", organization_id=busy["organization_id"])
    await api.ask("DELETE", f"/organizations/{busy['organization_id']}", 409)
    await api.ask("POST", "/api-keys", 409, json={"name": "n", "scopes": ["read"], "organization_id": NOBODY})


def test_loaded_models_are_told_by_heartbeats_alone() -> None:
    view, now = FleetView(), time.monotonic()
    view.know("never-heard", "n", now)
    for name, engine in {
        "a": Engine("ready", models=("m", "n"), requests_running=2, requests_waiting=1),
        "b": Engine("starting", models=("m",)),
        "c": Engine("unreachable"),
        "d": None,
    }.items():
        view.observe(beat(name, engine), now)
    found = loaded(view.snapshot(now))
    assert [(one.model, one.alive, [holder.worker_id for holder in one.workers]) for one in found] == [
        ("m", 2, ["a", "b"]),
        ("n", 1, ["a"]),
    ]
    busy, starting = found[0].workers
    assert (busy.engine_state, busy.requests_running, busy.requests_waiting) == ("ready", 2, 1)
    assert (starting.engine_state, starting.requests_running) == ("starting", None)


def beat(name: str, engine: Engine | None) -> Heartbeat:
    return Heartbeat(
        worker_id=name,
        instance_id=name,
        boot_id="b",
        sequence=1,
        sent_unix_nano=time.time_ns(),
        interval_seconds=1.0,
        status="ready",
        agent_version="1",
        engine=engine,
    )
