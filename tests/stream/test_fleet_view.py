import random
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetpulse.stream.fleet_view import EARLIER_BOOTS, FleetRules, FleetView
from fleetpulse.stream.heartbeat import Engine, Heartbeat

RULES = FleetRules(settle_seconds=10.0)


def beat(worker: str = "w", sequence: int = 1, **changes: Any) -> Heartbeat:
    fields: dict[str, Any] = {
        "worker_id": worker,
        "instance_id": worker,
        "boot_id": "boot-1",
        "sequence": sequence,
        "sent_unix_nano": 0,
        "interval_seconds": 1.0,
        "status": "ready",
        "agent_version": "1",
    }
    return Heartbeat(**(fields | changes))


def working(sequence: int, steps: int | None, running: int | None, waiting: int | None = 0) -> Heartbeat:
    engine = Engine("ready", step_count=steps, requests_running=running, requests_waiting=waiting)
    return beat(sequence=sequence, engine=engine)


def fleet(count: int, at: float = 0.0, rules: FleetRules = RULES) -> FleetView:
    view = FleetView(rules)
    view.join(at)
    for number in range(count):
        view.observe(beat(f"w{number}"), at)
    return view


def states(view: FleetView, now: float) -> dict[str, str]:
    return {one.worker_id: one.state for one in view.snapshot(now)}


def test_a_worker_is_alive_until_its_threshold_and_stale_after_it() -> None:
    view = FleetView()
    view.observe(beat(), 100.0)
    assert states(view, 103.3) == {"w": "alive"}
    assert states(view, 103.31) == {"w": "stale"}
    seen = view.get("w", 105.0)
    assert seen is not None
    assert seen.heartbeat_age_seconds == pytest.approx(5.0)
    assert seen.stale_for_seconds == pytest.approx(1.7)


@pytest.mark.parametrize(("interval", "threshold"), [(0.5, 3.3), (1.0, 3.3), (5.0, 16.5), (10.0, 33.0)])
def test_the_threshold_follows_the_workers_own_interval(interval: float, threshold: float) -> None:
    view = FleetView()
    view.observe(beat(interval_seconds=interval), 0.0)
    assert states(view, threshold - 0.01) == {"w": "alive"}
    assert states(view, threshold + 0.01) == {"w": "stale"}


def test_a_worker_the_database_knows_is_never_seen_until_it_is_heard() -> None:
    view = FleetView()
    view.know("w", "w", 0.0, heard_seconds_ago=7.0)
    seen = view.get("w", 1.0)
    assert seen is not None
    assert (seen.state, seen.heartbeat_age_seconds, seen.recorded_age_seconds) == ("never_seen", None, 8.0)
    view.observe(beat(), 2.0)
    view.know("w", "w", 3.0, heard_seconds_ago=500.0)
    seen = view.get("w", 3.0)
    assert seen is not None
    assert (seen.state, seen.heartbeat_age_seconds, seen.recorded_age_seconds) == ("alive", 1.0, None)


def test_a_duplicate_counts_and_refreshes_nothing() -> None:
    view = FleetView()
    assert view.observe(beat(sequence=5), 0.0) == "first"
    for old in (5, 4, 1):
        assert view.observe(beat(sequence=old, status="degraded"), 3.0) == "duplicate"
    seen = view.get("w", 3.4)
    assert seen is not None
    assert (seen.state, seen.duplicates, seen.heartbeats) == ("stale", 3, 1)
    assert seen.heartbeat is not None
    assert seen.heartbeat.status == "ready"


def test_gaps_count_once_each_and_by_what_they_lost() -> None:
    view = FleetView()
    for sequence in (1, 2, 5, 6, 10):
        view.observe(beat(sequence=sequence), float(sequence))
    seen = view.get("w", 10.0)
    assert seen is not None
    assert (seen.sequence_gaps, seen.heartbeats_missed) == (2, 5)


def test_a_new_boot_replaces_the_old_and_late_messages_of_the_old_change_nothing() -> None:
    view = FleetView()
    view.observe(beat(sequence=900), 0.0)
    assert view.observe(beat(sequence=1, boot_id="boot-2"), 1.0) == "restart"
    assert view.observe(beat(sequence=901), 1.1) == "duplicate"
    seen = view.get("w", 1.2)
    assert seen is not None
    assert seen.heartbeat is not None
    assert (seen.heartbeat.boot_id, seen.restarts, seen.duplicates, seen.sequence_gaps) == ("boot-2", 1, 1, 0)


def test_remembered_boots_are_bounded() -> None:
    view = FleetView()
    for number in range(100):
        view.observe(beat(boot_id=f"b{number}"), float(number))
    assert len(view._instances["w"].earlier_boots) == EARLIER_BOOTS


def test_a_worker_under_a_new_instance_id_is_shown_once_and_the_old_instance_stays_reachable() -> None:
    view = FleetView()
    view.observe(beat(instance_id="old"), 0.0)
    view.observe(beat(instance_id="new"), 1.0)
    assert [one.instance_id for one in view.snapshot(2.0)] == ["new"]
    assert view.get("old", 2.0) is not None
    assert view.counts(2.0) == {"alive": 1, "stale": 0, "never_seen": 0}


