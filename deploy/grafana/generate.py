"""Writes the dashboards below dashboards/: a panel is a line here and forty lines there.

Run it after a change; a test compares. Every query carries the variables job and instance, and a test runs each against a
real Prometheus that scrapes a real Tidegate.
"""

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).parent / "dashboards"
SOURCE = {"type": "prometheus", "uid": "$datasource"}
#: The matchers of every query.
M = 'job=~"$job", instance=~"$instance"'
RATE = "[$__rate_interval]"


def rate(metric, by="", matchers=""):
    """The per-second rate of a counter, summed."""
    of = f"{M}, {matchers}" if matchers else M
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{of}}}{RATE}))"


def quantile(q, metric, by="", matchers=""):
    """A quantile of a histogram, over all replicas."""
    of = f"{M}, {matchers}" if matchers else M
    return f"histogram_quantile({q}, sum by (le{f', {by}' if by else ''}) (rate({metric}_bucket{{{of}}}{RATE})))"


def quantiles(metric, by="", matchers=""):
    legend = f" {{{{{by}}}}}" if by else ""
    return [(quantile(q, metric, by, matchers), f"p{int(q * 100)}{legend}") for q in (0.5, 0.99)]


def total(metric, by="", matchers=""):
    of = f"{M}, {matchers}" if matchers else M
    return f"sum{f' by ({by})' if by else ''} ({metric}{{{of}}})"


def stat(title, description, expr, unit="short", warn=None, bad=None, falling=False):
    """One number. It turns yellow at `warn` and red at `bad`; `falling`: when it falls below them."""
    return {
        "type": "stat",
        "title": title,
        "description": description,
        "targets": [(expr, "")],
        "unit": unit,
        "thresholds": (warn, bad, falling),
        "width": 4,
        "height": 4,
    }


def graph(title, description, targets, unit="short", warn=None, bad=None, width=12):
    """Lines over time; `targets` are pairs of query and legend."""
    return {
        "type": "timeseries",
        "title": title,
        "description": description,
        "targets": targets,
        "unit": unit,
        "thresholds": (warn, bad, False),
        "width": width,
        "height": 8,
    }


def steps(warn, bad, falling):
    if falling:
        return [
            {"color": "red", "value": None},
            {"color": "yellow", "value": bad},
            {"color": "green", "value": warn},
        ]
    known = [{"color": "green", "value": None}]
    known += [{"color": "yellow", "value": warn}] if warn is not None else []
    known += [{"color": "red", "value": bad}] if bad is not None else []
    return known


def panel(number, spec, x, y):
    warn, bad, falling = spec["thresholds"]
    defaults = {
        "unit": spec["unit"],
        "min": 0,
        "thresholds": {"mode": "absolute", "steps": steps(warn, bad, falling)},
    }
    if spec["type"] == "stat":
        options = {
            "colorMode": "value",
            "graphMode": "area",
            "justifyMode": "auto",
            "textMode": "auto",
            "orientation": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        }
    else:
        shown = "line" if warn is not None or bad is not None else "off"
        defaults["custom"] = {"lineWidth": 1, "fillOpacity": 10, "showPoints": "never", "thresholdsStyle": {"mode": shown}}
        options = {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    return {
        "id": number,
        "type": spec["type"],
        "title": spec["title"],
        "description": spec["description"],
        "datasource": SOURCE,
        "gridPos": {"h": spec["height"], "w": spec["width"], "x": x, "y": y},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": expr, "legendFormat": legend or "__auto"}
            for i, (expr, legend) in enumerate(spec["targets"])
        ],
    }


def variable(name, label, query):
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [],
        "regex": "",
        "hide": 0,
        "skipUrlSync": False,
    }


def dashboard(uid, title, description, specs):
    panels, x, y, row = [], 0, 0, 0
    for spec in specs:
        if x + spec["width"] > 24:
            x, y, row = 0, y + row, 0
        panels.append(panel(len(panels) + 1, spec, x, y))
        x, row = x + spec["width"], max(row, spec["height"])
    return {
        "uid": f"tidegate-{uid}",
        "title": f"Tidegate / {title}",
        "description": description,
        "tags": ["tidegate"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "timezone": "browser",
        "time": {"from": "now-1h", "to": "now"},
        "annotations": {"list": []},
        "panels": panels,
        "links": [
            {
                "title": "Tidegate",
                "type": "dashboards",
                "tags": ["tidegate"],
                "asDropdown": False,
                "includeVars": True,
                "keepTime": True,
                "targetBlank": False,
                "icon": "external link",
                "tooltip": "",
                "url": "",
            }
        ],
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Data source",
                    "type": "datasource",
                    "query": "prometheus",
                    "hide": 0,
                    "current": {"selected": True, "text": "Prometheus", "value": "prometheus"},
                    "includeAll": False,
                    "multi": False,
                    "options": [],
                    "refresh": 1,
                    "regex": "",
                    "skipUrlSync": False,
                },
                variable("job", "Job", "label_values(tidegate_gateway_streams, job)"),
                variable("instance", "Instance", 'label_values(tidegate_gateway_streams{job=~"$job"}, instance)'),
            ]
        },
    }


G = "tidegate_gateway_"

DASHBOARDS = {
    "streams": (
        "Streams",
        "The edge: who watches, how fast it reaches them, and why streams end.",
        [
            graph("Open streams", "By gateway.", [(total(G + "streams", "instance"), "{{instance}}")]),
            graph(
                "Upstreams",
                "Logs that gateways follow at engines.",
                [(total(G + "upstreams", "instance"), "{{instance}}")],
            ),
            graph(
                "Opened",
                "By what became of the cursor; trimmed and reset streams begin with a gap.",
                [(rate(G + "streams_opened_total", "outcome"), "{{outcome}}")],
                "ops",
            ),
            graph("Closed", "By reason.", [(rate(G + "streams_closed_total", "reason"), "{{reason}}")], "ops"),
            graph(
                "Events",
                "Handed to viewers, per second, by gateway.",
                [(rate(G + "events_total", "instance"), "{{instance}}")],
                "ops",
            ),
            graph(
                "Bytes",
                "Handed to viewers, per second, by gateway.",
                [(rate(G + "bytes_total", "instance"), "{{instance}}")],
                "Bps",
            ),
            graph(
                "Breaks",
                "Upstreams that broke and were resumed, per second; viewers see nothing of it.",
                [(rate(G + "upstream_breaks_total", "instance"), "{{instance}}")],
                "ops",
                1,
            ),
            graph(
                "Engines",
                "Engines that each gateway knows, and those of them that say that they serve.",
                [
                    (total(G + "engines_known", "instance"), "{{instance}}: known"),
                    (total(G + "engines_serving", "instance"), "{{instance}}: serving"),
                ],
            ),
        ],
    ),
}


def rendered():
    """The files by name."""
    return {f"{uid}.json": json.dumps(dashboard(uid, *parts), indent=1) + "\n" for uid, parts in DASHBOARDS.items()}


def main():
    HERE.mkdir(exist_ok=True)
    for name, text in rendered().items():
        (HERE / name).write_text(text)


if __name__ == "__main__":
    sys.exit(main())
