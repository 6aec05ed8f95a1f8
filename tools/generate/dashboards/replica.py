"""All metrics of one replica."""

from board import new
from panels import (
    BLUE,
    CHECK_COLOURS,
    GREEN,
    LOGIN_COLOURS,
    ORANGE,
    RED,
    SPAN_COLOURS,
    Query,
    heat,
    plot,
    stat,
    states,
    table,
)

CHECKS = 'route=~"/profile|/auth/verify"'


def dashboard():
    return new(
        "replica",
        "authfleet: one replica in depth",
        "All metrics of one replica.",
        {
            "Now": now(),
            "Requests": requests(),
            "Sessions, logins, hashing": work(),
            "Redis and SQL, as this replica sees them": stores(),
            "Process": process(),
            "State and settings": state(),
        },
        replicas="one",
    )


def now():
    yield stat(
        "State",
        "Whether this replica accepts requests. It does while Redis and the users' database answer it and it isn't "
        "shutting down.",
        """max(2 * (authfleet_draining{@} == 1) or authfleet_ready{@} and on (instance) up{@} == 1 or up{@} - 1)""",
        "none",
        steps=[(1, GREEN), (2, BLUE)],
        base=RED,
        mappings={
            "1": ("ready", GREEN),
            "2": ("draining", BLUE),
            "0": ("not ready", ORANGE),
            "-1": ("not scraped", RED),
        },
        alerts="AuthfleetReplicaNotReady AuthfleetReplicaDown AuthfleetMetricsMissing",
        width=3,
    )
    yield stat(
        "Up for",
        "Time since the process started.",
        "max(time() - process_start_time_seconds{@})",
        "s",
        alerts="AuthfleetReplicaRestarting",
        width=3,
        decimals=0,
    )
    yield stat(
        "Requests",
        "Requests per second.",
        "sum(rate(authfleet_http_requests_total{@}[$__rate_interval])) or vector(0)",
        "reqps",
        width=3,
    )
    yield stat(
        "Failing requests",
        "Share of requests answered with a 5xx. Normal: 0.",
        """(sum(rate(authfleet_http_requests_total{@, status=~"5.."}[$__rate_interval])) or vector(0))
           / sum(rate(authfleet_http_requests_total{@}[$__rate_interval]))""",
        "percentunit",
        steps=[(0.001, ORANGE), (0.01, RED)],
        alerts="AuthfleetAvailabilityBurn",
        decimals=2,
        width=3,
    )
    yield stat(
        "Session checks, p99",
        "99 of 100 session checks are answered faster than this. Objective: 25 ms.",
        f"""histogram_quantile(0.99, sum by (le) (
              rate(authfleet_http_request_duration_seconds_bucket{{@, {CHECKS}}}[$__rate_interval])))""",
        "s",
        steps=[(0.01, ORANGE), (0.025, RED)],
        alerts="AuthfleetSessionCheckLatencyBurn",
        width=3,
    )
    yield stat(
        "CPU",
        "Cores in use.",
        "sum(rate(process_cpu_seconds_total{@}[$__rate_interval]))",
        "short",
        decimals=2,
        width=3,
    )
    yield stat("Memory", "Resident memory.", "sum(process_resident_memory_bytes{@})", "bytes", width=3)
    yield stat(
        "Hashing queue",
        "How full the hashing queue is. At 100 % logins are shed.",
        "max(authfleet_hash_queued{@} / authfleet_hash_queue_limit{@})",
        "percentunit",
        steps=[(0.5, ORANGE), (0.9, RED)],
        alerts="AuthfleetHashQueueFilling",
        decimals=0,
        width=3,
    )


