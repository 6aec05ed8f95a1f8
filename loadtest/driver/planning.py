"""What a load needs, from the figures of loadtest/bench. `loadtest/capacity` prints it."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

GIB = 2**30
FIGURES = Path(__file__).resolve().parents[1] / "results" / "bench.json"

# Connections of one replica. src/store/users/postgres/connections.rs has the first; for each primary of a Redis Cluster
# there is one for commands and one for WAIT.
TO_POSTGRES, TO_EACH_PRIMARY = 5, 2
# Of PostgreSQL's max_connections, superuser_reserved_connections is kept back by default.
RESERVED = 3
# A login reads the user and confirms the epoch. A check asks Redis alone.
STATEMENTS_PER_LOGIN = 2


def plan(args: argparse.Namespace, figures: dict, sessions: float, checks: float, logins: float | None) -> dict:
    """What a load needs: cores, replicas, shards of Redis, and GiB of Redis without copies; and logins per second."""
    each, size = figures["persistent"], figures["sizes"][-1]["bytes_per_session"]
    logins = sessions * 3 / 86_400 if logins is None else logins
    for_checks = checks * each["server"] / 1e6 / args.load
    for_logins = logins * figures["login"]["server_ms"] / 1e3 / args.load
    redis_cores = (checks * each["redis"] / 1e6 + logins * figures["login"]["redis_ms"] / 1e3) / args.load
    gib = sessions * size * (1 + args.slack) / GIB
    by_cpu, by_memory = math.ceil(redis_cores), math.ceil(gib / args.shard)
    return {
        "logins": logins,
        "for_checks": for_checks,
        "for_logins": for_logins,
        "replicas": max(args.replicas, math.ceil((for_checks + for_logins) / args.cores)),
        "redis_cores": redis_cores,
        "gib": gib,
        "shards": max(1, by_cpu, by_memory),
        "is_by_cpu": by_cpu >= by_memory,
    }
