"""``/``, ``/openapi.json`` and ``/docs``: what there is."""

from collections.abc import Sequence
from typing import Final

import msgspec
from aiohttp import web

import fleetpulse
from control.api.call import Call
from control.api.docs_page import page
from control.api.endpoint import JSON, Endpoint
from control.api.fields import Nothing
from control.api.openapi import document

TAG: Final = "Documentation"
# Nothing but the page's own style: no scripts, no other hosts, no frames around it.
POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"


class Index(msgspec.Struct, frozen=True):
    """What answers here."""

    service: str
    version: str
    endpoints: Sequence[str]


def endpoints(others: Sequence[Endpoint]) -> tuple[Endpoint, ...]:
    """The endpoints that tell of all, themselves included."""
    known: list[Endpoint] = list(others)

    async def index(_: Call[Nothing, Nothing]) -> Index:
        return Index("fleetpulse control", fleetpulse.__version__, list(dict.fromkeys(one.path for one in known)))

    async def openapi(_: Call[Nothing, Nothing]) -> web.Response:
        return web.Response(body=as_json, content_type=JSON)

    async def docs(_: Call[Nothing, Nothing]) -> web.Response:
        return web.Response(
            body=as_page, content_type="text/html", charset="utf-8", headers={"Content-Security-Policy": POLICY}
        )

    own = (
        Endpoint("GET", "/", "The endpoints", TAG, index, scope="any"),
        Endpoint("GET", "/openapi.json", "This document", TAG, openapi, scope="any", answer={"type": "object"}),
        Endpoint("GET", "/docs", "This document as a page", TAG, docs, scope=None, answer=str, contents=("text/html",)),
    )
    known += own
    described = document(known)
    as_json, as_page = msgspec.json.encode(described), page(described).encode()
    return own