def requests():
    yield plot(
        "Requests by route",
        "Requests per second. `unmatched`: paths that don't exist.",
        Query(
            "sum by (method, route) (rate(authfleet_http_requests_total{@}[$__rate_interval]))", "{{method}} {{route}}"
        ),
        "reqps",
        stack=True,
        table=True,
        width=12,
    )
    yield plot(
        "Slowest 1 % by route",
        "99 of 100 requests of a route are answered faster than this. Routes that hash a password are slow by design; "
        "the others take milliseconds.",
        Query(
            """histogram_quantile(0.99, sum by (method, route, le) (
                 rate(authfleet_http_request_duration_seconds_bucket{@}[$__rate_interval])))""",
            "{{method}} {{route}}",
        ),
        "s",
        alerts="AuthfleetSessionCheckLatencyBurn AuthfleetLoginLatencyBurn",
        table=True,
        logarithmic=True,
        minimum=None,
        width=12,
    )
    yield plot(
        "Answers by status",
        "Requests per second by status. 499: the client left before the answer.",
        Query("sum by (status) (rate(authfleet_http_requests_total{@}[$__rate_interval]))", "{{status}}"),
        "reqps",
        stack=True,
        alerts="AuthfleetAvailabilityBurn",
    )
    yield heat("Time of requests", "How many requests took how long.", "authfleet_http_request_duration_seconds")
    yield plot(
        "In flight, and connections",
        "Requests in progress and open connections (nginx keeps some for later requests) at each scrape.",
        [
            Query("sum(authfleet_http_requests_in_flight{@})", "in flight"),
            Query("sum(authfleet_http_connections{@})", "connections"),
            Query("sum(rate(authfleet_http_connections_refused_total{@}[$__rate_interval]))", "refused a second"),
        ],
        "short",
        alerts="AuthfleetConnectionsNearLimit",
    )


def work():
    yield plot(
        "Session checks by result",
        "Only `error` is a failure of the fleet. Only `valid`, `unknown` and `error` checks asked Redis.",
        Query("sum by (result) (rate(authfleet_session_checks_total{@}[$__rate_interval]))", "{{result}}"),
        "ops",
        stack=True,
        colours=CHECK_COLOURS,
        alerts="AuthfleetUnknownSessions AuthfleetForgedCookies",
    )
    yield plot(
        "Valid checks by the session's maker",
        "Whether this replica or another one had created the session. With three replicas, two thirds come from "
        "others.",
        Query("sum by (made_by) (rate(authfleet_sessions_accepted_total{@}[$__rate_interval]))", "made by {{made_by}}"),
        "ops",
        stack=True,
    )
    yield plot(
        "Logins by result",
        "Login attempts per second.",
        Query("sum by (result) (rate(authfleet_logins_total{@}[$__rate_interval]))", "{{result}}"),
        "ops",
        stack=True,
        colours=LOGIN_COLOURS,
        alerts="AuthfleetLoginsBurn",
    )
    yield plot(
        "Hashing jobs waiting",
        "Waiting jobs, and the limit. At the dashed line further jobs are shed.",
        [
            Query("sum(authfleet_hash_queued{@})", "waiting"),
            Query("sum(authfleet_hash_queue_limit{@})", "limit"),
        ],
        "short",
        dashed="limit",
        alerts="AuthfleetHashQueueFilling",
    )
    yield plot(
        "Hashing threads",
        "Busy hashing threads, and how many there are.",
        [
            Query("sum(authfleet_hash_running{@})", "at work"),
            Query("sum(authfleet_hash_threads{@})", "limit"),
        ],
        "short",
        dashed="limit",
    )
    yield plot(
        "Time of a hash, and its wait",
        "The time of a hash on its thread, and of its wait in the queue.",
        [
            Query(
                """histogram_quantile(0.95, sum by (operation, le) (
                     rate(authfleet_hash_duration_seconds_bucket{@}[$__rate_interval])))""",
                "{{operation}} p95",
            ),
            Query(
                """histogram_quantile(0.95, sum by (le) (
                     rate(authfleet_hash_queue_duration_seconds_bucket{@}[$__rate_interval])))""",
                "wait p95",
            ),
        ],
        "s",
        alerts="AuthfleetHashQueueFilling",
    )


def stores():
    yield plot(
        "Redis: round trips",
        "Round trips per second, by operation.",
        Query(
            "sum by (operation) (rate(authfleet_redis_duration_seconds_count{@}[$__rate_interval]))", "{{operation}}"
        ),
        "ops",
        stack=True,
    )
    yield plot(
        "Redis: slowest 1 %",
        "99 of 100 round trips are faster than this. Compare with another replica: if only this one is slow, check "
        "its machine and network.",
        Query(
            """histogram_quantile(0.99, sum by (operation, le) (
                 rate(authfleet_redis_duration_seconds_bucket{@}[$__rate_interval])))""",
            "{{operation}}",
        ),
        "s",
        alerts="AuthfleetSessionCheckLatencyBurn",
    )
    yield plot(
        "SQL: slowest 1 %",
        "99 of 100 operations are faster than this, including the wait for a connection.",
        Query(
            """histogram_quantile(0.99, sum by (operation, le) (
                 rate(authfleet_sql_duration_seconds_bucket{@}[$__rate_interval])))""",
            "{{operation}}",
        ),
        "s",
        alerts="AuthfleetLoginLatencyBurn",
    )
    yield plot(
        "Redis and SQL: errors",
        "Failed operations per second. Normal: 0.",
        [
            Query(
                "sum by (operation) (rate(authfleet_redis_errors_total{@}[$__rate_interval]))", "Redis {{operation}}"
            ),
            Query("sum by (operation) (rate(authfleet_sql_errors_total{@}[$__rate_interval]))", "SQL {{operation}}"),
        ],
        "ops",
        alerts="AuthfleetRedisErrors AuthfleetUsersDatabaseErrors",
    )
    yield plot(
        "SQL: connections",
        "Connections by pool and state.",
        Query("sum by (pool, state) (authfleet_sql_connections{@})", "{{pool}} {{state}}"),
        "short",
        stack=True,
    )
    yield plot(
        "Clock against Redis's",
        "This machine's clock minus Redis's. Normal: milliseconds.",
        Query("max(authfleet_clock_skew_seconds{@})", "skew"),
        "s",
        minimum=None,
        alerts="AuthfleetClockSkew",
    )


