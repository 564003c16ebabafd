from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from control.lifecycle import transition


async def test_the_story_is_told_as_of_now_and_as_of_then(fleet: Any, deploy: Any) -> None:
    (instance_id,) = await deploy()
    before = datetime.now(UTC)
    async with fleet.parts.database.transaction() as connection:
        await transition(
            connection,
            instance_id,
            "startup_failed",
            reason="create_failed",
            detail="the provider has no more machines",
            evidence={"provider": "mock"},
            actor="job:provisioning",
        )
    told = await fleet.get(f"/instances/{instance_id}/why")
    assert (told["instance_id"], told["state"]) == (instance_id, "startup_failed")
    assert any("the provider has no more machines" in one["text"] for one in told["sentences"])
    assert [one["at"] for one in told["sentences"]] == sorted(one["at"] for one in told["sentences"])
    then = await fleet.get(f"/instances/{instance_id}/why", at=before.isoformat())
    assert then["state"] == "provisioning"
    assert not any("no more machines" in one["text"] for one in then["sentences"])


@pytest.mark.parametrize(
    "at", ["soon", "2026-11-21T07:25:00", "1999-12-31T00:00:00Z", "9999-12-31T23:59:59-12:00", "0"]
)
async def test_a_time_that_is_none_is_refused(fleet: Any, deploy: Any, at: str) -> None:
    (instance_id,) = await deploy()
    problem = await fleet.get(f"/instances/{instance_id}/why", 422, at=at)
    assert [error["field"] for error in problem["errors"]] == ["at"]


async def test_before_it_was_made_there_is_nothing_to_tell_and_of_others_nothing_at_all(
    fleet: Any, deploy: Any, new_key: Any
) -> None:
    (instance_id,) = await deploy()
    before = datetime.now(UTC) - timedelta(days=1)
    (only,) = (await fleet.get(f"/instances/{instance_id}/why", at=before.isoformat()))["sentences"]
    assert only["text"].startswith("It was not there yet")
    await fleet.get("/instances/nobody/why", 404)
    tenant = await fleet.ask("POST", "/organizations", 201, json={"slug": "acme", "name": "Acme"})
    key = await new_key("read", organization_id=tenant["organization_id"])
    await fleet.ask("GET", f"/instances/{instance_id}/why", 404, key)
