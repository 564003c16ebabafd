-- What the API itself keeps: who is logged in, and the answers to requests that may come again.

-- migrate:up
CREATE TABLE sessions (
    session_id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    ended_at timestamptz
);
CREATE INDEX ON sessions (expires_at);
CREATE INDEX ON sessions (user_id);

-- One row a principal and Idempotency-Key, written in the transaction that does what the request asks for: a row is
-- there exactly when it was done. answer is the body as it was sent, without secrets.
CREATE TABLE idempotency_keys (
    principal text NOT NULL,
    key_digest bytea NOT NULL,
    method text NOT NULL,
    path text NOT NULL,
    body_digest bytea NOT NULL,
    status int,
    answer bytea,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (principal, key_digest)
);
CREATE INDEX ON idempotency_keys (expires_at);

CREATE INDEX ON users (organization_id);
CREATE INDEX ON offerings (model_id);
CREATE INDEX ON model_access (model_id);
CREATE INDEX ON model_aliases (model_id);

-- A login adds a row and changes nobody's access.
CREATE TRIGGER tell AFTER UPDATE ON sessions
FOR EACH STATEMENT EXECUTE FUNCTION tell_access_changed();
CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE ON users
FOR EACH STATEMENT EXECUTE FUNCTION tell_access_changed();

-- migrate:down
DROP TRIGGER tell ON users;
DROP TABLE idempotency_keys, sessions;
DROP INDEX users_organization_id_idx, offerings_model_id_idx, model_access_model_id_idx, model_aliases_model_id_idx;
