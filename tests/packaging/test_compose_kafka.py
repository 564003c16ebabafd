"""The health check of the broker's container, against brokers that are well, silent or refuse."""

import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# Length 10; ApiVersions (18) of version 0; request 1; no client id.
QUESTION = struct.pack(">ihhih", 10, 18, 0, 1, -1)
NOBODY_PORT = 1


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """A port where the first caller is heard out, answered and left."""
    heard: list[bytes] = []

    def serve() -> None:
        caller, _ = listener.accept()
        with caller:
            heard.append(caller.recv(len(QUESTION), socket.MSG_WAITALL))
            caller.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            thread.join()
    assert heard == [QUESTION]


def status(root: Path, port: int) -> int:
    script = root / "compose" / "kafka" / "healthcheck.sh"
    return subprocess.run(["bash", str(script), "127.0.0.1", str(port)], capture_output=True, check=False).returncode


def test_a_broker_that_answers_is_healthy(root: Path) -> None:
    with answering(struct.pack(">iih", 200, 1, 0) + bytes(196)) as port:
        assert status(root, port) == 0


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="hangs up"),
        pytest.param(struct.pack(">ii", 200, 1), id="breaks off"),
        pytest.param(struct.pack(">iih", 200, 1, 35), id="refuses"),
        pytest.param(struct.pack(">iih", 200, 2, 0), id="answers another question"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="is no broker"),
    ],
)
def test_a_broker_that_does_not_answer_properly_is_not(root: Path, answer: bytes) -> None:
    with answering(answer) as port:
        assert status(root, port) != 0


def test_where_nobody_listens_nobody_is_healthy(root: Path) -> None:
    assert status(root, NOBODY_PORT) != 0
