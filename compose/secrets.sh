#!/bin/sh
# Makes the keys and passwords of the compose stack, once: compose/secrets/*.env, readable by their owner alone.
# A file that is there already stays as it is. Each container gets only the files that compose.yaml names for it.
set -eu
umask 077

here=$(dirname "$0")
folder=${1:-$here/secrets}
mkdir -p "$folder"

# What containers mount is read by their accounts, which own nothing of a checkout that was made under a strict umask.
chmod -R go+rX "$here/database" "$here/grafana" "$here/kafka" "$here/prometheus" "$here/../alerts" "$here/../dashboards"

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

# put FILE CONTENT
put() {
    if [ -e "$folder/$1" ]; then
        echo "kept $folder/$1"
    else
        printf '%s\n' "$2" >"$folder/.$1.new"
        mv "$folder/.$1.new" "$folder/$1"
        echo "made $folder/$1"
    fi
}

# Passwords that stand in two files are made together, or not at all.
if [ -e "$folder/database.env" ] && [ -e "$folder/database-url.env" ] && [ -e "$folder/grafana.env" ]; then
    echo "kept the database's passwords"
else
    if [ -e "$folder/database.env" ] || [ -e "$folder/database-url.env" ] || [ -e "$folder/grafana.env" ]; then
        echo "$folder has some of database.env, database-url.env and grafana.env: restore the others, or delete all three" >&2
        exit 1
    fi
    owner=$(random)
    reader=$(random)
    put database.env "POSTGRES_PASSWORD=$(random)
OWNER_PASSWORD=$owner
READER_PASSWORD=$reader"
    put database-url.env "FLEETPULSE_DATABASE_URL=postgresql://fleetpulse:$owner@database:5432/fleetpulse"
    put grafana.env "GF_SECURITY_ADMIN_PASSWORD=$(random)
READER_PASSWORD=$reader"
fi

token=fpw-$(random)
put worker.env "FLEETPULSE_AGENT_WORKER_TOKEN=$token"
token=$(sed -n 's/^FLEETPULSE_AGENT_WORKER_TOKEN=//p' "$folder/worker.env")
put collector.env "FLEETPULSE_COLLECTOR_WORKER_TOKENS=$(printf %s "$token" | sha256sum | cut -d' ' -f1)"

admin=fpa-$(random)
put client.env "FLEETPULSE_CONTROL_API_KEY=$admin"
admin=$(sed -n 's/^FLEETPULSE_CONTROL_API_KEY=//p' "$folder/client.env")
put control.env "FLEETPULSE_CONTROL_ADMIN_KEY=$admin
FLEETPULSE_CONTROL_SESSION_SECRET=$(random)"
