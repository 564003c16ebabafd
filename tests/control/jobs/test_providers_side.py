"""Comparing with the providers: machines that are gone, machines that nobody owns, volumes, the catalogue."""

import time
from typing import Any

from control.lifecycle.evidence import LINE_CHARACTERS
from control.providers.interface import Catalogue, Machine, Volume

GIGABYTE = 10**9


async def compared(fleet: Any, job: str, times: int = 2) -> None:
    """Wait for so many more comparisons."""
    before = fleet.metric("job_outcomes_total", job=job, outcome="compared")
    await fleet.until(
        lambda: fleet.metric("job_outcomes_total", job=job, outcome="compared") >= before + times, "comparisons"
    )


async def test_an_instance_whose_machine_vanished_is_terminated_with_evidence(fleet: Any) -> None:
    for name in ("i-1", "i-2", "i-3"):
        await fleet.make(name, "ready")
    del fleet.provider.machines["m-i-2"]
    async with fleet.running("watch_dog", "terminator"):
        await fleet.until_state("i-2", "terminated")
    assert [reason for _, reason in (await fleet.history("i-2"))[1:]] == ["machine_missing", "machine_gone"]
    rows = await fleet.rows("SELECT evidence, detail FROM instance_transitions WHERE reason = 'machine_missing'")
    assert rows[0][0] == {"machine_id": "m-i-2", "zone": "z", "inventories": 2, "machine": "no machine m-i-2"}
    assert rows[0][1] == "memory does not have machine m-i-2 any more."
    assert [await fleet.state(name) for name in ("i-1", "i-3")] == ["ready", "ready"]


async def test_a_machine_that_is_only_missing_once_is_not_gone(make_fleet: Any) -> None:
    fleet = await make_fleet(watch_dog_confirmations=100)
    await fleet.make("i-1", "ready")
    hidden = fleet.provider.machines.pop("m-i-1")

    async def missed() -> int:
        ((memory,),) = await fleet.rows("SELECT memory FROM job_work WHERE job = 'watch_dog'")
        return int(memory.get("missing", {}).get("z/m-i-1", 0))

    async def missed_twice() -> bool:
        return await missed() >= 2

    async def found() -> bool:
        return await missed() == 0

    async with fleet.running("watch_dog"):
        await compared(fleet, "watch_dog", 1)
        await fleet.until(missed_twice, "two inventories without it")
        fleet.provider.machines["m-i-1"] = hidden
        await fleet.until(found, "an inventory with it")
    assert await fleet.state("i-1") == "ready"


async def test_a_machine_that_answers_is_not_gone_whatever_the_inventory_says(fleet: Any, worker: Any) -> None:
    await fleet.make("i-1", "ready")
    fleet.provider.default_address = worker.address()
    fleet.provider.hidden = True
    async with fleet.running("watch_dog"):
        await compared(fleet, "watch_dog", 4)
    assert await fleet.state("i-1") == "ready"


async def test_a_provider_that_lost_many_machines_at_once_is_not_believed(fleet: Any) -> None:
    for number in range(4):
        await fleet.make(f"i-{number}", "ready")
    kept = dict(fleet.provider.machines)
    fleet.provider.machines.clear()
    async with fleet.running("watch_dog"):
        await fleet.until(
            lambda: fleet.metric("job_outcomes_total", job="watch_dog", outcome="inventory_lost_many") >= 4, "doubt"
        )
        assert fleet.metric("jobs_holding_still", job="watch_dog", reason="inventory_lost_many") == 1
        assert [await fleet.state(f"i-{number}") for number in range(4)] == ["ready"] * 4
        fleet.provider.machines.update(kept)
        await compared(fleet, "watch_dog")
        assert fleet.metric("jobs_holding_still", job="watch_dog", reason="inventory_lost_many") == 0


async def test_a_provider_that_cannot_be_reached_has_not_lost_its_machines(fleet: Any, provider_error: Any) -> None:
    await fleet.make("i-1", "ready")
    fleet.provider.fail["inventory"] = provider_error()
    async with fleet.running("watch_dog"):
        await fleet.until(
            lambda: fleet.metric("job_outcomes_total", job="watch_dog", outcome="provider_error") >= 3, "failures"
        )
    assert await fleet.state("i-1") == "ready"


async def test_the_watch_dog_holds_still_while_the_pipeline_is_blind(fleet: Any) -> None:
    await fleet.make("i-1", "ready")
    fleet.provider.machines.clear()
    fleet.reader.connected = False
    async with fleet.running("watch_dog"):
        await compared(fleet, "watch_dog", 4)
        assert await fleet.state("i-1") == "ready"
        fleet.reader.connected = True
        await fleet.until_state("i-1", "terminating")


