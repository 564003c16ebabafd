"""Lists in parts: a cursor names the last element of one part, and the next part begins after it."""

import base64
import binascii
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import msgspec

from control.api.fields import Page
from control.api.problems import FieldError, unprocessable

Place = TypeVar("Place")

# PostgreSQL's text holds no NUL.
Name = Annotated[str, msgspec.Meta(max_length=400, pattern=r"^[^\x00]*\Z")]
Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


def after(page: Page, place: type[Place]) -> Place | None:
    """Where the page begins; None is the start. Raises ProblemError (422)."""
    if page.cursor is None:
        return None
    try:
        data = base64.urlsafe_b64decode(page.cursor.encode("ascii") + b"===")
        return msgspec.json.decode(data, type=place)
    except (ValueError, binascii.Error, UnicodeEncodeError, msgspec.MsgspecError) as error:
        raise unprocessable([FieldError("cursor", "is not one that an answer gave")]) from error


def next_cursor(rows: Sequence[Any], page: Page, place: Any) -> str | None:
    """The cursor behind the last of ``limit`` rows; None when no more than those were found.

    ``rows`` are one more than the limit when there are more. ``place`` is of the last row that is shown.
    """
    if len(rows) <= page.limit:
        return None
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).rstrip(b"=").decode()
