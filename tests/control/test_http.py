import asyncio
import logging
import re
from typing import Any

import aiohttp
import pytest
from pydantic import SecretStr

from control.access.admission import check
from control.main import run
from fleetpulse.settings import ControlSettings, DatabaseSettings, JobSettings, SettingsError, StreamSettings
from fleetpulse.telemetry import correlation_id

KEY = "correct horse battery staple"
RIGHT = {"Authorization": f"Bearer {KEY}"}


async def ask(api: Any, path: str, method: str = "GET", **options: Any) -> tuple[int, Any, Any]:
    headers = options.pop("headers", api.admin)
    async with api.session.request(method, api.url + path, headers=headers, **options) as answer:
        return answer.status, await answer.json(content_type=None), answer.headers


BAD_QUERIES = [
    ("window_s=0", ["window_s"]),
    ("window_s=-5", ["window_s"]),
    ("window_s=", ["window_s"]),
    ("window_s=abc", ["window_s"]),
    ("window_s=1.5", ["window_s"]),
    ("window_s=1e3", ["window_s"]),
    ("window_s=%D9%A3", ["window_s"]),
    ("window_s=nan", ["window_s"]),
    ("window_s=99999999999999999999", ["window_s"]),
    ("window_s=9999999999", ["window_s"]),
    ("window_s=1209601&granularity=second", ["window_s"]),
    ("window_s=7776001&granularity=minute", ["window_s"]),
    ("window_s=300&window_s=600", ["window_s"]),
    ("granularity=week", ["granularity"]),
    ("granularity=", ["granularity"]),
    ("granularity=Second", ["granularity"]),
    ("granularity=second&granularity=hour", ["granularity"]),
    ("instance_id=", ["instance_id"]),
    ("instance_id=a,,b", ["instance_id"]),
    ("instance_id=a%00b", ["instance_id"]),
    ("instance_id=a%20b", ["instance_id"]),
    ("instance_id=%C3%A9", ["instance_id"]),
    ("instance_id=%FF%FE", ["instance_id"]),
    ("instance_id=" + "x" * 201, ["instance_id"]),
    ("instance_id=" + ",".join(["i"] * 501), ["instance_id"]),
    ("worker_id=%00", ["worker_id"]),
    ("worker_id='%20OR%201=1--", ["worker_id"]),
    ("granularty=hour", ["granularty"]),
    ("%00=1", ["\\x00"]),
    ("window_s=x&granularity=x&worker_id=&foo=1", ["foo", "window_s", "granularity", "worker_id"]),
]


@pytest.mark.parametrize(("query", "fields"), BAD_QUERIES, ids=[query[:40] for query, _ in BAD_QUERIES])
async def test_a_bad_parameter_is_a_422_that_names_the_field(serve: Any, query: str, fields: list[str]) -> None:
    api = await serve()
    url = aiohttp.client.URL(f"{api.url}/gpu/activity?{query}", encoded=True)
    async with api.session.get(url, headers=api.admin) as answer:
        body = await answer.json(content_type=None)
        assert answer.status == 422, body
        assert answer.content_type == "application/problem+json"
    assert [error["field"] for error in body["errors"]] == fields
    assert all(error["detail"] for error in body["errors"])
    assert body["title"].startswith("Unprocessable")


async def test_other_refusals_are_problems_with_the_correlation_id(serve: Any) -> None:
    api = await serve()
    for path, method, status in [
        ("/nowhere", "GET", 404),
        ("/workers/nobody", "GET", 404),
        ("/workers/a%00b", "GET", 422),
        ("/workers/" + "x" * 201, "GET", 422),
        ("/workers?state=alive", "GET", 422),
        ("/gpu/activity", "POST", 405),
        ("/gpu/activity", "GET", 503),
    ]:
        got, body, headers = await ask(api, path, method)
        assert (got, body["status"]) == (status, status)
        assert headers["Content-Type"] == "application/problem+json; charset=utf-8"
        assert {"type", "title", "detail"} <= set(body)
        assert body["correlation_id"] == headers["X-Correlation-Id"]
        assert ("Retry-After" in headers) == (status == 503)
        assert ("Allow" in headers) == (status == 405)


@pytest.mark.parametrize("header", ["X-Correlation-Id", "X-Request-Id"])
async def test_a_usable_correlation_id_is_kept_and_any_other_replaced(serve: Any, header: str) -> None:
    api = await serve()
    _, body, headers = await ask(api, "/nowhere", headers=api.admin | {header: "Order-66.a_b:c~d"})
    assert headers["X-Correlation-Id"] == body["correlation_id"] == "Order-66.a_b:c~d"
    for bad in ("", "a b", "x" * 129, '"quoted"', "<script>"):
        _, _, headers = await ask(api, "/healthz", headers={header: bad})
        assert re.fullmatch("[0-9a-f]{32}", headers["X-Correlation-Id"])


