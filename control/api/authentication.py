"""Who asks: a key in the header, or a session's cookie. Everything but what is open needs one of them."""

from collections.abc import Collection
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from control.access.admission import Admission
from control.access.principal import NotAdmittedError, Principal
from control.api.problems import ProblemError

COOKIE: Final = "fleetpulse_session"
CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="fleetpulse control"'}
PRINCIPAL: Final = web.RequestKey("principal", Principal)
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})


def authenticated(admission: Admission, open_routes: Collection[tuple[str, str]]) -> Middleware:
    """Let requests through whose sender is known, or whose route (method and pattern) is open; 401 for the rest."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if _route(request) not in open_routes:
            request[PRINCIPAL] = await identified(request, admission)
        return await handler(request)

    return middleware


async def identified(request: web.Request, admission: Admission) -> Principal:
    """Who sent a request. Raises ProblemError (401, or 403 for what another site made a browser send)."""
    authorization = request.headers.get("Authorization")
    cookie = request.cookies.get(COOKIE)
    try:
        if authorization is not None:
            return await admission.by_key(_bearer(authorization))
        if cookie is None:
            raise _refusal("this needs a key (Authorization: Bearer KEY), or a session (POST /sessions)")
        principal = await admission.by_session(cookie)
    except NotAdmittedError as error:
        raise _refusal(str(error)) from error
    if request.method not in _SAFE:
        require_same_origin(request, needed=True)
    return principal


def require_same_origin(request: web.Request, *, needed: bool) -> None:
    """Refuse what another site's page makes a browser send (403). Where it is not ``needed``, programs that send
    neither header may pass."""
    site = request.headers.get("Sec-Fetch-Site")
    origin = request.headers.get("Origin")
    if site is not None:
        allowed = site == "same-origin"
    elif origin is not None:
        allowed = urlsplit(origin).netloc == request.headers.get("Host")
    else:
        allowed = not needed
    if not allowed:
        raise ProblemError(403, "a session's cookie only counts for requests of this service's own pages")


def _bearer(authorization: str) -> str:
    scheme, _, credential = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise _refusal("the only accepted scheme is Bearer")
    return credential.strip()


def _route(request: web.Request) -> tuple[str, str]:
    resource = request.match_info.route.resource
    method = "GET" if request.method == "HEAD" else request.method
    return method, resource.canonical if resource is not None else ""


def _refusal(detail: str) -> ProblemError:
    return ProblemError(401, detail, headers=CHALLENGE)
