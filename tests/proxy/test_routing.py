"""Which worker a request goes to: by the stream alone, and by what happened to the requests before."""

import asyncio
import collections
import random
import signal
import sys
import time

import pytest

from fleetpulse.local.ports import free_port
from fleetpulse.local.processes import Child
from fleetpulse.stream.fleet_view import FleetView
from fleetpulse.stream.heartbeat import Engine, Heartbeat
from fleetpulse.stream.lifecycle import LifecycleEvent
from fleetpulse.stream.topics import HEARTBEATS, LIFECYCLE
from proxy.affinity import hash64, weight
from proxy.ejection import Ejection, EjectionRules
from proxy.errors import ProxyError
from proxy.fleet import Fleet
from proxy.select import Bound, select

MODEL = "acme/mock-model"


# Selection by itself, on a clock of its own.


class Floor:
    """A fleet that a test tells what is so."""

    def __init__(self, count: int) -> None:
        self.fleet = Fleet(FleetView(), stalled_seconds=10.0)
        self.now = 1_000.0
        self.sequence = 0
        self.names = [f"i{number}" for number in range(count)]
        for name in self.names:
            self.move(name)
        self.beat(*self.names)

    def move(self, name: str, state="ready", version: int = 1, url: str | None = "http://10.0.0.1:8000") -> None:
        event = LifecycleEvent(name, version, state, None, "test", 0, "o", "p", "z", "t", engine_url=url)
        self.fleet.move(event, self.now)

    def beat(
        self, *names: str, waiting: int = 0, running: int = 0, steps: int | None = None, status="ready", state="ready"
    ) -> None:
        self.sequence += 1
        for name in names:
            engine = Engine(
                state=state,
                models=(MODEL,),
                requests_waiting=waiting,
                requests_running=running,
                step_count=self.sequence if steps is None else steps,
            )
            heartbeat = Heartbeat(f"w-{name}", name, "boot", self.sequence, 0, 1.0, status, "1", engine=engine)
            self.fleet.observe(heartbeat, self.now)

    def choose(self, session: int | None = None, tried=(), bound: Bound | None = None) -> str:
        choice = select(self.fleet, [MODEL], session, bound or Bound(), self.now, tried)
        return choice.worker.instance_id

    def worker(self, name: str):
        return next(worker for worker in self.fleet.workers() if worker.instance_id == name)


class Held:
    """A request as a worker holds it."""

    reason: str | None = None

    def worker_lost(self, reason: str) -> None:
        self.reason = reason

    def cut_off(self) -> None: ...


def test_the_shortest_queue_is_chosen_and_own_requests_count_until_the_next_heartbeat() -> None:
    floor = Floor(3)
    floor.beat("i0", waiting=3)
    floor.beat("i1", waiting=1)
    floor.beat("i2", waiting=4)
    chosen = collections.Counter()
    for _ in range(6):
        name = floor.choose()
        chosen[name] += 1
        floor.worker(name).hold(Held())
    # i1 gets two and is then level with i0; these two share four, and level with i2 at the end all are the same.
    assert chosen["i1"] >= 3
    assert sorted(floor.worker(name).load for name in floor.names) in ([4, 4, 4], [4, 4, 6], [4, 5, 5])
    floor.beat("i2", waiting=0)
    assert floor.choose() == "i2"


def test_equals_are_chosen_at_random() -> None:
    floor = Floor(4)
    chosen = collections.Counter(floor.choose() for _ in range(2_000))
    assert set(chosen) == set(floor.names)
    assert min(chosen.values()) > 350


def test_a_request_that_ends_is_no_longer_counted_and_none_is_counted_twice() -> None:
    floor = Floor(1)
    worker, held = floor.worker("i0"), Held()
    worker.hold(held)
    assert worker.load == 1
    worker.release(held)
    worker.release(held)
    assert worker.load == 0
    worker.hold(held)
    floor.beat("i0")
    worker.release(held)
    assert (worker.load, len(worker.leases)) == (0, 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda floor: floor.move("i0", "draining", 2),
        lambda floor: floor.move("i0", "worker_dead", 2),
        lambda floor: floor.move("i0", "terminated", 2),
        lambda floor: floor.move("i0", "ready", 2, url=None),
        lambda floor: floor.move("i0", "ready", 2, url="http://169.254.169.254"),
        lambda floor: floor.fleet.remove("i0"),
        lambda floor: floor.beat("i0", status="draining"),
        lambda floor: floor.beat("i0", state="starting"),
        lambda floor: floor.beat("i0", state="unreachable"),
        lambda floor: floor.worker("i0").ejection.failed(floor.now, True, EjectionRules()),
        # Alive and doing nothing, though there is work.
        lambda floor: [
            (setattr(floor, "now", floor.now + second), floor.beat("i1"), floor.beat("i0", running=1, steps=7))
            for second in (0, 11)
        ],
        # Silent while the other is not.
        lambda floor: (setattr(floor, "now", floor.now + 4), floor.beat("i1")),
        lambda floor: floor.beat("i0", status="degraded"),
    ],
)
def test_a_worker_that_cannot_serve_is_passed_over(change) -> None:
    floor = Floor(2)
    change(floor)
    floor.beat("i1", waiting=100)
    assert {floor.choose() for _ in range(50)} == {"i1"}


