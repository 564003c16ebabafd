"""The request as the engine gets it: made from scratch, so that no header of a client's connection goes further."""

from proxy.call import Call
from proxy.select import Choice


def request_bytes(call: Call, choice: Choice, authorization: str) -> bytes:
    """Head and body. The client's credentials stay here, ``authorization`` is our own header line, or nothing; the
    engine may name the request in its own logs."""
    address = choice.worker.address
    assert address is not None
    body = call.body.for_engine(choice.model, call.path)
    head = (
        f"POST {address.base_path}{call.path} HTTP/1.1\r\n"
        f"Host: {address.authority}\r\n"
        f"{authorization}"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Accept: */*\r\n"
        "Accept-Encoding: identity\r\n"
        f"X-Request-Id: {call.correlation_id}\r\n"
        f"{call.trace_headers}\r\n"
    )
    return head.encode("latin-1") + body
