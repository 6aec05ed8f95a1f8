"""Whether people can sign in, what logins cost, whether they slow down session checks, and who gets to applications."""

from board import new
from panels import DECISION_COLOURS, LOGIN_COLOURS, ORANGE, RED, REGISTRATION_COLOURS, Query, heat, plot, stat

CHECKS = 'route=~"/profile|/auth/verify"'
LOGIN = 'method="POST", route=~"/login|/auth/login"'
# Failures of the fleet, not of the person who signs in.
OURS = 'result=~"overloaded|unavailable|internal"'


def dashboard():
    return new(
        "logins",
        "authfleet: logins and hashing",
        "Whether people can sign in, what logins cost, and whether they slow down session checks.",
        {
            "Now": now(),
            "Logins and registrations": logins(),
            "Password hashing": hashing(),
            "Effect on signed-in users": meanwhile(),
            "Applications": applications(),
        },
    )


def now():
    yield stat(
        "Logins",
        "Login attempts per second, with any result.",
        "sum(rate(authfleet_logins_total{@}[$__rate_interval])) or vector(0)",
        "ops",
    )
    yield stat(
        "Failed by us",
        "Share of logins that failed because of a full hashing queue, a part that was down, or a bug. Throttled logins "
        "are not counted. Normal: 0. Objective: at most 0.5 % over 30 days.",
        f"""(sum(rate(authfleet_logins_total{{@, {OURS}}}[$__rate_interval])) or vector(0))
            / sum(rate(authfleet_logins_total{{@, result!="throttled"}}[$__rate_interval]))""",
        "percentunit",
        steps=[(0.005, ORANGE), (0.05, RED)],
        alerts="AuthfleetLoginsBurn",
        decimals=2,
    )
    yield stat(
        "Wrong password or name",
        "Share of logins refused for wrong credentials, among those that were checked. Some are normal; a surge means "
        "that somebody guesses passwords or a client is broken.",
        """sum(rate(authfleet_logins_total{@, result="invalid_credentials"}[$__rate_interval]))
           / sum(rate(authfleet_logins_total{@, result=~"success|invalid_credentials"}[$__rate_interval]))""",
        "percentunit",
        alerts="AuthfleetPasswordGuessing",
        decimals=0,
    )
    yield stat(
        "Throttled",
        "Logins per second refused without checking the password, because the account or address had failed too "
        "often. Normal: almost none. A surge means that somebody guesses passwords.",
        """sum(rate(authfleet_logins_total{@, result="throttled"}[$__rate_interval])) or vector(0)""",
        "ops",
        alerts="AuthfleetThrottleSurge",
    )
    yield stat(
        "Shed",
        "Hashing jobs per second refused because the queue was full; each is a 503 with Retry-After. Normal: 0. "
        "Otherwise there are more logins than the fleet has CPU for.",
        "sum(rate(authfleet_hash_shed_total{@}[$__rate_interval])) or vector(0)",
        "ops",
        steps=[(0.01, ORANGE)],
        alerts="AuthfleetLoginsShed",
    )
    yield stat(
        "Fullest hashing queue",
        "How full the hashing queue is, in the replica where it is fullest. At 100 % logins are shed.",
        "max(authfleet_hash_queued{@} / authfleet_hash_queue_limit{@})",
        "percentunit",
        steps=[(0.5, ORANGE), (0.9, RED)],
        alerts="AuthfleetHashQueueFilling",
        decimals=0,
    )


def logins():
    yield plot(
        "Logins by result",
        "`success` and `invalid_credentials`: the password was checked. `throttled`: refused on purpose. `overloaded` "
        "(queue full), `unavailable` (Redis or the users' database down) and `internal` (a bug) are failures of the "
        "fleet.",
        Query("sum by (result) (rate(authfleet_logins_total{@}[$__rate_interval]))", "{{result}}"),
        "ops",
        stack=True,
        colours=LOGIN_COLOURS,
        alerts="AuthfleetLoginsBurn AuthfleetThrottleSurge AuthfleetPasswordGuessing",
    )
    yield plot(
        "Registrations by result",
        "`conflict`: the name or address is taken. `invalid`: the request is not valid. The others are as for logins.",
        Query("sum by (result) (rate(authfleet_registrations_total{@}[$__rate_interval]))", "{{result}}"),
        "ops",
        stack=True,
        colours=REGISTRATION_COLOURS,
    )
    yield plot(
        "How long a login takes",
        "From request to answer, including shed logins. Most of it is one password hash and its wait in the queue. "
        "The dashed line is the objective for 95 % of logins.",
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
        "Time that password hashes took on their thread. Normal: one narrow band. It widens if replicas share cores "
        "with something else. A second band comes from hashes with other parameters, which the next login upgrades.",
        "authfleet_hash_duration_seconds",
    )
    yield plot(
        "Time of a hash by operation",
        "`verify`: a login. `hash`: a registration or a new password.",
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
        "How long hashing jobs waited in the queue: 95 of 100 waited less. Normal: almost nothing. It is the first "
        "sign of more logins than there is CPU for.",
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
        "Waiting hashing jobs by replica, and the limit for one replica. At the dashed line logins are shed. Normal: "
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
        "Share of each replica's hashing threads that are busy at each scrape. If all are at 100 % for long, add CPU "
        "or replicas.",
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
        "Jobs per second that were refused because the queue was full, or dropped before they began because the "
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
        "A login storm must not slow down signed-in users. The line of the checks should stay flat while hashing "
        "threads are busy. Left: seconds; right: busy threads in the whole fleet.",
        [
            Query(
                f"""histogram_quantile(0.99, sum by (le) (
                      rate(authfleet_http_request_duration_seconds_bucket{{@, {CHECKS}}}[$__rate_interval])))""",
                "session checks, p99",
            ),
            Query("sum(authfleet_hash_running{@})", "busy hashing threads"),
        ],
        "s",
        right="busy hashing threads",
        alerts="AuthfleetSessionCheckLatencyBurn",
        width=12,
    )
    yield plot(
        "Sessions ended, by reason",
        "`logout` and `replaced` follow the time of day. Many `revoked` and `password_changed` mean that people fear "
        "for their accounts, or that an administrator ended sessions. `evicted`: users above SESSIONS_PER_USER, often "
        "scripts.",
        Query("sum by (reason) (rate(authfleet_sessions_ended_total{@}[$__rate_interval]))", "{{reason}}"),
        "ops",
        stack=True,
        alerts="AuthfleetSessionsEndedUnusually",
        width=12,
    )


def applications():
    yield plot(
        "Requests for applications, by rule",
        "Questions of proxies per second, by the access rule that decided; `authfleet rules test` names it too. "
        "`none`: no rule matched, or the path was refused. Empty without forward auth.",
        Query("sum by (rule) (rate(authfleet_access_decisions_total{@}[$__rate_interval]))", "{{rule}}"),
        "ops",
        stack=True,
        width=12,
    )
    yield plot(
        "Requests for applications, by decision",
        "`sign_in`: nobody was signed in. `denied`: the rule says no. `refused`: programs read the path in different "
        "ways; a surge means that somebody probes. `unavailable`: Redis didn't answer, so nobody got in.",
        Query("sum by (decision) (rate(authfleet_access_decisions_total{@}[$__rate_interval]))", "{{decision}}"),
        "ops",
        stack=True,
        colours=DECISION_COLOURS,
        width=12,
    )
