"""For every alert: series that are well, then bad, then well again. The test makes one file for promtool of them."""

from __future__ import annotations

#: Between samples, in seconds.
STEP = 30
#: How many samples are well, bad, and well again.
WELL, BAD, AGAIN = 40, 80, 80

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


CASES: dict[str, list[tuple]] = {
    "TidegateEnginesGone": [("tidegate_gateway_engines_serving", GATEWAY, gauge(2, 0))],
    "TidegateGatewaysGone": [("up", GATEWAY, gauge(1, 0))],
    "TidegateReplicaMissing": [
        ("up", GATEWAY, gauge(1, 1)),
        ("up", {**GATEWAY, "instance": "g2:9464"}, gauge(1, 0)),
    ],
    "TidegateStreamsRefused": [
        ("tidegate_gateway_streams_closed_total", {**GATEWAY, "reason": "engine-unavailable"}, counter(0, 30)),
        ("tidegate_gateway_streams_closed_total", {**GATEWAY, "reason": "finished"}, counter(50, 50)),
    ],
    "TidegateUpstreamsBreak": [("tidegate_gateway_upstream_breaks_total", GATEWAY, counter(1, 60))],
    "TidegateLogsReset": [
        ("tidegate_gateway_streams_opened_total", {**GATEWAY, "outcome": "reset"}, counter(0, 2)),
        ("tidegate_gateway_streams_opened_total", {**GATEWAY, "outcome": "exact"}, counter(50, 50)),
    ],
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
