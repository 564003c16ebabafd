"""The console as a client without a browser sees it."""

import hashlib
from collections.abc import AsyncIterator
from importlib import resources
from typing import Any

import aiohttp
import psycopg
import pytest
import pytest_asyncio

from control.console.files import CHART_FILES, files

pytestmark = pytest.mark.asyncio(loop_scope="module")

PAGE = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
OWN = {"Sec-Fetch-Site": "same-origin"}


@pytest_asyncio.fixture(loop_scope="module")
async def session(deaf_control: Any) -> AsyncIterator[aiohttp.ClientSession]:
    """A client with a jar of its own; like browsers, it sends cookies to addresses without a name too."""
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(deaf_control.url, cookie_jar=jar) as made:
        yield made


async def test_the_page_needs_no_credential_and_what_it_shows_needs_one(session: aiohttp.ClientSession) -> None:
    async with session.get("/", headers=PAGE) as answer:
        assert (answer.status, answer.content_type) == (200, "text/html")
        text = await answer.text()
    for name in files():
        if name != "index.html":
            async with session.get(f"/console/{name}") as answer:
                assert answer.status == 200, name
    assert "<style" not in text
    assert " style=" not in text
    assert " on" not in text.partition("<body>")[0]
    for path in ("/workers", "/alerts", "/deployments", "/events", "/actions", "/sessions"):
        async with session.get(path) as answer:
            assert answer.status == 401, path


async def test_programs_get_the_endpoints_at_the_same_address(
    session: aiohttp.ClientSession, deaf_control: Any
) -> None:
    for accept in ("*/*", "application/json"):
        async with session.get("/", headers={"Accept": accept}) as answer:
            assert answer.status == 401
        async with session.get("/", headers={"Accept": accept} | deaf_control.admin) as answer:
            assert answer.headers["Vary"] == "Accept"
            assert "/alerts" in (await answer.json())["endpoints"]


async def test_everything_is_held_to_a_strict_policy(session: aiohttp.ClientSession) -> None:
    for path in ("/", "/console/app.js", "/console/uplot.js", "/console/icon.svg"):
        async with session.get(path, headers=PAGE) as answer:
            policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.charset == "utf-8"
        assert policy["default-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == policy["object-src"] == "'none'"
        assert "unsafe" not in str(policy)
        assert "http" not in str(policy)


async def test_a_file_is_sent_again_only_when_it_is_another_one(session: aiohttp.ClientSession) -> None:
    for path in ("/", "/console/app.js"):
        async with session.get(path, headers=PAGE) as answer:
            tag = answer.headers["ETag"]
            assert answer.headers["Cache-Control"] == "no-cache"
        async with session.get(path, headers=PAGE | {"If-None-Match": tag}) as answer:
            assert (answer.status, await answer.read(), answer.headers["ETag"]) == (304, b"", tag)
        async with session.get(path, headers=PAGE | {"If-None-Match": '"another"'}) as answer:
            assert answer.status == 200
        async with session.head(path, headers=PAGE) as answer:
            assert (answer.status, answer.headers["ETag"]) == (200, tag)


@pytest.mark.parametrize(
    "path",
    [
        "/console/../pages.py",
        "/console/..%2fpages.py",
        "/console/%2e%2e/%2e%2e/main.py",
        "/console/..%5c..%5cmain.py",
        "/console/%2fetc%2fpasswd",
        "/console//etc/passwd",
        "/console/static/app.js",
        "/console/.",
        "/console/app.js%00.css",
        "/console/index.html",
        "/console/nothing.js",
    ],
)
async def test_no_other_file_can_be_reached(session: aiohttp.ClientSession, deaf_control: Any, path: str) -> None:
    url = aiohttp.client.URL(f"{deaf_control.url}{path}", encoded=True)
    async with session.get(url, headers=deaf_control.admin) as answer:
        assert answer.status in (404, 422)
        assert answer.content_type == "application/problem+json"


async def test_the_chart_library_is_the_published_one_and_the_page_says_which() -> None:
    page = resources.files("control.console").joinpath("static/index.html").read_text()
    for name, (_, digest) in CHART_FILES.items():
        body = files()[name].body
        assert hashlib.sha256(body).hexdigest() == digest
        start = page.index(f'/console/{name}" integrity="sha384-')
        assert "=" not in page[start : start + 110].partition("sha384-")[2].partition('"')[0]


async def test_a_key_becomes_a_cookie_that_holds_neither_the_key_nor_its_digest(
    session: aiohttp.ClientSession, deaf_control: Any
) -> None:
    key = deaf_control.admin["Authorization"].removeprefix("Bearer ")
    async with session.post("/sessions", json={"key": f" {key} "}, headers=OWN) as answer:
        assert answer.status == 201
        shown, cookie = await answer.json(), answer.headers["Set-Cookie"]
    assert (shown["actor"], shown["operator"], shown["scopes"]) == ("admin", True, ["admin"])
    assert shown["expires_at"] is not None
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert key not in cookie
    assert hashlib.sha256(key.encode()).hexdigest() not in cookie
    async with session.get("/workers") as answer:
        assert answer.status == 200
    async with session.post(
        "/models", json={"hugging_face_id": "o/m"}, headers={"Sec-Fetch-Site": "cross-site"}
    ) as bad:
        assert bad.status == 403
    async with session.delete("/sessions", headers=OWN) as answer:
        assert answer.status == 204
    async with session.get("/workers") as answer:
        assert answer.status == 401


async def test_a_revoked_key_ends_the_browsers_it_was_given_to(
    session: aiohttp.ClientSession, deaf_control: Any
) -> None:
    new = {"name": "console", "scopes": ["read"]}
    async with session.post("/api-keys", json=new, headers=deaf_control.admin) as answer:
        made = await answer.json()
    async with session.post("/sessions", json={"key": made["key"]}) as answer:
        assert (answer.status, (await answer.json())["actor"]) == (201, f"key:{made['prefix']}")
    async with session.get("/deployments") as answer:
        assert answer.status == 200
    async with session.post("/models", json={"hugging_face_id": "o/m"}, headers=OWN) as answer:
        assert answer.status == 403
    async with session.delete(f"/api-keys/{made['key_id']}", headers=deaf_control.admin) as answer:
        assert answer.status == 204
    async with session.get("/deployments") as answer:
        assert answer.status == 401
    async with session.post("/sessions", json={"key": made["key"]}) as answer:
        assert answer.status == 401


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"key": "wrong"}, 401),
        ({"key": "fp_" + "x" * 38}, 401),
        ({"key": ""}, 422),
        ({}, 422),
        ({"email": "a@b.c"}, 422),
        ({"password": "p"}, 422),
        ({"key": "k", "email": "a@b.c", "password": "p"}, 422),
    ],
)
async def test_a_login_needs_one_right_proof(session: aiohttp.ClientSession, body: Any, status: int) -> None:
    async with session.post("/sessions", json=body, headers=OWN) as answer:
        assert answer.status == status
        assert "Set-Cookie" not in answer.headers


