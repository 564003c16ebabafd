"""Many dead letters at once, between a real broker and a real database."""

import logging
import time

from fleetpulse.local import otlp_messages as otlp

JUNK = 2_000


async def test_a_flood_of_junk_is_buried_together_and_told_in_few_lines(fleet, caplog):
    good = [otlp.agent_message("w", sequence, time.time_ns(), gpus=1) for sequence in (1, 2)]
    sent = [good[0], *(b"\xff%d" % number for number in range(JUNK)), good[1]]
    # As many senders do: not one by one.
    for start in range(0, len(sent), 500):
        chunk = [(b"worker", message) for message in sent[start : start + 500]]
        while chunk:
            chunk = chunk[await fleet.producer.send_together("otlp_metrics", chunk) :]
    with caplog.at_level(logging.WARNING, "fleetpulse"):
        async with fleet.collector() as (collector, _):
            await fleet.rows("system_samples", 2)
            counted = ("fleetpulse_collector_dead_letters_total", {"reason": "malformed_otlp"})
            await fleet.until(lambda: collector.metrics.registry.get_sample_value(*counted) == JUNK, "all of them")
    letters = await fleet.dead_letters(JUNK)
    assert len({letter["value"] for letter in letters}) == JUNK
    lines = [record for record in caplog.records if record.message == "message refused"]
    assert sum(line.count for line in lines) == JUNK
    assert len(lines) < JUNK / 10
    assert {(line.topic, line.reason) for line in lines} == {("otlp_metrics", "malformed_otlp")}
    assert all(line.offset >= 0 and line.partition >= 0 for line in lines)
