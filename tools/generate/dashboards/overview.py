"""Is the fleet well, and if not, where to look next."""

from panels import (
    BLUE,
    CHECK_COLOURS,
    GREEN,
    ORANGE,
    RED,
    STATUS_COLOURS,
    Query,
    heat,
    link,
    new,
    plot,
    stat,
    states,
    table,
    to_dashboard,
)

CHECKS = 'route=~"/profile|/auth/verify"'


def dashboard():
    return new(
        "overview",
        "authfleet: overview",
        "Is the fleet well, and if not, where to look next.",
        {
            "Now": now(),
            "Traffic and errors": traffic(),
            "Latency": latency(),
            "Sessions, and how replicas share them": sessions(),
            "Replicas": replicas(),
        },
    )


def now():
    yield stat(
        "Replicas ready",
        "Replicas that want requests, of those that Prometheus knows and that aren't ending on purpose. Normal: both "
        "numbers are the same. A click on a replica below says which part of it fails.",
        [
            Query("sum(job:authfleet_replicas_ready:sum{fleet}) or vector(0)", "ready"),
            Query("sum(job:authfleet_replicas_expected:count{fleet}) or vector(0)", "expected"),
        ],
        "none",
        steps=[(1, ORANGE), (2, GREEN)],
        base=RED,
        alerts="AuthfleetNoReplicaReady AuthfleetFewReplicasReady AuthfleetAbsent",
        width=4,
    )
    yield stat(
        "Requests",
        "Requests a second, all routes. Compare with the same hour of another day.",
        "sum(rate(authfleet_http_requests_total{@}[$__rate_interval])) or vector(0)",
        "reqps",
        links=[to_dashboard("By route: one replica in depth", "replica")],
        width=3,
    )
    yield stat(
        "Failing requests",
        "Share of requests answered with a 5xx. Normal: 0. The objective leaves room for 0.1 % over 30 days, so even 1 "
        "% for an hour is a lot. 503 while Redis or the users' database is away is meant; 500 never is.",
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
        "99 of 100 checks of a session (`/profile`, `/auth/verify`) are answered faster than this. Objective: 25 ms. "
        "Normal: a few milliseconds. A check is one Redis round trip, so look at Redis and at the replicas' CPU.",
        f"""histogram_quantile(0.99, sum by (le) (
              rate(authfleet_http_request_duration_seconds_bucket{{@, {CHECKS}}}[$__rate_interval])))""",
        "s",
        steps=[(0.01, ORANGE), (0.025, RED)],
        alerts="AuthfleetSessionCheckLatencyBurn",
        links=[to_dashboard("Redis and SQL", "stores")],
        width=3,
    )
    yield stat(
        "Sessions alive",
        "Sessions in Redis now, of the whole fleet: each replica counts the same ones. A sudden fall is a mass logout; "
        "what ended them is further below.",
        "max(authfleet_sessions_alive{@})",
        "short",
        alerts="AuthfleetSessionsDropped",
        width=3,
    )
    yield stat(
        "Accepted from another replica",
        "Share of valid session checks whose session was made by another replica. This is sharing at work: with plain "
        "balancing about 1 - 1/replicas, so 67 % of three. 0 % means a sticky balancer, or one replica.",
        """sum(rate(authfleet_sessions_accepted_total{@, made_by="other"}[$__rate_interval]))
           / sum(rate(authfleet_sessions_accepted_total{@}[$__rate_interval]))""",
        "percentunit",
        decimals=0,
        width=4,
    )
    yield stat(
        "Alerts firing",
        "Alerts of authfleet that fire now; the table below names them. Normal: 0.",
        'count(ALERTS{alertname=~"Authfleet.*", alertstate="firing"}) or vector(0)',
        "none",
        steps=[(1, RED)],
        links=[link("Runbook", "${runbook:raw}")],
        width=4,
    )
    yield table(
        "Alerts",
        "Alerts of authfleet, pending (the condition holds, but not for long enough yet) and firing. A click on a name "
        "opens the runbook. Normal: none.",
        [
            Query(
                'sum by (alertname, severity, alertstate, replica) (ALERTS{alertname=~"Authfleet.*"})',
            )
        ],
        {"alertname": "Alert", "severity": "Severity", "alertstate": "State", "replica": "Replica"},
        links={"Alert": link("Runbook", "${runbook:raw}")},
        width=12,
        height=6,
    )
    yield states(
        "State of replicas",
        "Each replica over time: ready, ending on purpose, not ready, or not there for Prometheus. Normal: all green, "
        "but for grey gaps of seconds in a rollout.",
        [
            Query(
                """max by (replica) (
                     2 * (authfleet_draining{@} == 1) or authfleet_ready{@} and on (instance) up{@} == 1 or up{@} - 1
                   )""",
                "{{replica}}",
            )
        ],
        {"1": ("ready", GREEN), "2": ("draining", BLUE), "0": ("not ready", ORANGE), "-1": ("not there", RED)},
        alerts="AuthfleetReplicaNotReady AuthfleetReplicaDown",
        width=12,
    )


