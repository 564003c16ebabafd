-- Who and what: samples refer to workers, GPUs, engines and series by small integers.

-- migrate:up
CREATE TABLE workers (
    worker_key int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    worker_id text NOT NULL,
    instance_id text NOT NULL,
    host_name text,
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (worker_id, instance_id)
);

CREATE TABLE gpus (
    gpu_key int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    worker_key int NOT NULL REFERENCES workers,
    hw_id text NOT NULL,
    gpu_index int,
    model text,
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (worker_key, hw_id)
);

CREATE TABLE engines (
    engine_key int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    worker_key int NOT NULL REFERENCES workers,
    model_id text NOT NULL,
    engine_index text NOT NULL,
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (worker_key, model_id, engine_index)
);

-- A metric that no wide table has a column for, with one set of attributes; digest is a hash of all that names it.
CREATE TABLE metric_series (
    series_key bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    worker_key int NOT NULL REFERENCES workers,
    name text NOT NULL,
    unit text NOT NULL,
    kind text NOT NULL,
    temporality text NOT NULL,
    attributes jsonb NOT NULL,
    digest bytea NOT NULL,
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (worker_key, digest)
);
CREATE INDEX ON metric_series (name);

CREATE TABLE heartbeat_statuses (code smallint PRIMARY KEY, name text NOT NULL UNIQUE);
INSERT INTO heartbeat_statuses VALUES (0, 'starting'), (1, 'ready'), (2, 'degraded'), (3, 'draining');

CREATE TABLE engine_states (code smallint PRIMARY KEY, name text NOT NULL UNIQUE);
INSERT INTO engine_states VALUES (0, 'absent'), (1, 'unreachable'), (2, 'starting'), (3, 'ready');

-- migrate:down
DROP TABLE engine_states, heartbeat_statuses, metric_series, engines, gpus, workers;
