"""What keeps a command from its work."""

import socket

import aiohttp


class AskError(Exception):
    """A service could not be asked, or refused; the message is one line for people."""


def silence(service: str, url: str, setting: str, error: Exception) -> AskError:
    """A service that did not answer; ``setting`` is the variable that says where it is."""
    if isinstance(error, aiohttp.ClientConnectorError):
        # The client's own words name sockets and TLS contexts.
        why = "there is no such host" if isinstance(error.os_error, socket.gaierror) else "nobody listens there"
        return AskError(f"{service} at {url} does not answer: {why}; start it, or say in {setting} where it is")
    return AskError(f"{service} at {url} does not answer: {error or type(error).__name__}")
