from typing import Any

import pytest

from control.lifecycle import transition

AGE = "UPDATE instance_transitions SET at = now() - %s * interval '1 s' WHERE instance_id = %s AND to_state = %s"


async def move(api: Any, instance_id: str, *states: Any) -> None:
    for state in states:
        async with api.parts.database.transaction() as connection:
            await transition(
                connection,
                instance_id,
                state,
                reason="test",
                detail="for the test",
                evidence={"n": 1},
                actor="job:test",
            )


async def test_instances_are_listed_newest_first_in_parts_without_loss_or_repeat(fleet: Any, deploy: Any) -> None:
    made = [*await deploy(4), *await deploy(3)]
    seen, cursor = [], None
    while True:
        part = await fleet.get("/instances", limit=3, **({"cursor": cursor} if cursor else {}))
        seen += part["instances"]
        cursor = part["next_cursor"]
        if cursor is None:
            break
        assert len(part["instances"]) == 3
    assert sorted(one["instance_id"] for one in seen) == sorted(made)
    assert [one["created_at"] for one in seen] == sorted((one["created_at"] for one in seen), reverse=True)


@pytest.mark.parametrize(
    "query",
    [
        *("limit=0", "limit=1001", "limit=1_0", "limit=+5", "limit=5&limit=6"),
        *("cursor=x", "cursor=%C3%A9", "cursor=WyJhIl0", "cursor=WyIyMDI2IiwiXHUwMDAwIl0"),
        *("state=asleep", "deployment=x", "model=%00", "provider=a%20b", "colour=red"),
    ],
)
async def test_a_bad_filter_is_refused(fleet: Any, query: str) -> None:
    problem = await fleet.get(f"/instances?{query}", 422)
    assert [error["field"] for error in problem["errors"]] == [query.partition("=")[0]]


async def test_instances_are_filtered_by_state_provider_model_and_deployment(fleet: Any, deploy: Any) -> None:
    model = await fleet.ask("POST", "/models", 201, json={"hugging_face_id": "o/m"})
    (with_model,) = await deploy(model="o/m")
    plain, ready = await deploy(2)
    await move(fleet, ready, "booting", "ready")

    async def ids(**query: Any) -> set[str]:
        return {one["instance_id"] for one in (await fleet.get("/instances", **query))["instances"]}

    assert await ids(state="ready") == {ready}
    assert await ids(state=["ready", "provisioning"]) == {with_model, plain, ready}
    assert await ids(model="o/m") == await ids(model=model["model_id"]) == {with_model}
    assert await ids(provider="mock") == {with_model, plain, ready}
    assert await ids(provider="other") == set()


async def test_an_instances_history_has_the_evidence(fleet: Any, deploy: Any) -> None:
    (instance_id,) = await deploy()
    await move(fleet, instance_id, "booting", "ready")
    history = (await fleet.get(f"/instances/{instance_id}/transitions"))["transitions"]
    assert [(one["version"], one["from_state"], one["to_state"]) for one in history] == [
        (1, None, "provisioning"),
        (2, "provisioning", "booting"),
        (3, "booting", "ready"),
    ]
    assert history[2]["evidence"] == {"n": 1}
    part = await fleet.get(f"/instances/{instance_id}/transitions", limit=2)
    rest = await fleet.get(f"/instances/{instance_id}/transitions", limit=2, cursor=part["next_cursor"])
    assert part["transitions"] + rest["transitions"] == history
    assert rest["next_cursor"] is None


async def test_people_end_an_instance_step_by_step(fleet: Any, deploy: Any) -> None:
    (instance_id,) = await deploy()
    await move(fleet, instance_id, "booting", "ready")
    assert (await fleet.ask("POST", f"/instances/{instance_id}/drain"))["state"] == "draining"
    assert (await fleet.ask("POST", f"/instances/{instance_id}/archive", 409))["title"] == "Conflict"
    ending = await fleet.ask("POST", f"/instances/{instance_id}/terminate")
    assert ending["state"] == "terminating"
    # Asked for again, it is what it is.
    assert await fleet.ask("POST", f"/instances/{instance_id}/terminate") == ending
    assert (await fleet.ask("POST", f"/instances/{instance_id}/drain", 409))["detail"].endswith("drain is not possible")
    await move(fleet, instance_id, "terminated")
    assert (await fleet.ask("POST", f"/instances/{instance_id}/archive"))["state"] == "archived"
    await fleet.ask("POST", f"/instances/{instance_id}/terminate", 409)
    actions = (await fleet.get(f"/instances/{instance_id}/actions"))["actions"]
    assert [one["action"] for one in actions] == ["archive", "terminate", "drain"]
    history = (await fleet.get(f"/instances/{instance_id}/transitions"))["transitions"]
    assert [one["actor"] for one in history if one["reason"].endswith("_requested")] == ["admin"] * 3


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", path) for path in ("", "/transitions", "/actions", "/progress")]
    + [("POST", path) for path in ("/terminate", "/drain", "/archive")],
)
async def test_an_unknown_instance_is_a_404(fleet: Any, method: str, path: str) -> None:
    problem = await fleet.ask(method, f"/instances/nobody{path}", 404)
    assert "nobody" in problem["detail"]
    await fleet.ask(method, f"/instances/no%20body{path}", 422)


async def test_progress_is_told_by_how_long_others_of_the_kind_took(fleet: Any, deploy: Any, sql: Any) -> None:
    before = await deploy(3)
    for place, instance_id in enumerate(before):
        await move(fleet, instance_id, "booting", "starting", "ready")
        # 10 s of provisioning, then 20, 30 or 40 s of booting, then 60 s of starting.
        ages = {"provisioning": 200, "booting": 190, "starting": 170 - 10 * place, "ready": 110 - 10 * place}
        for state, age in ages.items():
            await sql.execute(AGE, (age, instance_id, state))
    (instance_id,) = await deploy()
    await move(fleet, instance_id, "booting")
    await sql.execute(
        "UPDATE instances SET state_since = now() - interval '15 s' WHERE instance_id = %s", (instance_id,)
    )
    told = await fleet.get(f"/instances/{instance_id}/progress")
    assert told["state"] == "booting"
    assert told["percent"] == pytest.approx(100 * (10 + 15) / (10 + 30 + 60), abs=2)
    assert told["expected_remaining_seconds"] == pytest.approx(15 + 60, abs=2)
    await move(fleet, instance_id, "ready")
    told = await fleet.get(f"/instances/{instance_id}/progress")
    assert (told["percent"], told["expected_remaining_seconds"]) == (100.0, 0.0)
    await move(fleet, instance_id, "terminating")
    told = await fleet.get(f"/instances/{instance_id}/progress")
    assert (told["percent"], told["expected_remaining_seconds"]) == (None, None)