async def test_a_machine_left_over_from_an_instance_that_is_over_is_deleted_after_its_grace(make_fleet: Any) -> None:
    fleet = await make_fleet(leftover_grace_seconds=3600)
    await fleet.make("i-1", "terminated")
    await fleet.sql.execute("UPDATE instances SET price_per_hour = 2.5, currency = 'USD'")
    async with fleet.running("watch_dog"):
        await compared(fleet, "watch_dog")
        assert "m-i-1" in fleet.provider.machines
        told = await fleet.rows("SELECT machine_id, instance_id, ours, price_per_hour::float8 FROM orphan_machines")
        assert told == [("m-i-1", "i-1", True, 2.5)]
        assert fleet.metric("orphan_machines", provider="memory") == 1
        assert fleet.metric("orphan_price_per_hour", provider="memory", currency="USD") == 2.5
        await fleet.sql.execute("UPDATE orphan_machines SET first_seen_at = now() - interval '2 hours'")
        await fleet.until(lambda: "m-i-1" not in fleet.provider.machines, "its deletion")
        await fleet.until(lambda: fleet.metric("orphan_machines", provider="memory") == 0, "no orphan")
        assert fleet.metric("orphan_price_per_hour", provider="memory", currency="USD") == 0
    assert await fleet.rows("SELECT resolved_at IS NOT NULL FROM orphan_machines") == [(True,)]
    logged = await fleet.rows("SELECT detail FROM action_log WHERE action = 'provider.delete'")
    assert logged[0][0] == {"machine_id": "m-i-1", "instance_id": "i-1", "orphan": True}


async def test_a_machine_that_the_provider_no_longer_lists_but_is_still_heard_is_an_orphan(fleet: Any) -> None:
    await fleet.make("i-1", "terminated")
    await fleet.sql.execute(
        "UPDATE instances SET price_per_hour = 2.5, currency = 'USD', state_since = now() - interval '5 minutes'"
    )
    fleet.provider.machines.clear()

    async def orphans() -> Any:
        fleet.beat("i-1", sequence=time.monotonic_ns())
        return await fleet.rows("SELECT machine_id, instance_id, status FROM orphan_machines WHERE resolved_at IS NULL")

    async def heard() -> bool:
        return bool(await orphans() == [("m-i-1", "i-1", "heard")])

    async with fleet.running("watch_dog"):
        await fleet.until(heard, "the orphan")
        await fleet.until(lambda: fleet.metric("orphan_price_per_hour", provider="memory", currency="USD") == 2.5, "it")


async def test_a_machine_that_nobody_here_knows_is_told_of_and_stays(fleet: Any) -> None:
    """It may belong to another control service."""
    fleet.provider.add("m-foreign", "of-another-control")
    fleet.provider.add("m-untagged", None)
    await fleet.sql.execute("INSERT INTO providers VALUES ('memory')")
    await fleet.sql.execute(
        "INSERT INTO instance_types (provider, instance_type, gpu_count, price_per_hour, zones)"
        " VALUES ('memory', 'small', 1, 3, '{z}')"
    )
    async with fleet.running("watch_dog"):
        await compared(fleet, "watch_dog")
        await fleet.sql.execute("UPDATE orphan_machines SET first_seen_at = now() - interval '10 years'")
        await compared(fleet, "watch_dog", 3)
    assert set(fleet.provider.machines) == {"m-foreign", "m-untagged"}
    assert fleet.metric("orphan_price_per_hour", provider="memory", currency="EUR") == 6


async def test_a_machine_that_nobody_here_knows_goes_where_the_settings_say_so(make_fleet: Any) -> None:
    fleet = await make_fleet(orphan_grace_seconds=0.1)
    fleet.provider.add("m-foreign", None)
    async with fleet.running("watch_dog"):
        await fleet.until(lambda: not fleet.provider.machines, "its deletion")


async def test_no_orphan_is_deleted_while_the_pipeline_is_blind(make_fleet: Any) -> None:
    fleet = await make_fleet(orphan_grace_seconds=0.1)
    fleet.reader.connected = False
    fleet.provider.add("m-foreign", None)
    async with fleet.running("watch_dog"):
        await compared(fleet, "watch_dog", 4)
        assert "m-foreign" in fleet.provider.machines
        fleet.reader.connected = True
        await fleet.until(lambda: not fleet.provider.machines, "its deletion")


async def test_a_second_machine_of_a_living_instance_is_an_orphan_and_the_first_is_not(make_fleet: Any) -> None:
    fleet = await make_fleet(leftover_grace_seconds=0.1)
    await fleet.make("i-1", "ready")
    await fleet.make("i-new", "provisioning", machine=False)
    fleet.provider.add("m-twice", "i-1")
    fleet.provider.add("m-i-new", "i-new")
    async with fleet.running("watch_dog"):
        await fleet.until(lambda: "m-twice" not in fleet.provider.machines, "its deletion")
    assert set(fleet.provider.machines) == {"m-i-1", "m-i-new"}


