from typing import Any

import pytest

BODY = {"provider": "mock", "zone": "here", "instance_type": "small"}


async def test_a_deployment_makes_its_instances_with_the_catalogues_price(fleet: Any, sql: Any) -> None:
    model = await fleet.ask("POST", "/models", 201, json={"hugging_face_id": "org/m", "aliases": ["m"]})
    asked = BODY | {"model": "m", "count": 3, "name": "three", "options": {"faults": {"slow_seconds": 1.5}}}
    made = await fleet.ask("POST", "/deployments", 201, json=asked, headers={"X-Correlation-Id": "abc"})
    assert (made["instance_count"], made["model"], made["name"]) == (3, "org/m", "three")
    assert (made["created_by"], made["correlation_id"]) == ("admin", "abc")
    shown = await fleet.get(f"/deployments/{made['deployment_id']}")
    assert shown["states"] == {"provisioning": 3}
    assert (shown["percent"], shown["expected_remaining_seconds"]) == (0.0, None)
    instances = (await fleet.get("/instances", deployment=made["deployment_id"]))["instances"]
    assert {one["instance_id"] for one in instances} == {one["instance_id"] for one in shown["instances"]}
    for one in instances:
        assert (one["state"], one["version"], one["price_per_hour"]) == ("provisioning", 1, 0.85)
        assert (one["model_id"], one["correlation_id"]) == (model["model_id"], "abc")
    options = await (await sql.execute("SELECT DISTINCT options FROM instances")).fetchall()
    assert options == [({"faults": {"slow_seconds": 1.5}},)]
    (action,) = (await fleet.get("/actions", action="deploy"))["actions"]
    assert sorted(action["detail"]["instance_ids"]) == sorted(one["instance_id"] for one in instances)
    assert action["correlation_id"] == "abc"
    listed = (await fleet.get("/deployments"))["deployments"]
    assert [one["deployment_id"] for one in listed] == [made["deployment_id"]]


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"provider": "nobody"}, ["provider"]),
        ({"zone": "nowhere"}, ["zone"]),
        ({"zone": "there"}, ["zone"]),
        ({"instance_type": "huge"}, ["instance_type"]),
        ({"instance_type": "gone"}, ["instance_type"]),
        ({"instance_type": "elsewhere"}, ["instance_type"]),
        ({"model": "unknown"}, ["model"]),
        ({"zone": "nowhere", "instance_type": "huge", "model": "x/y"}, ["zone", "instance_type", "model"]),
        ({"count": 0}, ["count"]),
        ({"count": 501}, ["count"]),
        ({"count": "3"}, ["count"]),
        ({"count": 1.5}, ["count"]),
        ({"count": None}, ["count"]),
        ({"provider": 7, "zone": ""}, ["provider", "zone"]),
        ({"zone": "a\0b"}, ["zone"]),
        ({"colour": "red"}, ["colour"]),
        ({"options": []}, ["options"]),
        ({"options": {"a\0": 1}}, ["options"]),
        ({"options": {"a": [10**400]}}, ["options"]),
    ],
)
async def test_what_cannot_be_deployed_is_refused_naming_each_field(
    fleet: Any, changes: dict[str, Any], fields: list[str]
) -> None:
    problem = await fleet.ask("POST", "/deployments", 422, json=BODY | changes)
    assert [error["field"] for error in problem["errors"]] == fields
    assert (await fleet.get("/instances"))["instances"] == []


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"provider": "\\ud800"}', b"[" * 100_000])
async def test_a_body_that_is_no_object_is_refused(fleet: Any, data: bytes) -> None:
    problem = await fleet.ask("POST", "/deployments", 422, data=data, headers={"Content-Type": "application/json"})
    assert problem["errors"]


async def test_bodies_are_bounded_and_of_the_one_content_type(fleet: Any) -> None:
    large = {"Content-Type": "application/json"}
    await fleet.ask("POST", "/deployments", 413, data=b" " * 300_000, headers=large)
    await fleet.ask("POST", "/deployments", 415, data=b"{}", headers={"Content-Type": "text/plain"})
    await fleet.ask("POST", "/deployments", 415, data=b"{}", headers=large | {"Content-Encoding": "gzip"})


async def test_an_inactive_or_foreign_model_is_not_deployed(fleet: Any, new_key: Any) -> None:
    await fleet.ask("POST", "/models", 201, json={"hugging_face_id": "o/off", "active": False})
    await fleet.ask("POST", "/models", 201, json={"hugging_face_id": "o/private", "public": False})
    for model in ("o/off", "o/private"):
        problem = await fleet.ask("POST", "/deployments", 422, json=BODY | {"model": model})
        assert [error["field"] for error in problem["errors"]] == ["model"]


async def test_what_is_wrong_is_said_in_words_of_the_api(fleet: Any) -> None:
    problem = await fleet.ask("POST", "/deployments", 422, json=BODY | {"modle": "x"})
    assert problem["detail"] == "modle: unknown field"
    problem = await fleet.ask("GET", "/usage?since=2026-01-01T00:00:00", 422)
    assert problem["detail"] == "since: needs a time zone, e.g. 2026-11-21T07:25:00Z"
    problem = await fleet.ask("POST", "/deployments", 415, data=b"{}", headers={"Content-Type": "text/plain"})
    assert "send Content-Type: application/json" in problem["detail"]
    problem = await fleet.ask("GET", "/workers/", 404)
    assert problem["detail"] == "there is no /workers/: paths do not end in /"
