"""Rate limits and budgets of keys, counted in this process.

Tokens are known only once they were made, so they are charged afterwards: a key goes on until it is in debt, and then
waits until the debt is paid off.
"""

import time
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from proxy.access import Key
from proxy.errors import ProxyError

_MINUTE: Final = 60.0
# Keys whose buckets are full again are dropped this often, when there is a new one.
_SWEEP_SECONDS: Final = 300.0


@dataclass(slots=True)
class Bucket:
    """A token bucket of one minute's allowance, full at first. Times are monotonic seconds."""

    per_minute: float
    level: float
    at: float

    def wait_seconds(self, wanted: float) -> float:
        """Time until the level is ``wanted``; 0 when it is there."""
        return max(0.0, (wanted - self.level) * _MINUTE / self.per_minute)


@dataclass(slots=True)
class Month:
    """Tokens of a key in one calendar month (UTC)."""

    month: tuple[int, int]
    tokens: int = 0


@dataclass(slots=True)
class Limits:
    """The buckets of all keys, by their digests: those are hashed once."""

    requests: dict[bytes, Bucket] = field(default_factory=dict)
    tokens: dict[bytes, Bucket] = field(default_factory=dict)
    months: dict[UUID, Month] = field(default_factory=dict)
    _swept_at: float = 0.0

    def admit(self, key: Key, now: float) -> None:
        """Let one request of a key in and count it. Raises ProxyError with status 429."""
        if key.tokens_per_month is not None and self.used_this_month(key.key_id) >= key.tokens_per_month:
            raise ProxyError(
                429,
                "insufficient_quota",
                f"this key has used its {key.tokens_per_month} tokens of this month",
                retry_after_seconds=_seconds_left_of_month(time.time()),
            )
        if key.tokens_per_minute is not None:
            bucket = self._bucket(self.tokens, key.digest, key.tokens_per_minute, now)
            if bucket.level <= 0:
                raise _limited(f"{key.tokens_per_minute} tokens a minute", bucket.wait_seconds(1))
        if key.requests_per_minute is not None:
            bucket = self._bucket(self.requests, key.digest, key.requests_per_minute, now)
            if bucket.level < 1:
                raise _limited(f"{key.requests_per_minute} requests a minute", bucket.wait_seconds(1))
            bucket.level -= 1

    def charge(self, key: Key, tokens: int, now: float) -> None:
        """Count the tokens that a request has used."""
        if key.tokens_per_minute is not None:
            self._bucket(self.tokens, key.digest, key.tokens_per_minute, now).level -= tokens
        if key.tokens_per_month is not None:
            self.spend(key.key_id, tokens, time.time())

    def spend(self, key_id: UUID, tokens: int, unix_seconds: float) -> None:
        """Count tokens used at that time; those of an earlier month have no effect."""
        month = self.months.get(key_id)
        now = _month(time.time())
        if _month(unix_seconds) != now:
            return
        if month is None or month.month != now:
            month = self.months[key_id] = Month(now)
        month.tokens += tokens

    def used_this_month(self, key_id: UUID) -> int:
        """Tokens of the current month that are known here."""
        month = self.months.get(key_id)
        return month.tokens if month is not None and month.month == _month(time.time()) else 0

    def _bucket(self, buckets: dict[bytes, Bucket], digest: bytes, per_minute: int, now: float) -> Bucket:
        # A limit of 0 lets nothing through, and divides nothing.
        rate = max(float(per_minute), 1e-9)
        bucket = buckets.get(digest)
        if bucket is None:
            self._sweep(now)
            bucket = buckets[digest] = Bucket(rate, rate, now)
        # A limit that was changed holds from now on.
        bucket.level = min(rate, bucket.level + (now - bucket.at) * rate / _MINUTE)
        bucket.per_minute, bucket.at = rate, now
        return bucket

    def _sweep(self, now: float) -> None:
        if now - self._swept_at < _SWEEP_SECONDS:
            return
        self._swept_at = now
        for buckets in (self.requests, self.tokens):
            for digest in [digest for digest, bucket in buckets.items() if now - bucket.at > 2 * _MINUTE]:
                bucket = buckets[digest]
                if bucket.wait_seconds(bucket.per_minute) <= now - bucket.at:
                    del buckets[digest]


def _limited(what: str, seconds: float) -> ProxyError:
    return ProxyError(429, "rate_limit_exceeded", f"this key may make {what}", retry_after_seconds=seconds)


def _month(unix_seconds: float) -> tuple[int, int]:
    now = time.gmtime(unix_seconds)
    return now.tm_year, now.tm_mon


def _seconds_left_of_month(unix_seconds: float) -> float:
    now = time.gmtime(unix_seconds)
    days_of_month = (28, 29, 30, 31)
    for days in days_of_month:
        end = unix_seconds + (days - now.tm_mday + 1) * 86_400 - now.tm_hour * 3_600 - now.tm_min * 60 - now.tm_sec
        if _month(end) != _month(unix_seconds):
            return end - unix_seconds
    raise AssertionError("a month has at most 31 days")