def process():
    yield plot(
        "CPU in use",
        "Cores in use. One thread answers requests; the others hash passwords at a lower priority.",
        Query("sum(rate(process_cpu_seconds_total{@}[$__rate_interval]))", "cores"),
        "short",
        width=6,
    )
    yield plot(
        "Memory in use",
        "Resident memory. Each password hash in progress takes another ARGON2_MEMORY, and returns it afterwards.",
        Query("sum(process_resident_memory_bytes{@})", "resident"),
        "bytes",
        width=6,
    )
    yield plot(
        "Open files",
        "Open files and sockets, and the limit. The number follows the connections; growth without more connections "
        "is a leak.",
        [
            Query("sum(process_open_fds{@})", "open"),
            Query("sum(process_max_fds{@})", "limit"),
        ],
        "short",
        dashed="limit",
        alerts="AuthfleetFileDescriptors",
        logarithmic=True,
        minimum=None,
        width=6,
    )
    yield plot(
        "Threads",
        "Threads of the process. Normal: a flat line.",
        Query("sum(process_threads{@})", "threads"),
        "short",
        width=6,
    )


def state():
    yield states(
        "Parts",
        "Whether Redis (`sessions`) and the database (`users`) answer this replica, checked every 5 s.",
        [Query("max by (part) (authfleet_part_ready{@})", "{{part}}")],
        {"1": ("answers", GREEN), "0": ("doesn't answer", RED)},
        alerts="AuthfleetReplicaNotReady AuthfleetReplicaDown",
        width=8,
        height=6,
    )
    yield plot(
        "Spans",
        "Trace spans per second by result: taken by the collector, failed, or `dropped` because the queue was full. "
        "Empty while tracing is off. Lost spans affect nothing but traces.",
        Query("sum by (result) (rate(authfleet_trace_spans_total{@}[$__rate_interval]))", "{{result}}"),
        "ops",
        stack=True,
        colours=SPAN_COLOURS,
        alerts="AuthfleetTracesFailing",
        width=8,
        height=6,
    )
    yield plot(
        "Log lines lost",
        "Log lines per second, by kind, that were lost because nobody read them in time. Normal: none. Requests don't "
        "wait for the log. `audit` lines are lost last.",
        Query("sum by (kind) (rate(authfleet_log_lines_lost_total{@}[$__rate_interval]))", "{{kind}}"),
        "ops",
        stack=True,
        alerts="AuthfleetLogLinesLost",
        width=8,
        height=6,
    )
    yield table(
        "Build and settings",
        "The version, and a digest of the settings that must be the same in all replicas.",
        [
            Query("max by (replica, version) (authfleet_build_info{@})"),
            Query("max by (replica, fingerprint) (authfleet_config_info{@})"),
        ],
        {"replica": "Replica", "version": "Version", "fingerprint": "Settings"},
        join="replica",
        alerts="AuthfleetConfigDrift AuthfleetAccessRulesDrift AuthfleetVersionDrift",
        width=12,
        height=6,
    )
    yield table(
        "Age of secrets",
        "Time since the file of each secret was last changed. Secrets from environment variables are not listed.",
        [Query("max by (variable) (time() - authfleet_secret_file_timestamp_seconds{@})")],
        {"variable": "Secret", "Value": "Unchanged for"},
        units={"Unchanged for": "s"},
        alerts="AuthfleetSecretOld",
        width=12,
        height=6,
    )