def traffic():
    yield plot(
        "Requests by replica",
        "Requests a second that each replica answered. Normal: about the same for all. One that gets nothing is not "
        "ready, or nginx holds it for broken.",
        Query("sum by (replica) (rate(authfleet_http_requests_total{@}[$__rate_interval]))", "{{replica}}"),
        "reqps",
        stack=True,
        alerts="AuthfleetReplicaIdle",
        by_replica=True,
    )
    yield plot(
        "Requests by kind of answer",
        "All requests by the first digit of their status; 499 is a client that left before its answer. 4xx are wrong "
        "passwords, ended sessions and throttling: a surge of them is worth a look at logins.",
        Query(
            """sum by (class) (label_replace(label_replace(
                 rate(authfleet_http_requests_total{@}[$__rate_interval]),
                 "class", "${1}xx", "status", "(.).."), "class", "499", "status", "499"))""",
            "{{class}}",
        ),
        "reqps",
        stack=True,
        colours=STATUS_COLOURS,
    )
    yield plot(
        "Failing requests by replica",
        "Share of 5xx among each replica's requests. Normal: 0. All replicas alike: Redis or the users' "
        "database. One alone: that replica, or its way to them.",
        Query(
            """(sum by (replica) (rate(authfleet_http_requests_total{@, status=~"5.."}[$__rate_interval]))
                or 0 * sum by (replica) (rate(authfleet_http_requests_total{@}[$__rate_interval])))
               / (sum by (replica) (rate(authfleet_http_requests_total{@}[$__rate_interval])) > 0)""",
            "{{replica}}",
        ),
        "percentunit",
        steps=[(0.001, ORANGE), (0.01, RED)],
        alerts="AuthfleetAvailabilityBurn",
        by_replica=True,
    )
    yield plot(
        "Failing requests by route",
        "5xx a second, by route and status. Normal: empty. 503 alone is a part that is away or a full hashing queue; "
        "anything else is a bug.",
        Query(
            'sum by (route, status) (rate(authfleet_http_requests_total{@, status=~"5.."}[$__rate_interval])) > 0',
            "{{status}} {{route}}",
        ),
        "reqps",
        alerts="AuthfleetInternalErrors",
        table=True,
        width=12,
    )
    yield plot(
        "In flight",
        "Requests being answered at the moment of each scrape. Normal: a few. Growing without more traffic: something "
        "behind the replicas is slow.",
        Query("sum by (replica) (authfleet_http_requests_in_flight{@})", "{{replica}}"),
        "short",
        by_replica=True,
        width=12,
    )


def latency():
    yield plot(
        "Session checks",
        "How fast sessions are checked, in all replicas together. The dashed line is the objective that 99 % must "
        "keep.",
        [
            Query(
                f"""histogram_quantile({quantile}, sum by (le) (
                      rate(authfleet_http_request_duration_seconds_bucket{{@, {CHECKS}}}[$__rate_interval])))""",
                name,
            )
            for quantile, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
        ],
        "s",
        steps=[(0.025, RED)],
        alerts="AuthfleetSessionCheckLatencyBurn",
    )
    yield plot(
        "Session checks by replica, p99",
        "The same by replica. Normal: close together. One alone is slow: its CPU, its neighbours, its way to Redis.",
        Query(
            f"""histogram_quantile(0.99, sum by (replica, le) (
                  rate(authfleet_http_request_duration_seconds_bucket{{@, {CHECKS}}}[$__rate_interval])))""",
            "{{replica}}",
        ),
        "s",
        steps=[(0.025, RED)],
        alerts="AuthfleetSessionCheckLatencyBurn",
        by_replica=True,
    )
    yield heat(
        "All requests",
        "How many requests took how long. Two bands are normal: checks in milliseconds, logins at the cost of a "
        "password hash. A band that drifts up is a part that slows down.",
        "authfleet_http_request_duration_seconds",
    )


