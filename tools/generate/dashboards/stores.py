"""Redis, which holds the sessions, and SQL, which holds the users: do they answer, how fast, and for how long still?"""

from panels import GREEN, ORANGE, RED, Query, heat, new, plot, stat, states


def dashboard():
    return new(
        "stores",
        "authfleet: Redis and SQL",
        "Redis holds the sessions, SQL the users: do they answer, how fast, and is there room?",
        {
            "Now": now(),
            "Redis": redis(),
            "SQL": sql(),
        },
    )


def now():
    yield stat(
        "Replicas with Redis",
        "Replicas that have a connection to Redis. Normal: all. Without it a replica answers 503 to every session "
        "check.",
        [
            Query("sum(authfleet_redis_connected{@}) or vector(0)", "connected"),
            Query("count(authfleet_redis_connected{@}) or vector(0)", "replicas"),
        ],
        "none",
        steps=[(1, ORANGE), (2, GREEN)],
        base=RED,
        alerts="AuthfleetRedisDown",
    )
    yield stat(
        "Redis errors",
        "Round trips to Redis a second that failed. Normal: 0.",
        "sum(rate(authfleet_redis_errors_total{@}[$__rate_interval])) or vector(0)",
        "ops",
        steps=[(0.01, RED)],
        alerts="AuthfleetRedisErrors",
    )
    yield stat(
        "Redis memory in use",
        "Of `maxmemory`, or of the container's limit where Redis has none. Redis refuses writes when it is full, so "
        "nobody can sign in; about 0.6 KiB per session.",
        "max(authfleet_redis_memory_bytes{@}) / max(job:authfleet_redis_memory_limit:bytes{fleet})",
        "percentunit",
        steps=[(0.6, ORANGE), (0.85, RED)],
        alerts="AuthfleetRedisMemoryHigh AuthfleetRedisMemoryFull",
        decimals=0,
    )
    yield stat(
        "Redis writes to disk",
        "Whether Redis's last write of its AOF and snapshot went well. If not, a restart of Redis loses sessions.",
        "min(authfleet_redis_persistence_ok{@})",
        "none",
        steps=[(1, GREEN)],
        base=RED,
        mappings={"1": ("ok", GREEN), "0": ("failing", RED)},
        alerts="AuthfleetRedisPersistenceFailing",
    )
    yield stat(
        "SQL errors",
        "Operations on the users' database a second that failed. Normal: 0.",
        "sum(rate(authfleet_sql_errors_total{@}[$__rate_interval])) or vector(0)",
        "ops",
        steps=[(0.01, RED)],
        alerts="AuthfleetUsersDatabaseErrors",
    )
    yield stat(
        "Free on the users' volume",
        "Of the file system that holds the SQLite file. When it is full, registrations and password changes answer "
        "503; logins and checks go on. SQLite only.",
        "min(authfleet_users_volume_free_bytes{@} / authfleet_users_volume_bytes{@})",
        "percentunit",
        steps=[(0.05, ORANGE), (0.15, GREEN)],
        base=RED,
        alerts="AuthfleetUsersVolumeFilling AuthfleetUsersVolumeFull",
        decimals=0,
    )


