#!/bin/sh
# Starts a Redis server or a Sentinel of scale-out.yml. Sentinels write to their own configuration and to that of the
# servers that they watch, so each has its own copy, on its volume.
#
#   redis.sh server [PRIMARY]    with PRIMARY, at its first start as a replica of that host
#   redis.sh sentinel
#
# NAME is the host that the others know it by. Names rather than addresses, because a container can get another address.
set -eu
umask 077

# From here on CONFIG REWRITE and the Sentinels write to these files.
file=/data/$1.conf
case $1 in
    server)
        # Of what Sentinels wrote, only the role is kept. All else is read anew from the shipped files at each start.
        if [ -s "$file" ]; then role=$(sed -n '/^replicaof /p' "$file"); else role=${2:+replicaof $2 6379}; fi
        {
            echo 'include /etc/redis.conf'
            echo 'include /etc/replicated.conf'
            echo 'dir /data'
            echo 'aclfile /run/redis/users.acl'
            echo "replica-announce-ip $NAME"
            echo 'masteruser replication'
            echo "masterauth $(cat /run/redis/replication-password)"
            echo "$role"
        } >"$file.new"
        mv "$file.new" "$file"
        exec redis-server "$file"
        ;;
    sentinel)
        if [ ! -s "$file" ]; then
            {
                # The password that authfleet and the other Sentinels use.
                echo "requirepass $(cat /run/redis/sentinel-password)"
                echo "sentinel sentinel-pass $(cat /run/redis/sentinel-password)"
                echo 'sentinel resolve-hostnames yes'
                echo 'sentinel announce-hostnames yes'
                echo "sentinel announce-ip $NAME"
                sed 's/^\(sentinel monitor authfleet\) [^ ]* /\1 redis /' /etc/sentinel.conf
                echo 'sentinel auth-user authfleet sentinel'
                echo "sentinel auth-pass authfleet $(cat /run/redis/watch-password)"
            } >"$file.new"
            mv "$file.new" "$file"
        fi
        exec redis-server "$file" --sentinel
        ;;
    *) echo "redis.sh: unknown part ${1:-}: server or sentinel" >&2; exit 1 ;;
esac
