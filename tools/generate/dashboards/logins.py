"""Can people sign in, what do logins cost, and do they leave signed-in users alone?"""

from panels import LOGIN_COLOURS, ORANGE, RED, REGISTRATION_COLOURS, Query, heat, new, plot, stat

CHECKS = 'route=~"/profile|/auth/verify"'
LOGIN = 'method="POST", route=~"/login|/auth/login"'
# Refused or failed through no fault of the person who signs in.
OURS = 'result=~"overloaded|unavailable|internal"'


def dashboard():
    return new(
        "logins",
        "authfleet: logins and hashing",
        "Can people sign in, what do logins cost, and do they leave signed-in users alone?",
        {
            "Now": now(),
            "Logins and registrations": logins(),
            "Password hashing": hashing(),
            "Signed-in users meanwhile": meanwhile(),
        },
    )


def now():
    yield stat(
        "Logins",
        "Attempts to sign in a second, with any result.",
        "sum(rate(authfleet_logins_total{@}[$__rate_interval])) or vector(0)",
        "ops",
    )
    yield stat(
        "Failed by us",
        "Share of logins that were shed, met a part that was away, or a bug; throttled ones don't count. Normal: 0. "
        "Objective: at most 0.5 % over 30 days.",
        f"""(sum(rate(authfleet_logins_total{{@, {OURS}}}[$__rate_interval])) or vector(0))
            / sum(rate(authfleet_logins_total{{@, result!="throttled"}}[$__rate_interval]))""",
        "percentunit",
        steps=[(0.005, ORANGE), (0.05, RED)],
        alerts="AuthfleetLoginsBurn",
        decimals=2,
    )
    yield stat(
        "Wrong password or name",
        "Share of decided logins that were refused for their credentials. Some are always there; a surge is guessing "
        "or a broken client.",
        """sum(rate(authfleet_logins_total{@, result="invalid_credentials"}[$__rate_interval]))
           / sum(rate(authfleet_logins_total{@, result=~"success|invalid_credentials"}[$__rate_interval]))""",
        "percentunit",
        alerts="AuthfleetPasswordGuessing",
        decimals=0,
    )
    yield stat(
        "Throttled",
        "Logins a second refused unseen, since their account or address had failed too often. Normal: next to none. "
        "A surge is somebody guessing passwords.",
        """sum(rate(authfleet_logins_total{@, result="throttled"}[$__rate_interval])) or vector(0)""",
        "ops",
        alerts="AuthfleetThrottleSurge",
    )
    yield stat(
        "Shed",
        "Hashing jobs a second refused because the queue was full; each is a 503 with Retry-After. Normal: 0. Above "
        "it, more logins come than the fleet has CPU for.",
        "sum(rate(authfleet_hash_shed_total{@}[$__rate_interval])) or vector(0)",
        "ops",
        steps=[(0.01, ORANGE)],
        alerts="AuthfleetLoginsShed",
    )
    yield stat(
        "Fullest hashing queue",
        "How full the queue of hashing jobs is in the replica where it is fullest. At 100 % logins are shed.",
        "max(authfleet_hash_queued{@} / authfleet_hash_queue_limit{@})",
        "percentunit",
        steps=[(0.5, ORANGE), (0.9, RED)],
        alerts="AuthfleetHashQueueFilling",
        decimals=0,
    )


def logins():
    yield plot(
        "Logins by result",
        "`success` and `invalid_credentials` are decided; `throttled` is meant; `overloaded` (queue full), "
        "`unavailable` (Redis or the users' database away) and `internal` (a bug) are the fleet's own.",
        Query("sum by (result) (rate(authfleet_logins_total{@}[$__rate_interval]))", "{{result}}"),
        "ops",
        stack=True,
        colours=LOGIN_COLOURS,
        alerts="AuthfleetLoginsBurn AuthfleetThrottleSurge AuthfleetPasswordGuessing",
    )
    yield plot(
        "Registrations by result",
        "`conflict` is a name or address that is taken, `invalid` a request that doesn't fit; the others as for "
        "logins.",
        Query("sum by (result) (rate(authfleet_registrations_total{@}[$__rate_interval]))", "{{result}}"),
        "ops",
        stack=True,
        colours=REGISTRATION_COLOURS,
    )
    yield plot(
        "How long a login takes",
        "From request to answer, shed ones included. Mostly one password hash and its wait in the queue. The dashed "
        "line is the objective that 95 % must keep.",
        [
            Query(
                f"""histogram_quantile({quantile}, sum by (le) (
                      rate(authfleet_http_request_duration_seconds_bucket{{@, {LOGIN}}}[$__rate_interval])))""",
                name,
            )
            for quantile, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
        ],
        "s",
        steps=[(1, RED)],
        alerts="AuthfleetLoginLatencyBurn",
    )


