"""From tables of panels to Grafana's JSON (schema 39, Grafana 10.4 and later)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Kind = Literal["timeseries", "stat", "table", "bargauge"]

PROMETHEUS: Final = {"type": "prometheus", "uid": "${datasource}"}
POSTGRES: Final = {"type": "grafana-postgresql-datasource", "uid": "${database}"}
# As the provisioned data sources are called.
PROMETHEUS_UID: Final = "fleetpulse-prometheus"
POSTGRES_UID: Final = "fleetpulse-postgres"
_COLUMNS: Final = 24
_SCHEMA_VERSION: Final = 39


@dataclass(frozen=True, slots=True)
class Query:
    """One query: PromQL with a legend, or SQL."""

    text: str
    legend: str = ""
    is_sql: bool = False
    as_table: bool = False
    """The newest values, a row each."""


def prom(text: str, legend: str = "") -> Query:
    """Series of Prometheus."""
    return Query(text, legend)


def prom_table(text: str) -> Query:
    """The newest values of Prometheus, a row each."""
    return Query(text, as_table=True)


def sql(text: str) -> Query:
    """Series of the database: a column ``time`` and numbers, or one number and a column ``metric`` that names it.

    A text column of another name would be a label, and the series be called after number and label both.
    """
    return Query(text.strip(), is_sql=True)


def sql_table(text: str) -> Query:
    """Rows of the database."""
    return Query(text.strip(), is_sql=True, as_table=True)


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. ``unit`` is Grafana's own name; ``warn`` and ``bad`` are where colours change."""

    title: str
    description: str
    unit: str
    queries: Sequence[Query]
    kind: Kind = "timeseries"
    width: int = 8
    height: int = 8
    warn: float | None = None
    bad: float | None = None
    most: float | None = None
    """Upper end of the axis."""
    stacked: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice at the top of the page, read from the database or from Prometheus."""

    name: str
    label: str
    query: str
    is_sql: bool = True
    several: bool = False


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A page. ``name`` is its file's; uid and address follow from it."""

    name: str
    title: str
    description: str
    rows: Sequence[Row]
    variables: Sequence[Variable] = field(default=())
    from_time: str = "now-1h"

    def model(self) -> dict[str, Any]:
        """As Grafana wants it."""
        return {
            "uid": f"fleetpulse-{self.name}",
            "title": self.title,
            "description": self.description,
            "tags": ["fleetpulse"],
            "schemaVersion": _SCHEMA_VERSION,
            "version": 1,
            "editable": False,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": self.from_time, "to": "now"},
            "timezone": "browser",
            "links": [_links()],
            "templating": {"list": [*_data_sources(), *map(_variable, self.variables)]},
            "panels": _laid_out(self.rows),
        }


def _links() -> dict[str, Any]:
    return {
        "type": "dashboards",
        "title": "fleetpulse",
        "tags": ["fleetpulse"],
        "asDropdown": True,
        "keepTime": True,
        "includeVars": True,
    }


def _data_sources() -> list[dict[str, Any]]:
    chosen = (
        ("datasource", "Metrics", "prometheus", PROMETHEUS_UID, "Prometheus"),
        ("database", "Database", POSTGRES["type"], POSTGRES_UID, "PostgreSQL"),
    )
    return [
        {
            "type": "datasource",
            "name": name,
            "label": label,
            "query": kind,
            "current": {"selected": True, "text": text, "value": uid},
        }
        for name, label, kind, uid, text in chosen
    ]


def _variable(variable: Variable) -> dict[str, Any]:
    asked: Any = variable.query if variable.is_sql else {"query": variable.query, "refId": variable.name}
    return {
        "type": "query",
        "name": variable.name,
        "label": variable.label,
        "datasource": POSTGRES if variable.is_sql else PROMETHEUS,
        "query": asked,
        "definition": variable.query,
        # On a change of the time range, too.
        "refresh": 2,
        "sort": 1,
        "multi": variable.several,
        "includeAll": variable.several,
        **({"allValue": ".+", "current": {"text": "All", "value": "$__all"}} if variable.several else {}),
    }


def _laid_out(rows: Sequence[Row]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    y = 0
    for row in rows:
        made.append(
            {
                "id": len(made) + 1,
                "type": "row",
                "title": row.title,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": y, "w": _COLUMNS, "h": 1},
            }
        )
        y, x, tallest = y + 1, 0, 0
        for panel in row.panels:
            if x + panel.width > _COLUMNS:
                y, x, tallest = y + tallest, 0, 0
            place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
            made.append({"id": len(made) + 1, "gridPos": place, **_panel(panel)})
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
    return made


def _panel(panel: Panel) -> dict[str, Any]:
    is_sql = panel.queries[0].is_sql
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": POSTGRES if is_sql else PROMETHEUS,
        # The finest rollup is a minute; Prometheus is asked as finely as it scrapes.
        "interval": "1m" if is_sql else "15s",
        "targets": [_target(place, query) for place, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel),
        **({"transformations": [_WITHOUT_TIME]} if panel.kind == "table" and not is_sql else {}),
    }


_WITHOUT_TIME: Final[Mapping[str, Any]] = {
    "id": "organize",
    "options": {"excludeByName": {"Time": True, "__name__": True}},
}


def _target(place: int, query: Query) -> dict[str, Any]:
    reference = {"refId": chr(ord("A") + place), "editorMode": "code"}
    if query.is_sql:
        shape = "table" if query.as_table else "time_series"
        return {**reference, "datasource": POSTGRES, "format": shape, "rawQuery": True, "rawSql": query.text}
    if query.as_table:
        shown = {"format": "table", "instant": True, "range": False}
    else:
        shown = {"legendFormat": query.legend, "instant": False, "range": True}
    return {**reference, "datasource": PROMETHEUS, "expr": query.text, **shown}


def _defaults(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    steps += [
        {"color": color, "value": value}
        for color, value in (("orange", panel.warn), ("red", panel.bad))
        if value is not None
    ]
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "thresholds": {"mode": "absolute", "steps": steps},
        "color": {"mode": "palette-classic" if panel.kind == "timeseries" else "thresholds"},
    }
    if panel.kind == "timeseries":
        defaults |= {"min": 0} if panel.unit != "celsius" else {}
        defaults["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 20 if panel.stacked else 5,
            "showPoints": "never",
            # A gap is a gap: what was not measured is not drawn.
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none"},
            "thresholdsStyle": {"mode": "line" if len(steps) > 1 else "off"},
        }
    if panel.most is not None:
        defaults["max"] = panel.most
    return defaults


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "timeseries":
        return {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    if panel.kind == "table":
        return {"showHeader": True, "cellHeight": "sm"}
    reduced = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    return {"reduceOptions": reduced, "colorMode": "value", "graphMode": "area", "textMode": "auto"}
