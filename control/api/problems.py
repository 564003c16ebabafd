"""Errors on HTTP: RFC 9457 problem details, each with the correlation id of the request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from control.database import UnavailableError
from fleetpulse.telemetry import correlation_id, logger

_log = logger(__name__)

CONTENT_TYPE: Final = "application/problem+json"
RETRY_AFTER_SECONDS: Final = 2


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong with one field of a request."""

    field: str
    detail: str


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a request was not answered (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    correlation_id: str | None
    errors: Sequence[FieldError] = ()
    """The fields at fault."""


class ProblemError(Exception):
    """A request that cannot be answered; becomes a problem response."""

    def __init__(
        self,
        status: int,
        detail: str,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})


def unprocessable(errors: Sequence[FieldError]) -> ProblemError:
    """422 with the fields at fault."""
    return ProblemError(422, "; ".join(f"{error.field}: {error.detail}" for error in errors), errors)


def response(problem: ProblemError) -> web.Response:
    """The problem as JSON."""
    body = Problem(
        type="about:blank",
        title=HTTPStatus(problem.status).phrase,
        status=problem.status,
        detail=problem.detail,
        correlation_id=correlation_id.get(),
        errors=problem.errors,
    )
    return web.Response(
        body=msgspec.json.encode(body),
        status=problem.status,
        headers={**problem.headers, "Content-Type": f"{CONTENT_TYPE}; charset=utf-8"},
    )


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what a handler raises into a problem response."""
    try:
        return await handler(request)
    except ProblemError as problem:
        return response(problem)
    except UnavailableError as error:
        return response(ProblemError(503, str(error), headers={"Retry-After": str(RETRY_AFTER_SECONDS)}))
    except web.HTTPException as error:
        return response(_of_http(request, error))
    except Exception:  # noqa: BLE001 - whatever a handler did wrong, the client gets an answer and the log the reason
        _log.exception("request failed", extra={"method": request.method, "path": request.path})
        return response(ProblemError(500, "the request failed; the log has the reason under the correlation id"))


def _of_http(request: web.Request, error: web.HTTPException) -> ProblemError:
    """aiohttp's own refusals: unknown route, wrong method, body too large."""
    headers = {name: error.headers[name] for name in ("Allow", "Location") if name in error.headers}
    if isinstance(error, web.HTTPNotFound):
        hint = ": paths do not end in /" if request.path.endswith("/") else ""
        return ProblemError(404, f"there is no {request.path}{hint}")
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return ProblemError(405, f"{request.path} answers {allowed}", headers=headers)
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return ProblemError(413, f"the body is too large: {error.text}")
    return ProblemError(error.status, error.reason, headers=headers)
