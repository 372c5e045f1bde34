"""The image and docker-compose.yml, judged without a container: by the schema, by linters, and by the binaries themselves."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
import unittest

import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEBUG = ROOT / "target" / "debug"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict] = COMPOSE["services"]
#: Those whose image is ours, with their binary.
OURS = {name: service for name, service in SERVICES.items() if "build" in service}


def tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A tool of the environment that runs this test."""
    command = [str(pathlib.Path(sys.executable).parent / name), *arguments]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)


def mounts(service: dict) -> list[tuple[str, str]]:
    return [tuple(volume.split(":")[:2]) for volume in service.get("volumes", [])]


class Compose(unittest.TestCase):
    def test_the_file_keeps_to_the_compose_specification(self) -> None:
        judged = tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")
        self.assertEqual(judged.returncode, 0, judged.stdout + judged.stderr)

    def test_all_parts_are_there_and_engines_and_gateways_twice(self) -> None:
        for name in ["redis", "job-engine", "edge-gateway", "worker", "load-balancer", "prometheus", "grafana"]:
            self.assertIn(name, SERVICES)
        for name in ["job-engine", "edge-gateway"]:
            self.assertEqual(SERVICES[name]["deploy"]["replicas"], 2)

    def test_every_service_is_confined(self) -> None:
        for name, service in SERVICES.items():
            with self.subTest(service=name):
                self.assertTrue(service["read_only"])
                self.assertEqual(service["cap_drop"], ["ALL"])
                self.assertIn("no-new-privileges:true", service["security_opt"])
                limits = service["deploy"]["resources"]["limits"]
                self.assertEqual(set(limits), {"cpus", "memory", "pids"})
                if name == "init":
                    # The only root there is: it hands out secrets, once, without a network.
                    self.assertEqual((service["restart"], service["network_mode"]), ("no", "none"))
                    continue
                self.assertEqual(service["restart"], "unless-stopped")
                self.assertNotIn(service["user"].split(":")[0], ["0", "root"])
                self.assertIn("healthcheck", service)

    def test_nobody_is_let_in_unasked(self) -> None:
        for service in OURS.values():
            self.assertNotIn("--insecure", service["command"])
        for name in ["job-engine", "edge-gateway"]:
            self.assertIn("--config=/etc/tidegate/tidegate.toml", SERVICES[name]["command"])

    def test_nothing_is_published_beyond_this_machine(self) -> None:
        published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
        self.assertEqual(set(published), {"load-balancer", "prometheus", "grafana"})
        for ports in published.values():
            for port in ports:
                self.assertTrue(port.startswith("127.0.0.1:"), port)
        internal = {name for name, network in COMPOSE["networks"].items() if network.get("internal")}
        for name in ["redis", "job-engine", "worker"]:
            self.assertLessEqual(set(SERVICES[name]["networks"]), internal, f"{name} has a way out")
        # Who is asked for no token is reached by Prometheus alone, and by the load balancer's own metrics.
        watching = {name for name, service in SERVICES.items() if "watch" in service.get("networks", [])}
        self.assertEqual(watching, {*OURS, "prometheus", "load-balancer"})

    def test_every_flag_is_one_of_its_binary(self) -> None:
        self.assertGreaterEqual(len(OURS), 3)
        for name, service in OURS.items():
            binary, *flags = service["command"]
            told = subprocess.run([DEBUG / binary, "--help"], text=True, capture_output=True, check=True).stdout
            known = set(re.findall(r"--[a-z][a-z-]+", told))
            for flag in flags:
                with self.subTest(service=name, flag=flag):
                    self.assertIn(flag.split("=")[0], known)

    def test_health_is_asked_where_it_is_served(self) -> None:
        help_text = subprocess.run([DEBUG / "tidegate", "health", "--help"], capture_output=True, check=False)
        self.assertEqual(help_text.returncode, 0)
        for name, service in OURS.items():
            with self.subTest(service=name):
                served = next(f for f in service["command"] if f.startswith("--admin-listen="))
                *command, url = service["healthcheck"]["test"]
                self.assertEqual(command, ["CMD", "tidegate", "health"])
                self.assertEqual(url.split("/")[2].split(":")[1], served.rsplit(":", 1)[1])
                self.assertTrue(url.endswith("/readyz"))

    def test_prometheus_asks_the_ports_that_are_served(self) -> None:
        config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
        found = {sd["names"][0]: sd["port"] for job in config["scrape_configs"] for sd in job.get("dns_sd_configs", [])}
        for name in OURS:
            served = next(f for f in SERVICES[name]["command"] if f.startswith("--admin-listen="))
            self.assertEqual(str(found[name]), served.rsplit(":", 1)[1])
        [worker] = [job for job in config["scrape_configs"] if job["job_name"] == "tidegate-worker"]
        self.assertEqual(worker["authorization"]["credentials_file"], "/run/secrets/admin-token")
        self.assertIn("--admin-token-file=/run/secrets/admin-token", SERVICES["worker"]["command"])

    def test_whatever_is_mounted_exists(self) -> None:
        for name, service in SERVICES.items():
            for source, _ in mounts(service):
                with self.subTest(service=name, source=source):
                    if source.startswith("."):
                        self.assertTrue((ROOT / source).exists())
                    else:
                        self.assertIn(source, COMPOSE["volumes"])

    def test_no_secret_stands_in_a_file_or_in_the_environment(self) -> None:
        for path in [ROOT / "docker-compose.yml", *(ROOT / "deploy").rglob("*.conf"), *(ROOT / "deploy").rglob("*.yml")]:
            text = path.read_text()
            self.assertIsNone(re.search(r"(?im)^\s*requirepass|://[^/\s]*:[^/\s$]+@", text), str(path))
        for name, service in SERVICES.items():
            for variable in service.get("environment", {}):
                if "PASSWORD" in variable:
                    self.assertTrue(variable.endswith("__FILE"), f"{name}: {variable}")

    def test_a_secret_is_mounted_by_its_readers_alone(self) -> None:
        readers: dict[str, set[str]] = {}
        for name, service in SERVICES.items():
            for source, _ in mounts(service):
                readers.setdefault(source, set()).add(name)
        for volume in COMPOSE["volumes"]:
            if volume.endswith("-secrets"):
                # The operator's key is for nobody here.
                self.assertEqual(len(readers[volume] - {"init"}), int(volume != "operator-secrets"), readers[volume])


