-- Who may use what: organisations with their people and keys, models and the names they go by. A change of any of it is
-- told on the channel fleetpulse_access, so that nobody serves a revoked key until the next look.

-- migrate:up
CREATE TABLE organizations (
    organization_id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    slug text NOT NULL UNIQUE,
    name text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE users (
    user_id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid NOT NULL REFERENCES organizations,
    email text NOT NULL,
    password_digest text NOT NULL,
    scopes text[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    disabled_at timestamptz
);
CREATE UNIQUE INDEX ON users (lower(email));

CREATE TABLE models (
    model_id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    hugging_face_id text NOT NULL UNIQUE,
    name text NOT NULL,
    context_tokens int,
    public boolean NOT NULL DEFAULT true,
    active boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE model_aliases (
    alias text PRIMARY KEY,
    model_id uuid NOT NULL REFERENCES models ON DELETE CASCADE
);

-- A model under an organisation's own name: organisation slug, a slash, the code.
CREATE TABLE offerings (
    offering_id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid NOT NULL REFERENCES organizations,
    code text NOT NULL,
    model_id uuid NOT NULL REFERENCES models,
    active boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (organization_id, code)
);

-- Which organisations may use a model that is not public.
CREATE TABLE model_access (
    organization_id uuid NOT NULL REFERENCES organizations ON DELETE CASCADE,
    model_id uuid NOT NULL REFERENCES models ON DELETE CASCADE,
    granted_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (organization_id, model_id)
);

-- digest is SHA-256 of the whole key. No model_ids means every model the organisation may use; no limit means none.
CREATE TABLE api_keys (
    key_id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid NOT NULL REFERENCES organizations,
    name text NOT NULL,
    prefix text NOT NULL,
    digest bytea NOT NULL UNIQUE,
    scopes text[] NOT NULL,
    model_ids uuid[],
    requests_per_minute int,
    tokens_per_minute bigint,
    tokens_per_month bigint,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz
);
CREATE INDEX ON api_keys (organization_id);

CREATE FUNCTION tell_access_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('fleetpulse_access', TG_TABLE_NAME);
    RETURN NULL;
END
$$;
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE ON organizations
FOR EACH STATEMENT EXECUTE FUNCTION tell_access_changed();
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE ON models
FOR EACH STATEMENT EXECUTE FUNCTION tell_access_changed();
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE ON model_aliases
FOR EACH STATEMENT EXECUTE FUNCTION tell_access_changed();
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE ON offerings
FOR EACH STATEMENT EXECUTE FUNCTION tell_access_changed();
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE ON model_access
FOR EACH STATEMENT EXECUTE FUNCTION tell_access_changed();
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE ON api_keys
FOR EACH STATEMENT EXECUTE FUNCTION tell_access_changed();

-- migrate:down
DROP TABLE api_keys, model_access, offerings, model_aliases, models, users, organizations;
DROP FUNCTION tell_access_changed;
