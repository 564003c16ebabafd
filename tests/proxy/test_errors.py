"""Every way to be refused, in OpenAI's shape."""

import asyncio
import io
import json
from datetime import UTC, datetime, timedelta

import aiohttp
import openai
import pytest

from fleetpulse.settings import ProxySettings
from fleetpulse.stream.errors import MalformedUsageError
from fleetpulse.stream.usage import decode
from proxy.body import DEPTH_MOST, parse
from proxy.errors import ProxyError
from proxy.limits import Limits

MODEL = "acme/mock-model"


@pytest.fixture
async def ready(site):
    """A proxy with one worker."""
    await site.start(choices=4, output_tokens=100, messages=3, body_bytes=4096, access_poll_seconds=60)
    await site.worker(await site.engine())
    await site.routed(1)
    return site


def refused(answer, status: int, code: str) -> None:
    got, body = answer
    assert got == status, body
    assert body["error"]["code"] == code
    assert set(body["error"]) == {"message", "type", "param", "code", "correlation_id"}


WRONG_BODIES = {
    "no model": ({"messages": []}, "model"),
    "a model that is no text": ({"model": 5}, "model"),
    "too many choices": ({"model": MODEL, "n": 5}, "n"),
    "no choices": ({"model": MODEL, "n": 0}, "n"),
    "too many choices to choose from": ({"model": MODEL, "best_of": 5}, "best_of"),
    "too many tokens": ({"model": MODEL, "max_tokens": 101}, "max_tokens"),
    "too many tokens by the new name": ({"model": MODEL, "max_completion_tokens": 10**30}, "max_completion_tokens"),
    "half a token": ({"model": MODEL, "max_tokens": 0.5}, "max_tokens"),
    "a number as text": ({"model": MODEL, "n": "3"}, "n"),
    "a truth as number": ({"model": MODEL, "n": True}, "n"),
    "too many messages": ({"model": MODEL, "messages": [{}] * 4}, "messages"),
    "too many logprobs": ({"model": MODEL, "logprobs": 1000}, "logprobs"),
    "too many logprobs of each token": ({"model": MODEL, "logprobs": True, "top_logprobs": 101}, "top_logprobs"),
    "logprobs of all there are": ({"model": MODEL, "prompt_logprobs": -1}, "prompt_logprobs"),
    "too many prompts": ({"model": MODEL, "prompt": ["x"] * 4}, "prompt"),
    "too many inputs": ({"model": MODEL, "input": ["x"] * 4}, "input"),
    "too many tokens of a response": ({"model": MODEL, "max_output_tokens": 101}, "max_output_tokens"),
    "stream that is neither": ({"model": MODEL, "stream": "yes"}, "stream"),
    "stream options that are none": ({"model": MODEL, "stream_options": 3}, "stream_options"),
    "usage that is neither": ({"model": MODEL, "stream_options": {"include_usage": 3}}, "stream_options"),
}


async def test_a_wrong_body_is_refused_with_its_field(ready) -> None:
    for name, (body, field) in WRONG_BODIES.items():
        async with ready.session.post(f"{ready.url}/v1/chat/completions", json=body, headers=ready.headers) as answer:
            refused((answer.status, told := await answer.json()), 400, "invalid_value")
            assert (name, told["error"]["param"]) == (name, field)


NOT_JSON = [
    *(b"", b"{", b"[]", b"null", b'"text"', b'{"model":"a"}x', b"[" * 3000, b'{"a":' * 600, b"\xff\xfe{}"),
    b'{"model": NaN}',
    b"\xef\xbb\xbf{}",
    "{}".encode("utf-16"),
    b'{"model": "a", "messages": ' + b"[" * 1_500 + b"]" * 1_500 + b"}",
]


async def test_a_body_that_is_no_json_object_is_refused(ready) -> None:
    for body in NOT_JSON:
        async with ready.session.post(f"{ready.url}/v1/chat/completions", data=body, headers=ready.headers) as answer:
            refused((answer.status, await answer.json()), 400, "invalid_json")