class Kubernetes(unittest.TestCase):
    """The example, by the schema of the oldest version that it is for, and by the binaries."""

    DOCUMENTS = list(yaml.safe_load_all((ROOT / "deploy/kubernetes/tidegate.yaml").read_text()))

    def test_every_object_keeps_to_the_schema(self) -> None:
        kinds = {document["kind"] for document in self.DOCUMENTS}
        self.assertLessEqual({"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"}, kinds)
        for document in self.DOCUMENTS:
            with self.subTest(kind=document["kind"], name=document["metadata"]["name"]):
                kubernetes_validate.validate(document, "1.30", strict=True)

    def test_every_flag_probe_and_port_is_served(self) -> None:
        deployments = [document for document in self.DOCUMENTS if document["kind"] == "Deployment"]
        self.assertEqual(len(deployments), 3)
        for deployment in deployments:
            pod = deployment["spec"]["template"]["spec"]
            [container] = pod["containers"]
            [binary] = container["command"]
            told = subprocess.run([DEBUG / binary, "--help"], text=True, capture_output=True, check=True).stdout
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            for flag in container["args"]:
                name, _, value = flag.partition("=")
                with self.subTest(deployment=binary, flag=name):
                    self.assertIn(name, told)
                    if name.endswith("listen"):
                        self.assertIn(int(value.rsplit(":", 1)[1]), ports.values())
            self.assertNotIn("--insecure", container["args"])
            volumes = {volume["name"] for volume in pod["volumes"]}
            self.assertEqual({mount["name"] for mount in container["volumeMounts"]}, volumes)
            for probe in ["livenessProbe", "readinessProbe"]:
                self.assertIn(container[probe]["httpGet"]["port"], ports)
            grace = [int(flag.split("=")[1]) for flag in container["args"] if re.match("--(drain|grace)-seconds", flag)]
            self.assertGreater(pod["terminationGracePeriodSeconds"], sum(grace) + 5, "SIGKILL would come too early")

    def test_every_pod_is_confined(self) -> None:
        for document in self.DOCUMENTS:
            if document["kind"] == "Deployment":
                pod = document["spec"]["template"]["spec"]
                self.assertTrue(pod["securityContext"]["runAsNonRoot"])
                self.assertFalse(pod["automountServiceAccountToken"])
                inner = pod["containers"][0]["securityContext"]
                self.assertTrue(inner["readOnlyRootFilesystem"])
                self.assertEqual(inner["capabilities"], {"drop": ["ALL"]})

    def test_the_autoscaler_follows_a_metric_that_exists(self) -> None:
        [scaler] = [document for document in self.DOCUMENTS if document["kind"] == "HorizontalPodAutoscaler"]
        metric = scaler["spec"]["metrics"][0]["pods"]["metric"]["name"]
        self.assertIn(f"| `{metric}` | gauge |", (ROOT / "docs/metrics.md").read_text())


class Files(unittest.TestCase):
    def test_the_dockerfile_is_clean(self) -> None:
        judged = tool("hadolint", "Dockerfile")
        self.assertEqual(judged.returncode, 0, judged.stdout + judged.stderr)

    def test_nothing_that_the_image_is_built_from_is_left_out(self) -> None:
        left_out = set((ROOT / ".dockerignore").read_text().split("\n"))
        members = re.search(r"(?s)members = \[(.*?)\]", (ROOT / "Cargo.toml").read_text())
        assert members
        crates = [member for member in re.findall(r'"([^"]+)"', members[1]) if member != "."]
        self.assertGreaterEqual(len(crates), 4)
        for needed in [*crates, "Cargo.toml", "Cargo.lock", "build.rs", "proto", "docs", "README.md"]:
            self.assertNotIn(needed, left_out)
            self.assertTrue((ROOT / needed).exists())

    def test_the_scripts_are_clean(self) -> None:
        judged = tool("shellcheck", "deploy/init.sh")
        self.assertEqual(judged.returncode, 0, judged.stdout + judged.stderr)

    def test_the_load_balancer_understands_its_configuration(self) -> None:
        judged = subprocess.run(
            ["haproxy", "-c", "-f", "deploy/haproxy.cfg"], cwd=ROOT, text=True, capture_output=True, check=False
        )
        self.assertEqual(judged.returncode, 0, judged.stdout + judged.stderr)


if __name__ == "__main__":
    unittest.main()