def test_whoever_was_not_heard_yet_or_is_not_known_gets_no_requests() -> None:
    floor = Floor(1)
    floor.move("new")
    floor.beat("stranger")
    assert {floor.choose() for _ in range(50)} == {"i0"}
    floor.fleet.remove("i0")
    with pytest.raises(ProxyError, match="no worker"):
        floor.choose()
    floor.beat("new")
    floor.move("stranger")
    assert {floor.choose() for _ in range(50)} == {"new", "stranger"}


def test_an_old_lifecycle_message_has_no_effect() -> None:
    floor = Floor(1)
    floor.move("i0", "ready", 5)
    floor.move("i0", "worker_dead", 4)
    assert floor.choose() == "i0"


@pytest.mark.parametrize(
    "last",
    [
        lambda _: None,
        lambda floor: floor.worker("i0").ejection.failed(floor.now, True, EjectionRules()),
        lambda floor: floor.beat("i0", status="degraded"),
    ],
)
def test_the_last_worker_is_never_passed_over(last) -> None:
    floor = Floor(1)
    last(floor)
    floor.now += 3_600
    assert floor.choose() == "i0"


def test_when_all_are_silent_it_is_the_streams_silence() -> None:
    floor = Floor(5)
    floor.now += 60
    assert {floor.choose() for _ in range(200)} == set(floor.names)


def test_when_many_fall_silent_together_nobody_is_passed_over() -> None:
    floor = Floor(6)
    floor.fleet.view.join(floor.now - 1_000)
    floor.now += 5
    floor.beat("i0")
    assert {floor.choose() for _ in range(50)} == {"i0"}
    floor.fleet.look(floor.now)
    assert {floor.choose() for _ in range(300)} == set(floor.names)


def test_requests_without_an_answer_leave_a_worker_that_is_gone() -> None:
    floor = Floor(2)
    held = Held()
    floor.worker("i0").hold(held)
    floor.fleet.look(floor.now)
    assert held.reason is None
    floor.now += 4
    floor.beat("i1")
    floor.fleet.look(floor.now)
    assert held.reason == "silent"


def test_a_draining_worker_keeps_what_it_has() -> None:
    floor = Floor(1)
    held = Held()
    floor.worker("i0").hold(held)
    floor.move("i0", "draining", 2)
    assert held.reason is None
    floor.move("i0", "terminating", 3)
    assert held.reason == "terminating"


def test_a_session_stays_and_a_lost_worker_moves_only_its_own() -> None:
    floor = Floor(8)
    sessions = [hash64(b"session-%d" % number) for number in range(1_000)]
    before = {session: floor.choose(session) for session in sessions}
    assert before == {session: floor.choose(session) for session in sessions}
    assert min(collections.Counter(before.values()).values()) > 80
    floor.move("i3", "worker_dead", 2)
    after = {session: floor.choose(session) for session in sessions}
    assert {session for session in sessions if before[session] != after[session]} == {
        session for session, name in before.items() if name == "i3"
    }
    floor.move("i3", "ready", 3)
    assert before == {session: floor.choose(session) for session in sessions}


def test_a_session_leaves_a_worker_with_much_more_to_do_than_others() -> None:
    floor = Floor(4)
    session = hash64(b"session")
    home = floor.choose(session)
    floor.beat(home, waiting=8)
    assert floor.choose(session) == home
    floor.beat(home, waiting=20)
    away = floor.choose(session)
    assert away != home
    floor.beat(home, waiting=0)
    assert floor.choose(session) == home


def test_every_process_ranks_workers_alike() -> None:
    assert [weight(hash64(b"session"), hash64(name)) % 1000 for name in (b"a", b"b", b"c")] == [541, 913, 108]


def test_without_workers_there_is_no_choice() -> None:
    floor = Floor(1)
    with pytest.raises(ProxyError):
        floor.choose(tried=[floor.worker("i0")])
    with pytest.raises(ProxyError):
        select(floor.fleet, ["acme/other"], None, Bound(), floor.now)


