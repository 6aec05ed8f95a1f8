#!/bin/sh
# Manages the fleet's secrets. Each reader has a volume: /secrets/server for the replicas, /secrets/redis for Redis and
# its operator, /secrets/grafana for Grafana. It runs in the one-shot service `secrets`:
#
#   create         creates missing secrets and leaves existing ones alone (at every start)
#   stage          adds a cookie key that replicas accept but don't sign with yet, and a second Redis password
#   promote        signs with the new cookie key; the old one is still accepted
#   retire         removes the old cookie keys and the old Redis password
#   export         prints the cookie keys, for another machine's `import`
#   import         reads the cookie keys from standard input
#
# docs/operations.md says when to run them: every replica must be restarted between two steps. Only `export` prints
# values. With STORES=many (scale-out.yml) there are also the passwords of PostgreSQL, of Redis's replicas and of the
# Sentinels, and each replica gets a volume of its own: /secrets/replica-1 and so on, copies of /secrets/server.
set -eu
umask 077

server=/secrets/server
redis=/secrets/redis
grafana=/secrets/grafana
postgres=/secrets/postgres
# The uids in the images authfleet, redis, grafana and postgres.
server_uid=10001
redis_uid=999
grafana_uid=472
postgres_uid=999
many() { [ "${STORES:-}" = many ]; }

