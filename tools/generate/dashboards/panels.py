"""The building blocks of the dashboards: queries, links and types of panels."""

from __future__ import annotations

import string
import warnings
from dataclasses import dataclass

# The SDK warns that Grafana's dashboard format v2 is newer. Provisioning and sidecars still take the older format.
warnings.filterwarnings("ignore", category=DeprecationWarning, module="grafana_foundation_sdk")

from grafana_foundation_sdk.builders import common as common_builders  # noqa: E402
from grafana_foundation_sdk.builders import dashboard as builders  # noqa: E402
from grafana_foundation_sdk.builders import heatmap as heatmaps  # noqa: E402
from grafana_foundation_sdk.builders import prometheus as queries  # noqa: E402
from grafana_foundation_sdk.builders import stat as stats  # noqa: E402
from grafana_foundation_sdk.builders import statetimeline as state_timelines  # noqa: E402
from grafana_foundation_sdk.builders import table as tables  # noqa: E402
from grafana_foundation_sdk.builders import timeseries as plots  # noqa: E402
from grafana_foundation_sdk.models import common, dashboard, heatmap  # noqa: E402
from grafana_foundation_sdk.models import prometheus as prometheus_models  # noqa: E402

# Replaces `{@}` and `{@, …}` in a query: the labels that the variables select.
SELECTED = 'job=~"$job", namespace=~"$namespace", replica=~"$replica"'
# Replaces `{fleet}`: the same for series of the whole fleet, which have no label `replica`.
FLEET = 'job=~"$job", namespace=~"$namespace"'

GREEN, YELLOW, ORANGE, RED, BLUE, PURPLE, GREY = "green", "yellow", "orange", "red", "blue", "purple", "#808080"
# Each colour means the same everywhere: green is success, yellow and orange are errors of clients, purple is overload,
# red is a failure of the fleet.
STATUS_COLOURS = {"2xx": GREEN, "3xx": BLUE, "4xx": YELLOW, "499": GREY, "5xx": RED}
CHECK_COLOURS = {
    "valid": GREEN,
    "no_cookie": BLUE,
    "unknown": YELLOW,
    "expired": "light-yellow",
    "bad_signature": ORANGE,
    "error": RED,
}
LOGIN_COLOURS = {
    "success": GREEN,
    "invalid_credentials": YELLOW,
    "throttled": ORANGE,
    "overloaded": PURPLE,
    "unavailable": RED,
    "internal": "dark-red",
}
REGISTRATION_COLOURS = {"conflict": YELLOW, "invalid": "light-yellow", **LOGIN_COLOURS}
DECISION_COLOURS = {"allowed": GREEN, "sign_in": BLUE, "denied": YELLOW, "refused": ORANGE, "unavailable": RED}
SPAN_COLOURS = {"exported": GREEN, "failed": RED, "dropped": ORANGE}


@dataclass(frozen=True)
class Query:
    """PromQL, in which `{@}` and `{fleet}` are placeholders, and the legend of its series."""

    expr: str
    legend: str = ""

    @property
    def full(self) -> str:
        expr = self.expr.replace("{@", "{" + SELECTED).replace("{fleet", "{" + FLEET)
        return " ".join(expr.split())


def datasource() -> common.DataSourceRef:
    return common.DataSourceRef(type_val="prometheus", uid="${datasource}")


def targets(panel, asked: list[Query], *, instant: bool = False, format_: str | None = None) -> None:
    """Adds the queries to a panel. Range queries draw lines. Instant queries show the current value; the last point of
    a range may be minutes old."""
    panel.datasource(datasource())
    for ref, query in zip(string.ascii_uppercase, asked, strict=False):
        target = queries.Dataquery().ref_id(ref).expr(query.full).legend_format(query.legend or "__auto")
        target.editor_mode(prometheus_models.QueryEditorMode.CODE)
        target = target.instant() if instant else target.range()
        if format_:
            target.format(prometheus_models.PromQueryFormat(format_))
        panel.with_target(target)


# --- Links --------------------------------------------------------------------------------------------------------


def link(title: str, url: str, *, new_tab: bool = True) -> builders.DashboardLink:
    return builders.DashboardLink(title).type(dashboard.DashboardLinkType.LINK).url(url).target_blank(new_tab)


def runbook(alert: str) -> builders.DashboardLink:
    """A link to the alert's heading. The anchor is the alert's name in lower case."""
    return link(f"Runbook: {alert}", "${runbook:raw}#" + alert.lower())


def to_dashboard(title: str, name: str, variables: str = "") -> builders.DashboardLink:
    """A link that keeps the time range, the data source and the selection, except for what `variables` sets."""
    query = "${datasource:queryparam}&${job:queryparam}&${namespace:queryparam}"
    return link(title, f"/d/authfleet-{name}?${{__url_time_range}}&{query}{variables}", new_tab=False)


