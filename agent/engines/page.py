"""Reading a Prometheus exposition page: only the series that are wanted, and fast.

A page of a busy engine has thousands of lines of histogram buckets, and is read every second. prometheus_client's
parser builds an object for each line; this one looks at the name first.
"""

import math
import re
from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

# A label's value may hold any character; quote, backslash and newline are escaped.
_LABEL: Final = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*')
_ESCAPES: Final = {'\\"': '"', "\\\\": "\\", "\\n": "\n"}
_ESCAPED: Final = re.compile(r'\\["\\n]')


class Sample(NamedTuple):
    """One series' labels and value."""

    labels: Mapping[str, str]
    value: float


Page = Mapping[str, list[Sample]]
"""Samples by series name; a name that the page does not hold has no key."""


def parse(text: str, wanted: Collection[str]) -> Page:
    """The wanted series of a page, in text or OpenMetrics format. Lines that are none are passed over.

    A sample that is not a finite number is left out: it says that the engine has no reading.
    """
    found: dict[str, list[Sample]] = {}
    for line in text.split("\n"):
        # Labels begin before any blank; an exemplar's, after a value without labels, do not.
        name = line.partition("{")[0].partition(" ")[0]
        if name not in wanted:
            continue
        sample = _sample(line[len(name) :].lstrip())
        if sample is not None:
            found.setdefault(name, []).append(sample)
    return found


def _sample(rest: str) -> Sample | None:
    """Labels, value, and whatever follows them (a time, an exemplar)."""
    labels: dict[str, str] = {}
    if rest.startswith("{"):
        position = 1
        while (label := _LABEL.match(rest, position)) is not None:
            labels[label[1]] = _ESCAPED.sub(lambda escape: _ESCAPES[escape[0]], label[2])
            position = label.end() + (rest[label.end() : label.end() + 1] == ",")
        if rest[position : position + 1] != "}":
            return None
        rest = rest[position + 1 :]
    words = rest.split(None, 1)
    try:
        value = float(words[0])
    except (IndexError, ValueError):
        return None
    return Sample(labels, value) if math.isfinite(value) else None
