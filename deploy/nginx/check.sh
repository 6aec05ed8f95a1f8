#!/usr/bin/env bash
# Loads the configuration into the installed nginx (`nginx -t`), once with each upstream list.
set -euo pipefail
cd "$(dirname "$0")"
PATH="$PATH:/usr/sbin:/opt/homebrew/bin"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
version=$(nginx -v 2>&1 | grep -oE '[0-9]+\.[0-9]+\.[0-9]+')
# Whether re-resolution is known: nginx 1.27.3 or newer.
resolves=$(printf '%s\n1.27.3\n' "$version" | sort -t. -k1,1n -k2,2n -k3,3n | head -n 1 | sed 's/^1\.27\.3$/yes/')

for list in upstream/*.conf; do
    conf=$scratch/conf
    rm -rf "$conf" "$scratch/state"
    mkdir -p "$conf" "$scratch/state"
    cp ./*.conf "$conf"
    if [ "$list" = upstream/local.conf ]; then
        cp "$list" "$conf/upstream.conf"
        note=''
    elif [ "$resolves" = yes ]; then
        # The cluster's resolver has a name only inside the cluster.
        sed -E 's/^resolver [^ ]+/resolver 127.0.0.1/' "$list" >"$conf/upstream.conf"
        note=''
    else
        sed -E '/^resolver/d; s/^server [^ :]+:([0-9]+) resolve/server 127.0.0.1:\1/' "$list" >"$conf/upstream.conf"
        note=' (without "resolve", which needs 1.27.3: only the rest was checked)'
    fi
    if ! nginx -t -q -p "$scratch/state" -c "$conf/nginx.conf" -g 'error_log stderr;' 2>"$scratch/out"; then
        cat "$scratch/out" >&2
        echo "nginx $version refuses the configuration with $list" >&2
        exit 1
    fi
    # A warning is a mistake too; the system's log file is not ours, and neither is who runs this.
    if grep -vE 'could not open error log file' "$scratch/out"; then
        echo "nginx $version warns about the configuration with $list" >&2
        exit 1
    fi
    echo "  nginx $version accepts $list$note"
done