def test_a_worker_is_out_for_longer_each_time_it_fails_again() -> None:
    rules, ejection, now, pauses = EjectionRules(seconds=1, most_seconds=20, failures=3), Ejection(), 100.0, []
    assert not ejection.failed(now, False, rules)
    assert not ejection.failed(now, False, rules)
    ejection.succeeded(now)
    assert [ejection.failed(now, False, rules) for _ in range(3)] == [False, False, True]
    for _ in range(6):
        assert ejection.is_out(now)
        assert not ejection.failed(now, True, rules)  # others that were under way
        pauses.append(ejection.until - now)
        now = ejection.until
        assert not ejection.is_out(now)
        ejection.succeeded(now)  # one swallow
        assert ejection.failed(now, False, rules)
    assert pauses == [1, 2, 4, 8, 16, 20]
    ejection.succeeded(ejection.until + 201)
    assert (ejection.failed(now + 300, True, rules), ejection.pause_seconds) == (True, 1)


def test_a_thousand_workers_are_chosen_from_in_well_under_a_hundred_milliseconds() -> None:
    floor = Floor(1_000)
    started = time.perf_counter()
    for number in range(20):
        floor.choose(hash64(b"%d" % number))
        floor.choose()
    assert (time.perf_counter() - started) / 40 < 0.02


# The whole proxy.


def served(records) -> collections.Counter:
    return collections.Counter(record.instance_id for record in records)


async def test_work_spreads_over_queues_of_different_lengths(site) -> None:
    await site.start()
    engine = await site.engine(step_seconds=0.01)
    # Heartbeats stand still, so that only the proxy's own count moves.
    workers = [await site.worker(engine, waiting=waiting, interval_seconds=30.0) for waiting in (0, 4, 8)]
    await site.routed(3)
    await asyncio.gather(*(site.chat(max_tokens=60) for _ in range(18)))
    # 18 requests on top of 12 waiting: all end at 10.
    assert served(await site.usage(18)) == {
        workers[0].instance_id: 10,
        workers[1].instance_id: 6,
        workers[2].instance_id: 2,
    }


async def test_a_session_persists_and_moves_when_its_worker_is_gone(site) -> None:
    await site.start(session_header="X-Inventiv-Session")
    workers = [await site.worker(await site.engine()) for _ in range(4)]
    await site.routed(4)
    for _ in range(8):
        await site.chat(headers={"X-Inventiv-Session": "alice"})
    (home,) = served(await site.usage(8))
    await next(worker for worker in workers if worker.instance_id == home).move("worker_dead")

    async def three() -> bool:
        return await site.metric('fleetpulse_proxy_workers{are="ready"}') == 3

    await site.until(three, "the worker to be off the route")
    for _ in range(8):
        assert (await site.chat(headers={"X-Inventiv-Session": "alice"}))[0] == 200
    assert sorted(served(await site.usage(16)).values()) == [8, 8]


async def test_prompts_that_begin_alike_go_to_one_worker(site) -> None:
    await site.start(prefix_affinity_bytes=200)
    for _ in range(4):
        await site.worker(await site.engine())
    await site.routed(4)
    system = "You are a helpful assistant. " * 20
    for number in range(8):
        messages = [{"role": "system", "content": system}, {"role": "user", "content": f"question {number}"}]
        assert (await site.chat(messages=messages))[0] == 200
    assert len(served(await site.usage(8))) == 1


async def test_a_failing_worker_is_remembered_by_the_requests_that_follow(site, unused_port) -> None:
    await site.start(ejection_seconds=60)
    await site.worker(f"http://127.0.0.1:{unused_port}")
    await site.worker(await site.engine(), waiting=5)
    await site.routed(2)
    for _ in range(5):
        assert (await site.chat())[0] == 200
    assert await site.metric('fleetpulse_proxy_attempts_total{outcome="failed"}') == 1
    assert await site.metric("fleetpulse_proxy_ejections_total") == 1


async def test_the_only_worker_is_tried_even_if_it_failed(site) -> None:
    await site.start(ejection_seconds=3600)
    port = free_port()
    await site.worker(f"http://127.0.0.1:{port}")
    await site.routed(1)
    assert (await site.chat())[0] == 502
    await site.engine(port=port)
    assert (await site.chat())[0] == 200


async def test_a_frozen_broker_ejects_nobody(site, broker) -> None:
    await site.start()
    for _ in range(3):
        await site.worker(await site.engine())
    await site.routed(3)
    broker.freeze()
    try:
        ended = time.monotonic() + 8
        while time.monotonic() < ended:
            assert (await site.chat())[0] == 200
            await asyncio.sleep(0.2)
        assert await site.metric('fleetpulse_proxy_workers{are="fresh"}') == 3
    finally:
        broker.thaw()
    # Nothing of what was used in the meantime is lost.
    booked = await site.metric('fleetpulse_proxy_attempts_total{outcome="completed"}')
    # A record that the broker took without saying so comes twice, under its own id.
    assert len({record.record_id for record in await site.all_usage()}) == booked


