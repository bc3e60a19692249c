"""docs/reference/wire-format.md against the code: its example runs, and its tables are complete."""

import copy
import json
import re
import runpy
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import confluent_kafka
import pytest

from schemas import MAX_BYTES, NotAvro, UnknownSchema, files, open_codec
from streams import agents
from streams.delivery import ATTEMPT_CAP, IDENTIFIER, Delivery, envelope, next_headers, read
from streams.errors import InvalidRecord
from streams.jobs import HANDLERS
from streams.offsets import PartitionOffsets
from streams.queues import LIFECYCLE_TOPIC, QUEUES, RETRY_DELAYS, TRACKING_DEAD_LETTER_TOPIC
from streams.settings import Settings

agents.load()
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reference/wire-format.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """Return what stands under a heading, up to the next of its rank or a higher one."""
    head = re.search(rf"^(#+) {re.escape(title)}$", PAGE, re.MULTILINE)
    assert head is not None, f"no section {title}"
    rest = PAGE[head.end() :]
    end = re.search(rf"^#{{1,{len(head[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def rows(title: str, heading: str) -> list[list[str]]:
    """Return the cells of the table whose first column has the heading."""
    table = re.search(rf"^\| {heading} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", section(title), re.MULTILINE)
    assert table is not None, f"no table with {heading} in {title}"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()]


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


class Sent:
    """Stands in for the broker: keeps what the example produces."""

    def __init__(self) -> None:
        self.config: dict[str, Any] = {}
        self.records: list[SimpleNamespace] = []
        self.printed = ""

    def __call__(self, config: dict[str, Any]) -> "Sent":
        self.config = config
        return self

    def produce(
        self, topic: str, *, key: bytes, value: bytes, headers: dict[str, str], on_delivery: Any
    ) -> None:
        self.records.append(
            SimpleNamespace(
                topic=topic, partition=0, offset=0, timestamp=0, key=key, value=value,
                headers=[(name, text.encode()) for name, text in headers.items()],
            )
        )  # fmt: skip
        on_delivery(None, None)

    def flush(self, timeout: float) -> int:
        return 0


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Sent:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    script = tmp_path / "producer.py"
    script.write_text(example)
    sent = Sent()
    monkeypatch.setattr(confluent_kafka, "Producer", sent)
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "broker:9092")
    monkeypatch.setattr("sys.argv", ["producer.py", "globex"])
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(script))
    sent.printed = capsys.readouterr().out.strip()
    return sent


def delivered(record: Any) -> Delivery:
    """Read a record as a worker of the queue `emails` does."""
    return read(QUEUES["emails"], record, PartitionOffsets("jobs.emails", 0), open_codec("emails"))


class TestExample:
    def test_its_record_is_a_job(self, sent: Sent) -> None:
        (record,) = sent.records
        delivery = delivered(record)
        assert delivery.organization_id == "globex"
        assert delivery.handler is HANDLERS["email.send"]
        assert record.key == b"globex"
        assert record.topic == QUEUES["emails"].topic
        assert sent.printed == delivery.job_id

    def test_its_producer_is_set_up_as_the_page_says(self, sent: Sent) -> None:
        assert sent.config == {
            "bootstrap.servers": "broker:9092",
            "partitioner": "murmur2_random",
            "enable.idempotence": True,
            "acks": "all",
        }

    def test_its_template_exists_and_is_filled(self, sent: Sent) -> None:
        from providers.mail import render

        payload = open_codec("emails").decode(sent.records[0].value)["payload"]
        assert "Ada" in render(payload["template"], payload["variables"]).subject

    def test_its_headers_are_documented(self, sent: Sent) -> None:
        documented = {code(row[0])[0]: row[1] for row in rows("Headers", "Header")}
        names = [name for name, _ in sent.records[0].headers]
        assert set(names) <= set(documented)
        assert {name for name, required in documented.items() if required == "yes"} <= set(names)


Change = Callable[[Any], None]


def job(**changes: Any) -> Change:
    """Return a change of the record's body; `payload` only in part."""

    def change(record: Any) -> None:
        codec = open_codec("emails")
        body = codec.decode(record.value)
        payload = {**body["payload"], **changes.get("payload", {})}
        record.value = codec.encode({**body, **changes, "payload": payload})

    return change


