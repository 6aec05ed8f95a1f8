"""Whether the objectives are met, and how fast the error budget is used. docs/slo.md explains the recorded series."""

from board import new
from panels import GREEN, ORANGE, RED, YELLOW, Query, plot, stat, table

# The label `slo` → heading, bad events, alert.
OBJECTIVES = {
    "availability": ("Availability", "requests answered with 5xx, except logins", "AuthfleetAvailabilityBurn"),
    "logins": (
        "Logins",
        "logins that failed because of a full queue, a part that was down, or a bug",
        "AuthfleetLoginsBurn",
    ),
    "session_check_latency": (
        "Speed of session checks",
        "session checks slower than 25 ms",
        "AuthfleetSessionCheckLatencyBurn",
    ),
    "login_latency": ("Speed of logins", "logins slower than 1 s", "AuthfleetLoginLatencyBurn"),
}


def dashboard():
    return new(
        "slo",
        "authfleet: objectives",
        "Whether the service level objectives are met, and how fast the error budget is used.",
        {
            "Error budget of 30 days": budgets(),
            "Burn rates": burn_rates(),
            "Events": events(),
        },
        time="now-24h",
        refresh="1m",
        replicas="fleet",
    )


def budgets():
    for slo, (heading, bad, alert) in OBJECTIVES.items():
        yield stat(
            f"{heading}: budget left",
            f"What is left of the error budget of the last 30 days. Bad events: {bad}. 100 %: there were none. 0 %: "
            "there were as many as the objective allows. Below 0 %: the objective was missed. With less than 30 days "
            "of data, it covers the time for which there is data.",
            f'min(job_slo:authfleet_error_budget_left:ratio_rate30d{{fleet, slo="{slo}"}})',
            "percentunit",
            steps=[(0, ORANGE), (0.25, GREEN)],
            base=RED,
            alerts=f"{alert} {alert}Slow",
            decimals=1,
            width=6,
        )
    yield table(
        "Objectives",
        "Each objective, what was reached over 30 days, and how fast its budget is used over several windows. At 1 "
        "the budget lasts exactly 30 days. An alert pages above 14.4 over 5 m and 1 h, or above 6 over 30 m and 6 h.",
        [
            Query("max by (slo) (slo:authfleet_objective:ratio)"),
            Query(
                """1 - max by (slo) (
                     job_slo:authfleet_bad_events:rate30d{fleet} / (job_slo:authfleet_events:rate30d{fleet} > 0))"""
            ),
            Query("max by (slo) (job_slo:authfleet_burn_rate:ratio_rate5m{fleet})"),
            Query("max by (slo) (job_slo:authfleet_burn_rate:ratio_rate1h{fleet})"),
            Query("max by (slo) (job_slo:authfleet_burn_rate:ratio_rate30m{fleet})"),
            Query("max by (slo) (job_slo:authfleet_burn_rate:ratio_rate6h{fleet})"),
            Query("max by (slo) (job_slo:authfleet_burn_rate:ratio_rate3d{fleet})"),
        ],
        {
            "slo": "Objective",
            "Value #A": "Wanted",
            "Value #B": "Reached in 30 d",
            "Value #C": "Burn 5 m",
            "Value #D": "Burn 1 h",
            "Value #E": "Burn 30 m",
            "Value #F": "Burn 6 h",
            "Value #G": "Burn 3 d",
        },
        units={"Wanted": "percentunit", "Reached in 30 d": "percentunit"},
        join="slo",
        width=24,
        height=6,
    )


def burn_rates():
    for slo, (heading, bad, alert) in OBJECTIVES.items():
        yield plot(
            f"{heading}: burn rate",
            f"How fast the budget is used, over several windows. Bad events: {bad}. At 1 the budget lasts exactly 30 "
            "days. An alert pages when 1 h and 5 m are above 14.4 (2 % of the budget in an hour), or 6 h and 30 m "
            "above 6. When 3 d and 6 h are above 1, a ticket is enough. A gap is a time without events.",
            [
                Query(f'max(job_slo:authfleet_burn_rate:ratio_rate{window}{{fleet, slo="{slo}"}})', window)
                for window in ("5m", "30m", "1h", "6h", "3d")
            ],
            "short",
            steps=[(1, YELLOW), (6, ORANGE), (14.4, RED)],
            alerts=f"{alert} {alert}Slow",
            width=12,
        )


def events():
    yield plot(
        "Reached, over an hour",
        "Share of good events in the last hour, by objective.",
        Query(
            """1 - max by (slo) (
                 job_slo:authfleet_bad_events:rate1h{fleet} / (job_slo:authfleet_events:rate1h{fleet} > 0))""",
            "{{slo}}",
        ),
        "percentunit",
        minimum=None,
        maximum=1,
    )
    yield plot(
        "Budget left, over time",
        "The error budget of 30 days, by objective. A step down is an incident; its height is the cost.",
        Query("min by (slo) (job_slo:authfleet_error_budget_left:ratio_rate30d{fleet})", "{{slo}}"),
        "percentunit",
        minimum=None,
        maximum=1,
        steps=[(0, RED)],
    )
    yield plot(
        "Bad events",
        "Bad events per second, by objective. Normal: almost none.",
        Query("sum by (slo) (job_slo:authfleet_bad_events:rate5m{fleet})", "{{slo}}"),
        "ops",
    )