# The link of a line that belongs to one replica.
REPLICA = to_dashboard("${__field.labels.replica} in depth", "replica", "&var-replica=${__field.labels.replica}")


# --- Panels -------------------------------------------------------------------------------------------------------


def thresholds(steps: list[tuple[float, str]], base: str = GREEN) -> builders.ThresholdsConfig:
    """The colour is `base` below the first step, and each step's colour from the step's value on."""
    every = [dashboard.Threshold(None, base), *(dashboard.Threshold(value, colour) for value, colour in steps)]
    return builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(every)


def common_parts(panel, title: str, text: str, unit: str, links: list, width: int, height: int):
    panel.title(title).description(text).unit(unit).span(width).height(height)
    if links:
        panel.links(links)
    return panel


def alert_links(alerts: str) -> list[builders.DashboardLink]:
    return [runbook(alert) for alert in alerts.split()]


def stat(
    title: str,
    text: str,
    expr: str | list[Query],
    unit: str,
    *,
    steps: list[tuple[float, str]] | None = None,
    base: str = GREEN,
    colour: str | None = None,
    alerts: str = "",
    links: list | None = None,
    decimals: float | None = None,
    width: int = 4,
    height: int = 4,
    mappings: dict[str, tuple[str, str]] | None = None,
):
    """One number, the current value. Without steps it is neither good nor bad, and is blue."""
    panel = common_parts(stats.Panel(), title, text, unit, alert_links(alerts) + (links or []), width, height)
    targets(panel, [Query(expr)] if isinstance(expr, str) else expr, instant=True)
    panel.graph_mode(common.BigValueGraphMode.NONE).color_mode(common.BigValueColorMode.VALUE)
    panel.reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
    panel.thresholds(thresholds(steps or [], base if steps else colour or BLUE))
    panel.color_scheme(builders.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))
    # Without events a ratio or quantile is 0/0, which is shown as `none`.
    nothing = dashboard.DashboardSpecialValueMapOptions(
        dashboard.SpecialValueMatch.NA_N, dashboard.ValueMappingResult(text="none", color=GREY)
    )
    panel.mappings([dashboard.SpecialValueMap(nothing), *value_mappings(mappings)])
    panel.no_value("no data")
    if decimals is not None:
        panel.decimals(decimals)
    return panel


def value_mappings(mappings: dict[str, tuple[str, str]] | None) -> list[dashboard.ValueMap]:
    if not mappings:
        return []
    results = {
        value: dashboard.ValueMappingResult(text=text, color=colour, index=index)
        for index, (value, (text, colour)) in enumerate(mappings.items())
    }
    return [dashboard.ValueMap(results)]