def header(name: str, value: bytes | None) -> Change:
    def change(record: Any) -> None:
        record.headers = [each for each in record.headers if each[0] != name]
        if value is not None:
            record.headers.append((name, value))

    return change


def value(of: Callable[[bytes], bytes]) -> Change:
    def change(record: Any) -> None:
        record.value = of(record.value)

    return change


def key(value: bytes | None) -> Change:
    return lambda record: setattr(record, "key", value)


def both(*changes: Change) -> Change:
    def change(record: Any) -> None:
        for each in changes:
            each(record)

    return change


def newer(record: Any) -> None:
    """Write the record as a job type of a version that the reader has only the schema of."""
    schema = copy.deepcopy(files.current("emails"))
    later = {"type": "record", "name": "SendLetter", "jobType": "letter.send", "fields": []}
    schema["fields"][-1]["type"].append(later)
    body = {**open_codec("emails").decode(record.value), "jobType": "letter.send", "payload": {}}
    record.value = open_codec("emails", schema=schema).encode(body)


WRONG: dict[str, tuple[Any, dict[str, Change]]] = {
    "the value starts with": (
        NotAvro,
        {
            "no marker": value(lambda data: b"{}" + data),
            "empty": value(lambda data: b""),
            "cut short": value(lambda data: data[:-3]),
            "bytes left over": value(lambda data: data + b"more"),
            "over 1 MiB": value(lambda data: data + bytes(MAX_BYTES)),
        },
    ),
    "the record in `payload`": (
        NotAvro,
        {"another type": value(lambda data: data.replace(b"\x14email.send", b"\x14email.post"))},
    ),
    "key, header `organization-id`": (
        InvalidRecord,
        {
            "key": key(b"acme"),
            "no key": key(None),
            "header": header("organization-id", b"acme"),
            "no header": header("organization-id", None),
            "body": job(organizationId="acme"),
        },
    ),
    "`ce_id` is not": (
        InvalidRecord,
        {
            "id": header("ce_id", b"other"),
            "no id": header("ce_id", None),
            "type": header("ce_type", b"email.send_bulk"),
            "no type": header("ce_type", None),
        },
    ),
    "`jobId` or `organizationId`": (
        InvalidRecord,
        {
            "job": both(job(jobId="../x"), header("ce_id", b"../x")),
            "organization": both(job(organizationId=""), header("organization-id", b""), key(b"")),
        },
    ),
    "a count or instant": (
        InvalidRecord,
        {name: header(name, b"soon") for name in ("attempt", "snoozes", "not-before")},
    ),
    "`priority`, `maxAttempts` or": (
        InvalidRecord,
        {
            "priority": job(priority=11),
            "attempts": job(maxAttempts=0),
            "key": job(idempotencyKey="k" * 257),
        },
    ),
    "`replay-id` is not": (InvalidRecord, {"replay": header("replay-id", b"once more")}),
    "the headers take more": (InvalidRecord, {"headers": header("x-large", b"x" * 9000)}),
    "`jobType` has no handler": (InvalidRecord, {}),
    "the payload breaks a rule": (InvalidRecord, {"address": job(payload={"to": ["nobody"]})}),
    "the fingerprint or registry id": (
        UnknownSchema,
        {
            "fingerprint": value(lambda data: b"\xc3\x01" + bytes(8) + data[10:]),
            "id": value(lambda data: b"\x00\x00\x00\x00\x07" + data[10:]),
        },
    ),
    "the writer's schema is newer": (UnknownSchema, {"job type": newer}),
    "the registry id is": (NotAvro, {}),
    "`not-before` lies ahead": (None, {"not-before": header("not-before", b"99999999999999")}),
}
"""Start of a row to what reading raises; rows without a case are proved in tests of codec and pipeline."""