def test_a_body_may_be_nested_so_deep_and_no_deeper() -> None:
    """An engine that fails on a deep one would count as failing."""

    def nested(depth: int) -> bytes:
        return b'{"model": "a", "tools": ' + b'[{"x":' * depth + b'"}]\\""' + b"}]" * depth + b"}"

    assert parse(nested(DEPTH_MOST // 2 - 1), ProxySettings()).model == "a"
    for depth in (DEPTH_MOST // 2, DEPTH_MOST, 2 * DEPTH_MOST - 60):
        with pytest.raises(ProxyError, match="nested"):
            parse(nested(depth), ProxySettings())
    # Many values beside each other are not deep, nor is a text about brackets.
    flat = b'{"model": "a", "messages": [' + b'{"x": []},' * 4_000 + b'"' + b"[" * 4_000 + b'"]}'
    assert parse(flat, ProxySettings()).model == "a"


SAID_TWICE = {
    b'{"model": "acme/mock-model", "model": "acme/hidden"}': 404,
    b'{"model": "acme/mock-model", "mod\\u0065l": "acme/hidden"}': 404,
    b'{"model": "acme/mock-model", "n": 1, "\\u006e": 1000}': 400,
    b'{"model": "acme/mock-model", "n": 1000, "n": 1, "messages": []}': 200,
}


async def test_of_what_is_said_twice_the_last_holds_as_it_does_for_engines(ready) -> None:
    for body, status in SAID_TWICE.items():
        async with ready.session.post(f"{ready.url}/v1/chat/completions", data=body, headers=ready.headers) as answer:
            assert (body, answer.status) == (body, status)


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
        refused((answer.status, await answer.json()), 401, "invalid_api_key")
    async with ready.session.get(f"{ready.url}/v1/models", headers=KEYS[name]) as answer:
        assert answer.status == 401


async def test_a_key_is_known_by_all_of_its_digest(ready) -> None:
    """Caches by the first characters of a credential have let strangers in elsewhere."""
    assert (await ready.chat())[0] == 200
    for changed in (ready.key[:-1], ready.key + "0", ready.key[:20] + "f" * (len(ready.key) - 20), ready.key.upper()):
        refused(await ready.chat(headers={"Authorization": f"Bearer {changed}"}), 401, "invalid_api_key")


async def until_status(site, status: int, **fields) -> None:
    async def is_so() -> bool:
        return (await site.chat(**fields))[0] == status

    await site.until(is_so, f"status {status}")


async def test_a_revoked_key_is_refused_at_once(ready) -> None:
    assert (await ready.chat())[0] == 200
    await ready.book.execute("UPDATE api_keys SET revoked_at = now()")
    started = asyncio.get_running_loop().time()
    await until_status(ready, 401)
    assert asyncio.get_running_loop().time() - started < 1


async def test_an_expired_key_is_refused(site) -> None:
    expired = await site.book.key(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    soon = await site.book.key(expires_at=datetime.now(UTC) + timedelta(seconds=1.5))
    await site.start()
    await site.worker(await site.engine())
    await site.routed(1)
    refused(await site.chat(headers={"Authorization": f"Bearer {expired}"}), 401, "invalid_api_key")
    assert (await site.chat(headers={"Authorization": f"Bearer {soon}"}))[0] == 200
    site.key = soon
    await until_status(site, 401)


async def test_a_key_without_the_scope_is_refused(site) -> None:
    site.key = await site.book.key(scopes=("read", "admin"))
    await site.start()
    refused(await site.chat(), 403, "insufficient_scope")


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
        refused(await site.chat(model=name), 404, "model_not_found")
    for name in ("acme/hidden", str(hidden), f"{theirs}/theirs"):
        refused(await site.chat(model=name), 403, "model_not_accessible")
    # Allowed, but nobody serves them.
    for name in ("acme/granted", f"{book.slug}/secret"):
        refused(await site.chat(model=name), 503, "no_worker")
    async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key=site.key) as client:
        listed = {model.id for model in (await client.models.list()).data}
    assert listed == {MODEL, "acme/granted", f"{book.slug}/own", f"{book.slug}/secret"}


async def test_a_key_may_be_limited_to_models(site) -> None:
    only = await site.book.model("acme/only")
    site.key = await site.book.key(model_ids=[only])
    await site.start()
    refused(await site.chat(), 403, "model_not_accessible")


async def test_a_new_model_is_known_at_once(ready) -> None:
    refused(await ready.chat(model="acme/new"), 404, "model_not_found")
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
        refused((answer.status, await answer.json()), 429, "rate_limit_exceeded")
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
    refused(await site.chat(), 429, "rate_limit_exceeded")


async def test_tokens_of_a_month_are_limited_in_all_processes(site) -> None:
    site.key = await site.book.key(tokens_per_month=10)
    await site.start()
    first = site.port
    await site.worker(await site.engine())
    await site.start()
    await site.routed(1)
    assert (await site.chat())[0] == 200
    refused(await site.chat(), 429, "insufficient_quota")
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


async def test_a_body_that_is_too_large_is_refused(ready) -> None:
    refused(await ready.chat(messages=[{"role": "user", "content": "x" * 5000}]), 413, "body_too_large")

    async def pieces():
        for _ in range(100):
            yield b" " * 100

    async with ready.session.post(f"{ready.url}/v1/chat/completions", data=pieces(), headers=ready.headers) as answer:
        refused((answer.status, await answer.json()), 413, "body_too_large")
    assert (await ready.chat())[0] == 200


async def test_a_long_prompt_is_served(site) -> None:
    """aiohttp's own limit is a megabyte."""

    async def script(_, writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")

    await site.start()
    engine = await site.scripted(script)
    await site.worker(engine.url)
    await site.routed(1)
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "x" * 3_000_000}]}).encode()
    url = f"{site.url}/v1/chat/completions"
    async with site.session.post(url, data=io.BytesIO(body), headers=site.headers) as answer:
        assert answer.status == 200
    assert engine.requests[0][1] == body


async def test_a_compressed_body_is_refused_and_not_inflated(ready) -> None:
    headers = ready.headers | {"Content-Encoding": "gzip"}
    async with ready.session.post(f"{ready.url}/v1/completions", data=b"\x1f\x8b", headers=headers) as answer:
        refused((answer.status, await answer.json()), 400, "unsupported_encoding")


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
            refused((answer.status, await answer.json()), status, code)


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
        refused((answer.status, await answer.json()), 400, code)


async def test_more_requests_than_there_may_be_are_told_to_come_again(site) -> None:
    await site.start(requests_in_flight=1)
    await site.worker(await site.engine(step_seconds=0.05))
    await site.routed(1)
    first = asyncio.create_task(site.chat(stream=True, max_tokens=1000, ignore_eos=True))

    async def is_under_way() -> bool:
        return await site.metric("fleetpulse_proxy_requests_in_flight") == 1

    await site.until(is_under_way, "the first request")
    refused(await site.chat(), 503, "overloaded")
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
    refused(await site.chat(), 503, "not_ready")
    async with site.session.get(f"{site.url}/readyz") as answer:
        assert (answer.status, "access" in (await answer.json())["missing"]) == (503, True)


async def test_a_fault_of_ours_ends_one_request_and_no_other(ready, monkeypatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("made up")

    with monkeypatch.context() as patched:
        patched.setattr("proxy.pipeline.resolve", fails)
        status, body = await ready.chat()
        refused((status, body), 500, "internal_error")
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