def redis():
    yield plot(
        "Round trips by operation",
        "Round trips to Redis a second. `check` is a session check and should lead by far; `ping`, `info`, `time` and "
        "`count` are for readiness and these metrics.",
        Query(
            "sum by (operation) (rate(authfleet_redis_duration_seconds_count{@}[$__rate_interval]))", "{{operation}}"
        ),
        "ops",
        stack=True,
        table=True,
        width=12,
    )
    yield plot(
        "Slowest 1 % of round trips",
        "99 of 100 round trips are faster than this. Normal: a millisecond or a few. All operations at once: Redis is "
        "busy, swaps or writes to a slow disk. One alone: a costly command, for example a scan.",
        Query(
            """histogram_quantile(0.99, sum by (operation, le) (
                 rate(authfleet_redis_duration_seconds_bucket{@}[$__rate_interval])))""",
            "{{operation}}",
        ),
        "s",
        alerts="AuthfleetSessionCheckLatencyBurn",
        table=True,
        width=12,
    )
    yield heat(
        "Time of round trips", "How many round trips to Redis took how long.", "authfleet_redis_duration_seconds"
    )
    yield plot(
        "Failed round trips",
        "Round trips a second that failed or timed out. Normal: 0. Each `check` here is a request answered with 503.",
        Query("sum by (operation) (rate(authfleet_redis_errors_total{@}[$__rate_interval]))", "{{operation}}"),
        "ops",
        alerts="AuthfleetRedisErrors",
    )
    yield plot(
        "Connections to Redis opened",
        "Connections to Redis that each replica opened in the time of one point. Normal: none after the start. More: "
        "Redis restarts, or something cuts connections.",
        Query("sum by (replica) (increase(authfleet_redis_connects_total{@}[$__rate_interval]))", "{{replica}}"),
        "short",
        alerts="AuthfleetRedisErrors",
        by_replica=True,
    )
    yield plot(
        "Shards that don't serve",
        "Shards of a Redis Cluster that are away or refuse writes, as each replica sees it. Their users get 503. "
        "Always 0 without a cluster.",
        Query("max by (replica) (authfleet_redis_shards_missing{@})", "{{replica}}"),
        "short",
        steps=[(1, RED)],
        alerts="AuthfleetRedisShardMissing",
        by_replica=True,
        width=8,
    )
    yield plot(
        "Revocations not confirmed",
        "Sign-outs, revocations and changes of passwords a second that were answered 503, because Redis's replicas "
        "didn't confirm them. Normal: 0, a few during a failover.",
        Query("sum by (replica) (rate(authfleet_revocations_unconfirmed_total{@}[$__rate_interval]))", "{{replica}}"),
        "ops",
        alerts="AuthfleetRevocationsUnconfirmed",
        by_replica=True,
        width=8,
    )
    yield plot(
        "Replicas and failovers",
        "Replicas of Redis's primary, in a cluster of the one with the fewest; and how often another server became the "
        "primary in the time of one point.",
        [
            Query("min(authfleet_redis_replicas{@})", "replicas"),
            Query("max(increase(authfleet_redis_failovers_total{@}[$__rate_interval]))", "failovers"),
        ],
        "short",
        alerts="AuthfleetRevocationsUnconfirmed",
        width=8,
    )
    yield plot(
        "Memory of Redis",
        "What Redis uses, and what it may use.",
        [
            Query("max(authfleet_redis_memory_bytes{@})", "used"),
            Query("max(job:authfleet_redis_memory_limit:bytes{fleet})", "limit"),
        ],
        "bytes",
        dashed="limit",
        alerts="AuthfleetRedisMemoryHigh AuthfleetRedisMemoryFull",
        width=6,
    )
    yield plot(
        "Sessions alive",
        "Keys of sessions in Redis; its memory follows them.",
        Query("max(authfleet_sessions_alive{@})", "alive"),
        "short",
        alerts="AuthfleetSessionsDropped",
        width=6,
    )
    yield plot(
        "Evicted keys",
        "Keys that Redis dropped to make room since it started. Must stay 0: each may have been a session, that is "
        "somebody signed out. Set maxmemory-policy to noeviction.",
        Query("max(authfleet_redis_evicted_keys{@})", "evicted"),
        "short",
        steps=[(1, RED)],
        alerts="AuthfleetRedisEvicting",
        width=6,
    )
    yield plot(
        "Clock against Redis's",
        "Each replica's clock minus Redis's. Normal: milliseconds. Sessions carry times, so seconds matter: an "
        "absolute limit comes that much early or late.",
        Query("max by (replica) (authfleet_clock_skew_seconds{@})", "{{replica}}"),
        "s",
        minimum=None,
        alerts="AuthfleetClockSkew",
        by_replica=True,
        width=6,
    )


def sql():
    yield plot(
        "SQL operations",
        "Operations on the users' database a second. Session checks don't come here.",
        Query("sum by (operation) (rate(authfleet_sql_duration_seconds_count{@}[$__rate_interval]))", "{{operation}}"),
        "ops",
        stack=True,
        table=True,
        width=12,
    )
    yield plot(
        "Slowest 1 % of SQL operations",
        "99 of 100 operations are faster than this, waiting for a connection included. Writes wait for the disk and "
        "for each other: SQLite has one writer at a time. They give up after 2 s, with 503.",
        Query(
            """histogram_quantile(0.99, sum by (operation, le) (
                 rate(authfleet_sql_duration_seconds_bucket{@}[$__rate_interval])))""",
            "{{operation}}",
        ),
        "s",
        alerts="AuthfleetLoginLatencyBurn",
        table=True,
        width=12,
    )
    yield heat("Time of SQL operations", "How many SQL operations took how long.", "authfleet_sql_duration_seconds")
    yield plot(
        "Failed SQL operations",
        "Operations a second that failed. Normal: 0. Locked for too long, a full disk, or a file that is gone.",
        Query("sum by (operation) (rate(authfleet_sql_errors_total{@}[$__rate_interval]))", "{{operation}}"),
        "ops",
        alerts="AuthfleetUsersDatabaseErrors",
    )
    yield plot(
        "SQL connections",
        "Connections to the users' database in all replicas, by pool and state. `readers` all busy for long: slow "
        "reads. The one `writer` of a replica is busy while it writes.",
        Query("sum by (pool, state) (authfleet_sql_connections{@})", "{{pool}} {{state}}"),
        "short",
        stack=True,
    )
    yield plot(
        "Database file and journal",
        "Size of the SQLite file and its write-ahead log. The log goes back to small after checkpoints; one that only "
        "grows has a reader that never ends. SQLite only.",
        [
            Query("max(authfleet_users_database_bytes{@})", "database"),
            Query("max(authfleet_users_journal_bytes{@})", "journal"),
        ],
        "bytes",
        alerts="AuthfleetUsersJournalGrowing",
    )
    yield plot(
        "Room on the users' volume",
        "What the server may still use of the file system that holds the users. SQLite only.",
        [
            Query("min(authfleet_users_volume_free_bytes{@})", "free"),
            Query("max(authfleet_users_volume_bytes{@})", "size"),
        ],
        "bytes",
        dashed="size",
        alerts="AuthfleetUsersVolumeFilling AuthfleetUsersVolumeFull",
    )
    yield states(
        "Parts, as replicas see them",
        "Whether the sessions' store and the users' database answered each replica, asked every 5 s. One replica "
        "alone: its own way to the part. All: the part itself.",
        [Query("max by (replica, part) (authfleet_part_ready{@})", "{{part}} from {{replica}}")],
        {"1": ("answers", GREEN), "0": ("doesn't answer", RED)},
        alerts="AuthfleetRedisDown AuthfleetUsersDatabaseDown AuthfleetReplicaNotReady",
        width=8,
        height=8,
    )
