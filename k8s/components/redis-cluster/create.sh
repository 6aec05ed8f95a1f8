#!/bin/sh
# Makes a Redis Cluster of NODES (host:port, separated by blanks), with REPLICAS (1) per primary. If they are a cluster
# already, it changes nothing. If all have come back with other addresses, it introduces them to each other again.
# PASSWORD_FILE has the password of the user `operator`. PATIENCE is how many seconds to wait for each step.
set -eu

REDISCLI_AUTH=$(cat "$PASSWORD_FILE")
export REDISCLI_AUTH
count=$(echo "$NODES" | wc -w)
each_has=${REPLICAS:-1}
replicas=$((count * each_has / (1 + each_has)))
patience=${PATIENCE:-240}

cli() { # NODE COMMAND…
    node=$1
    shift
    redis-cli -e --no-auth-warning --user operator -h "${node%:*}" -p "${node##*:}" "$@"
}

field() { # NODE NAME: a line of CLUSTER INFO
    cli "$1" cluster info | tr -d '\r' | sed -n "s/^$2://p"
}

await() { # WHAT COMMAND…
    what=$1
    shift
    left=$patience
    until "$@"; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || {
            echo "gave up after $patience s: $what" >&2
            exit 1
        }
        sleep 1
    done
}

answering() {
    for each in $NODES; do
        [ "$(cli "$each" ping 2>/dev/null)" = PONG ] || return 1
    done
}

# Every node knows all the others, and each slot has a primary.
whole() {
    for each in $NODES; do
        [ "$(field "$each" cluster_state)" = ok ] || return 1
        [ "$(field "$each" cluster_slots_ok)" = 16384 ] || return 1
        [ "$(field "$each" cluster_known_nodes)" -ge "$count" ] || return 1
    done
}

# Every replica has its primary's data, and every node knows who is a replica.
replicated() {
    linked=0
    for each in $NODES; do
        case $(cli "$each" info replication) in *role:slave*master_link_status:up*) linked=$((linked + 1)) ;; esac
        [ "$(cli "$each" cluster nodes | grep -c slave)" -eq $replicas ] || return 1
    done
    [ "$linked" -eq $replicas ]
}

# CLUSTER MEET takes addresses, not names.
addresses() {
    for each in $NODES; do
        address=$(getent ahosts "${each%:*}" | sed -n '1s/ .*//p')
        [ -n "$address" ] || {
            echo "no address of $each" >&2
            exit 1
        }
        echo "$address:${each##*:}"
    done
}

await 'not every node answers' answering
if whole; then
    echo 'already a cluster: nothing changed'
    exit 0
fi

used=no
made=no
for each in $NODES; do
    [ "$(field "$each" cluster_slots_assigned)" -lt 16384 ] || made=yes
    [ "$(field "$each" cluster_known_nodes)" -eq 1 ] && [ "$(field "$each" cluster_slots_assigned)" -eq 0 ] || used=yes
done
all=$(addresses)

if [ $made = yes ]; then
    # A node that knows nobody has lost its volume. As a new member it would be a primary without slots.
    for each in $NODES; do
        if [ "$(field "$each" cluster_known_nodes)" -eq 1 ] && [ "$(field "$each" cluster_slots_assigned)" -eq 0 ]; then
            echo "$each is empty: add it as a replica, as the README says" >&2
            exit 1
        fi
    done
    echo 'members have lost each other: introducing them again'
    for each in $NODES; do
        for other in $all; do
            cli "$each" cluster meet "${other%:*}" "${other##*:}" >/dev/null
        done
    done
    await 'the members did not come together' whole
    echo 'a cluster again'
    exit 0
fi

if [ $used = yes ]; then
    # An earlier run was interrupted before all slots had a primary. Only nodes without keys may begin anew.
    for each in $NODES; do
        [ "$(cli "$each" dbsize)" = 0 ] || {
            echo "$each has keys but belongs to no whole cluster: nothing changed" >&2
            exit 1
        }
    done
    for each in $NODES; do
        cli "$each" cluster reset hard >/dev/null
    done
fi

# shellcheck disable=SC2086  # one argument per address
redis-cli --no-auth-warning --user operator --cluster create $all --cluster-replicas "$each_has" --cluster-yes
await 'the new cluster is not whole' whole
await 'not every primary has a replica' replicated
echo 'made a cluster'