class TestWrongRecords:
    def test_every_row_is_here(self) -> None:
        documented = [row[0] for row in rows("What happens to a record that is wrong", "What is wrong")]
        assert [row.startswith(start) for row, start in zip(documented, WRONG, strict=True)] == [True] * len(
            WRONG
        )

    @pytest.mark.parametrize(
        ("error", "change"),
        [
            pytest.param(error, change, id=f"{row}: {name}")
            for row, (error, cases) in WRONG.items()
            for name, change in cases.items()
        ],
    )
    def test_is_refused_as_documented(
        self, sent: Sent, error: type[Exception] | None, change: Change
    ) -> None:
        (record,) = sent.records
        change(record)
        if error is None:
            not_before = delivered(record).not_before
            assert not_before is not None
            assert not_before.year > 5000
        else:
            with pytest.raises(error):
                delivered(record)


@pytest.mark.usefixtures("shipped_handlers")
class TestTables:
    def test_every_topic_schema_and_job_type(self) -> None:
        found = {}
        for topic, schema, types in rows("Topic", "Topic"):
            assert (ROOT / code(schema)[0]).exists()
            names = code(types)
            found[code(topic)[0]] = dict(zip(names[::2], names[1::2], strict=True))
        expected: dict[str, dict[str, str]] = {queue.topic: {} for queue in QUEUES.values()}
        for handler in HANDLERS.values():
            expected[handler.queue.topic][handler.job_type] = handler.payload.__name__
        assert found == expected

    def test_every_field_of_a_job(self) -> None:
        documented = {code(row[0])[0]: row[2] for row in rows("Value", "Field")}
        for queue in QUEUES:
            fields = {field["name"]: field for field in files.current(queue)["fields"]}
            assert list(documented) == list(fields)
            for name, required in documented.items():
                stated = json.dumps(fields[name]["default"]) if "default" in fields[name] else None
                assert required == ("yes" if stated is None else f"default {stated}")

    def test_every_field_of_an_event(self) -> None:
        documented = [name for row in rows("Lifecycle events", "Field") for name in code(row[0])]
        assert set(documented) == {field["name"] for field in files.current(files.LIFECYCLE)["fields"]}

    def test_every_kind_of_event(self) -> None:
        (kinds,) = [row[1] for row in rows("Lifecycle events", "Field") if row[0] == "`kind`"]
        (field,) = [each for each in files.current(files.LIFECYCLE)["fields"] if each["name"] == "kind"]
        assert code(kinds) == field["type"]["symbols"]

    def test_every_header_that_the_pipeline_writes(self, sent: Sent) -> None:
        delivery = delivered(sent.records[0])
        now = datetime(2026, 5, 17, tzinfo=UTC)
        carried = next_headers(delivery, attempt=2, snoozes=0, reason="r", not_before=now, rank=1, copy=True)
        written = {name for name, _ in carried} | set(
            envelope("1", "email.send", "acme", QUEUES["emails"], now)
        )
        assert written <= {code(row[0])[0] for row in rows("Headers", "Header")}

    def test_every_retry_topic(self) -> None:
        assert [name for name in code(section("Retry topics")) if name in RETRY_DELAYS] == list(RETRY_DELAYS)


class TestNumbersAndNames:
    def test_pattern_of_ids(self) -> None:
        assert f"`{IDENTIFIER.pattern}`" in section("Value")

    def test_largest_value(self) -> None:
        assert f"{MAX_BYTES:,} bytes" in section("Value")

    def test_highest_attempt(self) -> None:
        assert f"up to {ATTEMPT_CAP}" in section("Headers")

    def test_wait_for_a_schema(self) -> None:
        limit = Settings.model_fields["unknown_schema_limit"].default
        assert f"after {limit.total_seconds() / 3600:.0f} hours" in section(
            "What happens to a record that is wrong"
        )

    def test_other_topics(self) -> None:
        assert f"`{LIFECYCLE_TOPIC}`" in section("Lifecycle events")
        assert f"`{TRACKING_DEAD_LETTER_TOPIC}`" in section("Lifecycle events")
        assert QUEUES["emails"].dead_letter_topic == "jobs.emails.dlt"

    def test_links_lead_to_headings(self) -> None:
        anchors = {
            re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
            for title in re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
        }
        assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= anchors
