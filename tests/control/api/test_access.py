"""Keys, users and sessions, as a client sees them."""

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import psycopg
import pytest

from control.access import keys
from control.access.listener import listen
from fleetpulse.settings import DatabaseSettings

DEPLOYMENT = {"provider": "mock", "zone": "here", "instance_type": "small"}
USER = {"email": "Ann@example.org", "password": "correct horse battery", "scopes": ["read"]}


async def test_a_key_is_shown_once_and_stored_as_its_digest(api: Any, sql: Any) -> None:
    made = await api.ask("POST", "/api-keys", 201, json={"name": "ci", "scopes": ["read"]})
    assert made["key"].startswith(made["prefix"])
    (listed,) = (await api.get("/api-keys"))["api_keys"]
    assert "key" not in listed
    assert listed == {name: value for name, value in made.items() if name != "key"}
    (row,) = await (await sql.execute("SELECT digest, api_keys::text FROM api_keys")).fetchall()
    assert bytes(row[0]) == hashlib.sha256(made["key"].encode()).digest()
    assert made["key"] not in row[1]


@pytest.mark.parametrize(
    ("scopes", "reads", "writes"), [(["inference"], 403, 403), (["read"], 200, 403), (["admin"], 200, 201)]
)
async def test_a_scope_opens_what_it_is_for(fleet: Any, new_key: Any, scopes: Any, reads: int, writes: int) -> None:
    key = await new_key(*scopes)
    await fleet.ask("GET", "/instances", reads, key)
    await fleet.ask("POST", "/deployments", writes, key, json=DEPLOYMENT)
    shown = await fleet.ask("GET", "/sessions", 200, key)
    assert (shown["scopes"], shown["actor"]) == (scopes, f"key:{key[:11]}")


async def test_a_revoked_key_is_refused_at_once(fleet: Any, new_key: Any) -> None:
    key = await new_key("read")
    await fleet.ask("GET", "/instances", 200, key)
    (listed,) = (await fleet.get("/api-keys"))["api_keys"]
    await fleet.ask("DELETE", f"/api-keys/{listed['key_id']}", 204)
    problem = await fleet.ask("GET", "/instances", 401, key)
    assert key not in str(problem)
    await fleet.ask("DELETE", f"/api-keys/{listed['key_id']}", 204)
    (listed,) = (await fleet.get("/api-keys"))["api_keys"]
    assert listed["revoked_at"] is not None


async def test_another_process_hears_of_a_revocation(
    serve: Any, sql: Any, shared_database_url: str, new_key: Any
) -> None:
    other = await serve(shared_database_url, access_cache_seconds=3600)
    listening = asyncio.create_task(listen(DatabaseSettings(url=shared_database_url), other.parts.admission))
    try:
        async with asyncio.timeout(10):
            while other.parts.admission._cache.generation == 0:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.01)
        key = await new_key("read")
        await other.ask("GET", "/instances", 200, key)
        await sql.execute("UPDATE api_keys SET revoked_at = now()")
        await refused(other, key)
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def refused(api: Any, key: str) -> None:
    """Until it is."""
    async with asyncio.timeout(5):
        while True:
            async with api.session.get(f"{api.url}/instances", headers={"Authorization": f"Bearer {key}"}) as answer:
                if answer.status == 401:
                    return
            await asyncio.sleep(0.02)


async def test_a_mistyped_key_is_told_from_an_unknown_one(api: Any, new_key: Any) -> None:
    key = await new_key("read")
    wrong = key[:10] + ("A" if key[10] != "A" else "B") + key[11:]
    assert "mistyped" in (await api.ask("GET", "/instances", 401, wrong))["detail"]
    assert "mistyped" in (await api.ask("GET", "/instances", 401, key[:-1]))["detail"]
    assert "not known" in (await api.ask("GET", "/instances", 401, keys.make().text))["detail"]


async def test_a_key_with_the_same_beginning_as_a_known_one_is_unknown(api: Any, new_key: Any) -> None:
    known = await new_key("admin")
    await api.ask("GET", "/instances", 200, known)
    while True:
        body = known[:20] + keys.make().text[20:-6]
        forged = body + keys._checksum(body)
        if forged != known:
            break
    await api.ask("GET", "/instances", 401, forged)


