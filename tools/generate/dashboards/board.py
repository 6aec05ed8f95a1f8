"""Builds a dashboard from its panels: variables, annotations, links, and the text of its file."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import prometheus as queries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard
from panels import BLUE, GREY, RED, Query, datasource, link

TAG = "authfleet"
# The runbook's default address. It is a hidden variable, so a URL can change it: ?var-runbook=https://…
RUNBOOK = "http://localhost:9090/consoles/runbook.html"


def fleet_variables(replicas: str) -> list:
    """The variables at the top of a dashboard: data source, job, namespace, replica, and the hidden `runbook`."""
    everything = dashboard.VariableOption(selected=True, text="All", value="$__all")

    def labels(name: str, label: str, query: str, text: str):
        variable = (
            builders.QueryVariable(name)
            .label(label)
            .description(text)
            .query({"query": query, "refId": f"Variable-{name}"})
        )
        variable.datasource(datasource()).refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        return variable.sort(dashboard.VariableSort.NATURAL_ASC)

    source = builders.DatasourceVariable("datasource").label("Data source").type("prometheus")
    job = labels("job", "Job", "label_values(authfleet_build_info, job)", "The name of the scrape job in Prometheus.")
    namespace = labels(
        "namespace",
        "Namespace",
        'label_values(authfleet_build_info{job=~"$job"}, namespace)',
        "The Kubernetes namespace. Elsewhere there is none, and All selects everything.",
    )
    replica = labels(
        "replica",
        "Replica",
        'label_values(authfleet_build_info{job=~"$job", namespace=~"$namespace"}, replica)',
        "The replica's name, as in X-Served-By, logs and sessions.",
    )
    # All selects only the jobs in the list, because other jobs of Prometheus have `up` and `process_…` too. For the
    # other variables All is `.*`, which also matches series without the label (`namespace` outside Kubernetes).
    job.include_all(True).current(everything)
    namespace.include_all(True).all_value(".*").current(everything)
    if replicas != "one":
        replica.include_all(True).all_value(".*").current(everything).multi(True)
    if replicas == "fleet":
        # Only the annotation Starts needs it.
        replica.hide(dashboard.VariableHide.HIDE_VARIABLE)
    where = builders.TextBoxVariable("runbook").label("Runbook").default_value(RUNBOOK)
    where.hide(dashboard.VariableHide.HIDE_VARIABLE).description("The address of the runbook, without an anchor.")
    where.current(dashboard.VariableOption(text=RUNBOOK, value=RUNBOOK))
    where.options([dashboard.VariableOption(selected=True, text=RUNBOOK, value=RUNBOOK)])
    return [source, job, namespace, replica, where]


def annotation(name: str, query: str, colour: str, title: str, text: str, tags: str, *, value_is_time: bool = False):
    target = queries.Dataquery().ref_id("Anno").expr(Query(query).full).datasource(datasource()).range()
    made = builders.AnnotationQuery().name(name).datasource(datasource()).enable(True).icon_color(colour)
    made.target(target).title_format(title).text_format(text).tag_keys(tags)
    return made.use_value_for_time(value_is_time)


def annotations() -> list:
    return [
        annotation(
            "Deploys",
            """count by (version) (authfleet_build_info{fleet})
               unless count by (version) (authfleet_build_info{fleet} offset $__interval)""",
            BLUE,
            "Version {{version}} appears",
            "Prometheus scraped the first replica with this version.",
            "version",
        ),
        annotation(
            "Starts",
            # The value is the start time in milliseconds, and Grafana draws the mark at that time.
            "max by (replica) (process_start_time_seconds{@}) * 1000 > $__from",
            GREY,
            "{{replica}} starts",
            "A new process of this replica: a deploy, a restart, or a crash.",
            "replica",
            value_is_time=True,
        ),
        annotation(
            "Alerts",
            'max by (alertname, severity) (ALERTS{alertname=~"Authfleet.*", alertstate="firing"})',
            RED,
            "{{alertname}} fires",
            "Severity {{severity}}. The runbook says what to do.",
            "alertname,severity",
        ),
    ]


def new(
    name: str,
    title: str,
    text: str,
    rows: dict[str, Iterable],
    *,
    time: str = "now-1h",
    refresh: str = "30s",
    replicas: str = "several",
) -> builders.Dashboard:
    """A dashboard. `replicas` says what can be selected: `several` replicas, `one`, or only the whole `fleet`."""
    made = builders.Dashboard(title).uid(f"authfleet-{name}").description(text).tags([TAG]).editable()
    made.time(time, "now").refresh(refresh).timezone("browser").tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
    made.variables(fleet_variables(replicas)).annotations(annotations())
    others = builders.DashboardLink("authfleet").type(dashboard.DashboardLinkType.DASHBOARDS).tags([TAG])
    made.link(others.include_vars(True).keep_time(True))
    made.link(link("Runbook", "${runbook:raw}").icon("doc"))
    for heading, panels in rows.items():
        made.with_row(builders.Row(heading))
        for panel in panels:
            made.with_panel(panel)
    return made


def finished(made: builders.Dashboard) -> str:
    """The text of the file. Ids are in order and keys sorted, so that a change to one panel changes few lines."""
    built = made.build()
    for number, panel in enumerate(built.panels, 1):
        panel.id_val = number
    for part in links_and_annotations(built):
        # The SDK's default puts links into a menu, where they are hard to find.
        part.placement = None
    return json.dumps(json.loads(JSONEncoder().encode(built)), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def links_and_annotations(built: dashboard.Dashboard) -> Iterator:
    panels = [panel for panel in built.panels if isinstance(panel, dashboard.Panel)]
    yield from itertools.chain(built.links, built.annotations.list_val)
    yield from itertools.chain.from_iterable(panel.links or [] for panel in panels)
    yield from itertools.chain.from_iterable(panel.field_config.defaults.links or [] for panel in panels)