def test_a_live_instance_stands_for_its_worker_before_a_newer_silent_one() -> None:
    view = FleetView()
    view.observe(beat(instance_id="old", sequence=1), 0.0)
    view.observe(beat(instance_id="new"), 1.0)
    view.observe(beat(instance_id="old", sequence=2), 9.0)
    seen = view.worker("w", 10.0)
    assert seen is not None
    assert (seen.instance_id, seen.state) == ("old", "alive")


def test_clock_skew_is_the_workers_clock_minus_ours_and_unknown_without_ours() -> None:
    view = FleetView()
    view.observe(beat(sent_unix_nano=1_000_000_000_000), 0.0, received_unix_seconds=940.0)
    seen = view.get("w", 0.0)
    assert seen is not None
    assert seen.clock_skew_seconds == pytest.approx(60.0)
    view.observe(beat(sequence=2), 1.0)
    seen = view.get("w", 1.0)
    assert seen is not None
    assert seen.clock_skew_seconds is None


def stalled(*beats: Heartbeat) -> float | None:
    """Beats one second apart."""
    view = FleetView()
    for at, one in enumerate(beats):
        view.observe(one, float(at))
    seen = view.get("w", float(len(beats) - 1))
    assert seen is not None
    return seen.engine_stalled_seconds


def test_an_engine_with_work_and_no_steps_is_stalled_since_its_last_step() -> None:
    assert stalled(working(1, 10, 1), working(2, 11, 1), working(3, 11, 1), working(4, 11, 1)) == 2.0


def test_an_engine_that_was_idle_is_stalled_only_since_it_has_work() -> None:
    assert stalled(*(working(n, 10, 0) for n in range(1, 60)), working(60, 10, 0, 3), working(61, 10, 1, 2)) == 1.0


def test_an_idle_engine_and_one_that_steps_are_not_stalled() -> None:
    assert stalled(working(1, 10, 0), working(2, 10, 0)) == 0.0
    assert stalled(working(1, 10, 4), working(2, 11, 4)) == 0.0


def test_an_engine_started_anew_has_progressed() -> None:
    assert stalled(working(1, 500, 1), working(2, 500, 1), working(3, 2, 1)) == 0.0


@pytest.mark.parametrize(
    "unknown", [beat(sequence=3), working(3, None, 1), working(3, 10, None, None)], ids=["engine", "steps", "work"]
)
def test_progress_is_unknown_without_readings(unknown: Heartbeat) -> None:
    assert stalled(working(1, 10, 1), working(2, 10, 1), unknown) is None


def test_silence_of_most_workers_within_one_window_is_mass_silence() -> None:
    view = fleet(10)
    for at in range(1, 40):
        for number in range(4):
            view.observe(beat(f"w{number}", 1 + at), float(at))
    silence = view.mass_silence(39.5)
    assert (silence.active, silence.reason, silence.silent_workers, silence.workers) == (True, "many_silent", 6, 10)


def test_exactly_the_share_is_not_mass_silence() -> None:
    view = fleet(10)
    for number in range(5):
        view.observe(beat(f"w{number}", 2), 20.0)
    assert not view.mass_silence(20.0).active


def test_workers_that_fall_silent_one_by_one_are_not_mass_silence() -> None:
    view = FleetView(FleetRules(settle_seconds=0.0))
    view.join(0.0)
    for number in range(6):
        view.observe(beat(f"w{number}"), 100.0 * number)
    assert view.counts(1000.0)["stale"] == 6
    assert not view.mass_silence(1000.0).active


def test_two_workers_are_too_few_for_mass_silence() -> None:
    assert not fleet(2).mass_silence(100.0).active


def test_mass_silence_ends_when_the_workers_are_heard_again() -> None:
    view = fleet(4)
    assert view.mass_silence(20.0).active
    for number in range(4):
        view.observe(beat(f"w{number}", 21), 21.0)
    assert not view.mass_silence(21.0).active


def test_workers_that_said_goodbye_are_not_mass_silence() -> None:
    view = fleet(4)
    for number in range(3):
        view.observe(beat(f"w{number}", 2, status="draining"), 1.0)
    view.observe(beat("w3", 2), 20.0)
    assert not view.mass_silence(20.0).active


def test_after_a_restart_recorded_workers_that_stay_silent_together_are_mass_silence() -> None:
    view = FleetView(RULES)
    view.join(1000.0)
    for number in range(5):
        view.know(f"w{number}", f"w{number}", 1000.0, heard_seconds_ago=2.0)
    assert view.mass_silence(1001.0).reason == "just_joined"
    assert view.mass_silence(1011.0).reason == "many_silent"


def test_long_gone_workers_in_the_database_do_not_hold_a_live_fleet() -> None:
    view = FleetView(RULES)
    view.join(0.0)
    for number in range(8):
        view.know(f"gone{number}", f"gone{number}", 0.0, heard_seconds_ago=3600.0 * (number + 1))
    view.observe(beat("w0", 1), 20.0)
    assert not view.mass_silence(20.0).active


