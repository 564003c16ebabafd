-- What requests used and cost, and whether engines say the same.

-- migrate:up
CREATE SCHEMA finops;

-- One attempt of the proxy that reached an engine. time is when it started, created_at when it came here. A record that
-- is sent again has the same time and record_id. Tokens are null where they are not known. The price is the instance's
-- when the record came; busy_seconds, the attempt's share of the engine's time, and cost follow once it is known what
-- else the engine was doing. No columnstore: rows change, and a record may come again for as long as rows are kept.
CREATE TABLE finops.inference_usage (
    time timestamptz NOT NULL,
    record_id text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    request_id text NOT NULL,
    attempt int NOT NULL,
    instance_id text NOT NULL,
    worker_id text NOT NULL,
    organization_id text NOT NULL,
    key_id text NOT NULL,
    model_id text NOT NULL,
    model text NOT NULL,
    path text NOT NULL,
    is_stream boolean NOT NULL,
    outcome text NOT NULL,
    status int,
    duration_seconds double precision NOT NULL,
    ended_at timestamptz NOT NULL,
    first_token_seconds double precision,
    input_tokens bigint,
    output_tokens bigint,
    total_tokens bigint,
    cached_tokens bigint,
    token_source text NOT NULL,
    price_per_hour numeric(14, 6),
    currency text,
    busy_seconds double precision,
    cost numeric(18, 9),
    UNIQUE (time, record_id)
);
CREATE INDEX ON finops.inference_usage (instance_id, time DESC);
-- What an engine did at a time: requests that ended after it and had begun before.
CREATE INDEX ON finops.inference_usage (instance_id, ended_at);
CREATE INDEX ON finops.inference_usage (request_id);

-- Where rows came in: a time span of an instance whose costs and sums are out of date. Only ever added to, in the
-- transaction that adds the rows.
CREATE TABLE finops.usage_marks (
    instance_id text NOT NULL,
    from_time timestamptz NOT NULL,
    to_time timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

-- Attempts that started in a minute, hour or day, of one key at one instance with one model.
DO $$
DECLARE
    suffix text;
BEGIN
    FOREACH suffix IN ARRAY ARRAY['_1m', '_1h', '_1d'] LOOP
        EXECUTE format(
            'CREATE TABLE finops.%1$I (
                bucket timestamptz NOT NULL,
                instance_id text NOT NULL,
                organization_id text NOT NULL,
                key_id text NOT NULL,
                model_id text NOT NULL,
                model text NOT NULL,
                total_requests bigint NOT NULL,
                successful_requests bigint NOT NULL,
                refused_requests bigint NOT NULL,
                failed_requests bigint NOT NULL,
                broken_requests bigint NOT NULL,
                cancelled_requests bigint NOT NULL,
                unknown_token_requests bigint NOT NULL,
                input_tokens bigint,
                output_tokens bigint,
                total_tokens bigint,
                cached_tokens bigint,
                duration_seconds_sum double precision NOT NULL,
                duration_seconds_min double precision NOT NULL,
                duration_seconds_max double precision NOT NULL,
                first_token_seconds_sum double precision,
                first_token_seconds_count bigint NOT NULL,
                first_token_seconds_min double precision,
                first_token_seconds_max double precision,
                busy_seconds double precision,
                cost numeric(24, 9),
                currency text,
                unpriced_requests bigint NOT NULL,
                last_request_at timestamptz NOT NULL,
                UNIQUE (bucket, instance_id, organization_id, key_id, model_id)
            )',
            'inference_usage' || suffix
        );
        EXECUTE format('CREATE INDEX ON finops.%I (instance_id, bucket DESC)', 'inference_usage' || suffix);
    END LOOP;
END
$$;

-- A worker's tokens in a window by the proxy's records and by its engine's own counters. status says whether both sides
-- are known; where not, why not. Gaps are the engine's tokens minus the proxy's.
CREATE TABLE finops.token_ledger (
    window_start timestamptz NOT NULL,
    window_seconds int NOT NULL,
    instance_id text NOT NULL,
    worker_id text NOT NULL,
    status text NOT NULL CHECK (status IN ('known', 'unknown')),
    reason text,
    proxy_requests bigint NOT NULL,
    proxy_unknown_requests bigint NOT NULL,
    proxy_input_tokens double precision,
    proxy_output_tokens double precision,
    engine_input_tokens double precision,
    engine_output_tokens double precision,
    engine_resets int NOT NULL,
    gap_input_tokens double precision,
    gap_output_tokens double precision,
    gap_ratio double precision,
    computed_at timestamptz NOT NULL,
    PRIMARY KEY (window_start, instance_id, worker_id, window_seconds)
);
CREATE INDEX ON finops.token_ledger (instance_id, window_start DESC);

-- One row, locked by the collector that makes the ledger.
CREATE TABLE finops.ledger_passes (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    finished_at timestamptz NOT NULL DEFAULT '-infinity'
);
INSERT INTO finops.ledger_passes DEFAULT VALUES;

-- migrate:down
DROP TABLE finops.ledger_passes, finops.token_ledger, finops.usage_marks;
DROP TABLE finops.inference_usage_1m, finops.inference_usage_1h, finops.inference_usage_1d, finops.inference_usage;
DROP SCHEMA finops;