say() { echo "secrets: $*"; }
fail() { echo "secrets: $*" >&2; exit 1; }
# sh has no pipefail, so the output of a pipeline is checked: anybody could guess an empty secret.
is_256_bits() { [ ${#1} -eq 64 ] || fail "$2 did not give 256 bits"; }
random() {
    bits=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
    is_256_bits "$bits" /dev/urandom
    printf %s "$bits"
}
digest() {
    [ -n "$1" ] || fail 'an empty password'
    bits=$(printf %s "$1" | sha256sum | cut -d ' ' -f 1)
    is_256_bits "$bits" sha256sum
    echo "$bits"
}

# Replaces a file atomically: a crash leaves the old one. $1 path, $2 uid, content on standard input
put() {
    cat >"$1.new"
    [ -s "$1.new" ] || fail "nothing to write to $1"
    chown "$2:$2" "$1.new"
    chmod 400 "$1.new"
    mv "$1.new" "$1"
}

# Redis's users, from the hashes of the accepted passwords.
write_acl() {
    operator=$(digest "$(cat "$redis/operator-password")")
    {
        # The default user is off and has no password, so nobody can log in without a name. It needs its rights because
        # Redis reads the AOF as this user: without them it would refuse every MULTI in the AOF with NOPERM at the next
        # start, and so lose the sessions of every script that wrote twice.
        echo 'user default reset off ~* &* +@all'
        # The server may use only its own keys, with the commands of its scripts, and can't administer Redis.
        printf 'user authfleet reset on %s ~session:* ~user:* ~throttle:* -@all +@read +@write +@connection +eval +evalsha +script|load +time +wait -@dangerous +info +role +config|get\n' \
            "$(sed 's/^/#/' "$redis/accepted" | tr '\n' ' ')"
        printf 'user operator reset on #%s ~* &* +@all\n' "$operator"
        if many; then
            printf 'user replication reset on #%s -@all +psync +replconf +ping\n' "$(digest "$(cat "$redis/replication-password")")"
            printf 'user sentinel reset on #%s &* -@all +multi +exec +slaveof +ping +info +role +publish +subscribe +config|rewrite +client|setname +client|kill +script|kill\n' \
                "$(digest "$(cat "$redis/watch-password")")"
        fi
    } | put "$redis/users.acl" "$redis_uid"
}

# Adds a password. Redis accepts it after its next ACL LOAD; replicas use it after their next start.
new_redis_password() {
    password=$(random)
    hash=$(digest "$password")
    # One per line, the newest first.
    { echo "$hash"; [ ! -s "$redis/accepted" ] || sed -n 1p "$redis/accepted"; } >/tmp/accepted
    put "$redis/accepted" 0 </tmp/accepted
    write_acl
    printf 'redis://authfleet:%s@redis:6379/0\n' "$password" | put "$server/redis-url" "$server_uid"
}

# What a fleet on many machines needs besides.
create_many() {
    # For a fleet that had a single Redis so far.
    grep -q '^user sentinel ' "$redis/users.acl" || write_acl
    put "$server/sentinel-password" "$server_uid" <"$redis/sentinel-password"
    # With the same password as the URL of a single Redis, which a fleet may have had before.
    sentinels=sentinel-1:26379,sentinel-2:26379,sentinel-3:26379
    sed "s|^redis://\\(.*\\)@redis:6379/0|redis-sentinel://\\1@$sentinels/authfleet?db=0|" "$server/redis-url" |
        put "$server/redis-sentinel-url" "$server_uid"
    chown "$postgres_uid:$postgres_uid" "$postgres" && chmod 500 "$postgres"
    for password in authfleet replication; do
        [ -s "$postgres/$password-password" ] || random | put "$postgres/$password-password" "$postgres_uid"
    done
    printf 'postgres://authfleet:%s@postgres:5432/authfleet\n' "$(cat "$postgres/authfleet-password")" |
        put "$server/database-url" "$server_uid"
}

# Gives each replica what is in the server's volume now.
distribute() {
    for own in /secrets/replica-*; do
        chown "$server_uid:$server_uid" "$own" && chmod 500 "$own"
        for file in "$server"/*; do
            put "$own/${file##*/}" "$server_uid" <"$file"
        done
        # A file that is gone, such as the mark of a promotion.
        for file in "$own"/*; do
            [ -e "$server/${file##*/}" ] || rm -f "$file"
        done
    done
}

create() {
    chown "$server_uid:$server_uid" "$server" && chmod 500 "$server"
    chown "$redis_uid:$redis_uid" "$redis" && chmod 500 "$redis"
    if [ ! -s "$server/session-secret" ]; then
        random | put "$server/session-secret" "$server_uid"
        say 'made the key that signs cookies'
    fi
    if many; then
        for password in replication watch sentinel; do
            [ -s "$redis/$password-password" ] || random | put "$redis/$password-password" "$redis_uid"
        done
    fi
    [ -s "$redis/operator-password" ] || { random | put "$redis/operator-password" "$redis_uid"; : >"$redis/incomplete"; }
    # The password is in two volumes, and one of them may have been lost: recreate both.
    if [ ! -s "$server/redis-url" ] || [ ! -s "$redis/accepted" ] || [ ! -s "$redis/users.acl" ] || [ -e "$redis/incomplete" ]; then
        new_redis_password
        rm -f "$redis/incomplete"
        say "made Redis' passwords"
    fi
    # Grafana reads it only at its first start, with an empty volume.
    chown "$grafana_uid:$grafana_uid" "$grafana" && chmod 500 "$grafana"
    if [ ! -s "$grafana/admin-password" ]; then
        random | put "$grafana/admin-password" "$grafana_uid"
        say "made the password of Grafana's user admin"
    fi
    if many; then create_many; fi
    say 'all secrets exist'
}

keys() { cat "$server/session-secret"; }

[ -w /tmp ] || fail 'no writable /tmp'
case ${1:-} in
    create) create ;;
    stage)
        create
        case $(keys) in *,*) fail 'a rotation is under way: promote or retire it first' ;; esac
        next=$(random)
        printf '%s,%s' "$(keys)" "$next" | put "$server/session-secret" "$server_uid"
        new_redis_password
        if many; then create_many; fi
        say 'staged: have Redis load its users (deploy/compose/redis-cli ACL LOAD), then restart the replicas one by one'
        ;;
    promote)
        case $(keys) in *,*) ;; *) fail 'nothing is staged' ;; esac
        [ ! -e "$server/promoted" ] || fail 'already promoted: retire the old key once SESSION_MAX_AGE has passed'
        keys | awk -F, '{ printf "%s,%s", $2, $1 }' | put "$server/session-secret" "$server_uid"
        echo yes | put "$server/promoted" "$server_uid"
        say 'promoted: restart the replicas one by one'
        ;;
    retire)
        [ -e "$server/promoted" ] || fail 'nothing was promoted'
        keys | cut -d , -f 1 | tr -d '\n' | put "$server/session-secret" "$server_uid"
        sed -n 1p "$redis/accepted" >/tmp/accepted
        put "$redis/accepted" 0 </tmp/accepted
        write_acl
        rm -f "$server/promoted"
        say 'retired: have Redis load its users (deploy/compose/redis-cli ACL LOAD), then restart the replicas one by one'
        ;;
    export) [ -s "$server/session-secret" ] && keys ;;
    import)
        create >/dev/null
        tr -d '\n' >/tmp/imported
        [ "$(wc -c </tmp/imported)" -ge 32 ] || fail 'no cookie key on standard input'
        put "$server/session-secret" "$server_uid" </tmp/imported
        # The first key signs. Of a rotation in progress only `retire` remains to be done.
        rm -f "$server/promoted"
        case $(keys) in *,*) echo yes | put "$server/promoted" "$server_uid" ;; esac
        say 'imported: if replicas run, restart them one by one'
        ;;
    *) fail "unknown action ${1:-}: create, stage, promote, retire, export or import" ;;
esac
if many && [ "$1" != export ]; then distribute; fi
