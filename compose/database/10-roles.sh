#!/bin/sh
# Runs once, when the database is made: fleetpulse owns it, and fleetpulse_reader (Grafana) may look at what reader.sql
# grants. Neither is a superuser.
set -eu

psql --set ON_ERROR_STOP=1 --set owner_password="$OWNER_PASSWORD" --set reader_password="$READER_PASSWORD" \
    --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
CREATE ROLE fleetpulse LOGIN PASSWORD :'owner_password';
CREATE ROLE fleetpulse_reader LOGIN PASSWORD :'reader_password';
ALTER ROLE fleetpulse_reader SET default_transaction_read_only = on;
ALTER ROLE fleetpulse_reader SET statement_timeout = '30s';
SELECT format('ALTER DATABASE %I OWNER TO fleetpulse', current_database()) \gexec
SQL
