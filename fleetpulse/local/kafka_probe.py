"""Ask a Kafka broker, without a client library and from any thread, whether it is ready for clients."""

import socket
import struct
from typing import Final

_METADATA_V1: Final = struct.pack(">hhih10si", 3, 1, 1, 10, b"fleetpulse", 0)


def is_ready(host: str, port: int, timeout_seconds: float = 1.0) -> bool:
    """Whether the broker answers a metadata request and knows a broker in it.

    A KRaft broker opens its port before it may serve; until then it lists no broker.
    """
    try:
        with socket.create_connection((host, port), timeout_seconds) as connection:
            connection.settimeout(timeout_seconds)
            connection.sendall(struct.pack(">i", len(_METADATA_V1)) + _METADATA_V1)
            # Length, correlation id, number of brokers; the rest may be as long as it likes.
            answer = _receive(connection, 12)
    except OSError:
        return False
    return len(answer) == 12 and struct.unpack(">iii", answer)[2] > 0


def _receive(connection: socket.socket, size_bytes: int) -> bytes:
    """Exactly that many bytes, or fewer when the peer closes."""
    received = b""
    while len(received) < size_bytes:
        part = connection.recv(size_bytes - len(received))
        if not part:
            break
        received += part
    return received
