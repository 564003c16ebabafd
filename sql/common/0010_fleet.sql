-- The fleet as control sees it: what providers offer, what was asked for, and every step of each instance's life.

-- migrate:up
CREATE TABLE providers (
    provider text PRIMARY KEY,
    catalogue_read_at timestamptz,
    failure text
);

CREATE TABLE zones (
    provider text NOT NULL REFERENCES providers,
    zone text NOT NULL,
    available boolean NOT NULL DEFAULT true,
    PRIMARY KEY (provider, zone)
);

-- price_per_hour is null where the provider names none.
CREATE TABLE instance_types (
    provider text NOT NULL REFERENCES providers,
    instance_type text NOT NULL,
    gpu_model text,
    gpu_count int NOT NULL,
    gpu_memory_bytes bigint,
    cpu_count int,
    memory_bytes bigint,
    price_per_hour numeric(14, 6),
    currency text NOT NULL DEFAULT 'EUR',
    zones text[] NOT NULL,
    available boolean NOT NULL DEFAULT true,
    PRIMARY KEY (provider, instance_type)
);

CREATE TABLE deployments (
    deployment_id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid NOT NULL REFERENCES organizations,
    name text NOT NULL,
    model_id uuid REFERENCES models,
    provider text NOT NULL,
    zone text NOT NULL,
    instance_type text NOT NULL,
    instance_count int NOT NULL,
    created_by text NOT NULL,
    correlation_id text,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON deployments (organization_id, created_at DESC);

-- machine_id is the provider's own id. version counts transitions and orders an instance's lifecycle messages. The price
-- is what it was when the instance was made. options are the provider's own (of mock: faults).
CREATE TABLE instances (
    instance_id text PRIMARY KEY,
    deployment_id uuid REFERENCES deployments,
    organization_id uuid NOT NULL REFERENCES organizations,
    provider text NOT NULL,
    zone text NOT NULL,
    instance_type text NOT NULL,
    model_id uuid REFERENCES models,
    state text NOT NULL CHECK (state IN (
        'provisioning', 'booting', 'installing', 'starting', 'ready', 'startup_failed', 'worker_dead', 'draining',
        'terminating', 'terminated', 'archived'
    )),
    state_since timestamptz NOT NULL DEFAULT now(),
    version bigint NOT NULL DEFAULT 1,
    machine_id text,
    address text,
    agent_url text,
    engine_url text,
    price_per_hour numeric(14, 6),
    currency text NOT NULL DEFAULT 'EUR',
    options jsonb NOT NULL DEFAULT '{}',
    failure text,
    correlation_id text,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    ready_at timestamptz,
    terminated_at timestamptz
) WITH (fillfactor = 80);
CREATE INDEX ON instances (created_at DESC, instance_id);
CREATE INDEX ON instances (deployment_id);
CREATE INDEX ON instances (state, state_since) WHERE state NOT IN ('ready', 'terminated', 'archived');
CREATE UNIQUE INDEX ON instances (provider, zone, machine_id)
WHERE machine_id IS NOT NULL AND state NOT IN ('terminated', 'archived');

-- from_state is null for the first. evidence is what caused the step: heartbeats, probe results, provider answers.
CREATE TABLE instance_transitions (
    transition_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    instance_id text NOT NULL REFERENCES instances ON DELETE CASCADE,
    version bigint NOT NULL,
    from_state text,
    to_state text NOT NULL,
    reason text NOT NULL,
    detail text NOT NULL,
    evidence jsonb NOT NULL,
    actor text NOT NULL,
    correlation_id text,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (instance_id, version)
);
CREATE INDEX ON instance_transitions (to_state, at);

-- Lifecycle messages not yet in the stream, written with the transition and deleted once the broker has them. A null
-- message is a tombstone.
CREATE TABLE lifecycle_outbox (
    outbox_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    instance_id text NOT NULL,
    message bytea,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Every critical act, calls of a provider included.
CREATE TABLE action_log (
    action_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    action text NOT NULL,
    succeeded boolean NOT NULL,
    instance_id text,
    provider text,
    actor text NOT NULL,
    duration_seconds double precision,
    detail jsonb NOT NULL DEFAULT '{}',
    correlation_id text
);
CREATE INDEX ON action_log (instance_id, action_id DESC);
CREATE INDEX ON action_log (at);

CREATE TABLE volumes (
    provider text NOT NULL,
    zone text NOT NULL,
    volume_id text NOT NULL,
    instance_id text REFERENCES instances ON DELETE SET NULL,
    name text NOT NULL,
    size_bytes bigint NOT NULL,
    state text NOT NULL CHECK (state IN ('attached', 'orphan', 'deleting', 'deleted')),
    attempts int NOT NULL DEFAULT 0,
    failure text,
    created_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    PRIMARY KEY (provider, zone, volume_id)
);
CREATE INDEX ON volumes (instance_id);

-- migrate:down
DROP TABLE volumes, action_log, lifecycle_outbox, instance_transitions, instances, deployments, instance_types, zones,
    providers;
