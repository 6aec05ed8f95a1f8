"""Redis (the sessions) and SQL (the users): whether they answer, how fast, and how much room is left."""

from board import new
from panels import GREEN, ORANGE, RED, Query, heat, plot, stat, states


def dashboard():
    return new(
        "stores",
        "authfleet: Redis and SQL",
        "Redis (the sessions) and SQL (the users): whether they answer, how fast, and how much room is left.",
        {
            "Now": now(),
            "Redis": redis(),
            "SQL": sql(),
        },
    )


def now():
    yield stat(
        "Replicas with Redis",
        "Replicas that are connected to Redis. Normal: all. A replica without a connection answers every session "
        "check with 503.",
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
        "Failed round trips to Redis per second. Normal: 0.",
        "sum(rate(authfleet_redis_errors_total{@}[$__rate_interval])) or vector(0)",
        "ops",
        steps=[(0.01, RED)],
        alerts="AuthfleetRedisErrors",
    )
    yield stat(
        "Redis memory in use",
        "Share of `maxmemory`, or of the container's limit if `maxmemory` is not set. A session takes about 0.7 KiB. "
        "A full Redis refuses writes, so nobody can sign in.",
        "max(authfleet_redis_memory_bytes{@}) / max(job:authfleet_redis_memory_limit:bytes{fleet})",
        "percentunit",
        steps=[(0.6, ORANGE), (0.85, RED)],
        alerts="AuthfleetRedisMemoryHigh AuthfleetRedisMemoryFull",
        decimals=0,
    )
    yield stat(
        "Redis writes to disk",
        "Whether Redis's last write of its AOF and snapshot succeeded. If not, a restart of Redis loses sessions.",
        "min(authfleet_redis_persistence_ok{@})",
        "none",
        steps=[(1, GREEN)],
        base=RED,
        mappings={"1": ("ok", GREEN), "0": ("failing", RED)},
        alerts="AuthfleetRedisPersistenceFailing",
    )
    yield stat(
        "SQL errors",
        "Failed operations on the users' database per second. Normal: 0.",
        "sum(rate(authfleet_sql_errors_total{@}[$__rate_interval])) or vector(0)",
        "ops",
        steps=[(0.01, RED)],
        alerts="AuthfleetUsersDatabaseErrors",
    )
    yield stat(
        "Free on the users' volume",
        "Free share of the filesystem with the SQLite file. When it is full, registrations and password changes get "
        "503; logins and checks still work. SQLite only.",
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
        "Round trips to Redis per second. `check` is a session check and should be by far the most frequent. `ping`, "
        "`info`, `time` and `count` serve readiness and these metrics.",
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
        "99 of 100 round trips are faster than this. Normal: a few milliseconds. If all operations are slow, Redis is "
        "busy, swaps or has a slow disk. If one is slow, it is a costly command, for example a scan.",
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
        "Round trips per second that failed or timed out. Normal: 0. Each failed `check` is a request answered with "
        "503.",
        Query("sum by (operation) (rate(authfleet_redis_errors_total{@}[$__rate_interval]))", "{{operation}}"),
        "ops",
        alerts="AuthfleetRedisErrors",
    )
    yield plot(
        "Connections to Redis opened",
        "Connections to Redis that each replica opened during each interval. Normal: none after the start. Otherwise "
        "Redis restarts, or something closes connections.",
        Query("sum by (replica) (increase(authfleet_redis_connects_total{@}[$__rate_interval]))", "{{replica}}"),
        "short",
        alerts="AuthfleetRedisErrors",
        by_replica=True,
    )
    yield plot(
        "Shards that don't serve",
        "Shards of a Redis Cluster that are down or refuse writes, as each replica sees it. Their users get 503. "
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
        "Sign-outs, revocations and password changes per second that were answered with 503 because Redis's replicas "
        "didn't confirm them. Normal: 0, or a few during a failover.",
        Query("sum by (replica) (rate(authfleet_revocations_unconfirmed_total{@}[$__rate_interval]))", "{{replica}}"),
        "ops",
        alerts="AuthfleetRevocationsUnconfirmed",
        by_replica=True,
        width=8,
    )
    yield plot(
        "Replicas and failovers",
        "Replicas of Redis's primary (in a cluster, of the primary with the fewest), and how often another server "
        "became the primary during each interval.",
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
        "Memory that Redis uses, and its limit.",
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
        "Session keys in Redis. Redis's memory follows their number.",
        Query("max(authfleet_sessions_alive{@})", "alive"),
        "short",
        alerts="AuthfleetSessionsDropped",
        width=6,
    )
    yield plot(
        "Evicted keys",
        "Keys that Redis has evicted to free memory since it started. Must be 0, because each may have been a "
        "session, whose user is then signed out. Set maxmemory-policy to noeviction.",
        Query("max(authfleet_redis_evicted_keys{@})", "evicted"),
        "short",
        steps=[(1, RED)],
        alerts="AuthfleetRedisEvicting",
        width=6,
    )
    yield plot(
        "Clock against Redis's",
        "Each replica's clock minus Redis's. Normal: milliseconds. Sessions contain times, so with a skew of seconds "
        "the absolute limit is early or late by as much.",
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
        "Operations on the users' database per second. Session checks need none.",
        Query("sum by (operation) (rate(authfleet_sql_duration_seconds_count{@}[$__rate_interval]))", "{{operation}}"),
        "ops",
        stack=True,
        table=True,
        width=12,
    )
    yield plot(
        "Slowest 1 % of SQL operations",
        "99 of 100 operations are faster than this, including the wait for a connection. Writes wait for the disk and "
        "for each other, because SQLite has one writer at a time. After 2 s they fail with 503.",
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
        "Failed operations per second. Normal: 0. Causes: a long lock, a full disk, or a missing file.",
        Query("sum by (operation) (rate(authfleet_sql_errors_total{@}[$__rate_interval]))", "{{operation}}"),
        "ops",
        alerts="AuthfleetUsersDatabaseErrors",
    )
    yield plot(
        "SQL connections",
        "Connections to the users' database in all replicas, by pool and state: `all` to PostgreSQL, SQLite's "
        "`readers` and one `writer` per replica. If all of a pool are busy for long, operations wait.",
        Query("sum by (pool, state) (authfleet_sql_connections{@})", "{{pool}} {{state}}"),
        "short",
        stack=True,
        alerts="AuthfleetSqlConnectionsExhausted",
    )
    yield plot(
        "Wait for a SQL connection, slowest 1 %",
        "99 of 100 operations get a connection faster than this: SQLite's one writer, or one of all to PostgreSQL.",
        Query(
            """histogram_quantile(0.99, sum by (pool, le) (
                 rate(authfleet_sql_acquire_duration_seconds_bucket{@}[$__rate_interval])))""",
            "{{pool}}",
        ),
        "s",
        alerts="AuthfleetSqlConnectionsExhausted",
    )
    yield plot(
        "No SQL connection in time",
        "Operations per second that waited in vain for a connection. Normal: 0.",
        Query("sum by (pool) (rate(authfleet_sql_acquire_timeouts_total{@}[$__rate_interval]))", "{{pool}}"),
        "ops",
        alerts="AuthfleetSqlConnectionsExhausted",
    )
    yield plot(
        "Connections made to PostgreSQL",
        "New connections per second, by result. Many after a restart of PostgreSQL are normal; `failed`, `standby` and "
        "`read_only` are not.",
        Query("sum by (result) (rate(authfleet_sql_connects_total{@}[$__rate_interval]))", "{{result}}"),
        "ops",
        alerts="AuthfleetUsersConnectsFailing AuthfleetUsersDatabaseNotPrimary",
    )
    yield plot(
        "PostgreSQL's role",
        "1: the server is the primary and takes writes. 0: a standby or a read-only server. Always 1 with SQLite.",
        Query("min by (replica) (authfleet_users_primary{@})", "{{replica}}"),
        "short",
        alerts="AuthfleetUsersDatabaseNotPrimary",
        by_replica=True,
        width=6,
    )
    yield plot(
        "Database file and journal",
        "Size of the SQLite file and of its write-ahead log. The log shrinks after checkpoints; if it only grows, a "
        "read transaction never ends. SQLite only.",
        [
            Query("max(authfleet_users_database_bytes{@})", "database"),
            Query("max(authfleet_users_journal_bytes{@})", "journal"),
        ],
        "bytes",
        alerts="AuthfleetUsersJournalGrowing",
        width=6,
    )
    yield plot(
        "Room on the users' volume",
        "Free space that the server may use on the filesystem with the users. SQLite only.",
        [
            Query("min(authfleet_users_volume_free_bytes{@})", "free"),
            Query("max(authfleet_users_volume_bytes{@})", "size"),
        ],
        "bytes",
        dashed="size",
        alerts="AuthfleetUsersVolumeFilling AuthfleetUsersVolumeFull",
        width=6,
    )
    yield states(
        "Parts as seen by replicas",
        "Whether the sessions' store and the users' database answered each replica, checked every 5 s. If one replica "
        "gets no answer, check its connection; if none does, check the part itself.",
        [Query("max by (replica, part) (authfleet_part_ready{@})", "{{part}} from {{replica}}")],
        {"1": ("answers", GREEN), "0": ("doesn't answer", RED)},
        alerts="AuthfleetRedisDown AuthfleetUsersDatabaseDown AuthfleetReplicaNotReady",
        height=8,
        width=6,
    )
