"""The API document against a real `tidegate`: it is valid, and every answer is one that it describes.

Judged by OpenAPI's own schemas and a JSON Schema validator that know nothing of Tidegate.
"""

import json
import unittest
import urllib.error
import urllib.request

import jsonschema
from openapi_spec_validator import validate
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from server import Server

MISSING = "01890a5d-ac96-774b-bcce-b302099a8057"


class Document:
    """The document, and whether a value is what one of its schemas says."""

    def __init__(self, document: dict):
        self.document = document
        resource = Resource.from_contents(document, default_specification=DRAFT202012)
        self.registry = Registry().with_resource("urn:api", resource)

    def check(self, schema: dict, value) -> None:
        schema = json.loads(json.dumps(schema).replace('"#/components', '"urn:api#/components'))
        jsonschema.Draft202012Validator(schema, registry=self.registry).validate(value)
        # A validator passes over fields that nobody described: those are what is forgotten here.
        unknown = self.undescribed(schema, value)
        assert not unknown, f"{unknown} in {value} are not described"

    def resolve(self, schema: dict) -> dict:
        while "$ref" in schema:
            found = self.document
            for part in schema["$ref"].partition("#/")[2].split("/"):
                found = found[part]
            schema = found
        return schema

    def properties(self, schema: dict) -> dict:
        schema = self.resolve(schema)
        own = dict(schema.get("properties", {}))
        for part in schema.get("allOf", []):
            own |= self.properties(part)
        return own

    def undescribed(self, schema: dict, value) -> list[str]:
        schema, properties = self.resolve(schema), self.properties(schema)
        if isinstance(value, list) and "items" in schema:
            return [name for item in value for name in self.undescribed(schema["items"], item)]
        if not isinstance(value, dict) or not properties:
            return []
        found = [name for name in value if name not in properties]
        return found + [n for name in value if name in properties for n in self.undescribed(properties[name], value[name])]

    def answer(self, path: str, method: str, status: int, media: str) -> dict:
        """What the document says of an answer."""
        responses = self.document["paths"][path][method]["responses"]
        response = responses.get(str(status)) or responses.get(f"{status // 100}XX")
        assert response is not None, f"{method} {path} answers {status}, which the document does not know"
        if not media:
            return {}
        assert media in response.get("content", {}), f"{method} {path} answers {status} with {media}"
        return response["content"][media]


