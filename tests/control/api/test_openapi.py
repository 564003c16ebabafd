import re
from html.parser import HTMLParser
from typing import Any

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from control.api.application import all_endpoints, application


@pytest.fixture
async def document(serve: Any) -> Any:
    return await (await serve()).get("/openapi.json")


async def test_the_document_has_every_route_of_the_application_and_no_other(serve: Any, document: Any) -> None:
    app = application((await serve()).parts, CollectorRegistry(), dict)
    routed = {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.method != "HEAD" and isinstance(route.resource, web.Resource)
    }
    described = {(method.upper(), path) for path, one in document["paths"].items() for method in one}
    assert described == routed


def test_every_endpoint_says_what_it_may_refuse(document: Any) -> None:
    for endpoint in all_endpoints():
        operation = document["paths"][endpoint.path][endpoint.method.lower()]
        statuses = set(operation["responses"])
        assert "500" in statuses
        assert ({"401", "403", "503"} <= statuses) or endpoint.scope is None
        assert ({"413", "415", "422"} <= statuses) or not endpoint.has_body
        assert operation["security"] == ([] if endpoint.scope is None else [{"key": []}, {"session": []}])
        for status, answer in operation["responses"].items():
            if int(status) >= 400 and (endpoint.path, status) != ("/readyz", "503") and status != "400":
                assert list(answer["content"]) == ["application/problem+json"]


def test_every_reference_leads_somewhere_and_identities_are_unique(document: Any) -> None:
    references = set(re.findall(r"'\$ref': '#/components/schemas/([^']+)'", str(document)))
    assert references - set(document["components"]["schemas"]) == set()
    names = [one["operationId"] for path in document["paths"].values() for one in path.values()]
    assert len(names) == len(set(names))


async def test_the_page_shows_every_operation_and_needs_nothing_from_elsewhere(serve: Any, document: Any) -> None:
    api = await serve()
    async with api.session.get(f"{api.url}/docs") as answer:
        text = await answer.text()
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    loaded: list[str] = []
    identities: set[str] = set()

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            given = dict(attributes)
            if tag in ("script", "link", "img", "iframe"):
                loaded.append(tag)
            identities.add(given.get("id") or "")

    Reader().feed(text)
    assert loaded == []
    assert "http://" not in text
    assert "https://" not in text
    assert {one["operationId"] for path in document["paths"].values() for one in path.values()} <= identities
    assert set(document["components"]["schemas"]) <= identities
