"""Every way to be refused, in OpenAI's shape."""

import asyncio
from datetime import UTC, datetime, timedelta

import aiohttp
import openai
import pytest

from fleetpulse.stream.errors import MalformedUsageError
from fleetpulse.stream.usage import decode
from proxy.limits import Limits

MODEL = "acme/mock-model"


@pytest.fixture
async def ready(site):
    """A proxy with one worker."""
    await site.start(access_poll_seconds=60)
    await site.worker(await site.engine())
    await site.routed(1)
    return site


KEYS = {
    "no header": {},
    "another scheme": {"Authorization": "Basic Zm9vOmJhcg=="},
    "no key": {"Authorization": "Bearer "},
    "an unknown key": {"Authorization": "Bearer fp_unknown"},
    "a statement": {"Authorization": "Bearer ' OR 1=1; DROP TABLE api_keys; --"},
    "bytes that are no text": {"Authorization": "Bearer \udcff\udcfe"},
    "a very long key": {"Authorization": "Bearer " + "x" * 8000},
}


@pytest.mark.parametrize("name", KEYS)
async def test_nobody_gets_in_without_a_key(ready, name) -> None:
    # On a path that fails for other reasons too: the key is looked at first.
    url = f"{ready.url}/v1/chat/completions"
    async with ready.session.post(url, data=b"{not json", headers=KEYS[name]) as answer:
        ready.refused((answer.status, await answer.json()), 401, "invalid_api_key")
    async with ready.session.get(f"{ready.url}/v1/models", headers=KEYS[name]) as answer:
        assert answer.status == 401


async def test_a_key_is_known_by_all_of_its_digest(ready) -> None:
    """Caches by the first characters of a credential have let strangers in elsewhere."""
    assert (await ready.chat())[0] == 200
    for changed in (ready.key[:-1], ready.key + "0", ready.key[:20] + "f" * (len(ready.key) - 20), ready.key.upper()):
        ready.refused(await ready.chat(headers={"Authorization": f"Bearer {changed}"}), 401, "invalid_api_key")


async def until_status(site, status: int, **fields) -> None:
    async def is_so() -> bool:
        return (await site.chat(**fields))[0] == status

    await site.until(is_so, f"status {status}")


async def test_a_revoked_key_is_refused_at_once(ready) -> None:
    assert (await ready.chat())[0] == 200
    await ready.book.execute("UPDATE api_keys SET revoked_at = now()")
    started = asyncio.get_running_loop().time()
    await until_status(ready, 401)
    assert asyncio.get_running_loop().time() - started < 5


async def test_an_expired_key_is_refused(site) -> None:
    expired = await site.book.key(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    await site.start()
    await site.worker(await site.engine())
    await site.routed(1)
    site.refused(await site.chat(headers={"Authorization": f"Bearer {expired}"}), 401, "invalid_api_key")
    soon = await site.book.key(expires_at=datetime.now(UTC) + timedelta(seconds=3))
    assert (await site.chat(headers={"Authorization": f"Bearer {soon}"}))[0] == 200
    site.key = soon
    await until_status(site, 401)


async def test_a_key_without_the_scope_is_refused(site) -> None:
    site.key = await site.book.key(scopes=("read", "admin"))
    await site.start()
    site.refused(await site.chat(), 403, "insufficient_scope")


async def test_models_are_found_by_all_their_names_and_by_nothing_else(site) -> None:
    book = site.book
    hidden, inactive, granted = (
        await book.model("acme/hidden", public=False),
        await book.model("acme/inactive", active=False),
        await book.model("acme/granted", public=False),
    )
    row = await (
        await book.connection.execute("SELECT model_id FROM models WHERE hugging_face_id = %s", (MODEL,))
    ).fetchone()
    await book.execute(
        "INSERT INTO model_access (organization_id, model_id) VALUES (%s, %s)", book.organization_id, granted
    )
    await book.execute("INSERT INTO model_aliases VALUES ('fast', %s)", row[0])
    other = await book.organization()
    for organization, code, model, active in (
        (book.organization_id, "own", row[0], True),
        (book.organization_id, "closed", row[0], False),
        (book.organization_id, "secret", hidden, True),
        (other, "theirs", hidden, True),
    ):
        await book.execute(
            "INSERT INTO offerings (organization_id, code, model_id, active) VALUES (%s, %s, %s, %s)",
            *(organization, code, model, active),
        )
    theirs = (
        await (
            await book.connection.execute("SELECT slug FROM organizations WHERE organization_id = %s", (other,))
        ).fetchone()
    )[0]
    await site.start()
    await site.worker(await site.engine())
    await site.routed(1)
    for name in (MODEL, str(row[0]), str(row[0]).upper(), "fast", f"{book.slug}/own"):
        status, answer = await site.chat(model=name)
        assert (status, answer.get("model")) == (200, MODEL), (name, answer)
    for name in ("acme/none", "acme/inactive", str(inactive), f"{book.slug}/closed", "FAST", "mock-model", "../etc"):
        site.refused(await site.chat(model=name), 404, "model_not_found")
    for name in ("acme/hidden", str(hidden), f"{theirs}/theirs"):
        site.refused(await site.chat(model=name), 403, "model_not_accessible")
    # Allowed, but nobody serves them.
    for name in ("acme/granted", f"{book.slug}/secret"):
        site.refused(await site.chat(model=name), 503, "no_worker")
    async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key=site.key) as client:
        listed = {model.id for model in (await client.models.list()).data}
    assert listed == {MODEL, "acme/granted", f"{book.slug}/own", f"{book.slug}/secret"}


