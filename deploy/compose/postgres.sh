#!/bin/sh
# Starts one of the two PostgreSQL servers of scale-out.yml:
#
#   postgres.sh primary    if it has no data yet, with a new database
#   postgres.sh standby    if it has no data yet, as a copy of the server that the name `postgres` leads to
#   postgres.sh rejoin     makes a former primary, which must be stopped, a standby of that server; doesn't start it
#
# Once there is data, the data says which one it is. It promotes nothing: docs/operations.md has the commands.
# NAME is this server's name in replication, OTHER the host of the other server.
set -eu
umask 077

say() { echo "postgres: $*"; }
fail() { echo "postgres: $*" >&2; exit 1; }

export PGCONNECT_TIMEOUT=3
password() { cat "/run/postgres/$1-password"; }
printf '*:*:*:replication:%s\n' "$(password replication)" >/tmp/passwords
source="user=replication passfile=/tmp/passwords port=5432 application_name=$NAME"

server() {
    exec postgres -c config_file=/etc/postgres/replicated.conf -c hba_file=/etc/postgres/pg_hba.conf \
        -c "cluster_name=$NAME" -c "primary_slot_name=$NAME" -c "primary_conninfo=host=$OTHER $source connect_timeout=2"
}
# One question to another server: $1 host, $2 SQL
ask() { psql "host=$1 dbname=postgres $source" -AtXqc "$2" 2>/dev/null; }

make_primary() {
    # An empty volume may also be one that was lost. The other server then has the users.
    [ -z "$(ask "$OTHER" 'SELECT 1')" ] || fail "there is no data here, but on $OTHER: promote it (docs/operations.md)"
    say 'making a new database'
    rm -rf "$PGDATA.new"
    initdb -D "$PGDATA.new" --username postgres --auth peer --encoding UTF8 --locale C --data-checksums >/dev/null
    pg_ctl -D "$PGDATA.new" -s -w -o "-c listen_addresses= -c unix_socket_directories=/tmp" start
    # Passwords reach psql as variables through its standard input, so that no list of processes shows them. The last
    # command is last because from then on commits wait for the standby.
    psql -d postgres -Xq -v ON_ERROR_STOP=1 <<SQL
\set authfleet '$(password authfleet)'
\set replication '$(password replication)'
CREATE ROLE authfleet LOGIN PASSWORD :'authfleet';
CREATE DATABASE authfleet OWNER authfleet ENCODING 'UTF8' TEMPLATE template0;
CREATE ROLE replication LOGIN REPLICATION PASSWORD :'replication';
-- What pg_rewind asks.
GRANT EXECUTE ON FUNCTION pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean),
    pg_read_binary_file(text), pg_read_binary_file(text, bigint, bigint, boolean) TO replication;
ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (postgres_1, postgres_2)';
SQL
    pg_ctl -D "$PGDATA.new" -s -w stop
    mv "$PGDATA.new" "$PGDATA"
}

make_slot() { # on the primary, if it isn't there
    ask "$OTHER" "SELECT pg_create_physical_replication_slot('$NAME', true) WHERE NOT EXISTS
        (SELECT FROM pg_replication_slots WHERE slot_name = '$NAME')" >/dev/null
}

make_standby() {
    say 'copying the primary'
    until [ "$(ask "$OTHER" 'SELECT pg_is_in_recovery()')" = f ]; do
        say 'the name postgres leads to no primary yet'
        sleep 1
    done
    make_slot
    rm -rf "$PGDATA.new"
    pg_basebackup -d "host=$OTHER $source" -D "$PGDATA.new" -X stream --checkpoint fast --slot "$NAME"
    touch "$PGDATA.new/standby.signal"
    mv "$PGDATA.new" "$PGDATA"
}

case ${1:-} in
    primary | standby)
        if [ ! -s "$PGDATA/PG_VERSION" ]; then
            "make_$1"
        elif [ ! -e "$PGDATA/standby.signal" ] && [ "$(ask "$OTHER" 'SELECT pg_is_in_recovery()')" = f ]; then
            fail "$OTHER was promoted meanwhile, so this server must not be used: run \`rejoin\` (docs/operations.md)"
        fi
        server
        ;;
    rejoin)
        [ "$(ask "$OTHER" 'SELECT pg_is_in_recovery()')" = f ] || fail 'the name postgres leads to no primary'
        make_slot
        # A server that was killed leaves it behind. It names process 1, which is this script now. No server is running:
        # compose would refuse to start a second container with the address of this service.
        rm -f "$PGDATA/postmaster.pid"
        pg_rewind --target-pgdata "$PGDATA" --source-server "host=$OTHER dbname=postgres $source" \
            --config-file /etc/postgres/replicated.conf
        touch "$PGDATA/standby.signal"
        say 'this server is a standby from its next start on'
        ;;
    *) fail "unknown action ${1:-}: primary, standby or rejoin" ;;
esac
