"""Free TCP ports on this machine's loopback address."""

import os
import random
import socket
from typing import Final

LOOPBACK: Final = "127.0.0.1"
_FIRST: Final = 20_000
_PLACES: Final = 12
_PORTS_A_PLACE: Final = 1_000


def free_port() -> int:
    """A port nobody listens on now; another program may still take it before the caller does.

    Below the ports that Linux gives to outgoing connections (32768 and up): one of those, bound before a slow server
    is up, could take it. Processes that were started one after the other look in different places.
    """
    first = _FIRST + os.getpid() % _PLACES * _PORTS_A_PLACE
    while not is_free(port := random.randrange(first, first + _PORTS_A_PLACE)):
        pass
    return port


def is_free(port: int) -> bool:
    """Whether a service could listen on the port now."""
    with socket.socket() as probe:
        # As asyncio's servers do: connections of a predecessor that linger in TIME_WAIT do not hold the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True
