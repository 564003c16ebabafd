-- What dashboards may read: everything but who may log in. Run as the owner after each migration.
GRANT USAGE ON SCHEMA public, finops TO fleetpulse_reader;
GRANT SELECT ON ALL TABLES IN SCHEMA public, finops TO fleetpulse_reader;
REVOKE SELECT ON users, sessions, api_keys, idempotency_keys FROM fleetpulse_reader;