def hashing():
    yield heat(
        "Time of a hash",
        "Time that password hashes took on their thread. Normal: one narrow band. It widens when replicas share cores "
        "with something else; a second band is another cost (old hashes that are upgraded at the next login).",
        "authfleet_hash_duration_seconds",
    )
    yield plot(
        "Time of a hash by operation",
        "`verify` is a login, `hash` a registration or new password.",
        [
            Query(
                f"""histogram_quantile({quantile}, sum by (operation, le) (
                      rate(authfleet_hash_duration_seconds_bucket{{@}}[$__rate_interval])))""",
                f"{{{{operation}}}} {name}",
            )
            for quantile, name in ((0.5, "p50"), (0.95, "p95"))
        ],
        "s",
    )
    yield plot(
        "Wait for a thread",
        "Time that hashing jobs waited in the queue before they began, the slowest 5 %. Normal: next to nothing; it is "
        "what logins feel first when more of them come than there is CPU for.",
        Query(
            """histogram_quantile(0.95, sum by (replica, le) (
                 rate(authfleet_hash_queue_duration_seconds_bucket{@}[$__rate_interval])))""",
            "{{replica}}",
        ),
        "s",
        alerts="AuthfleetHashQueueFilling",
        by_replica=True,
    )
    yield plot(
        "Queue",
        "Hashing jobs waiting, by replica, and how many may wait in one. At the dashed line logins are shed. Normal: "
        "0, with short spikes.",
        [
            Query("sum by (replica) (authfleet_hash_queued{@})", "{{replica}}"),
            Query("min(authfleet_hash_queue_limit{@})", "limit"),
        ],
        "short",
        dashed="limit",
        alerts="AuthfleetHashQueueFilling",
        by_replica=True,
    )
    yield plot(
        "Threads in use",
        "Share of a replica's hashing threads that are at work, at the moment of each scrape. All at 100 % for long: "
        "more CPU or more replicas.",
        Query(
            "sum by (replica) (authfleet_hash_running{@}) / sum by (replica) (authfleet_hash_threads{@})", "{{replica}}"
        ),
        "percentunit",
        maximum=1,
        alerts="AuthfleetHashQueueFilling",
        by_replica=True,
    )
    yield plot(
        "Shed and abandoned",
        "Jobs a second that were refused because the queue was full, and jobs dropped before they began because their "
        "client had left. Normal: 0.",
        [
            Query("sum by (replica) (rate(authfleet_hash_shed_total{@}[$__rate_interval]))", "{{replica}} shed"),
            Query(
                "sum by (replica) (rate(authfleet_hash_abandoned_total{@}[$__rate_interval]))", "{{replica}} abandoned"
            ),
        ],
        "ops",
        alerts="AuthfleetLoginsShed",
        by_replica=True,
    )


def meanwhile():
    yield plot(
        "Session checks, p99, and hashing",
        "A login storm must not slow down those who are signed in. The checks' line should stay flat while hashing "
        "threads are busy. Left: seconds; right: threads at work in the whole fleet.",
        [
            Query(
                f"""histogram_quantile(0.99, sum by (le) (
                      rate(authfleet_http_request_duration_seconds_bucket{{@, {CHECKS}}}[$__rate_interval])))""",
                "session checks, p99",
            ),
            Query("sum(authfleet_hash_running{@})", "hashing threads at work"),
        ],
        "s",
        right="hashing threads at work",
        alerts="AuthfleetSessionCheckLatencyBurn",
        width=12,
    )
    yield plot(
        "Sessions ended, by reason",
        "`logout` and `replaced` follow the day. `revoked` and `password_changed` in numbers are people who fear for "
        "their account, or an administrator at work; `evicted` a user above SESSIONS_PER_USER, often a script.",
        Query("sum by (reason) (rate(authfleet_sessions_ended_total{@}[$__rate_interval]))", "{{reason}}"),
        "ops",
        stack=True,
        alerts="AuthfleetSessionsEndedUnusually",
        width=12,
    )