ODD = "m\x00\ud800" + "x" * 5_000


async def test_what_a_provider_says_is_kept_as_far_as_it_can_be_stored(fleet: Any) -> None:
    await fleet.make("i-1", "ready")
    fleet.provider.machines[ODD] = Machine(ODD, "z", "of\x00nobody", ODD, ODD)
    for name in (ODD, "again"):
        fleet.provider.disks[name] = Volume(ODD, "z", ODD, GIGABYTE, None, "of\x00nobody")
    async with fleet.running("watch_dog", "volumes"):
        await compared(fleet, "watch_dog")
        await compared(fleet, "volumes")
    kept = "m\ufffd?" + "x" * (LINE_CHARACTERS - 3)
    assert await fleet.rows("SELECT machine_id, instance_id, status FROM orphan_machines") == [
        (kept, "of\ufffdnobody", kept)
    ]
    assert await fleet.rows("SELECT volume_id, name FROM volumes") == [(kept, kept)]
    assert await fleet.state("i-1") == "ready"


async def test_volumes_follow_their_instances(make_fleet: Any, provider_error: Any) -> None:
    fleet = await make_fleet(leftover_grace_seconds=0.1)
    await fleet.make("i-1", "ready")
    await fleet.make("i-2", "terminated", machine=False)
    disks = {
        "v-1": ("m-i-1", "i-1"),
        "v-2": (None, "i-2"),
        "v-3": (None, "of-another-control"),
        "v-4": ("m-foreign", None),
    }
    for name, (machine_id, instance_id) in disks.items():
        fleet.provider.disks[name] = Volume(name, "z", name, GIGABYTE, machine_id, instance_id)
    fleet.provider.fail["delete_volume"] = provider_error()

    async def failed() -> bool:
        return bool(await fleet.rows("SELECT FROM volumes WHERE volume_id = 'v-2' AND attempts >= 2"))

    async def over() -> bool:
        return bool(await fleet.rows("SELECT FROM volumes WHERE volume_id = 'v-2' AND state = 'deleted'"))

    async def counted() -> bool:
        return bool(fleet.metric("orphan_volumes", provider="memory") == 1)

    async with fleet.running("volumes"):
        await fleet.until(failed, "two attempts")
        assert await fleet.rows("SELECT failure FROM volumes WHERE volume_id = 'v-2'") == [("no capacity",)]
        del fleet.provider.fail["delete_volume"]
        await fleet.until(over, "its end")
        await fleet.until(counted, "the other orphan")
    told = await fleet.rows("SELECT volume_id, state, instance_id FROM volumes ORDER BY volume_id")
    assert told == [
        ("v-1", "attached", "i-1"),
        ("v-2", "deleted", "i-2"),
        ("v-3", "orphan", None),
        ("v-4", "attached", None),
    ]
    assert set(fleet.provider.disks) == {"v-1", "v-3", "v-4"}


async def test_the_catalogue_is_kept_and_what_is_gone_is_no_longer_available(
    make_fleet: Any, provider_error: Any
) -> None:
    fleet = await make_fleet(catalogue_interval_seconds=0.1)

    async def read() -> bool:
        return bool(await fleet.rows("SELECT FROM instance_types WHERE available AND price_per_hour = 2.5"))

    async def gone() -> bool:
        return bool(await fleet.rows("SELECT FROM instance_types WHERE NOT available"))

    async def failing() -> bool:
        return await fleet.rows("SELECT failure, catalogue_read_at IS NOT NULL FROM providers") == [
            ("no capacity", True)
        ]

    async with fleet.running("catalogue"):
        await fleet.until(read, "a catalogue")
        fleet.provider.fail["catalogue"] = provider_error()
        await fleet.until(failing, "a failure")
        del fleet.provider.fail["catalogue"]

        async def empty() -> Catalogue:
            return Catalogue((), ())

        fleet.provider.catalogue = empty
        await fleet.until(gone, "an empty catalogue")
    assert await fleet.rows("SELECT available FROM zones") == [(False,)]


async def test_agents_of_another_version_are_flagged_until_they_are_updated(make_fleet: Any) -> None:
    fleet = await make_fleet(agent_version="2.0")
    fleet.beat("old", agent_version="1.9")
    fleet.beat("new", agent_version="2.0")
    async with fleet.running("agent_versions"):
        await compared(fleet, "agent_versions", 1)
        told = await fleet.rows("SELECT instance_id, agent_version, wanted_version FROM outdated_agents")
        assert told == [("old", "1.9", "2.0")]
        assert fleet.metric("agents_outdated") == 1
        fleet.beat("old", 2, agent_version="2.0")
        await compared(fleet, "agent_versions")
        assert await fleet.rows("SELECT FROM outdated_agents") == []
