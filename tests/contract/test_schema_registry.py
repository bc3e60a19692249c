"""The registry, in one suite: the client's own model of it, and a server that speaks its HTTP protocol."""

import copy
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from schemas import Codec, NotAvro, Registry, RegistryError, Schema, UnknownSchema, files, open_codec

SUBJECT = "jobs.emails-value"
JOB = {
    "jobId": "1", "jobType": "email.send", "organizationId": "acme", "createdAt": datetime(2026, 5, 17, tzinfo=UTC),
    "priority": 5, "idempotencyKey": None, "orderingKey": None, "maxAttempts": None,
}  # fmt: skip


class Server(ThreadingHTTPServer):
    """A schema registry: subjects with versions, and ids that are the same for the same schema."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.schemas: dict[int, str] = {}
        self.subjects: dict[str, list[int]] = {}
        self.requests: list[str] = []
        self.refuse: int | None = None
        self.read_only = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def id_of(self, text: str) -> int | None:
        return next(
            (known for known, each in self.schemas.items() if json.loads(each) == json.loads(text)), None
        )


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        match urlsplit(self._seen()).path.strip("/").split("/"):
            case ["schemas", "ids", number] if int(number) in self.server.schemas:
                self._answer(200, {"schema": self.server.schemas[int(number)]})
            case ["schemas", "ids", _]:
                self._answer(404, {"error_code": 40403, "message": "Schema not found"})
            case _:
                self._answer(404, {"error_code": 404, "message": "no such resource"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["schema"]
        match [unquote(part) for part in urlsplit(self._seen()).path.strip("/").split("/")]:
            case ["subjects", _, "versions"] if self.server.read_only:
                self._answer(403, {"error_code": 40301, "message": "read only"})
            case ["subjects", subject, "versions"]:
                schema_id = self.server.id_of(text) or len(self.server.schemas) + 1
                self.server.schemas[schema_id] = text
                versions = self.server.subjects.setdefault(subject, [])
                if schema_id not in versions:
                    versions.append(schema_id)
                self._answer(200, {"id": schema_id})
            case ["subjects", subject]:
                found, versions = self.server.id_of(text), self.server.subjects.get(subject, [])
                if found not in versions:
                    self._answer(404, {"error_code": 40403, "message": "Schema not found"})
                else:
                    version = versions.index(found) + 1
                    self._answer(200, {"subject": subject, "id": found, "version": version, "schema": text})

    def _seen(self) -> str:
        self.server.requests.append(f"{self.command} {self.path}")
        return self.path

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        if self.server.refuse is not None:
            status, body = (
                self.server.refuse,
                {"error_code": self.server.refuse, "message": "refused by the test"},
            )
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing; `requests` has it."""


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(params=["model", "server"])
def registry(request: pytest.FixtureRequest) -> Registry:
    if request.param == "model":
        return Registry("mock://registry")
    return Registry(request.getfixturevalue("server").url)


def emails(**payload: Any) -> dict[str, Any]:
    return {**JOB, "payload": {"template": "welcome", "to": ["a@example.org"], "variables": {}, "cc": [],
                               "replyTo": None, "attachments": [], **payload}}  # fmt: skip


def newer() -> Schema:
    schema = copy.deepcopy(files.current("emails"))
    schema["fields"].insert(0, {"name": "mood", "type": "string", "default": "good"})
    return schema


class TestRegistry:
    def test_the_same_schema_has_the_same_id(self, registry: Registry) -> None:
        schema = files.current("emails")
        assert registry.register(SUBJECT, schema) == registry.register(SUBJECT, schema) == 1
        assert registry.register(SUBJECT, newer()) == 2

    def test_a_schema_comes_back_by_id(self, registry: Registry) -> None:
        schema_id = registry.register(SUBJECT, files.current("emails"))
        assert registry.schema(schema_id) == files.current("emails")

    def test_an_id_that_is_not_there(self, registry: Registry) -> None:
        assert registry.schema(404) is None


