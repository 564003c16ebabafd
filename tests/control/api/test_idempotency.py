import asyncio
from typing import Any

BODY = {"provider": "mock", "zone": "here", "instance_type": "small", "count": 2}


async def sent(api: Any, body: Any, key: str, path: str = "/deployments", **headers: str) -> tuple[int, Any, Any]:
    headers = api.admin | {"Idempotency-Key": key} | headers
    async with api.session.post(api.url + path, json=body, headers=headers) as answer:
        return answer.status, await answer.json(content_type=None), answer.headers


async def count(api: Any) -> int:
    return len((await api.get("/instances"))["instances"])


async def test_a_request_sent_again_has_the_first_answer_and_does_nothing(fleet: Any) -> None:
    status, first, headers = await sent(fleet, BODY, "k1")
    assert (status, headers.get("Idempotency-Replayed")) == (201, None)
    status, again, headers = await sent(fleet, BODY, "k1")
    assert (status, headers["Idempotency-Replayed"], again) == (201, "true", first)
    assert headers["Location"] == f"/deployments/{first['deployment_id']}"
    assert await count(fleet) == 2


async def test_ten_at_once_do_it_once(fleet: Any) -> None:
    answers = await asyncio.gather(*(sent(fleet, BODY, "burst") for _ in range(10)))
    assert {status for status, _, _ in answers} == {201}
    assert len({body["deployment_id"] for _, body, _ in answers}) == 1
    assert await count(fleet) == 2


async def test_a_key_is_for_one_request_of_one_caller(fleet: Any, new_key: Any) -> None:
    await sent(fleet, BODY, "k2")
    status, problem, _ = await sent(fleet, BODY | {"count": 1}, "k2")
    assert (status, problem["errors"][0]["field"]) == (422, "Idempotency-Key")
    status, _, _ = await sent(fleet, {"slug": "x", "name": "X"}, "k2", "/organizations")
    assert status == 422
    other = await new_key("admin")
    status, _, headers = await sent(fleet, BODY, "k2", Authorization=f"Bearer {other}")
    assert (status, headers.get("Idempotency-Replayed")) == (201, None)


async def test_a_refused_request_does_not_use_the_key_up(fleet: Any) -> None:
    assert (await sent(fleet, BODY | {"zone": "nowhere"}, "k3"))[0] == 422
    assert (await sent(fleet, BODY, "k3"))[0] == 201


async def test_a_key_that_has_expired_counts_no_more(fleet: Any, sql: Any) -> None:
    await sent(fleet, BODY, "k4")
    await sql.execute("UPDATE idempotency_keys SET expires_at = now()")
    assert (await sent(fleet, BODY | {"count": 1}, "k4"))[0] == 201
    assert await count(fleet) == 3


async def until_one_waits(sql: Any) -> None:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with asyncio.timeout(10):
        while (await (await sql.execute(waiting)).fetchone()) != (1,):  # noqa: ASYNC110 - the server has no event
            await asyncio.sleep(0.02)


async def test_while_the_first_takes_too_long_the_second_is_told_so(fleet: Any, sql: Any) -> None:
    async with fleet.parts.database.transaction() as first:
        await first.execute("LOCK TABLE deployments IN SHARE MODE")
        slow = asyncio.create_task(sent(fleet, BODY, "k5"))
        await until_one_waits(sql)
        status, problem, _ = await sent(fleet, BODY, "k5")
        assert (status, problem["status"]) == (409, 409)
    assert (await slow)[0] == 201


async def test_a_bad_key_is_named(fleet: Any) -> None:
    for bad in ("", "a b", "x" * 201):
        status, problem, _ = await sent(fleet, BODY, bad)
        assert (status, problem["errors"][0]["field"]) == (422, "Idempotency-Key")


async def test_a_made_key_is_not_kept_for_the_second_answer(fleet: Any, sql: Any) -> None:
    body = {"name": "n", "scopes": ["read"]}
    _, first, _ = await sent(fleet, body, "k6", "/api-keys")
    _, again, _ = await sent(fleet, body, "k6", "/api-keys")
    assert again == first | {"key": None}
    kept = await (await sql.execute("SELECT answer FROM idempotency_keys")).fetchone()
    assert first["key"].encode() not in bytes(kept[0])