async def test_a_key_may_be_limited_to_models(site) -> None:
    only = await site.book.model("acme/only")
    site.key = await site.book.key(model_ids=[only])
    await site.start()
    site.refused(await site.chat(), 403, "model_not_accessible")


async def test_a_new_model_is_known_at_once(ready) -> None:
    ready.refused(await ready.chat(model="acme/new"), 404, "model_not_found")
    await ready.book.model("acme/new")
    await until_status(ready, 503, model="acme/new")


async def test_requests_a_minute_are_limited_with_the_time_to_wait(site) -> None:
    site.key = await site.book.key(requests_per_minute=2)
    await site.start()
    await site.worker(await site.engine())
    await site.routed(1)
    assert [(await site.chat())[0] for _ in range(2)] == [200, 200]
    url = f"{site.url}/v1/chat/completions"
    async with site.session.post(url, json={"model": MODEL}, headers=site.headers) as answer:
        site.refused((answer.status, await answer.json()), 429, "rate_limit_exceeded")
        assert 25 <= int(answer.headers["Retry-After"]) <= 30
    async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key=site.key, max_retries=0) as client:
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(model=MODEL, messages=[])


async def test_tokens_a_minute_are_limited_once_they_are_used(site) -> None:
    site.key = await site.book.key(tokens_per_minute=9)
    await site.start()
    await site.worker(await site.engine())
    await site.routed(1)
    assert (await site.chat(stream=True))[0] == 200  # 2 + 8 tokens
    site.refused(await site.chat(), 429, "rate_limit_exceeded")


async def test_tokens_of_a_month_are_limited_in_all_processes(site) -> None:
    site.key = await site.book.key(tokens_per_month=10)
    await site.start()
    first = site.port
    await site.worker(await site.engine())
    await site.start()
    await site.routed(1)
    assert (await site.chat())[0] == 200
    site.refused(await site.chat(), 429, "insufficient_quota")
    site.port = first
    await until_status(site, 429)


def test_a_bucket_fills_again() -> None:
    from uuid import uuid4

    from proxy.access import Key

    key = Key(uuid4(), "p", b"", uuid4(), "o", frozenset(), requests_per_minute=60, tokens_per_minute=0)
    limits = Limits()
    with pytest.raises(Exception, match="tokens a minute"):
        limits.charge(key, 1, 0.0), limits.admit(key, 0.0)
    key = Key(uuid4(), "p", b"", uuid4(), "o", frozenset(), requests_per_minute=60)
    for _ in range(60):
        limits.admit(key, 100.0)
    with pytest.raises(Exception, match="requests a minute"):
        limits.admit(key, 100.9)
    limits.admit(key, 101.0)


