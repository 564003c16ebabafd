"""Free TCP ports on this machine's loopback address."""

import itertools
import os
import socket
from typing import Final

LOOPBACK: Final = "127.0.0.1"
# Below the ports that Linux gives to outgoing connections (32768 and up): one of those, bound before a slow server is
# up, could take it.
_FIRST: Final = 20_000
_PORTS: Final = 12_000
# Servers with several processes take the ports that follow theirs.
_STRIDE: Final = 7
# Processes that look at the same time look in different places, also those started one after the other; and none looks
# where it has looked before: somebody may still call there for a server that is gone.
_places: Final = itertools.count(os.getpid() * 997, _STRIDE)


def free_port() -> int:
    """A port nobody listens on now; another program may still take it before the caller does."""
    while not is_free(port := _FIRST + next(_places) % _PORTS):
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
