"""The console on HTTP: its page at ``/`` for browsers, and the files that the page is made of.

Both are open: they hold nothing about the fleet. Everything that they show they ask the API for, with a session.
"""

from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from control.api.call import Call
from control.api.endpoint import Endpoint
from control.api.fields import Nothing
from control.api.problems import ProblemError
from control.console.files import CONTENT_TYPES, File, files

TAG: Final = "Console"
PAGE: Final = "index.html"
# Nothing from elsewhere, nothing inline, no frames around it, and no markup made of text.
POLICY: Final = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Kept, and asked about each time: after an upgrade no browser mixes old files with new ones.
    "Cache-Control": "no-cache",
}


@web.middleware
async def for_people(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer browsers at ``/`` with the page, and programs with the list of endpoints, which needs a credential."""
    if request.path != "/" or request.method not in ("GET", "HEAD"):
        return await handler(request)
    if "text/html" in request.headers.get("Accept", ""):
        answer: web.StreamResponse = _answer(request, files()[PAGE])
    else:
        answer = await handler(request)
    answer.headers["Vary"] = "Accept"
    return answer


async def one(call: Call[Nothing, Nothing]) -> web.Response:
    """A file."""
    name = call.path["file"]
    found = files().get(name)
    if found is None or name == PAGE:
        raise ProblemError(404, f"the console has no file {name}")
    return _answer(call.request, found)


def _answer(request: web.Request, file: File) -> web.Response:
    known = {tag.value for tag in request.if_none_match or ()}
    if known & {file.etag, "*"}:
        answer = web.Response(status=304, headers=HEADERS)
    else:
        answer = web.Response(body=file.body, content_type=file.content_type, charset="utf-8", headers=HEADERS)
    answer.etag = file.etag
    return answer


ENDPOINTS: Final = (
    Endpoint(
        "GET",
        "/console/{file}",
        "A file of the console, the page that browsers get at /",
        TAG,
        one,
        scope=None,
        answer=str,
        contents=tuple(sorted(set(CONTENT_TYPES.values()) - {"text/html"})),
    ),
)
