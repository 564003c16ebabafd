"""Answers of control as text for people."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

_NOTHING: Final = "-"
_PARTS: Final = ("serving", "idle", "unready", "dead", "orphan")
_MINUTE: Final = 60.0
_HOUR: Final = 3600.0
_DAY: Final = 86_400.0


def instances(found: Sequence[Mapping[str, Any]], now: datetime) -> str:
    """A line an instance."""
    if not found:
        return "no instances"
    headings = ("INSTANCE", "STATE", "FOR", "PROVIDER", "ZONE", "TYPE", "MODEL", "PRICE/H")
    rows = [
        (
            one["instance_id"],
            one["state"],
            duration((now - datetime.fromisoformat(one["state_since"])).total_seconds()),
            one["provider"],
            one["zone"],
            one["instance_type"],
            one["model"] or _NOTHING,
            _price(one),
        )
        for one in found
    ]
    return table([headings, *rows])


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def progress(deployment: Mapping[str, Any]) -> str:
    """A deployment in one line."""
    states = ", ".join(f"{count} {state}" for state, count in sorted(deployment["states"].items()))
    percent, remaining = deployment["percent"], deployment["expected_remaining_seconds"]
    told = [f"{deployment['instance_count']} instances: {states}"]
    if percent is not None:
        told.append(f"{percent:.0f} %")
    if remaining:
        told.append(f"about {duration(remaining)} to go")
    return ", ".join(told)


def story(why: Mapping[str, Any]) -> str:
    """What happened, a line a sentence."""
    lines = [f"{why['instance_id']} is {why['state']}"]
    lines += [f"{_time(one['at'])}  {one['text']}" for one in why["sentences"]]
    return "\n".join(lines)


def usage(answer: Mapping[str, Any]) -> str:
    """A line for each of what it is by."""
    if not answer["rows"]:
        return "no requests"
    by = answer["group_by"].upper()
    headings = (by, "REQUESTS", "FAILED", "BROKEN", "CANCELLED", "INPUT", "OUTPUT", "COST", "MEAN TIME", "FIRST TOKEN")
    rows = [
        (
            one["name"] or one["id"],
            str(one["requests"]),
            str(one["failed_requests"] + one["refused_requests"]),
            str(one["broken_requests"]),
            str(one["cancelled_requests"]),
            _count(one["input_tokens"]),
            _count(one["output_tokens"]),
            _costs(one),
            _seconds(one["mean_duration_seconds"]),
            _seconds(one["mean_first_token_seconds"]),
        )
        for one in answer["rows"]
    ]
    return table([headings, *rows])


def ledger(answer: Mapping[str, Any]) -> str:
    """A line a worker and window."""
    if not answer["rows"]:
        return "no windows with tokens"
    headings = ("WINDOW", "WORKER", "REQUESTS", "PROXY", "ENGINE", "GAP", "")
    rows = []
    for one in answer["rows"]:
        sides = (
            _sum(one["proxy_input_tokens"], one["proxy_output_tokens"]),
            _sum(one["engine_input_tokens"], one["engine_output_tokens"]),
            _sum(one["gap_input_tokens"], one["gap_output_tokens"]),
        )
        remark = one["reason"] or (f"{one['proxy_unknown_requests']} uncounted" * bool(one["proxy_unknown_requests"]))
        rows.append(
            (_time(one["window_start"]), one["worker_id"], str(one["proxy_requests"]), *map(_count, sides), remark)
        )
    return table([headings, *rows])


def costs(answer: Mapping[str, Any]) -> str:
    """A line a machine or model, and the sums: how long it was what, what that cost, and what came out of it."""
    if not answer["rows"]:
        return "no machines"
    headings = (
        answer["group_by"].upper(),
        "MACHINES",
        *map(str.upper, _PARTS),
        "IDLE %",
        "COST",
        "TOKENS",
        "PER MILLION",
    )
    rows = [
        (
            one["model"] or "no model" if answer["group_by"] == "model" else one["instance_id"] or one["machine_id"],
            str(one["machines"]),
            *(duration(one["seconds"][part]) for part in _PARTS),
            f"{one['idle_ratio']:.0%}",
            _money(one["costs"] and sum(one["costs"].values()), one["currency"]),
            _count(_sum(one["input_tokens"], one["output_tokens"])),
            _money(one["cost_per_million_tokens"], one["currency"]),
        )
        for one in answer["rows"]
    ]
    lines = [table([headings, *rows])]
    for currency, parts in sorted(answer["totals"].items()):
        told = ", ".join(f"{part} {parts[part]:,.2f}" for part in _PARTS)
        lines.append(f"in all {_money(sum(parts.values()), currency)}: {told}")
    if answer["truncated"]:
        lines.append("there is more than fits: these are the machines with the most hours")
    return "\n".join(lines)


def _money(amount: float | None, currency: str | None) -> str:
    return _NOTHING if amount is None else f"{amount:,.2f} {currency}"


def _sum(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first + second


def _count(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:,.0f}"


def _seconds(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.3f} s"


def _costs(one: Mapping[str, Any]) -> str:
    """An amount is shown to four places: single requests cost little."""
    told = [f"{amount:.4f} {currency}" for currency, amount in sorted(one["costs"].items())]
    return " + ".join(told) or _NOTHING


def duration(seconds: float) -> str:
    """In the one unit that suits."""
    for limit, unit, name in ((_MINUTE * 2, 1.0, "s"), (_HOUR * 2, _MINUTE, "min"), (_DAY * 2, _HOUR, "h")):
        if seconds < limit:
            return f"{max(0.0, seconds) / unit:.0f} {name}"
    return f"{seconds / _DAY:.0f} d"


def _price(instance: Mapping[str, Any]) -> str:
    price = instance["price_per_hour"]
    return _NOTHING if price is None else f"{price:.2f} {instance['currency']}"


def _time(text: str) -> str:
    """In the reader's own time zone."""
    return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")
