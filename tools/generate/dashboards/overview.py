"""The state of the fleet, and where to look further."""

from board import new
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
        "The state of the fleet, and where to look further.",
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
        "Ready replicas, and the replicas that Prometheus knows and that aren't shutting down. Normal: both numbers "
        "are the same. Click a replica below to see which part of it fails.",
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
        "Requests per second, all routes. Compare with the same hour of another day.",
        "sum(rate(authfleet_http_requests_total{@}[$__rate_interval])) or vector(0)",
        "reqps",
        links=[to_dashboard("By route: one replica in depth", "replica")],
        width=3,
    )
    yield stat(
        "Failing requests",
        "Share of requests answered with a 5xx. Normal: 0. The objective allows 0.1 % over 30 days, so even 1 % for "
        "an hour is a lot. 503 is expected while Redis or the users' database is down; 500 never is.",
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
        "99 of 100 session checks (`/profile`, `/auth/verify`) are answered faster than this. Objective: 25 ms. "
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
        "Sessions in Redis now, for the whole fleet (each replica reports the same number). A sudden drop is a mass "
        "logout; a panel below shows the reasons.",
        "max(authfleet_sessions_alive{@})",
        "short",
        alerts="AuthfleetSessionsDropped",
        width=3,
    )
    yield stat(
        "Accepted from another replica",
        "Share of valid session checks whose session another replica had created. With even balancing it is about 1 - "
        "1/replicas, so 67 % for three replicas. 0 % means a sticky balancer or a single replica.",
        """sum(rate(authfleet_sessions_accepted_total{@, made_by="other"}[$__rate_interval]))
           / sum(rate(authfleet_sessions_accepted_total{@}[$__rate_interval]))""",
        "percentunit",
        decimals=0,
        width=4,
    )
    yield stat(
        "Alerts firing",
        "Number of authfleet's alerts that fire now; the table below lists them. Normal: 0.",
        'count(ALERTS{alertname=~"Authfleet.*", alertstate="firing"}) or vector(0)',
        "none",
        steps=[(1, RED)],
        links=[link("Runbook", "${runbook:raw}")],
        width=4,
    )
    yield table(
        "Alerts",
        "Authfleet's alerts that are pending (the condition holds, but not yet for long enough) or firing. Click a "
        "name to open the runbook. Normal: none.",
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
        "Each replica over time: ready, draining (shutting down), not ready, or not scraped by Prometheus. Normal: "
        "all green, with gaps of some seconds during a rollout.",
        [
            Query(
                """max by (replica) (
                     2 * (authfleet_draining{@} == 1) or authfleet_ready{@} and on (instance) up{@} == 1 or up{@} - 1
                   )""",
                "{{replica}}",
            )
        ],
        {"1": ("ready", GREEN), "2": ("draining", BLUE), "0": ("not ready", ORANGE), "-1": ("not scraped", RED)},
        alerts="AuthfleetReplicaNotReady AuthfleetReplicaDown",
        width=12,
    )


def traffic():
    yield plot(
        "Requests by replica",
        "Requests per second that each replica answered. Normal: about the same for all. A replica without requests "
        "is not ready, or nginx considers it failed.",
        Query("sum by (replica) (rate(authfleet_http_requests_total{@}[$__rate_interval]))", "{{replica}}"),
        "reqps",
        stack=True,
        alerts="AuthfleetReplicaIdle",
        by_replica=True,
    )
    yield plot(
        "Requests by kind of answer",
        "All requests by class of status; 499 means that the client left before the answer. 4xx are wrong passwords, "
        "ended sessions and throttling; if they surge, look at logins.",
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
        "Share of 5xx among each replica's requests. Normal: 0. If all replicas fail alike, check Redis or the users' "
        "database. If one fails, check that replica and its connections to them.",
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
        "5xx per second, by route and status. Normal: empty. 503 means that a part is down or the hashing queue is "
        "full; anything else is a bug.",
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
        "Requests in progress at each scrape. Normal: a few. If they grow without more traffic, something that the "
        "replicas depend on is slow.",
        Query("sum by (replica) (authfleet_http_requests_in_flight{@})", "{{replica}}"),
        "short",
        by_replica=True,
        width=12,
    )


def latency():
    yield plot(
        "Session checks",
        "Duration of session checks, over all replicas. The dashed line is the objective for 99 % of them.",
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
        "The same by replica. Normal: close together. If one replica is slow, check its CPU, other load on its "
        "machine, and its connection to Redis.",
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
        "Number of requests by duration. Two bands are normal: checks in milliseconds, and logins at the cost of a "
        "password hash. If a band moves up, a part is getting slower.",
        "authfleet_http_request_duration_seconds",
    )


def sessions():
    yield plot(
        "Sessions alive, over time",
        "Sessions in Redis. The number follows the time of day. A sudden drop is a mass logout, a sudden rise a login "
        "storm.",
        Query("max(authfleet_sessions_alive{@})", "alive"),
        "short",
        alerts="AuthfleetSessionsDropped",
        width=6,
    )
    yield plot(
        "Sessions made and ended",
        "Sessions created, and sessions ended by somebody, per second. Expired sessions are not counted, because "
        "Redis deletes them itself. `evicted`: the user's oldest session above the limit; `replaced`: by a new login.",
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
        "`valid`, and why other checks failed: no cookie, a forged or foreign signature, past the absolute limit, "
        "unknown to Redis (ended or expired), or no answer from Redis. Only `error` is a failure of the fleet.",
        Query("sum by (result) (rate(authfleet_session_checks_total{@}[$__rate_interval]))", "{{result}}"),
        "ops",
        stack=True,
        colours=CHECK_COLOURS,
        alerts="AuthfleetUnknownSessions AuthfleetForgedCookies",
        width=6,
    )
    yield plot(
        "Accepted from another replica, by replica",
        "For each replica, the share of its valid checks whose session another replica had created. Normal: near the "
        "dashed line, 1 - 1/replicas. If all are at 0, the balancer is sticky. If one is at 0, no other replica's "
        "sessions reach it.",
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
        "Cores that each replica uses. One core answers requests, the others hash passwords.",
        Query("sum by (replica) (rate(process_cpu_seconds_total{@}[$__rate_interval]))", "{{replica}}"),
        "short",
        by_replica=True,
        width=6,
    )
    yield plot(
        "Memory",
        "Resident memory of each replica. Each password hash in progress takes another ARGON2_MEMORY (19 MiB).",
        Query("sum by (replica) (process_resident_memory_bytes{@})", "{{replica}}"),
        "bytes",
        by_replica=True,
        width=6,
    )
    yield table(
        "What runs",
        "Version, settings and age of each replica. Normal: one version and one fingerprint, except during a rollout. "
        "Two fingerprints mean that the replicas differ in a setting that must be the same everywhere.",
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
        alerts="AuthfleetConfigDrift AuthfleetAccessRulesDrift AuthfleetVersionDrift",
        width=12,
        height=8,
    )
