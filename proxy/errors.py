"""Refusals in OpenAI's shape: what a client's SDK turns into its own exceptions."""

from typing import Any, Final

import msgspec

_encode: Final = msgspec.json.Encoder().encode

_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}
SERVER_ERROR: Final = "server_error"


class ProxyError(Exception):
    """A request that ends without an engine's answer. The message is for the client, without addresses or secrets.

    ``code`` is a fixed word, ``param`` the field of the request at fault. ``retry_after_seconds`` is when a further
    attempt may succeed, ``allow`` are the methods that are allowed.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        retry_after_seconds: float | None = None,
        allow: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_seconds = retry_after_seconds
        self.allow = allow

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer that say more about it."""
        headers = {}
        if self.retry_after_seconds is not None:
            headers["Retry-After"] = str(retry_after(self.retry_after_seconds))
        if self.allow is not None:
            headers["Allow"] = self.allow
        return headers


def body(error: ProxyError, correlation_id: str) -> bytes:
    """The error as JSON."""
    return _encode({"error": describe(error, correlation_id)})


def event(error: ProxyError, correlation_id: str) -> bytes:
    """The error as the last event of a stream: by then the status line has long been sent."""
    return b"data: " + body(error, correlation_id) + b"\n\n"


def describe(error: ProxyError, correlation_id: str) -> dict[str, Any]:
    """The fields of OpenAI's error object, and the id that the logs know the request by."""
    return {
        "message": error.message,
        "type": _TYPES.get(error.status, SERVER_ERROR),
        "param": error.param,
        "code": error.code,
        "correlation_id": correlation_id,
    }


def retry_after(seconds: float) -> int:
    """Whole seconds, rounded up, at least one and at most a month."""
    return max(1, min(31 * 86_400, int(-(-seconds // 1))))