async def test_other_urls_and_methods_are_refused(ready) -> None:
    for method, path, status in (
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("POST", "/tokenize", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("POST", "/V1/chat/completions", 404),
        ("POST", "//v1/chat/completions", 404),
        ("POST", "/v1/../metrics", 404),
        ("DELETE", "/v1/models/x", 405),
        ("GET", "/", 404),
    ):
        code = "method_not_allowed" if status == 405 else "unknown_url"
        async with ready.session.request(method, f"{ready.url}{path}", headers=ready.headers) as answer:
            ready.refused((answer.status, await answer.json()), status, code)
            allowed = {"/v1/chat/completions": "POST"}.get(path, "GET, HEAD") if status == 405 else None
            assert answer.headers.get("Allow") == allowed


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/v1/models", "/v1/models/acme/mock-model"])
async def test_a_look_with_head_has_the_answers_head_alone(ready, path) -> None:
    """Load balancers do so."""
    for method in ("HEAD", "GET"):
        async with ready.session.request(method, f"{ready.url}{path}", headers=ready.headers) as answer:
            assert (answer.status, bool(await answer.read())) == (200, method == "GET")


@pytest.mark.parametrize(
    ("header", "value", "code"),
    [
        ("Upgrade", "websocket", "upgrade_refused"),
        ("Expect", "200-ok", "unsupported_expectation"),
        ("Content-Encoding", "br", "unsupported_encoding"),
    ],
)
async def test_what_is_asked_of_the_connection_is_refused(ready, header, value, code) -> None:
    headers = ready.headers | {header: value}
    async with ready.session.post(f"{ready.url}/v1/completions", data=b"{}", headers=headers) as answer:
        ready.refused((answer.status, await answer.json()), 400, code)


async def test_more_requests_than_there_may_be_are_told_to_come_again(site) -> None:
    await site.start(requests_in_flight=1)
    await site.worker(await site.engine(step_seconds=0.05))
    await site.routed(1)
    first = asyncio.create_task(site.chat(stream=True, max_tokens=1000, ignore_eos=True))

    async def is_under_way() -> bool:
        return await site.metric("fleetpulse_proxy_requests_in_flight") == 1

    await site.until(is_under_way, "the first request")
    site.refused(await site.chat(), 503, "overloaded")
    first.cancel()

    async def is_over() -> bool:
        return await site.metric("fleetpulse_proxy_requests_in_flight") == 0

    await site.until(is_over, "the first request to be over")
    assert (await site.chat())[0] == 200


async def test_nobody_is_let_in_before_the_keys_are_known(site) -> None:
    site.database.url = type(site.database.url)("postgresql://127.0.0.1:1/none")

    async def is_listening() -> bool:
        try:
            async with site.session.get(f"{site.url}/healthz") as answer:
                return answer.status == 200
        except aiohttp.ClientConnectionError:
            return False

    site.is_ready = is_listening
    await site.start()
    site.refused(await site.chat(), 503, "not_ready")
    async with site.session.get(f"{site.url}/readyz") as answer:
        assert (answer.status, "access" in (await answer.json())["missing"]) == (503, True)


async def test_a_fault_of_ours_ends_one_request_and_no_other(ready, monkeypatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("made up")

    with monkeypatch.context() as patched:
        patched.setattr("proxy.pipeline.resolve", fails)
        status, body = await ready.chat()
        ready.refused((status, body), 500, "internal_error")
        assert "made up" not in str(body)
    assert (await ready.chat())[0] == 200


async def test_further_paths_of_engines_are_let_through_by_name(site) -> None:
    await site.start(engine_paths=("/mock/load",))
    await site.worker(await site.engine())
    await site.routed(1)
    body = {"model": MODEL, "requests_per_second": 0}
    async with site.session.post(f"{site.url}/mock/load", json=body, headers=site.headers) as answer:
        assert (answer.status, await answer.json()) == (200, {"requests_per_second": 0.0})


async def test_without_workers_there_is_a_503_with_the_time_to_wait(site) -> None:
    await site.start()
    async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key=site.key, max_retries=0) as client:
        with pytest.raises(openai.InternalServerError) as raised:
            await client.chat.completions.create(model=MODEL, messages=[])
    assert (raised.value.status_code, raised.value.code) == (503, "no_worker")
    assert raised.value.response.headers["Retry-After"] == "1"


async def test_the_clients_id_names_the_request_everywhere(ready) -> None:
    for header in ("X-Correlation-Id", "X-Request-Id"):
        async with ready.session.get(
            f"{ready.url}/v1/models/none", headers=ready.headers | {header: "abc-1"}
        ) as answer:
            told = await answer.json()
            assert {answer.headers["X-Request-Id"], answer.headers["X-Correlation-Id"]} == {"abc-1"}
            assert told["error"]["correlation_id"] == "abc-1"
    for bad in ("a b", "x" * 200, "é", '"'):
        async with ready.session.get(f"{ready.url}/v1/models", headers=ready.headers | {"X-Request-Id": bad}) as answer:
            assert answer.headers["X-Request-Id"] != bad


async def test_an_engines_own_refusal_reaches_the_client(ready) -> None:
    status, body = await ready.chat(messages="not a list")
    assert (status, body["error"]["message"]) == (400, "messages must be a list of objects")
    (record,) = await ready.usage(1)
    assert (record.outcome, record.status, record.token_source) == ("refused", 400, "none")


def test_a_message_that_is_no_usage_record_is_named() -> None:
    with pytest.raises(MalformedUsageError, match="record_id"):
        decode(b'{"schema_version": 1}')