def sessions():
    yield plot(
        "Sessions alive, over time",
        "Sessions in Redis. It follows the day; a cliff is a mass logout, a wall is a login storm.",
        Query("max(authfleet_sessions_alive{@})", "alive"),
        "short",
        alerts="AuthfleetSessionsDropped",
        width=6,
    )
    yield plot(
        "Sessions made and ended",
        "Sessions made, and ended by somebody, a second. Those that run out are not counted: Redis drops them by "
        "itself. `evicted` are the oldest of users above their limit, `replaced` came with another login.",
        [
            Query("sum(rate(authfleet_sessions_created_total{@}[$__rate_interval]))", "made"),
            Query("sum by (reason) (rate(authfleet_sessions_ended_total{@}[$__rate_interval]))", "{{reason}}"),
        ],
        "ops",
        alerts="AuthfleetSessionsEndedUnusually",
        width=6,
    )
    yield plot(
        "Session checks by result",
        "`valid`, and why the others were not: no cookie, a forged or foreign signature, past its absolute limit, "
        "unknown to Redis (ended or run out), or Redis didn't answer. Only `error` is the fleet's own fault.",
        Query("sum by (result) (rate(authfleet_session_checks_total{@}[$__rate_interval]))", "{{result}}"),
        "ops",
        stack=True,
        colours=CHECK_COLOURS,
        alerts="AuthfleetUnknownSessions AuthfleetForgedCookies",
        width=6,
    )
    yield plot(
        "Accepted from another replica, by replica",
        "For each replica, the share of its valid checks whose session another one made. Normal: all near the dashed "
        "line, 1 - 1/replicas. At 0 for all: the balancer is sticky. At 0 for one: nobody else's sessions reach it.",
        [
            Query(
                """sum by (replica) (rate(authfleet_sessions_accepted_total{@, made_by="other"}[$__rate_interval]))
                   / sum by (replica) (rate(authfleet_sessions_accepted_total{@}[$__rate_interval]))""",
                "{{replica}}",
            ),
            Query("1 - 1 / sum(job:authfleet_replicas_ready:sum{fleet} > 0)", "expected"),
        ],
        "percentunit",
        maximum=1,
        dashed="expected",
        by_replica=True,
        width=6,
    )


def replicas():
    yield plot(
        "CPU",
        "Cores that each replica uses. One of them answers requests, the others hash passwords.",
        Query("sum by (replica) (rate(process_cpu_seconds_total{@}[$__rate_interval]))", "{{replica}}"),
        "short",
        by_replica=True,
        width=6,
    )
    yield plot(
        "Memory",
        "Resident memory of each replica. Each running password hash takes ARGON2_MEMORY (19 MiB) on top.",
        Query("sum by (replica) (process_resident_memory_bytes{@})", "{{replica}}"),
        "bytes",
        by_replica=True,
        width=6,
    )
    yield table(
        "What runs",
        "Version, settings and age of each replica. Normal: one version and one fingerprint, except during a rollout. "
        "Two fingerprints mean that replicas differ in a setting that must be the same everywhere.",
        [
            Query("max by (replica, version) (authfleet_build_info{@})"),
            Query("max by (replica, fingerprint) (authfleet_config_info{@})"),
            Query("max by (replica) (time() - process_start_time_seconds{@})"),
        ],
        {"replica": "Replica", "version": "Version", "fingerprint": "Settings", "Value #C": "Up for"},
        units={"Up for": "s"},
        links={
            "Replica": to_dashboard("In depth", "replica", "&var-replica=${__value.text}"),
        },
        join="replica",
        alerts="AuthfleetConfigDrift AuthfleetVersionDrift",
        width=12,
        height=8,
    )