class Answers(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(Server())
        with urllib.request.urlopen(f"http://{cls.server.http}/openapi.json", timeout=30) as response:
            assert response.headers.get_content_type() == "application/json"
            cls.text = response.read()
        cls.api = Document(json.loads(cls.text))
        cls.called = set()

    def send(self, method: str, path: str, body=None, query="", accept="application/json", **parts):
        """Calls an operation; the answer must be one that is described."""
        url = f"http://{self.server.http}{path.format(**parts)}{query}"
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, method=method.upper(), data=data, headers={"Accept": accept})
        request.add_header("Content-Type", "application/json")
        try:
            response = urllib.request.urlopen(request, timeout=60)
        except urllib.error.HTTPError as refusal:
            response = refusal
        with response:
            content = response.read()
        media = response.headers.get_content_type() if content else ""
        described = self.api.answer(path, method, response.status, media)
        self.called.add((path, method))
        if media == "text/event-stream":
            return response.status, self.events(described["itemSchema"], content.decode())
        value = json.loads(content) if content else None
        if content:
            self.api.check(described["schema"], value)
        return response.status, value

    def events(self, schema: dict, text: str) -> list[dict]:
        """The stream's events, each checked with the data inside."""
        events = []
        for frame in text.split("\n\n"):
            fields = dict(line.split(": ", 1) for line in frame.splitlines() if not line.startswith(":"))
            fields.pop("retry", None)
            if "event" not in fields:
                continue
            self.api.check(schema, fields)
            described = [one["properties"] for one in self.api.resolve(schema)["oneOf"]]
            [one] = [one for one in described if fields["event"] in one["event"].get("enum", [])] or [
                one for one in described if "enum" not in one["event"]
            ]
            self.api.check(one["data"]["contentSchema"], json.loads(fields["data"]))
            events.append(fields)
        return events

    def submit(self, **demo) -> str:
        status, job = self.send("post", "/api/jobs", {"kind": "demo", "input": demo})
        self.assertEqual(status, 201)
        return job["jobId"]

    def test_1_the_document_is_valid_openapi_3_2(self):
        self.assertTrue(self.api.document["openapi"].startswith("3.2"))
        validate(self.api.document)

    def test_2_a_job_from_its_submission_to_its_deletion(self):
        job = self.submit(steps=3, seconds=1)
        status, events = self.send("get", "/api/progress/{jobId}", jobId=job, accept="text/event-stream")
        self.assertEqual(status, 200)
        names = {event["event"] for event in events}
        self.assertTrue({"connected", "state", "progress", "log", "complete"} <= names, names)
        last = events[-1]["id"]
        seen = self.send("get", "/api/progress/{jobId}", query=f"?lastEventId={last}", jobId=job, accept="text/event-stream")
        self.assertEqual(seen, (204, None))
        self.assertEqual(self.send("get", "/api/progress/{jobId}", jobId=job)[1]["status"], "COMPLETED")
        self.assertEqual(self.send("get", "/api/jobs/{jobId}", jobId=job)[1]["status"], "COMPLETED")
        self.assertEqual(self.send("post", "/api/jobs/{jobId}/cancel", jobId=job)[0], 409)
        self.assertEqual(self.send("delete", "/api/jobs/{jobId}", jobId=job), (204, None))
        self.assertEqual(self.send("get", "/api/jobs/{jobId}", jobId=job)[0], 404)

    def test_3_a_job_that_is_cancelled_and_retried(self):
        job = self.submit(steps=100, seconds=100)
        status, answer = self.send("post", "/api/jobs/{jobId}/cancel", {"reason": "enough"}, jobId=job)
        self.assertEqual(status, 202, answer)
        _, events = self.send("get", "/api/progress/{jobId}", jobId=job, accept="text/event-stream")
        self.assertEqual(events[-1]["event"], "cancelled")
        self.assertIn("cancelled", self.send("get", "/api/jobs/{jobId}", jobId=job)[1])
        self.assertEqual(self.send("post", "/api/jobs/{jobId}/retry", jobId=job)[0], 202)
        self.assertEqual(self.send("post", "/api/jobs/{jobId}/cancel", {}, jobId=job)[0], 202)

    def test_4_lists_kinds_tickets_and_sessions(self):
        job = self.submit(steps=1, seconds=0)
        self.assertTrue(self.send("get", "/api/jobs", query="?limit=1")[1]["next"])
        self.assertIn("demo", [kind["kind"] for kind in self.send("get", "/api/kinds")[1]["kinds"]])
        for order in ({"jobId": job}, {"jobIds": [job, MISSING]}):
            self.assertEqual(self.send("post", "/api/tickets", order)[0], 201)
        self.assertEqual(self.send("get", "/api/session")[1]["subject"], "anonymous")
        self.assertEqual(self.send("post", "/api/session")[0], 200)
        self.assertEqual(self.send("delete", "/api/session")[0], 204)

    def test_4_schedules_are_put_shown_listed_and_deleted(self):
        path = "/api/schedules/{name}"
        wanted = {"kind": "demo", "cron": "@daily", "timeZone": "Europe/Berlin", "options": {"maxAttempts": 2, "timeoutSeconds": 9.5}}
        wanted["options"]["concurrency"] = {"key": "k", "limit": 1}
        self.assertEqual(self.send("put", path, wanted, name="s")[0], 201)
        self.assertEqual(self.send("put", path, wanted, name="s")[0], 200)
        schedule = self.send("get", path, name="s")[1]
        self.assertLessEqual(wanted.keys(), schedule.keys())
        self.assertEqual(self.send("get", "/api/schedules")[1], {"schedules": [schedule]})
        self.assertEqual(self.send("put", path, {"kind": "demo", "cron": "0 0 31 2 *"}, name="s")[0], 400)
        self.assertEqual(self.send("delete", path, name="s"), (204, None))
        self.assertEqual(self.send("get", path, name="s")[1]["type"], "/problems/schedule-not-found")

    def test_5_jobs_that_share_a_connection_which_is_listed_and_closed(self):
        jobs = [self.submit(steps=steps, seconds=1) for steps in (1, 2)]
        query = "?" + "&".join(f"job={job}" for job in jobs)
        _, events = self.send("get", "/api/progress", query=query + f"&job={MISSING}", accept="text/event-stream")
        data = [json.loads(event["data"]) for event in events]
        self.assertEqual([one["jobId"] for one, event in zip(data, events) if event["event"] == "goodbye"], [MISSING])
        self.assertEqual({one["jobId"] for one, event in zip(data, events) if event["event"] == "complete"}, set(jobs))
        seen = self.send("get", "/api/progress", query=f"{query}&lastEventId={events[-1]['id'].removesuffix('~')}", accept="text/event-stream")
        self.assertEqual(seen, (204, None))
        self.assertEqual(self.send("get", "/api/progress", query=f"?job={MISSING}", accept="text/event-stream")[0], 404)
        job = self.submit(steps=100, seconds=100)
        address = f"http://{self.server.http}/api/progress?job={job}"
        with urllib.request.urlopen(address, timeout=60) as stream:
            while not stream.readline().startswith(b"event: connected"):
                pass
            streams = self.send("get", "/api/stats")[1]["streams"]
            [name] = [one["streamId"] for one in streams if one["jobIds"] == [job]]
            self.assertEqual(self.send("delete", "/api/streams/{streamId}", streamId=name), (204, None))
            last = stream.read().decode().strip().split("\n\n")[-1]
        described = self.api.answer("/api/progress", "get", 200, "text/event-stream")["itemSchema"]
        self.assertIn('"closed"', self.events(described, last)[0]["data"])
        self.assertEqual(self.send("delete", "/api/streams/{streamId}", streamId=name)[0], 404)
        self.assertEqual(self.send("post", "/api/jobs/{jobId}/cancel", {}, jobId=job)[0], 202)

    def test_6_refusals(self):
        for status, problem, arguments in [
            (400, "malformed-json", ("post", "/api/jobs", b"{")),
            (400, "invalid-argument", ("post", "/api/jobs", {"kind": "demo", "more": 1})),
            (400, "unknown-kind", ("post", "/api/jobs", {"kind": "nobody"})),
            (400, "invalid-argument", ("get", "/api/jobs", None, "?limit=x")),
            (413, "body-too-large", ("post", "/api/jobs", b" " * 600_000)),
        ]:
            with self.subTest(problem):
                answer = self.send(*arguments)
                self.assertEqual((answer[0], answer[1]["type"]), (status, f"/problems/{problem}"))
        for method, path in [("get", ""), ("delete", ""), ("post", "/cancel"), ("post", "/retry")]:
            for job, expected in [(MISSING, "job-not-found"), ("x", "malformed-job-id")]:
                answer = self.send(method, "/api/jobs/{jobId}" + path, jobId=job)
                self.assertEqual(answer[1]["type"], f"/problems/{expected}")
        answer = self.send("get", "/api/progress/{jobId}", jobId=MISSING, accept="text/html")
        self.assertEqual(answer[1]["type"], "/problems/not-acceptable")

    def test_7_every_type_of_problem_has_its_page(self):
        schema = self.api.document["components"]["schemas"]["Problem"]
        types = schema["properties"]["type"]["enum"]
        self.assertGreater(len(types), 20)
        for address in types:
            slug = address.rpartition("/")[2].rpartition("#")[2]
            with urllib.request.urlopen(f"http://{self.server.http}/problems/{slug}", timeout=30) as page:
                self.assertEqual(page.headers.get_content_type(), "text/html")
                self.assertIn(f"<h1>{slug}</h1>", page.read().decode())

    def test_8_every_operation_was_called(self):
        described = {(path, method) for path, item in self.api.document["paths"].items() for method in item}
        self.assertEqual(described - self.called, set())


if __name__ == "__main__":
    unittest.main()
