#!/bin/sh
# Makes the passwords of docker-compose.yml, each a file in the folder secrets (or the one that is given); those that are
# there stay. REDIS_PASSWORD and POSTGRES_PASSWORD of the environment are taken, so that volumes of before go on working:
#   set -a; . ./.env; set +a; docker/make-secrets.sh
set -eu
folder=${1:-${NOCTURNE_SECRETS:-secrets}}
umask 077
mkdir -p "$folder"
# The folder keeps other users of this machine out; the files are read by the containers' own users.
chmod 700 "$folder"
umask 022

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
make() { [ -s "$folder/$1" ] || printf '%s' "$2" > "$folder/$1"; }
# A password in a URL: everything but letters, digits and -._~ as %XX.
quoted() {
    od -An -v -tx1 "$folder/$1" | tr ' ' '\n' | sed '/^$/d' | while read -r byte; do
        case $byte in
            2d|2e|5f|7e|3[0-9]|4[1-9a-f]|5[0-9a]|6[1-9a-f]|7[0-9a]) printf "\\$(printf '%03o' "0x$byte")" ;;
            *) printf '%%%s' "$byte" ;;
        esac
    done
}

make redis_password "${REDIS_PASSWORD:-$(random)}"
make postgres_password "$(random)"
make owner_password "${POSTGRES_PASSWORD:-$(random)}"
make reader_password "$(random)"
make monitor_password "$(random)"
make grafana_password "$(random)"
make flower_password "$(random)"
make broker_url "redis://:$(quoted redis_password)@redis:6379/0"
make database_url "postgresql+psycopg://nocturne:$(quoted owner_password)@postgres:5432/nocturne"
make reader_url "postgresql+psycopg://nocturne_reader:$(quoted reader_password)@postgres:5432/nocturne"
make redis_exporter "{\"redis://redis:6379\": \"$(sed 's/[\\"]/\\&/g' "$folder/redis_password")\"}"
echo "$folder has the passwords" >&2