@pytest.mark.parametrize("given", ["' OR 1=1 --", "fp_' UNION SELECT", "fp_" + "\xff" * 38, "fp_", "x" * 5000, "fp_\t"])
async def test_no_credential_reaches_the_database_as_anything_but_a_digest(api: Any, given: str) -> None:
    await api.ask("GET", "/instances", 401, given)


async def test_an_expired_key_is_refused_though_it_is_still_kept(api: Any, new_key: Any, sql: Any) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=0.4)
    key = await new_key("read", expires_at=soon.isoformat())
    await api.ask("GET", "/instances", 200, key)
    await refused(api, key)
    past = {"name": "n", "scopes": ["read"], "expires_at": "2020-01-01T00:00:00Z"}
    assert (await api.ask("POST", "/api-keys", 422, json=past))["errors"][0]["field"] == "expires_at"


async def test_a_keys_models_must_exist(api: Any) -> None:
    model = await api.ask("POST", "/models", 201, json={"hugging_face_id": "o/m"})
    body = {"name": "n", "scopes": ["inference"], "model_ids": [model["model_id"]], "requests_per_minute": 60}
    made = await api.ask("POST", "/api-keys", 201, json=body)
    assert (made["model_ids"], made["requests_per_minute"]) == ([model["model_id"]], 60)
    body["model_ids"] = ["00000000-0000-0000-0000-000000000000"]
    assert (await api.ask("POST", "/api-keys", 422, json=body))["errors"][0]["field"] == "model_ids"


async def test_another_organisation_sees_and_does_only_what_is_its_own(fleet: Any, deploy: Any, new_key: Any) -> None:
    (ours,) = await deploy()
    tenant = await fleet.ask("POST", "/organizations", 201, json={"slug": "acme", "name": "Acme"})
    key = await new_key("admin", organization_id=tenant["organization_id"])
    await fleet.ask("POST", "/models", 201, json={"hugging_face_id": "o/private", "public": False})
    made = await fleet.ask("POST", "/deployments", 201, key, json=DEPLOYMENT)
    assert made["organization_id"] == tenant["organization_id"]
    (own,) = (await fleet.ask("GET", "/instances", 200, key))["instances"]
    assert own["deployment_id"] == made["deployment_id"]
    assert len((await fleet.get("/instances"))["instances"]) == 2
    for path in ("", "/transitions", "/actions", "/progress"):
        await fleet.ask("GET", f"/instances/{ours}{path}", 404, key)
    for verb in ("terminate", "drain", "archive"):
        await fleet.ask("POST", f"/instances/{ours}/{verb}", 404, key)
    assert len((await fleet.ask("GET", "/api-keys", 200, key))["api_keys"]) == 1
    assert [one["slug"] for one in (await fleet.ask("GET", "/organizations", 200, key))["organizations"]] == ["acme"]
    assert (await fleet.ask("GET", "/models", 200, key))["models"] == []
    for method, path, body in [
        ("GET", "/workers", None),
        ("GET", "/actions", None),
        ("GET", "/gpu/activity", None),
        ("POST", "/models", {"hugging_face_id": "a/b"}),
        ("POST", "/organizations", {"slug": "b", "name": "B"}),
    ]:
        await fleet.ask(method, path, 403, key, json=body)
    elsewhere = (await fleet.get("/organizations"))["organizations"][1]["organization_id"]
    foreign = {"name": "n", "scopes": ["admin"], "organization_id": elsewhere}
    await fleet.ask("POST", "/api-keys", 403, key, json=foreign)


async def log_in(api: Any, email: str = USER["email"], password: str = str(USER["password"]), **headers: str) -> Any:
    body = {"email": email, "password": password}
    async with api.session.post(f"{api.url}/sessions", json=body, headers=headers) as answer:
        return answer.status, answer.cookies.get("fleetpulse_session"), answer.headers


async def with_cookie(api: Any, cookie: str, method: str, path: str, **headers: str) -> int:
    headers["Cookie"] = f"fleetpulse_session={cookie}"
    async with (
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
        session.request(method, api.url + path, headers=headers) as answer,
    ):
        return answer.status


