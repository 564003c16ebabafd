"""Rendezvous hashing: every process of the proxy ranks the same workers in the same order for a session, and a worker
that comes or goes moves only the sessions that rank it first."""

import hashlib
from typing import Final

_MASK: Final = (1 << 64) - 1


def hash64(text: bytes) -> int:
    """64 bits of a text, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def weight(session: int, worker: int) -> int:
    """How much a session wants a worker, both as hashes: a mix in which every bit of both counts (splitmix64)."""
    mixed = ((session ^ worker) + 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 31)
