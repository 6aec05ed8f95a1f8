#!/bin/sh
# The fleet's secrets, in a volume for each who reads them: /secrets/server for the replicas, /secrets/redis for Redis and
# its operator, /secrets/grafana for Grafana. Runs in the one-shot service `secrets`:
#
#   create         makes what is missing, leaves what is there (every start)
#   stage          a new cookie key that all accept but none signs with yet, and a new Redis password beside the old
#   promote        the new cookie key signs; the old one is still accepted
#   retire         the old cookie keys and the old Redis password are no longer accepted
#   export         prints the cookie keys, for another machine's `import`
#   import         takes the cookie keys from standard input
#
# docs/operations.md says when: between two of them every replica must have been restarted. But for `export`, values are
# never printed.
set -eu
umask 077

server=/secrets/server
redis=/secrets/redis
grafana=/secrets/grafana
# The uids in the images authfleet, redis and grafana.
server_uid=10001
redis_uid=999
grafana_uid=472

say() { echo "secrets: $*"; }
fail() { echo "secrets: $*" >&2; exit 1; }
# sh knows no pipefail, so what a pipeline printed is looked at: an empty secret would be one that anybody knows.
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

# Whole or not at all: a crash between two writes leaves the file as it was. $1 path, $2 uid, content on standard input
put() {
    cat >"$1.new"
    [ -s "$1.new" ] || fail "nothing to write to $1"
    chown "$2:$2" "$1.new"
    chmod 400 "$1.new"
    mv "$1.new" "$1"
}

# Redis' users, from the hashes of the passwords that are accepted.
write_acl() {
    operator=$(digest "$(cat "$redis/operator-password")")
    {
        # Nobody comes in without a name and a password: off, and no password. Its rights are for Redis itself, which
        # reads the AOF as this user: without them every MULTI in it, so every script that wrote twice, would be
        # refused with NOPERM at the next start, and the sessions in it be lost.
        echo 'user default reset off ~* &* +@all'
        # What the server's commands and scripts use, on its own keys; nothing that administers Redis.
        printf 'user authfleet reset on %s ~session:* ~user:* ~throttle:* -@all +@read +@write +@connection +eval +evalsha +script|load +time -@dangerous +info +config|get\n' \
            "$(sed 's/^/#/' "$redis/accepted" | tr '\n' ' ')"
        printf 'user operator reset on #%s ~* &* +@all\n' "$operator"
    } | put "$redis/users.acl" "$redis_uid"
}

# A new password: accepted by Redis from its next ACL LOAD on, used by replicas from their next start on.
new_redis_password() {
    password=$(random)
    hash=$(digest "$password")
    # One to a line, the newest first.
    { echo "$hash"; [ ! -s "$redis/accepted" ] || sed -n 1p "$redis/accepted"; } >/tmp/accepted
    put "$redis/accepted" 0 </tmp/accepted
    write_acl
    printf 'redis://authfleet:%s@redis:6379/0\n' "$password" | put "$server/redis-url" "$server_uid"
}

create() {
    chown "$server_uid:$server_uid" "$server" && chmod 500 "$server"
    chown "$redis_uid:$redis_uid" "$redis" && chmod 500 "$redis"
    if [ ! -s "$server/session-secret" ]; then
        random | put "$server/session-secret" "$server_uid"
        say 'made the key that signs cookies'
    fi
    [ -s "$redis/operator-password" ] || { random | put "$redis/operator-password" "$redis_uid"; : >"$redis/incomplete"; }
    # Both sides or neither: one volume may have been lost.
    if [ ! -s "$server/redis-url" ] || [ ! -s "$redis/accepted" ] || [ ! -s "$redis/users.acl" ] || [ -e "$redis/incomplete" ]; then
        new_redis_password
        rm -f "$redis/incomplete"
        say "made Redis' passwords"
    fi
    # It takes effect when Grafana first starts with an empty volume of its own.
    chown "$grafana_uid:$grafana_uid" "$grafana" && chmod 500 "$grafana"
    if [ ! -s "$grafana/admin-password" ]; then
        random | put "$grafana/admin-password" "$grafana_uid"
        say "made the password of Grafana's user admin"
    fi
    say 'all there'
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
        # The first one signs, and of a rotation under way only `retire` is left.
        rm -f "$server/promoted"
        case $(keys) in *,*) echo yes | put "$server/promoted" "$server_uid" ;; esac
        say 'imported: if replicas run, restart them one by one'
        ;;
    *) fail "unknown action ${1:-}: create, stage, promote, retire, export or import" ;;
esac
