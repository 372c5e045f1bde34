"""For every alert: series that are well, then bad, then well again. The test makes one file for promtool of them."""

from __future__ import annotations

#: Between samples, in seconds.
STEP = 30
#: How many samples are well, bad, and well again.
WELL, BAD, AGAIN = 40, 80, 80

ENGINE = {"job": "tidegate-engine", "instance": "e1:9465"}
GATEWAY = {"job": "tidegate-gateway", "instance": "g1:9464"}


def gauge(well: float, bad: float) -> list[float]:
    return [well] * WELL + [bad] * BAD + [well] * AGAIN


def counter(well: float, bad: float) -> list[float]:
    """Grows by `well` and `bad` a step."""
    values, now = [], 0.0
    for grows in gauge(well, bad):
        now += grows
        values.append(now)
    return values


def histogram(name: str, labels: dict[str, str], quick: str, slow: str) -> list[tuple]:
    """Ten samples a step; when it is bad, all of them lie between `quick` and `slow`."""
    return [
        (name + "_bucket", {**labels, "le": quick}, counter(10, 0)),
        (name + "_bucket", {**labels, "le": slow}, counter(10, 10)),
        (name + "_bucket", {**labels, "le": "+Inf"}, counter(10, 10)),
    ]


CASES: dict[str, list[tuple]] = {
    "TidegateEnginesGone": [("up", ENGINE, gauge(1, 0))],
    "TidegateGatewaysGone": [("up", GATEWAY, gauge(1, 0))],
    "TidegateReplicaMissing": [
        ("up", ENGINE, gauge(1, 1)),
        ("up", {**ENGINE, "instance": "e2:9465"}, gauge(1, 0)),
    ],
    "TidegateNoWorkers": [("tidegate_engine_workers", ENGINE, gauge(3, 0))],
    "TidegateDeliverySlow": histogram("tidegate_gateway_delivery_lag_seconds", GATEWAY, "0.1", "2.5"),
    "TidegateStreamsRefused": [
        ("tidegate_gateway_problems_total", {**GATEWAY, "problem": "temporary-reduced-capacity"}, counter(0, 30)),
        ("tidegate_gateway_streams_closed_total", {**GATEWAY, "reason": "engine-unavailable"}, counter(0, 0)),
        ("tidegate_gateway_streams_closed_total", {**GATEWAY, "reason": "finished"}, counter(50, 50)),
    ],
    "TidegateUpstreamsBreak": [("tidegate_gateway_upstream_breaks_total", GATEWAY, counter(1, 60))],
    "TidegateLogsReset": [
        ("tidegate_gateway_streams_opened_total", {**GATEWAY, "outcome": "reset"}, counter(0, 2)),
        ("tidegate_gateway_streams_opened_total", {**GATEWAY, "outcome": "exact"}, counter(50, 50)),
    ],
    "TidegateCredentialsRefused": [
        ("tidegate_gateway_problems_total", {**GATEWAY, "problem": "unauthenticated"}, counter(0, 60)),
        ("tidegate_gateway_problems_total", {**GATEWAY, "problem": "job-not-found"}, counter(60, 60)),
    ],
    "TidegateSlowViewers": [("tidegate_gateway_slow_viewers_total", GATEWAY, counter(1, 600))],
    "TidegateJobsWait": histogram("tidegate_engine_queue_wait_seconds", {**ENGINE, "kind": "demo"}, "1", "300"),
    "TidegateWorkersFull": [
        ("tidegate_engine_worker_slots", ENGINE, gauge(8, 8)),
        ("tidegate_engine_worker_slots_used", ENGINE, gauge(2, 8)),
    ],
    "TidegateJobsFail": [
        ("tidegate_engine_jobs_finished_total", {**ENGINE, "kind": "demo", "outcome": "failed"}, counter(0, 9)),
        ("tidegate_engine_jobs_finished_total", {**ENGINE, "kind": "demo", "outcome": "completed"}, counter(9, 1)),
    ],
    "TidegateLeasesExpire": [("tidegate_engine_leases_expired_total", ENGINE, counter(0, 1))],
    "TidegateSchedulesMissed": [
        ("tidegate_engine_schedule_firings_total", {**ENGINE, "outcome": "missed"}, counter(0, 1)),
        ("tidegate_engine_schedule_firings_total", {**ENGINE, "outcome": "fired"}, counter(9, 9)),
        ("tidegate_engine_schedule_firings_total", {**ENGINE, "outcome": "refused"}, counter(9, 9)),
    ],
    "TidegateFencedWrites": [
        ("tidegate_engine_reports_total", {**ENGINE, "result": "lease_lost"}, counter(0, 5)),
        ("tidegate_engine_reports_total", {**ENGINE, "result": "ok"}, counter(50, 50)),
    ],
    "TidegateLogFails": [
        ("tidegate_engine_log_errors_total", {**ENGINE, "call": "commit", "store": "redis"}, counter(0, 10)),
    ],
    "TidegateLogSlow": histogram(
        "tidegate_engine_log_call_seconds", {**ENGINE, "call": "commit", "store": "redis"}, "0.005", "1"
    ),
    "TidegateHintsLost": [("tidegate_engine_hints_lost_total", ENGINE, counter(0, 1))],
    "TidegateFilesRunOut": [
        ("process_open_fds", GATEWAY, gauge(1000, 19000)),
        ("process_max_fds", GATEWAY, gauge(20000, 20000)),
    ],
    "TidegateBusy": [("tidegate_runtime_queue", ENGINE, gauge(0, 500))],
}


def promtool_file(rules: str) -> dict:
    """What `promtool test rules` runs."""
    text = {True: lambda v: str(int(v)), False: str}
    tests = []
    for alert, series in CASES.items():
        firing = f'count(ALERTS{{alertname="{alert}", alertstate="firing"}})'

        def at(sample: int, fires: bool, firing: str = firing) -> dict:
            expected = [{"labels": "{}", "value": 1}] if fires else []
            return {"expr": firing, "eval_time": f"{sample * STEP}s", "exp_samples": expected}

        tests.append(
            {
                "name": alert,
                "interval": f"{STEP}s",
                "input_series": [
                    {
                        "series": name + "{" + ", ".join(f'{k}="{v}"' for k, v in labels.items()) + "}",
                        "values": " ".join(text[float(v).is_integer()](v) for v in values),
                    }
                    for name, labels, values in series
                ],
                "promql_expr_test": [
                    at(WELL - 1, False),
                    at(WELL + BAD - 1, True),
                    at(WELL + BAD + AGAIN - 1, False),
                ],
            }
        )
    return {"rule_files": [rules], "evaluation_interval": f"{STEP}s", "tests": tests}
