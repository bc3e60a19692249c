"""A made-up topic for the tests of the codec: its schema, jobs of it, and how another producer writes them."""

import copy
import json
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

from fastavro import parse_schema, schemaless_writer
from hypothesis import strategies as st

from schemas import Schema
from schemas.canonical import fingerprint


def field(name: str, kind: Any, **more: Any) -> Schema:
    return {"name": name, "type": kind, **more}


ADDRESS = {"type": "record", "name": "Address", "fields": [field("name", "string"), field("mail", "string")]}
SEND = {
    "type": "record",
    "name": "Send",
    "jobType": "mail.send",
    "fields": [
        field("to", {"type": "array", "items": ADDRESS}),
        field("variables", {"type": "map", "values": "string"}, default={}),
        field("replyTo", ["null", "Address"], default=None),
        field("urgency", {"type": "enum", "name": "Urgency", "symbols": ["low", "high"]}, default="low"),
        field("raw", "bytes", default=""),
        field("sendAt", ["null", {"type": "long", "logicalType": "timestamp-micros"}], default=None),
        field("day", ["null", {"type": "int", "logicalType": "date"}], default=None),
        field("weight", "double", default=1.0),
        field("size", "long", default=0),
        field("test", "boolean", default=False),
    ],
}
COUNT = {"type": "record", "name": "Count", "jobType": "mail.count", "fields": [field("since", "long")]}
PING = {"type": "record", "name": "Ping", "jobType": "mail.ping", "fields": []}
SCHEMA: Schema = {
    "type": "record",
    "name": "MailJob",
    "namespace": "streams.jobs.mail",
    "fields": [
        field("jobId", "string"),
        field("jobType", "string"),
        field("createdAt", {"type": "long", "logicalType": "timestamp-micros"}),
        field("priority", "int", default=5),
        field("idempotencyKey", ["null", "string"], default=None),
        field("payload", [COUNT, PING, SEND]),
    ],
}
NOW = datetime(2026, 5, 17, 12, 30, 1, 123456, tzinfo=UTC)


def job(job_type: str = "mail.count", payload: Any = None, **more: Any) -> dict[str, Any]:
    return {
        "jobId": "job-1",
        "jobType": job_type,
        "createdAt": NOW,
        "priority": 5,
        "idempotencyKey": None,
        "payload": {"since": 7} if payload is None else payload,
        **more,
    }


def changed(change: Any) -> Schema:
    schema = copy.deepcopy(SCHEMA)
    change(schema)
    return schema


def raw(schema: Schema, record: dict[str, Any]) -> bytes:
    """Return what another producer would send, written without the codec."""
    buffer = BytesIO()
    buffer.write(b"\xc3\x01" + fingerprint(schema))
    schemaless_writer(buffer, parse_schema(json.loads(json.dumps(schema))), record)
    return buffer.getvalue()


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
addresses = st.fixed_dictionaries({"name": texts, "mail": texts})
instants = st.datetimes(timezones=st.just(UTC))
sends = st.fixed_dictionaries(
    {
        "to": st.lists(addresses, max_size=3),
        "variables": st.dictionaries(texts, texts, max_size=3),
        "replyTo": st.none() | addresses,
        "urgency": st.sampled_from(["low", "high"]),
        "raw": st.binary(max_size=20),
        "sendAt": st.none() | instants,
        "day": st.none() | st.dates(),
        "weight": st.floats(allow_nan=False),
        "size": st.integers(-(2**63), 2**63 - 1),
        "test": st.booleans(),
    }
)
jobs = st.one_of(
    st.builds(
        job, st.just("mail.send"), sends, createdAt=instants, priority=st.integers(-(2**31), 2**31 - 1)
    ),
    st.builds(job, st.just("mail.count"), st.fixed_dictionaries({"since": st.integers(0, 2**40)})),
    st.builds(job, st.just("mail.ping"), st.just({}), idempotencyKey=st.none() | texts),
)


def varint(number: int) -> bytes:
    """Return a number as Avro writes a long."""
    zigzag, out = number << 1, bytearray()
    while zigzag > 0x7F:
        out.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    return bytes([*out, zigzag])