async def test_messages_that_cannot_be_read_stop_nothing(site) -> None:
    for topic in (HEARTBEATS.name, LIFECYCLE.name):
        for value in (b"", b"\x00garbage", b"[]", b"{", b'{"schema_version": 1}', b"\xff" * 1_000):
            await site.producer.send(topic, value, b"anybody")
    await site.start()
    await site.worker(await site.engine())
    await site.routed(1)
    assert (await site.chat())[0] == 200


async def test_a_proxy_that_was_started_later_learns_the_fleet_from_the_stream(site, broker) -> None:
    workers = [await site.worker(await site.engine()) for _ in range(2)]
    await workers[0].move("terminating")
    await site.start()
    await site.routed(1)
    assert (await site.chat())[0] == 200
    assert await site.metric('fleetpulse_proxy_workers{are="ready"}') == 1


@pytest.fixture
def engines(tmp_path):
    """Mock engines as processes."""
    children = []

    def start(*options: str) -> tuple[Child, str]:
        port = free_port()
        arguments = [
            sys.executable,
            "-m",
            "fleetpulse.local.mock_engine",
            "--port",
            str(port),
            "--model",
            MODEL,
            *options,
        ]
        child = Child(f"engine-{port}", arguments, tmp_path / f"engine-{port}.log")
        child.start()
        children.append(child)
        child.wait_until(lambda: child.log_file.read_bytes() != b"", 20)
        return child, f"http://127.0.0.1:{port}"

    yield start
    for child in children:
        child.thaw()
        child.kill()


async def test_no_request_without_an_answer_is_lost_with_a_killed_worker(site, engines) -> None:
    await site.start()
    victim, url = engines("--step-seconds", "0.02")
    dying = await site.worker(url)
    for _ in range(3):
        await site.worker(engines("--step-seconds", "0.02")[1])
    await site.routed(4)
    randomness = random.Random(seed := random.randrange(2**32))
    print("seed", seed)
    requests = [
        asyncio.create_task(site.chat(stream=number % 2 == 0, max_tokens=randomness.randrange(20, 60), ignore_eos=True))
        for number in range(100)
    ]

    async def all_under_way() -> bool:
        return await site.metric("fleetpulse_proxy_requests_in_flight") == 100

    await site.until(all_under_way, "100 requests under way")
    killed = time.time()
    victim.kill()
    dying.silent = True
    answers = await asyncio.gather(*requests)
    broken = [body for _, body in answers if isinstance(body, bytes) and not body.endswith(b"data: [DONE]\n\n")]
    assert [status for status, _ in answers] == [200] * 100
    # Streams that had begun say that they broke.
    assert all(b"stream_broken" in body for body in broken)
    records = await site.all_usage()
    assert len(records) > 100
    assert sum(record.outcome == "completed" for record in records) == 100 - len(broken)
    assert sum(record.outcome == "broken" for record in records) == len(broken)
    # Off the route within a second: by then a request that it failed has told of it, and none had an answer later.
    at_dying = [record for record in records if record.instance_id == dying.instance_id]
    failed = [record for record in at_dying if record.outcome in ("failed", "broken")]
    assert min(record.started_unix_nano / 1e9 + record.duration_seconds for record in failed) < killed + 1
    assert await site.metric("fleetpulse_proxy_ejections_total") >= 1
    assert all(record.started_unix_nano / 1e9 < killed + 1 for record in at_dying if record.outcome == "completed")


async def test_a_frozen_worker_is_off_the_route_within_four_seconds(site, engines) -> None:
    await site.start(first_byte_timeout_seconds=60)
    victim, url = engines()
    frozen = await site.worker(url, interval_seconds=1.0)
    well = await site.worker(engines()[1], waiting=1, interval_seconds=1.0)
    await site.routed(2)
    victim.freeze()
    frozen.silent = True
    stopped = time.monotonic()
    # Waits at the frozen worker, and goes to the other one as soon as that is known.
    status, _ = await site.chat()
    assert (status, time.monotonic() - stopped < 6) == (200, True)

    async def is_off() -> bool:
        return await site.metric('fleetpulse_proxy_workers{are="fresh"}') == 1

    await site.until(is_off, "the worker to be off the route")
    assert time.monotonic() - stopped < 6
    assert (await site.chat())[0] == 200
    assert {record.instance_id for record in await site.usage(3) if record.outcome == "completed"} == {well.instance_id}
    victim.signal(signal.SIGCONT)


async def test_an_engine_that_makes_no_progress_is_off_the_route(site) -> None:
    await site.start(engine_stalled_seconds=1.0)
    stalled = await site.worker(await site.engine(stalled=True))
    well = await site.worker(await site.engine(), waiting=5)
    await site.routed(2)
    # It answers /health as before.
    stalled.running, stalled.is_stepping = 1, False
    assert (await site.chat())[0] == 200
    assert {record.instance_id for record in await site.usage(2) if record.outcome == "completed"} == {well.instance_id}
