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


def of(metric, matchers=""):
    return f"{metric}{{{M}, {matchers}}}" if matchers else f"{metric}{{{M}}}"


def summed(by):
    return f"sum by ({by})" if by else "sum"


def rate(metric, by="", matchers=""):
    """The per-second rate of a counter, summed."""
    return f"{summed(by)} (rate({of(metric, matchers)}{RATE}))"


def total(metric, by="", matchers=""):
    return f"{summed(by)} ({of(metric, matchers)})"


def each(sums, metric, label):
    """A line for each value of the label; `sums` is `rate` or `total`."""
    return [(sums(metric, label), f"{{{{{label}}}}}")]


def quantile(q, metric, by="", matchers=""):
    """A quantile of a histogram, over all replicas."""
    return f"histogram_quantile({q}, {rate(f'{metric}_bucket', f'le, {by}' if by else 'le', matchers)})"


def quantiles(metric, by="", matchers=""):
    legend = f" {{{{{by}}}}}" if by else ""
    return [(quantile(q, metric, by, matchers), f"p{int(q * 100)}{legend}") for q in (0.5, 0.99)]


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
                variable("job", "Job", "label_values(tidegate_build_info, job)"),
                variable("instance", "Instance", 'label_values(tidegate_build_info{job=~"$job"}, instance)'),
            ]
        },
    }


G, E, W = "tidegate_gateway_", "tidegate_engine_", "tidegate_worker_"

