"""The fleet as a line of a log."""

from typing import Any

from fleetpulse.local.fleet_table import fleet_line


def worker(name: str, state: str = "alive", status: str = "ready", engine: str = "ready") -> dict[str, Any]:
    load = {"cpu_utilization_ratio": 0.25, "gpu_count": 8, "gpu_utilization_ratio": 0.5}
    return {"worker_id": name, "state": state, "status": status, "load": load, "engine": {"state": engine}}


def answer(*workers: dict[str, Any]) -> dict[str, Any]:
    states = {state: sum(each["state"] == state for each in workers) for state in ("alive", "stale", "never_seen")}
    return {"summary": {"workers": len(workers), **states}, "workers": workers, "stream": {"connected": True}}


def test_a_small_fleet_is_told_in_full() -> None:
    host = worker("w-2") | {"load": None, "engine": None}
    assert fleet_line(answer(worker("w-1"), host)) == (
        "fleet: 2 alive, 0 stale, 0 never seen · w-1 alive cpu 25% 8 GPUs 50% · w-2 alive cpu -"
    )


def test_of_a_large_fleet_the_first_in_trouble_are_told_and_the_others_counted() -> None:
    fleet = [worker(f"w-{number}") for number in range(1004)]
    fleet[700] = worker("w-700", state="stale")
    fleet[800] = worker("w-800", status="degraded")
    fleet[900] = worker("w-900", engine="unreachable")
    line = fleet_line(answer(*fleet))
    assert "· w-700 stale cpu 25% 8 GPUs 50% · w-800 alive degraded cpu 25%" in line
    assert "· w-900 alive, engine unreachable cpu 25% 8 GPUs 50% · w-0 alive cpu 25%" in line
    assert line.endswith(" · 996 more")
    assert len(line) < 500


def test_those_in_trouble_that_there_is_no_room_for_are_counted_apart() -> None:
    fleet = [worker(f"w-{number}", state="stale" if number % 2 else "alive") for number in range(1000)]
    assert fleet_line(answer(*fleet)).endswith(" · w-15 stale cpu 25% 8 GPUs 50% · 992 more, 492 of them in trouble")