async def test_a_user_logs_in_reads_and_logs_out(api: Any, sql: Any) -> None:
    user = await api.ask("POST", "/users", 201, json=USER)
    assert "password" not in str(user)
    status, cookie, _ = await log_in(api, email="ann@EXAMPLE.org")
    assert status == 201
    assert (cookie["httponly"], cookie["samesite"], cookie["path"], cookie["secure"]) == (True, "Strict", "/", "")
    assert await with_cookie(api, cookie.value, "GET", "/instances") == 200
    assert await with_cookie(api, cookie.value, "GET", "/api-keys") == 403
    assert await with_cookie(api, cookie.value + "x", "GET", "/instances") == 401
    own = {"Sec-Fetch-Site": "same-origin"}
    assert await with_cookie(api, cookie.value, "DELETE", "/sessions", **own) == 204
    assert await with_cookie(api, cookie.value, "GET", "/instances") == 401
    (kept,) = await (await sql.execute("SELECT password_digest FROM users")).fetchone()
    assert kept.startswith("scrypt$32768$8$3$")


async def test_behind_https_the_cookie_is_secure(api: Any) -> None:
    await api.ask("POST", "/users", 201, json=USER)
    host = api.url.removeprefix("http://")
    _, cookie, _ = await log_in(api, Origin=f"https://{host}")
    assert cookie["secure"] is True


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, False),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "none"}, False),
        ({"Origin": "own"}, True),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "own"}, False),
    ],
)
async def test_a_cookie_only_counts_for_changes_that_our_own_pages_ask_for(
    fleet: Any, deploy: Any, headers: dict[str, str], allowed: bool
) -> None:
    await fleet.ask("POST", "/users", 201, json=USER | {"scopes": ["admin"]})
    (instance_id,) = await deploy()
    _, cookie, _ = await log_in(fleet)
    headers = {name: fleet.url if value == "own" else value for name, value in headers.items()}
    got = await with_cookie(fleet, cookie.value, "POST", f"/instances/{instance_id}/terminate", **headers)
    assert got == (200 if allowed else 403)


async def test_another_site_cannot_log_a_browser_in(api: Any) -> None:
    await api.ask("POST", "/users", 201, json=USER)
    assert (await log_in(api, Origin="https://evil.example"))[0] == 403


async def test_passwords_cannot_be_tried_out(serve: Any, sql: Any, shared_database_url: str) -> None:
    api = await serve(shared_database_url, login_attempts=3)
    await api.ask("POST", "/users", 201, json=USER)
    for _ in range(3):
        assert (await log_in(api, password="wrong"))[0] == 401
    status, _, headers = await log_in(api)
    assert status == 429
    assert 0 < int(headers["Retry-After"]) <= 301
    # A name that nobody has is counted alike, and told alike.
    answers = await asyncio.gather(*(log_in(api, email="no@body.example", password="x") for _ in range(8)))
    assert sorted(one for one, _, _ in answers) == [401] * 3 + [429] * 5


async def test_a_disabled_users_sessions_end_at_once(api: Any) -> None:
    user = await api.ask("POST", "/users", 201, json=USER)
    _, cookie, _ = await log_in(api)
    assert await with_cookie(api, cookie.value, "GET", "/instances") == 200
    await api.ask("DELETE", f"/users/{user['user_id']}", 204)
    assert await with_cookie(api, cookie.value, "GET", "/instances") == 401
    assert (await log_in(api))[0] == 401


async def test_a_session_is_known_to_every_process_that_has_the_secret(
    serve: Any, sql: psycopg.AsyncConnection[Any], shared_database_url: str
) -> None:
    secret = "the same secret in every process of the control service"
    first, second = [await serve(shared_database_url, session_secret=secret) for _ in range(2)]
    stranger = await serve(shared_database_url)
    await first.ask("POST", "/users", 201, json=USER)
    _, cookie, _ = await log_in(first)
    assert await with_cookie(second, cookie.value, "GET", "/instances") == 200
    assert await with_cookie(stranger, cookie.value, "GET", "/instances") == 401


async def test_the_admin_key_works_without_the_database(serve: Any) -> None:
    api = await serve()
    assert (await api.get("/workers"))["workers"] == []
    await api.ask("GET", "/instances", 503)
    await api.ask("GET", "/workers", 503, keys.make().text)