DASHBOARDS = {
    "overview": (
        "Overview",
        "Whether viewers see their jobs, and jobs get done.",
        [
            stat(
                "Gateways",
                "Gateways that Prometheus reaches.",
                f'count(tidegate_build_info{{{M}, part="gateway"}})',
                "short",
                2,
                1,
                True,
            ),
            stat(
                "Engines",
                "Engines that Prometheus reaches.",
                f'count(tidegate_build_info{{{M}, part="engine"}})',
                "short",
                2,
                1,
                True,
            ),
            stat("Workers", "Workers connected to engines.", total(E + "workers"), "short", 2, 1, True),
            stat("Open streams", "Viewers that are connected now.", total(G + "streams")),
            stat(
                "Delivery lag p99",
                "From an event's time to a viewer's connection.",
                quantile(0.99, G + "delivery_lag_seconds"),
                "s",
                0.5,
                1,
            ),
            stat(
                "Slots in use",
                "Share of the workers' slots that run jobs.",
                f"{total(E + 'worker_slots_used')} / {total(E + 'worker_slots')}",
                "percentunit",
                0.8,
                0.95,
            ),
            graph("Jobs that ended", "By outcome, per second.", each(rate, E + "jobs_finished_total", "outcome"), "ops"),
            graph(
                "Queue wait", "From being queued to being given to a worker.", quantiles(E + "queue_wait_seconds"), "s", 30, 60
            ),
            graph("Open streams", "By gateway.", each(total, G + "streams", "instance")),
            graph(
                "Delivery lag",
                "From an event's time to a viewer's connection.",
                quantiles(G + "delivery_lag_seconds"),
                "s",
                0.5,
                1,
            ),
            graph(
                "Commits",
                "How long the event log takes to accept a change.",
                quantiles(E + "log_call_seconds", matchers='call="commit"'),
                "s",
                0.1,
                0.25,
            ),
            graph(
                "What went wrong",
                "Errors of the log, expired leases, breaks of upstreams, per second.",
                [
                    (rate(E + "log_errors_total"), "log errors"),
                    (rate(E + "leases_expired_total"), "expired leases"),
                    (rate(G + "upstream_breaks_total"), "broken upstreams"),
                ],
                "ops",
            ),
            graph(
                "CPU", "Cores in use, by process.", [(f"rate(process_cpu_seconds_total{{{M}}}{RATE})", "{{instance}}")], "short"
            ),
            graph("Memory", "Resident memory, by process.", [(f"process_resident_memory_bytes{{{M}}}", "{{instance}}")], "bytes"),
        ],
    ),
    "streams": (
        "Streams",
        "The edge: who watches, how fast it reaches them, and why streams end.",
        [
            graph("Open streams", "By gateway.", each(total, G + "streams", "instance")),
            graph(
                "Open streams by protocol",
                "Over HTTP/1.1 a browser has six connections to a host, all tabs together; over h2 streams share one.",
                each(total, G + "streams", "protocol"),
            ),
            graph(
                "Delivery lag",
                "From an event's time to a viewer's connection, by one viewer in 64.",
                quantiles(G + "delivery_lag_seconds"),
                "s",
                0.5,
                1,
            ),
            graph(
                "Opened",
                "By what became of the cursor; trimmed and reset streams begin with a gap.",
                each(rate, G + "streams_opened_total", "outcome"),
                "ops",
            ),
            graph("Closed", "By reason.", each(rate, G + "streams_closed_total", "reason"), "ops"),
            graph(
                "Refused",
                "Requests by the problem that was told; unauthenticated: nobody knows the credential.",
                each(rate, G + "problems_total", "problem"),
                "ops",
            ),
            graph(
                "Limits reached",
                "Requests, streams and connections refused, by limit.",
                each(rate, G + "refused_total", "policy"),
                "ops",
            ),
            graph("Time to open", "How long opening a stream takes.", quantiles(G + "open_seconds"), "s", 0.5, 1),
            graph("Lifetime", "How long streams lasted.", quantiles(G + "stream_seconds"), "s"),
            graph(
                "Events",
                "Handed to viewers, per second, by gateway.",
                each(rate, G + "events_total", "instance"),
                "ops",
            ),
            graph(
                "Bytes",
                "Handed to viewers, per second, by gateway.",
                each(rate, G + "bytes_total", "instance"),
                "Bps",
            ),
            graph("Upstreams", "Logs that gateways follow at engines.", each(total, G + "upstreams", "instance")),
            graph(
                "Sharing",
                "Logs opened, and requests that joined one that was open, per second.",
                [
                    (rate(G + "upstreams_opened_total"), "opened"),
                    (rate(G + "upstreams_shared_total"), "shared"),
                ],
                "ops",
            ),
            graph(
                "Engines",
                "Engines that each gateway knows, and those of them that say that they serve.",
                [
                    (total(G + "engines_known", "instance"), "{{instance}}: known"),
                    (total(G + "engines_serving", "instance"), "{{instance}}: serving"),
                ],
            ),
            graph(
                "Breaks",
                "Upstreams that broke and were resumed, per second; viewers see nothing of it.",
                each(rate, G + "upstream_breaks_total", "instance"),
                "ops",
                1,
            ),
            graph(
                "Behind",
                "Viewers that fell behind, and pages of history read, per second.",
                [
                    (rate(G + "slow_viewers_total"), "slow viewers"),
                    (rate(G + "history_reads_total"), "pages"),
                ],
                "ops",
            ),
            graph("Rings", "Bytes of events kept for all viewers.", each(total, G + "ring_bytes", "instance"), "bytes"),
            graph(
                "Open files",
                "Share of the open files that the system allows.",
                [(f"process_open_fds{{{M}}} / process_max_fds{{{M}}}", "{{instance}}")],
                "percentunit",
                0.6,
                0.8,
            ),
        ],
    ),
    "jobs": (
        "Jobs and workers",
        "What is submitted, how long it waits and runs, and who runs it.",
        [
            graph("Submitted", "By kind, per second.", each(rate, E + "jobs_submitted_total", "kind"), "ops"),
            graph(
                "Ended",
                "By kind and outcome, per second.",
                [(rate(E + "jobs_finished_total", "kind, outcome"), "{{kind}} {{outcome}}")],
                "ops",
            ),
            graph("Queue wait", "By kind.", quantiles(E + "queue_wait_seconds", "kind"), "s", 30, 60),
            graph(
                "Run time", "From the first attempt's start to the end, by kind.", quantiles(E + "job_run_seconds", "kind"), "s"
            ),
            graph("Jobs", "In the whole log, by state.", [(f"max by (state) (tidegate_engine_jobs{{{M}}})", "{{state}}")]),
            graph(
                "Slots",
                "What the workers can run at once, and what they run.",
                [
                    (total(E + "worker_slots"), "slots"),
                    (total(E + "worker_slots_used"), "in use"),
                ],
            ),
            graph("Workers", "Connected, by engine.", each(total, E + "workers", "instance")),
            graph("Workers by kind", "Connected workers that offer a kind.", each(total, E + "kind_workers", "kind")),
            graph(
                "Attempts and retries",
                "Per second.",
                [(rate(E + "attempts_total"), "attempts"), (rate(E + "retries_total"), "retries")],
                "ops",
            ),
            graph(
                "Schedules",
                "In the whole log, those that are not paused.",
                [(f"max (tidegate_engine_schedules{{{M}}})", "schedules")],
            ),
            graph(
                "Firings of schedules",
                "Per second, by what became of them; missed: too late to be made up for, or refused.",
                each(rate, E + "schedule_firings_total", "outcome"),
                "ops",
            ),
            graph(
                "Leases that expired",
                "Workers that gave no sign of life, per second.",
                each(rate, E + "leases_expired_total", "instance"),
                "ops",
                0.01,
            ),
            graph(
                "Reports",
                "By what the worker was told; lease_lost: refused, because the job is no longer its own.",
                each(rate, E + "reports_total", "result"),
                "ops",
            ),
            graph(
                "Running, as workers see it",
                "Jobs that run, and what could, by worker; of workers that Prometheus scrapes.",
                [
                    (total(W + "jobs", "instance"), "{{instance}}: running"),
                    (total(W + "slots", "instance"), "{{instance}}: slots"),
                ],
            ),
            graph(
                "Attempts that ended, as workers see it",
                "By outcome, per second; released: given back, lost: with their lease.",
                each(rate, W + "jobs_ended_total", "outcome"),
                "ops",
            ),
            graph(
                "Workers' connections",
                "Engines that welcomed a worker again, and tries that failed, per second.",
                [
                    (rate(W + "reconnects_total", "instance"), "{{instance}}: reconnects"),
                    (rate(W + "connect_failures_total", "instance"), "{{instance}}: failures"),
                ],
                "ops",
                0.1,
            ),
            graph("Checkpoints", "Sizes.", quantiles(E + "checkpoint_bytes"), "bytes"),
        ],
    ),
    "log": (
        "Redis and log",
        "The event log: how fast it answers, what is written, and who follows.",
        [
            graph(
                "Commits",
                "How long a commit takes, by store.",
                quantiles(E + "log_call_seconds", "store", 'call="commit"'),
                "s",
                0.1,
                0.25,
            ),
            graph(
                "Other calls p99",
                "By call.",
                [(quantile(0.99, E + "log_call_seconds", "call", 'call!="commit"'), "{{call}}")],
                "s",
                0.1,
                0.25,
            ),
            graph("Calls", "Per second, by call.", each(rate, E + "log_call_seconds_count", "call"), "ops"),
            graph("Errors", "Calls that failed, per second.", each(rate, E + "log_errors_total", "call"), "ops", 0.01),
            graph(
                "Conflicts",
                "Commits that somebody else was faster than, per second.",
                each(rate, E + "log_conflicts_total", "instance"),
                "ops",
            ),
            graph("Events", "Stored per second, by type.", each(rate, E + "events_total", "event"), "ops"),
            graph("Bytes", "Of events stored per second.", each(rate, E + "event_bytes_total", "instance"), "Bps"),
            graph("Jobs kept", "Until their retention ends.", [(f'max (tidegate_engine_jobs{{{M}, state="kept"}})', "kept")]),
            graph("Followed logs", "By engine.", each(total, E + "watches", "instance")),
            graph(
                "Follower lag",
                "From an event's time to its being sent to a gateway.",
                quantiles(E + "watch_lag_seconds"),
                "s",
                0.5,
                1,
            ),
            graph(
                "Lost hints",
                "Reconnects of the subscription, and overruns; followers then look by themselves.",
                each(rate, E + "hints_lost_total", "instance"),
                "ops",
                0.01,
            ),
            graph(
                "Reconnects",
                "Connections to Redis that were made again: by engines, and by gateways that share limits.",
                [
                    (rate(E + "log_reconnects_total", "instance"), "{{instance}}: log"),
                    (rate(G + "limit_redis_reconnects_total", "instance"), "{{instance}}: limits"),
                ],
                "ops",
                0.01,
            ),
            graph(
                "Log generation",
                "A step up: Redis was restarted, replaced or emptied, and may have lost something.",
                each(total, E + "log_generation", "instance"),
            ),
            graph(
                "Runtime",
                "Tasks that wait for a thread: more than a few for long means too little CPU.",
                each(total, "tidegate_runtime_queue", "instance"),
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