async def test_another_sites_page_cannot_log_a_browser_in(session: aiohttp.ClientSession) -> None:
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://elsewhere.example"}):
        async with session.post("/sessions", json={"key": "any"}, headers=headers) as answer:
            assert answer.status == 403


async def test_alerts_tell_of_the_pipeline_instances_jobs_and_providers(
    session: aiohttp.ClientSession, deaf_control: Any
) -> None:
    statements = (
        "INSERT INTO organizations (slug, name) VALUES ('alerts', 'Alerts')",
        "INSERT INTO providers (provider, failure) VALUES ('broken', 'no route')",
        """INSERT INTO action_log (action, succeeded, provider, actor)
        VALUES ('provider.create', false, 'broken', 'job')""",
        """INSERT INTO orphan_machines (provider, zone, machine_id, status, ours)
        VALUES ('broken', 'z', 'm', 'up', false)""",
        """INSERT INTO instances
            (instance_id, organization_id, provider, zone, instance_type, state, created_by, failure)
        SELECT instance_id, organization_id, 'broken', 'z', 't', state, 'test', failure
        FROM organizations, (VALUES ('dead', 'worker_dead', NULL), ('failed', 'startup_failed', 'it burns'),
            ('draining', 'draining', NULL)) AS given(instance_id, state, failure) WHERE slug = 'alerts'""",
    )
    with psycopg.connect(deaf_control.database_url, autocommit=True) as sql:
        for statement in statements:
            sql.execute(statement)
    async with session.get("/alerts", headers=deaf_control.admin) as answer:
        assert answer.status == 200
        found = await answer.json()
    told = {(one["name"], one["subject"]): one for one in found["alerts"]}
    assert {
        ("MassSilence", None),
        ("InstanceDead", "dead"),
        ("StartupFailed", "failed"),
        ("ProviderFailing", "broken"),
        ("ActionFailing", "provider.create"),
        ("OrphanMachines", "broken"),
    } <= set(told)
    assert ("InstanceStuck", "draining") not in told
    assert told[("StartupFailed", "failed")]["detail"] == "it burns"
    assert found["summary"]["critical"] >= 2
    assert found["alertmanager"] == {"state": "not_configured", "detail": None, "alerts": []}
