-- How far the collectors have read, and what they noticed on the way.

-- migrate:up

-- Where each partition of the stream is and which collector holds it. A batch's transaction advances next_offset last,
-- under the condition that epoch and next_offset are what the collector believes. Updated with each batch, so its
-- pages have room for the new version of a row.
CREATE TABLE ingest_offsets (
    topic text NOT NULL,
    partition int NOT NULL,
    topic_id text,
    epoch bigint NOT NULL DEFAULT 0,
    next_offset bigint,
    owner text,
    lease_until timestamptz,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, partition)
) WITH (fillfactor = 20);

CREATE TABLE ingest_collectors (owner text PRIMARY KEY, lease_until timestamptz NOT NULL) WITH (fillfactor = 20);

-- Offsets that were never written because the broker no longer had them.
CREATE TABLE ingest_gaps (
    topic text NOT NULL,
    partition int NOT NULL,
    from_offset bigint NOT NULL,
    to_offset bigint NOT NULL,
    reason text NOT NULL,
    noticed_at timestamptz NOT NULL DEFAULT now()
);

-- The sequence numbers seen of each boot of a worker: high_water is the highest, window_bits the ones below it.
CREATE TABLE producer_positions (
    worker_key int NOT NULL,
    topic text NOT NULL,
    partition int NOT NULL,
    boot_id text NOT NULL,
    high_water bigint NOT NULL,
    window_bits bytea NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (worker_key, topic, partition, boot_id)
) WITH (fillfactor = 50);

-- Late, duplicate, clamped and rejected data, counted for each worker and hour.
CREATE TABLE data_quality (
    worker_key int NOT NULL,
    hour timestamptz NOT NULL,
    kind text NOT NULL,
    reason text NOT NULL,
    count bigint NOT NULL,
    PRIMARY KEY (worker_key, hour, kind, reason)
) WITH (fillfactor = 50);

-- migrate:down
DROP TABLE data_quality, producer_positions, ingest_gaps, ingest_collectors, ingest_offsets;
