"""The console's files, read once. The chart library's come from the distribution that carries them."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata, resources
from typing import Final

from fleetpulse.telemetry import logger

_log = logger(__name__)

CONTENT_TYPES: Final[Mapping[str, str]] = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
# uPlot 1.6.31 as its authors published it: SHA-256 of each file, by our name and by its place in the distribution. The
# page holds the browser to the same files. The distribution's own code is never imported.
CHART_DISTRIBUTION: Final = "youplot"
CHART_FILES: Final[Mapping[str, tuple[str, str]]] = {
    "uplot.js": (
        "youplot/vendor/uplot.iife.min.js",
        "2d27e8ad3d228164525ce213f9dc716f39b4e3aee0cc773fb3491c96cf4921a2",
    ),
    "uplot.css": (
        "youplot/vendor/uplot.min.css",
        "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    ),
}


@dataclass(frozen=True, slots=True)
class File:
    """A file as it is served."""

    body: bytes
    content_type: str
    etag: str


@cache
def files() -> Mapping[str, File]:
    """Every file by its name. Only what is in here can be asked for: no path of a request reaches the disk."""
    return {name: _file(name, body) for name, body in (*_own(), *_charts())}


def _own() -> Iterator[tuple[str, bytes]]:
    for found in resources.files("control.console").joinpath("static").iterdir():
        if found.is_file():
            yield found.name, found.read_bytes()


def _charts() -> Iterator[tuple[str, bytes]]:
    """Whatever is missing or not what it should be is left out; the page then says that there are no charts."""
    for name, (path, digest) in CHART_FILES.items():
        try:
            body = metadata.distribution(CHART_DISTRIBUTION).locate_file(path).read_bytes()  # type: ignore[attr-defined]
        except (metadata.PackageNotFoundError, OSError) as error:
            _no_charts(path, str(error))
            continue
        if hashlib.sha256(body).hexdigest() != digest:
            _no_charts(path, "its SHA-256 is not that of the published file")
            continue
        yield name, body


def _no_charts(path: str, reason: str) -> None:
    _log.warning("the console has no charts: install fleetpulse[control] anew", extra={"file": path, "reason": reason})


def _file(name: str, body: bytes) -> File:
    content_type = CONTENT_TYPES[name[name.rindex(".") :]]
    return File(body, content_type, hashlib.sha256(body).hexdigest()[:32])
