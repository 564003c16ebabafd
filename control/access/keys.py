"""API keys as text: ``fp_``, 190 random bits, and a checksum that tells a mistyped key from one that is not valid."""

import hashlib
import secrets
import string
import zlib
from dataclasses import dataclass
from typing import Final

START: Final = "fp_"
RANDOM_CHARACTERS: Final = 32
CHECKSUM_CHARACTERS: Final = 6
# Shown in lists and histories; the other 24 characters are 142 bits.
PREFIX_CHARACTERS: Final = len(START) + 8
_ALPHABET: Final = string.digits + string.ascii_letters


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made. Only ``prefix`` and ``digest`` are stored."""

    text: str
    prefix: str
    digest: bytes


def make() -> NewKey:
    """A new key."""
    body = START + "".join(secrets.choice(_ALPHABET) for _ in range(RANDOM_CHARACTERS))
    text = body + _checksum(body)
    return NewKey(text, text[:PREFIX_CHARACTERS], digest(text))


def digest(text: str) -> bytes:
    """SHA-256 of a key. With 190 random bits in it there is nothing that a slow hash would protect."""
    # Header bytes that are not UTF-8 arrive as lone surrogates.
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def is_ours(text: str) -> bool:
    """Whether it is meant to be one of our keys."""
    return text.startswith(START)


def is_mistyped(text: str) -> bool:
    """Whether one of our keys was not copied as it is."""
    body, checksum = text[:-CHECKSUM_CHARACTERS], text[-CHECKSUM_CHARACTERS:]
    return len(body) != len(START) + RANDOM_CHARACTERS or _checksum(body) != checksum


def _checksum(body: str) -> str:
    """CRC-32 in base 62; six digits hold it."""
    rest = zlib.crc32(body.encode("utf-8", "surrogateescape"))
    digits = []
    for _ in range(CHECKSUM_CHARACTERS):
        rest, digit = divmod(rest, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
