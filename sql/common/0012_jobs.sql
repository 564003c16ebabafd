-- What control's jobs have to do, and what they found.

-- migrate:up

-- Of each claim, and never used twice: whoever holds an older one has lost the work.
CREATE SEQUENCE job_tokens;

-- Which jobs look after an instance in which state, and how long after it came into it they first do.
CREATE TABLE job_states (
    state text NOT NULL,
    job text NOT NULL,
    delay_seconds double precision NOT NULL,
    PRIMARY KEY (state, job)
);

-- A subject is an instance, a provider, or the fleet. Work that is being done has an owner until lease_until, by this
-- server's clock. memory is the job's own, from one time to the next.
CREATE TABLE job_work (
    subject text NOT NULL,
    job text NOT NULL,
    due_at timestamptz NOT NULL,
    attempts int NOT NULL DEFAULT 0,
    owner text,
    lease_until timestamptz,
    token bigint NOT NULL DEFAULT nextval('job_tokens'),
    memory jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (subject, job)
) WITH (
    fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500,
    autovacuum_vacuum_cost_delay = 0
);
CREATE INDEX ON job_work (job, due_at) WHERE owner IS NULL;
CREATE INDEX ON job_work (lease_until) WHERE owner IS NOT NULL;

-- An instance that changes its state changes hands in the same transaction. A job that also looks after the new state
-- starts anew; what was claimed of it is lost, by its token.
CREATE FUNCTION plan_jobs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM job_work AS w
    WHERE w.subject = NEW.instance_id
        AND EXISTS (SELECT FROM job_states AS s WHERE s.job = w.job)
        AND NOT EXISTS (SELECT FROM job_states AS s WHERE s.job = w.job AND s.state = NEW.state);
    INSERT INTO job_work (subject, job, due_at)
    SELECT NEW.instance_id, s.job, clock_timestamp() + s.delay_seconds * interval '1 second'
    FROM job_states AS s
    WHERE s.state = NEW.state
    ON CONFLICT (subject, job) DO UPDATE SET
        due_at = EXCLUDED.due_at,
        attempts = 0,
        owner = NULL,
        lease_until = NULL,
        token = EXCLUDED.token,
        memory = '{}';
    RETURN NULL;
END
$$;
CREATE TRIGGER plan AFTER INSERT OR UPDATE OF state ON instances
FOR EACH ROW EXECUTE FUNCTION plan_jobs();

-- What changed lately is read every second, by every control process.
CREATE INDEX instances_by_change ON instances (state_since);

-- One row: who empties the outbox.
CREATE TABLE lifecycle_publisher (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    owner text,
    lease_until timestamptz,
    token bigint NOT NULL DEFAULT 0
);
INSERT INTO lifecycle_publisher DEFAULT VALUES;

-- A row is a change: the first result of a probe, and each that differs from the one before.
CREATE TABLE health_results (
    result_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    instance_id text NOT NULL REFERENCES instances ON DELETE CASCADE,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    probe text NOT NULL,
    succeeded boolean NOT NULL,
    detail text NOT NULL
);
CREATE INDEX ON health_results (instance_id, result_id DESC);

-- Machines at a provider that no active instance owns; instance_id is what their tags say. ours is whether we know that
-- instance, and its life is over.
CREATE TABLE orphan_machines (
    provider text NOT NULL,
    zone text NOT NULL,
    machine_id text NOT NULL,
    instance_id text,
    instance_type text,
    status text NOT NULL,
    ours boolean NOT NULL,
    price_per_hour numeric(14, 6),
    currency text,
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz NOT NULL DEFAULT now(),
    resolved_at timestamptz,
    PRIMARY KEY (provider, zone, machine_id)
);

CREATE TABLE outdated_agents (
    instance_id text PRIMARY KEY,
    worker_id text NOT NULL,
    agent_version text NOT NULL,
    agent_checksum text,
    wanted_version text NOT NULL,
    noticed_at timestamptz NOT NULL DEFAULT now()
);

-- Since when a volume belongs to no active instance, and when deleting it is tried again.
ALTER TABLE volumes ADD COLUMN orphan_since timestamptz, ADD COLUMN retry_at timestamptz;

-- migrate:down
ALTER TABLE volumes DROP COLUMN orphan_since, DROP COLUMN retry_at;
DROP TRIGGER plan ON instances;
DROP FUNCTION plan_jobs;
DROP INDEX instances_by_change;
DROP TABLE outdated_agents, orphan_machines, health_results, lifecycle_publisher, job_work, job_states;
DROP SEQUENCE job_tokens;