def test_silence_proves_nothing_without_the_stream_or_just_after_joining_it() -> None:
    view = fleet(1)
    assert view.mass_silence(9.0).reason == "just_joined"
    assert not view.mass_silence(10.0).active
    view.leave()
    assert view.mass_silence(11.0).reason == "not_following"
    assert view.joined_for_seconds(11.0) is None
    view.join(12.0)
    view.join(20.0)
    assert view.joined_for_seconds(20.0) == 8.0


def test_the_forgotten_and_the_ended_leave_the_picture_and_the_memory() -> None:
    view = FleetView(replace(RULES, forget_after_seconds=100.0))
    view.observe(beat("old"), 0.0)
    view.observe(beat("ended"), 90.0)
    view.forget("ended")
    assert set(states(view, 99.0)) == {"old"}
    assert states(view, 100.0) == {}
    assert view.get("old", 100.0) is None
    view.observe(beat("new"), 200.0)
    assert len(view) == 1
    view.know("gone", "gone", 200.0, heard_seconds_ago=100.0)
    assert len(view) == 1


def test_a_flood_of_made_up_names_evicts_the_silent_and_not_the_living() -> None:
    view = FleetView(replace(RULES, most_instances=50))
    for at in range(500):
        view.observe(beat("real", at + 1), float(at))
        view.observe(beat(f"made-up-{at}"), float(at))
        view.know(f"known-{at}", f"known-{at}", float(at))
        assert len(view) <= 50
    assert view.worker("real", 500.0) is not None


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b"]),
            st.sampled_from(["boot-1", "boot-2", "boot-3"]),
            st.integers(1, 30),
            st.floats(0, 5),
        ),
        max_size=60,
    )
)
def test_any_order_of_heartbeats_adds_up(history: list[tuple[str, str, int, float]]) -> None:
    view, now = FleetView(), 0.0
    outcomes: dict[str, list[str]] = {"a": [], "b": []}
    for worker, boot, sequence, pause in history:
        now += pause
        before = view.get(worker, now)
        outcome = view.observe(beat(worker, sequence, boot_id=boot), now)
        outcomes[worker].append(outcome)
        after = view.get(worker, now)
        assert after is not None
        assert after.heartbeat is not None
        if outcome == "duplicate":
            assert before is not None
            assert after.heartbeat is before.heartbeat
        else:
            assert (after.state, after.heartbeat.sequence, after.heartbeat.boot_id) == ("alive", sequence, boot)
        if outcome == "next" and before is not None and before.heartbeat is not None:
            assert sequence > before.heartbeat.sequence
    for worker, seen in outcomes.items():
        one = view.get(worker, now)
        if one is None:
            assert not seen
            continue
        assert one.heartbeats + one.duplicates == len(seen)
        assert one.restarts == seen.count("restart")
        assert one.sequence_gaps <= seen.count("next")
        assert one.heartbeats_missed >= one.sequence_gaps


@given(st.lists(st.tuples(st.floats(0, 200), st.sampled_from([0.5, 1.0, 5.0])), min_size=1, max_size=40))
def test_states_partition_the_fleet_and_staleness_only_grows(heard: list[tuple[float, float]]) -> None:
    view = FleetView()
    for number, (at, interval) in enumerate(heard):
        view.observe(beat(f"w{number}", interval_seconds=interval), at)
    stale: set[str] = set()
    for now in (200.0, 201.0, 205.0, 220.0):
        assert sum(view.counts(now).values()) == len(heard)
        newly = {name for name, state in states(view, now).items() if state == "stale"}
        assert stale <= newly
        stale = newly
        for one in view.snapshot(now):
            assert (one.state == "stale") == (one.stale_for_seconds is not None)


@given(st.lists(st.floats(0, 300), max_size=25), st.integers(0, 10), st.randoms(use_true_random=False))
def test_mass_silence_agrees_with_the_definition(heard: list[float], alive: int, order: random.Random) -> None:
    now, rules = 400.0, FleetRules(settle_seconds=0.0)
    view = FleetView(rules)
    view.join(0.0)
    beats = [(beat(f"s{number}"), at) for number, at in enumerate(heard)]
    beats += [(beat(f"a{number}"), now) for number in range(alive)]
    order.shuffle(beats)
    for one, at in beats:
        view.observe(one, at)
    windows = [
        (sum(first <= at <= first + rules.silence_window_seconds for at in heard), sum(at >= first for at in heard))
        for first in heard
    ]
    expected = any(fell >= 3 and fell > 0.5 * (alive + silent) for fell, silent in windows)
    assert view.mass_silence(now).active is expected


def test_a_heartbeat_read_from_the_stream_is_what_the_view_holds() -> None:
    sent = beat(model_id="m", engine=Engine("ready", models=("m",)))
    view = FleetView()
    view.observe(msgspec.json.decode(msgspec.json.encode(sent), type=Heartbeat), 0.0)
    seen = view.get("w", 0.0)
    assert seen is not None
    assert seen.heartbeat == sent
