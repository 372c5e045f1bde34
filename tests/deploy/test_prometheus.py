"""Rules and dashboards, judged by a real Prometheus that scrapes a real Tidegate while jobs run."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import pathlib
import re
import subprocess
import tempfile
import unittest
import urllib.parse
import urllib.request

import rule_cases
import yaml
from live import DEADLINE, DEBUG, DEPLOY, ROOT, RULES, Processes, free_port, get, listens, until

DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))


def alerts() -> list[dict]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


class Rules(unittest.TestCase):
    def test_every_alert_fires_and_clears(self) -> None:
        self.assertEqual(set(rule_cases.CASES), {rule["alert"] for rule in alerts()})
        with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
            json.dump(rule_cases.promtool_file(str(RULES)), file)
            file.flush()
            judged = subprocess.run(["promtool", "test", "rules", file.name], text=True, capture_output=True, check=False)
        self.assertEqual(judged.returncode, 0, judged.stdout + judged.stderr)

    def test_every_alert_leads_to_its_section_of_the_guide(self) -> None:
        guide = (ROOT / "docs" / "operations.md").read_text()
        for rule in alerts():
            with self.subTest(alert=rule["alert"]):
                self.assertEqual(rule["annotations"]["runbook"], f"docs/operations.md#{rule['alert'].lower()}")
                self.assertIn(f"\n### {rule['alert']}\n", guide)
        for section in re.findall(r"(?m)^### (Tidegate\w+)$", guide):
            self.assertIn(section, rule_cases.CASES, "the guide speaks of an alert that is none")

    def test_the_configuration_is_sound(self) -> None:
        for command in (["check", "config", "--syntax-only", DEPLOY / "prometheus/prometheus.yml"], ["check", "rules", RULES]):
            judged = subprocess.run(["promtool", *command], text=True, capture_output=True, check=False)
            self.assertEqual(judged.returncode, 0, judged.stdout + judged.stderr)


class Dashboards(unittest.TestCase):
    def test_the_files_are_what_the_generator_writes(self) -> None:
        spec = importlib.util.spec_from_file_location("generate", DEPLOY / "grafana" / "generate.py")
        assert spec and spec.loader
        generate = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(generate)
        self.assertEqual({file.name: file.read_text() for file in DASHBOARDS}, generate.rendered())

    def test_every_panel_says_what_it_shows_and_heeds_the_variables(self) -> None:
        self.assertEqual({file.stem for file in DASHBOARDS}, {"overview", "streams", "jobs", "log"})
        for file in DASHBOARDS:
            board = json.loads(file.read_text())
            names = {variable["name"] for variable in board["templating"]["list"]}
            self.assertEqual(names, {"datasource", "job", "instance"})
            taken: set[tuple[int, int]] = set()
            for panel in board["panels"]:
                with self.subTest(dashboard=file.stem, panel=panel["title"]):
                    self.assertTrue(panel["title"] and panel["description"])
                    self.assertTrue(panel["fieldConfig"]["defaults"]["unit"])
                    place = panel["gridPos"]
                    area = {
                        (x, y)
                        for x in range(place["x"], place["x"] + place["w"])
                        for y in range(place["y"], place["y"] + place["h"])
                    }
                    self.assertFalse(area & taken, "panels overlap")
                    taken |= area
                    for target in panel["targets"]:
                        self.assertIn('job=~"$job", instance=~"$instance"', target["expr"])
                        self.assertNotRegex(target["expr"], r"\[\d+[smh]\]", "a fixed range")


class Live(unittest.TestCase):
    """One run for all: a stack, jobs that end in every way, and Prometheus beside it."""

    @classmethod
    def setUpClass(cls) -> None:
        cls.stack = contextlib.ExitStack()
        cls.addClassCleanup(cls.stack.close)
        scratch = pathlib.Path(cls.stack.enter_context(tempfile.TemporaryDirectory(prefix="tidegate-prometheus-")))
        start = Processes(scratch, cls.stack).start
        redis, grpc, http, engine, gateway, worker, cls.prometheus = (free_port() for _ in range(7))
        cls.admin = {
            "tidegate-engine": f"127.0.0.1:{engine}",
            "tidegate-gateway": f"127.0.0.1:{gateway}",
            "tidegate-worker": f"127.0.0.1:{worker}",
        }
        cls.api = f"http://127.0.0.1:{http}"
        (scratch / "data").mkdir()
        start("redis", "redis-server", "--port", redis, "--save", "", "--bind", "127.0.0.1", "--dir", scratch)
        until("Redis listens", lambda: listens(redis))
        start(
            "engine",
            DEBUG / "job-engine",
            f"--grpc-listen=127.0.0.1:{grpc}",
            f"--admin-listen=127.0.0.1:{engine}",
            f"--redis=redis://127.0.0.1:{redis}",
        )
        start(
            "gateway",
            DEBUG / "edge-gateway",
            f"--listen=127.0.0.1:{http}",
            f"--admin-listen=127.0.0.1:{gateway}",
            f"--engine=http://127.0.0.1:{grpc}",
        )
        start(
            "worker",
            DEBUG / "tidegate-worker",
            f"--engine=http://127.0.0.1:{grpc}",
            f"--admin-listen=127.0.0.1:{worker}",
            f"--data-dir={scratch / 'data'}",
        )
        start(
            "prometheus",
            "prometheus",
            f"--config.file={cls.config(scratch)}",
            f"--storage.tsdb.path={scratch / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{cls.prometheus}",
        )
        until("Prometheus is ready", lambda: get(f"http://127.0.0.1:{cls.prometheus}/-/ready"))
        until("the kinds are on offer", lambda: '"demo"' in get(f"{cls.api}/api/kinds"))

    @classmethod
    def config(cls, scratch: pathlib.Path) -> pathlib.Path:
        """The configuration as it is deployed, except that it scrapes more often, and the processes of this test."""
        config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(RULES)]
        config["scrape_configs"] = [
            {"job_name": job["job_name"], "static_configs": [{"targets": [cls.admin[job["job_name"]]]}]}
            for job in config["scrape_configs"]
            if job["job_name"] in cls.admin
        ]
        path = scratch / "prometheus.yml"
        path.write_text(yaml.safe_dump(config))
        return path

    def submit(self, **input: object) -> str:
        body = json.dumps({"kind": "demo", "input": {"steps": 2, "seconds": 0.2, **input}}).encode()
        request = urllib.request.Request(f"{self.api}/api/jobs", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)["jobId"]

    def watch(self, job: str) -> str:
        """The whole stream of a job, to its end."""
        request = urllib.request.Request(f"{self.api}/api/progress/{job}", headers={"accept": "text/event-stream"})
        with urllib.request.urlopen(request, timeout=DEADLINE) as stream:
            return stream.read().decode()

    def query(self, expr: str) -> list:
        url = f"http://127.0.0.1:{self.prometheus}/api/v1/query?{urllib.parse.urlencode({'query': expr})}"
        answer = json.loads(get(url))
        self.assertEqual(answer["status"], "success", expr)
        return answer["data"]["result"]

    def test_what_is_shown_and_recorded_exists(self) -> None:
        for job, admin in self.admin.items():
            text = get(f"http://{admin}/metrics")
            judged = subprocess.run(["promtool", "check", "metrics"], input=text, text=True, capture_output=True, check=False)
            self.assertEqual(judged.returncode, 0, f"{job}: {judged.stdout}{judged.stderr}")
        # A rate needs two scrapes of a series: jobs end in every way, again and again, until all queries have their data.
        queries = {
            f"{file.stem}: {panel['title']}": target["expr"]
            for file in DASHBOARDS
            for panel in json.loads(file.read_text())["panels"]
            for target in panel["targets"]
        }
        self.assertGreater(len(queries), 40)
        recorded = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"] if "record" in rule]
        queries |= {f"recorded: {rule['record']}": rule["record"] for rule in recorded}
        missing = dict(queries)

        def all_have_data() -> bool:
            for job in [self.submit(), self.submit(failAt=1), self.submit(failAt=1, retryable=True)]:
                self.assertIn("event: ", self.watch(job))
            for name, expr in list(missing.items()):
                made = expr.replace("$job", ".+").replace("$instance", ".+").replace("$__rate_interval", "30s")
                if self.query(made):
                    del missing[name]
            return not missing

        try:
            until("every query returns a series", all_have_data)
        except AssertionError:
            self.fail(f"these queries return nothing: {missing}")
        # All is well, but for the replicas that this test does not have.
        firing = {alert["metric"]["alertname"] for alert in self.query('ALERTS{alertstate="firing"}')}
        self.assertLessEqual(firing, {"TidegateReplicaMissing"})


if __name__ == "__main__":
    unittest.main()