async def test_an_unexpected_failure_is_a_500_that_tells_nothing_and_a_log_line_with_the_correlation_id(
    serve: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    api = await serve()
    seen = []

    def fail(*_: object) -> None:
        seen.append(correlation_id.get())
        raise RuntimeError("secret detail")

    monkeypatch.setattr(api.parts.view, "snapshot", fail)
    with caplog.at_level(logging.ERROR, "fleetpulse"):
        status, body, _ = await ask(api, "/workers", headers=api.admin | {"X-Request-Id": "find-me"})
    assert status == 500
    assert "secret" not in str(body)
    assert seen == ["find-me"]
    assert "secret detail" in caplog.text


AUTHENTICATION = [
    # key set, headers, status expected
    (None, {}, 401),
    (None, RIGHT, 401),
    (KEY, {}, 401),
    (KEY, RIGHT, 200),
    (KEY, {"Authorization": f"bearer {KEY}"}, 200),
    (KEY, {"Authorization": f"Bearer {KEY}x"}, 401),
    (KEY, {"Authorization": f"Bearer {KEY[:-1]}"}, 401),
    (KEY, {"Authorization": "Bearer"}, 401),
    (KEY, {"Authorization": "Bearer "}, 401),
    (KEY, {"Authorization": ""}, 401),
    (KEY, {"Authorization": KEY}, 401),
    (KEY, {"Authorization": "Basic Y29ycmVjdDpob3JzZQ=="}, 401),
    (KEY, {"Authorization": "Bearer \xfc\xf1\xee"}, 401),
]


@pytest.mark.parametrize(("key", "headers", "expected"), AUTHENTICATION)
async def test_reading_needs_the_right_credential_on_loopback_too(
    serve: Any, key: str | None, headers: dict[str, str], expected: int
) -> None:
    api = await serve(admin_key=key)
    status, body, answered = await ask(api, "/workers", headers=headers)
    assert status == expected, body
    if expected == 401:
        assert answered["WWW-Authenticate"].startswith("Bearer")
        assert answered.getall("X-Correlation-Id") == [body["correlation_id"]]
        assert KEY not in str(body)


@pytest.mark.parametrize("path", ["/", "/workers", "/workers/w", "/gpu/activity", "/openapi.json", "/nowhere"])
async def test_everything_but_health_and_the_page_needs_a_credential(serve: Any, path: str) -> None:
    api = await serve(admin_key=KEY)
    assert (await ask(api, path, headers={}))[0] == 401
    assert (await ask(api, path, headers={"Authorization": "Bearer wrong"}))[0] == 401
    assert (await ask(api, path, headers=RIGHT))[0] != 401
    for open_path in ("/healthz", "/readyz", "/metrics", "/docs"):
        async with api.session.get(api.url + open_path) as answer:
            assert answer.status == 200
        async with api.session.head(api.url + open_path) as answer:
            assert answer.status == 200


async def test_an_empty_admin_key_ends_the_service_at_once() -> None:
    settings = ControlSettings(admin_key=SecretStr(" "))
    with pytest.raises(SettingsError, match=r"^FLEETPULSE_CONTROL_ADMIN_KEY is empty"):
        check(settings)
    with pytest.raises(SettingsError, match="FLEETPULSE_CONTROL_ADMIN_KEY"):
        await run(settings, JobSettings(), StreamSettings(), DatabaseSettings(), asyncio.Event())


async def test_requests_are_counted_by_route_and_never_by_path_or_by_any_method(serve: Any) -> None:
    api = await serve()
    for number in range(3):
        await ask(api, f"/workers/w{number}")
        await ask(api, f"/made/up/{number}")
        await ask(api, "/workers", method=("PROPFIND", "MKCOL", "LOCK")[number])
    async with api.session.get(f"{api.url}/metrics") as answer:
        text = await answer.text()
    requests = "fleetpulse_control_http_requests_total"
    assert f'{requests}{{method="GET",route="/workers/{{worker_id}}",status="404"}} 3.0' in text
    assert f'{requests}{{method="GET",route="unknown",status="404"}} 3.0' in text
    assert f'{requests}{{method="other",route="unknown",status="405"}} 3.0' in text
    assert "made/up" not in text
    assert 'fleetpulse_control_workers{state="alive"} 0.0' in text
    assert "fleetpulse_control_database_pool_size" in text
    assert "fleetpulse_control_stream_connected 0.0" in text


async def test_the_index_names_the_endpoints(serve: Any) -> None:
    api = await serve()
    _, body, _ = await ask(api, "/")
    assert {"/workers", "/gpu/activity", "/system/activity", "/engine/activity", "/healthz"} <= set(body["endpoints"])
