"""What a request has cost: a usage record for each attempt that reached an engine, and the key's own count."""

import itertools
import secrets
import time
from typing import Final

from fleetpulse.stream.usage import TokenSource, UsageOutcome, UsageRecord
from proxy.body import COMPLETIONS
from proxy.call import Call
from proxy.limits import Limits
from proxy.relay.answer import FAILURES
from proxy.relay.attempts import Attempt
from proxy.relay.usage import FailedUsage
from proxy.spool import Spool

_CHAT: Final = "/v1/chat/completions"


class Account:
    """Books attempts. ``boot`` and a number make a record's id."""

    def __init__(self, spool: Spool, limits: Limits) -> None:
        self._spool = spool
        self._limits = limits
        self.boot = secrets.token_hex(8)
        self._numbers = itertools.count(1)

    def book(self, call: Call, attempt: Attempt) -> UsageRecord | None:
        """Book one attempt; None for one that no engine has seen."""
        if not attempt.reached:
            return None
        prompt, made, cached, source = tokens(call, attempt)
        record = UsageRecord(
            record_id=f"{self.boot}-{next(self._numbers)}",
            request_id=call.correlation_id,
            attempt=attempt.number,
            started_unix_nano=attempt.started_unix_nano,
            instance_id=attempt.worker.instance_id,
            worker_id=attempt.worker.worker_id,
            organization_id=call.key.organization_text,
            key_id=call.key.key_text,
            model_id=call.model.model_text,
            model=call.model.hugging_face_id,
            path=call.path,
            is_stream=call.body.is_stream,
            outcome=outcome(attempt),
            status=attempt.status,
            duration_seconds=attempt.duration_seconds,
            first_token_seconds=attempt.first_seconds,
            prompt_tokens=prompt,
            completion_tokens=made,
            cached_tokens=cached,
            token_source=source,
        )
        if total := (prompt or 0) + (made or 0):
            self._limits.charge(call.key, total, time.monotonic())
        self._spool.add(record)
        return record


def tokens(call: Call, attempt: Attempt) -> tuple[int | None, int | None, int | None, TokenSource]:
    """Tokens read, made and cached, and where the numbers come from."""
    usage = attempt.usage
    if usage is not None and usage.is_told:
        return usage.read, usage.made, usage.cached, "engine"
    if attempt.events and call.path in COMPLETIONS:
        # A chat's first event tells the role alone.
        return None, max(0, attempt.events - (call.path == _CHAT)), None, "counted"
    return None, None, None, "none"


def outcome(attempt: Attempt) -> UsageOutcome:
    """How the attempt counts."""
    ended, status = attempt.ending.outcome, attempt.status
    if ended in ("cancelled", "client_stalled"):
        return "cancelled"
    if ended == "broken":
        return "broken"
    if isinstance(attempt.usage, FailedUsage):
        return "failed"
    if ended in ("relayed", "held") and status is not None and status not in FAILURES:
        return "completed" if status < 400 else "refused"
    return "failed"