def plot(
    title: str,
    text: str,
    asked: Query | list[Query],
    unit: str,
    *,
    stack: bool = False,
    colours: dict[str, str] | None = None,
    steps: list[tuple[float, str]] | None = None,
    alerts: str = "",
    by_replica: bool = False,
    table: bool = False,
    decimals: float | None = None,
    minimum: float | None = 0,
    maximum: float | None = None,
    dashed: str | None = None,
    right: str | None = None,
    logarithmic: bool = False,
    width: int = 8,
    height: int = 8,
):
    """Lines over time. `steps` draws an objective as a dashed line. `dashed` names a series that is a limit or an
    expected value, not a measurement. `right` names a series with its own axis on the right. With `table`, the legend
    shows the last and the highest value of each line."""
    asked = [asked] if isinstance(asked, Query) else asked
    panel = common_parts(plots.Panel(), title, text, unit, alert_links(alerts), width, height)
    targets(panel, asked)
    panel.line_width(1).fill_opacity(25 if stack else 8).show_points(common.VisibilityMode.NEVER)
    # Show gaps in the data.
    panel.span_nulls(False)
    if minimum is not None:
        panel.min(minimum)
    if maximum is not None:
        panel.max(maximum)
    if decimals is not None:
        panel.decimals(decimals)
    if stack:
        panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    if logarithmic:
        log = common_builders.ScaleDistributionConfig().type(common.ScaleDistribution.LOG).log(10)
        panel.scale_distribution(log)
    if steps:
        panel.thresholds(thresholds(steps))
        style = common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        panel.thresholds_style(style)
    panel.color_scheme(builders.FieldColor().mode(dashboard.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
    if by_replica:
        panel.data_links([REPLICA])
    legend = common_builders.VizLegendOptions().show_legend(True)
    if table:
        legend.display_mode(common.LegendDisplayMode.TABLE).placement(common.LegendPlacement.RIGHT)
        legend.calcs(["lastNotNull", "max"]).sort_by("Max").sort_desc(True)
    else:
        legend.display_mode(common.LegendDisplayMode.LIST).placement(common.LegendPlacement.BOTTOM).calcs([])
    panel.legend(legend)
    tooltip = common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI)
    panel.tooltip(tooltip.sort(common.SortOrder.DESCENDING))
    for name, colour in (colours or {}).items():
        panel.override_by_name(name, [dashboard.DynamicConfigValue("color", fixed(colour))])
    if dashed:
        drawn = [
            ("color", fixed(GREY)),
            ("custom.lineStyle", {"dash": [8, 6], "fill": "dash"}),
            ("custom.lineWidth", 2),
            ("custom.fillOpacity", 0),
        ]
        panel.override_by_name(dashed, [dashboard.DynamicConfigValue(id_val, value) for id_val, value in drawn])
    if right:
        drawn = [("custom.axisPlacement", "right"), ("unit", "short"), ("custom.fillOpacity", 0)]
        panel.override_by_name(right, [dashboard.DynamicConfigValue(id_val, value) for id_val, value in drawn])
    return panel


def fixed(colour: str) -> dict[str, str]:
    return {"mode": "fixed", "fixedColor": colour}


def heat(
    title: str, text: str, histogram: str, *, matchers: str = "", alerts: str = "", width: int = 8, height: int = 8
):
    """A heat map: the number of observations in each bucket of a histogram, over time."""
    panel = common_parts(heatmaps.Panel(), title, text, "short", alert_links(alerts), width, height)
    expr = f"sum by (le) (increase({histogram}_bucket{{@}}[$__rate_interval]))"
    targets(panel, [Query(expr, "{{le}}")], format_="heatmap")
    panel.max_data_points(100)
    panel.y_axis(heatmaps.YAxisConfig().unit("s").axis_placement(common.AxisPlacement.LEFT))
    panel.color(
        heatmaps.HeatmapColorOptions()
        .mode(heatmap.HeatmapColorMode.SCHEME)
        .scheme("Oranges")
        .steps(64)
        .scale(heatmap.HeatmapColorScale.EXPONENTIAL)
        .exponent(0.5)
        .fill("dark-orange")
    )
    panel.tooltip(heatmaps.HeatmapTooltip().mode(common.TooltipDisplayMode.SINGLE).y_histogram(True))
    panel.cell_values(heatmaps.CellValues().unit("short"))
    return panel


def states(
    title: str, text: str, asked: list[Query], values: dict[str, tuple[str, str]], *, alerts="", width=12, height=6
):
    """A bar per series, coloured by state over time."""
    panel = common_parts(state_timelines.Panel(), title, text, "none", alert_links(alerts), width, height)
    targets(panel, asked)
    panel.mappings(value_mappings(values)).thresholds(thresholds([]))
    panel.color_scheme(builders.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))
    panel.show_value(common.VisibilityMode.NEVER).line_width(0).fill_opacity(80)
    panel.legend(common_builders.VizLegendOptions().show_legend(True).calcs([]))
    panel.tooltip(common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.SINGLE))
    return panel


def table(
    title: str,
    text: str,
    asked: list[Query],
    columns: dict[str, str],
    *,
    units: dict[str, str] | None = None,
    links: dict[str, builders.DashboardLink] | None = None,
    join: str | None = None,
    alerts: str = "",
    width: int = 12,
    height: int = 6,
):
    """Current values, one row per series. `columns` maps the labels to show (and `Value #A`, …) to headings, in order.
    With `join`, rows of several queries with the same value of that label are merged."""
    panel = common_parts(tables.Panel(), title, text, "none", alert_links(alerts), width, height)
    targets(panel, asked, instant=True, format_="table")
    if len(asked) > 1:
        how = {"byField": join, "mode": "outer"} if join else {}
        panel.with_transformation(
            dashboard.DataTransformerConfig(id_val="joinByField" if join else "merge", options=how)
        )
    organize = {
        "includeByName": dict.fromkeys(columns, True),
        "indexByName": {name: index for index, name in enumerate(columns)},
        "renameByName": columns,
    }
    panel.with_transformation(dashboard.DataTransformerConfig(id_val="organize", options=organize))
    for heading, unit in (units or {}).items():
        panel.override_by_name(heading, [dashboard.DynamicConfigValue("unit", unit)])
    for heading, target in (links or {}).items():
        made = target.build()
        value = [{"title": made.title, "url": made.url, "targetBlank": made.target_blank}]
        panel.override_by_name(heading, [dashboard.DynamicConfigValue("links", value)])
    panel.no_value("none")
    return panel
