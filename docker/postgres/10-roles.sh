#!/bin/sh
# Roles of the database `nocturne`: its owner, a reader that may only SELECT, and a monitor for the exporter. None is a
# superuser. The image runs it once, on an empty volume; it may be run again, such as on a volume of an earlier version:
#   docker compose exec postgres sh /docker-entrypoint-initdb.d/10-roles.sh
set -eu
secrets=${SECRETS:-/run/secrets}
superuser=${POSTGRES_USER:-postgres}
# In a volume of before, the superuser is called nocturne.
psql --username "$superuser" --dbname postgres --command "" 2>/dev/null || superuser=nocturne

run() { psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$superuser" "$@"; }

run --dbname postgres \
    --set owner="$(cat "$secrets/owner_password")" \
    --set reader="$(cat "$secrets/reader_password")" \
    --set monitor="$(cat "$secrets/monitor_password")" <<'SQL'
SELECT format('CREATE ROLE %I LOGIN', name)
FROM unnest(ARRAY['nocturne', 'nocturne_reader', 'nocturne_monitor']) AS name
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec
ALTER ROLE nocturne PASSWORD :'owner';
ALTER ROLE nocturne_reader PASSWORD :'reader';
ALTER ROLE nocturne_reader SET default_transaction_read_only = on;
ALTER ROLE nocturne_monitor PASSWORD :'monitor';
GRANT pg_monitor TO nocturne_monitor;
SELECT 'CREATE DATABASE nocturne OWNER nocturne'
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'nocturne') \gexec
REVOKE ALL ON DATABASE nocturne FROM PUBLIC;
GRANT CONNECT ON DATABASE nocturne TO nocturne_reader, nocturne_monitor;
SQL

run --dbname nocturne <<'SQL'
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO nocturne;
GRANT USAGE ON SCHEMA public TO nocturne_reader;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO nocturne_reader;
ALTER DEFAULT PRIVILEGES FOR ROLE nocturne IN SCHEMA public GRANT SELECT ON TABLES TO nocturne_reader;
SQL