class TestCodec:
    def test_values_are_in_the_confluent_format(self, registry: Registry) -> None:
        codec = open_codec("emails", registry=registry)
        data = codec.encode(emails())
        assert data[:5] == b"\x00\x00\x00\x00\x01"
        assert codec.decode(data) == emails()

    def test_single_object_encoding_is_still_read(self, registry: Registry) -> None:
        data = open_codec("emails").encode(emails())
        assert data[:2] == b"\xc3\x01"
        assert open_codec("emails", registry=registry).decode(data) == emails()

    def test_a_version_registered_later_is_read_after_a_refresh(self, registry: Registry) -> None:
        codec = open_codec("emails", registry=registry)
        other = open_codec("emails", schema=newer(), registry=registry)
        data = other.encode({**emails(), "mood": "bad"})
        assert data[:5] == b"\x00\x00\x00\x00\x02"
        with pytest.raises(UnknownSchema) as caught:
            codec.decode(data)
        assert caught.value.header == data[:5]
        assert codec.refresh() is True
        assert codec.decode(data) == emails()

    def test_an_id_that_nobody_registered_stays_unknown(self, registry: Registry) -> None:
        codec = open_codec("emails", registry=registry)
        for _ in range(2):
            with pytest.raises(UnknownSchema, match="registry id 77"):
                codec.decode(b"\x00\x00\x00\x00\x4dbody")
            assert codec.refresh() is False

    def test_a_schema_of_another_topic_is_not_read(self, registry: Registry) -> None:
        codec = open_codec("emails", registry=registry)
        data = open_codec("lifecycle", registry=registry).header + b"\x00" * 20
        with pytest.raises(UnknownSchema):
            codec.decode(data)
        codec.refresh()
        with pytest.raises(NotAvro, match=r"written as a streams\.lifecycle\.LifecycleEvent"):
            codec.decode(data)


class TestOverHttp:
    def test_the_subject_is_the_topics_value(self, server: Server) -> None:
        open_codec("emails", registry=Registry(server.url), topic="test.jobs.emails")
        assert list(server.subjects) == ["test.jobs.emails-value"]

    def test_a_registered_schema_needs_no_permission_to_write(self, server: Server) -> None:
        Registry(server.url).register(SUBJECT, files.current("emails"))
        server.read_only = True
        assert (
            open_codec("emails", registry=Registry(server.url)).encode(emails())[:5]
            == b"\x00\x00\x00\x00\x01"
        )
        with pytest.raises(RegistryError, match="read only"):
            Registry(server.url).register(SUBJECT, newer())

    def test_decoding_makes_no_request(self, server: Server) -> None:
        codec = open_codec("emails", registry=Registry(server.url))
        data = codec.encode(emails())
        before = list(server.requests)
        for _ in range(10):
            codec.decode(data)
            with pytest.raises(UnknownSchema):
                codec.decode(b"\x00\x00\x00\x00\x4dbody")
        assert server.requests == before

    def test_a_missing_id_is_asked_for_once_in_five_seconds(self, server: Server) -> None:
        registry, now = Registry(server.url), 0.0
        codec = Codec(
            files.current("emails"),
            lookup=lambda header: registry.schema(int.from_bytes(header[1:], "big")),
            lookup_every=timedelta(seconds=5),
            clock=lambda: now,
        )
        with pytest.raises(UnknownSchema):
            codec.decode(b"\x00\x00\x00\x00\x4dbody")
        asked = []
        for now in (0.0, 1.0, 4.9, 5.0, 6.0):  # noqa: B007 - the clock reads it
            codec.refresh()
            asked.append(sum("ids/77" in request for request in server.requests))
        assert asked == [1, 1, 1, 2, 2]

    def test_a_refusal_is_a_sentence(self, server: Server) -> None:
        server.refuse = 409
        with pytest.raises(
            RegistryError, match=r"refuses the schema of jobs\.emails-value: refused by the test"
        ):
            open_codec("emails", registry=Registry(server.url))

    def test_trouble_is_not_taken_for_a_schema_that_is_not_there(self, server: Server) -> None:
        server.refuse = 403
        with pytest.raises(RegistryError, match="refuses to show schema 7"):
            Registry(server.url).schema(7)

    def test_nobody_there_is_a_sentence_within_the_timeout(self, server: Server) -> None:
        gone = server.url.replace(str(server.server_port), "1")
        started = time.monotonic()
        with pytest.raises(RegistryError, match="did not answer"):
            Registry(gone, timeout=timedelta(seconds=2)).register(SUBJECT, files.current("emails"))
        assert time.monotonic() - started < 5
