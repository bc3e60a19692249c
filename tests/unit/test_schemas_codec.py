"""Records to bytes and back: framing, every way bytes can be wrong, and schemas that turn up later."""

import copy
import json
import struct
import time
import tracemalloc
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any

import avro.schema
import pytest
from fastavro import parse_schema, schemaless_writer
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas import MAX_BYTES, Codec, DoesNotFit, NotAvro, PayloadMismatch, Schema, UnknownSchema
from schemas.canonical import UnsafeSchema, fingerprint, parsed


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


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(SCHEMA)


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


class TestRoundTrip:
    @given(jobs)
    def test_what_is_encoded_is_decoded(self, codec: Codec, record: dict[str, Any]) -> None:
        data = codec.encode(record)
        assert codec.decode(data) == record
        assert codec.decode(memoryview(bytearray(data))) == record

    def test_a_value_starts_with_marker_and_fingerprint(self, codec: Codec) -> None:
        assert codec.encode(job())[:10] == codec.header == b"\xc3\x01" + fingerprint(SCHEMA)

    def test_a_topic_without_payloads(self) -> None:
        codec = Codec({"type": "record", "name": "Event", "fields": [field("kind", "string")]})
        assert codec.job_types == ()
        assert codec.decode(codec.encode({"kind": "queued"})) == {"kind": "queued"}

    def test_a_topic_with_one_job_type(self) -> None:
        codec = Codec(changed(lambda schema: schema["fields"][-1].update(type=[COUNT])))
        assert codec.decode(codec.encode(job())) == job()
        with pytest.raises(PayloadMismatch):
            codec.decode(raw(codec.schema, job(jobType="mail.other")))

    def test_a_payload_that_another_payload_holds(self) -> None:
        """Its union branch is then a reference, not a definition."""
        outer = {
            "type": "record",
            "name": "Outer",
            "jobType": "mail.outer",
            "fields": [field("inner", {**COUNT})],
        }
        codec = Codec(changed(lambda schema: schema["fields"][-1].update(type=[outer, "Count"])))
        for record in (job("mail.outer", {"inner": {"since": 1}}), job("mail.count", {"since": 2})):
            assert codec.decode(codec.encode(record)) == record

    def test_job_types_and_their_records(self, codec: Codec) -> None:
        assert codec.job_types == ("mail.count", "mail.ping", "mail.send")
        assert codec.record_name("mail.send") == "streams.jobs.mail.Send"
        with pytest.raises(KeyError):
            codec.record_name("mail.unheard_of")


def crc_64_avro(data: bytes) -> int:
    """Return the fingerprint by the algorithm of the Avro specification, one bit at a time."""
    empty = 0xC15D213AA4D7A795
    result = empty
    for byte in data:
        result ^= byte
        for _ in range(8):
            result = (result >> 1) ^ (empty & -(result & 1))
    return result


class TestFingerprint:
    def test_vector_of_the_specification(self) -> None:
        assert crc_64_avro(b'"int"') == 0x7275D51A3F395C8F

    def test_bytes_are_little_endian(self) -> None:
        schema = {"type": "record", "name": "a.R", "fields": [field("f", "int")]}
        canonical = b'{"name":"a.R","type":"record","fields":[{"name":"f","type":"int"}]}'
        assert fingerprint(schema) == struct.pack("<Q", crc_64_avro(canonical))

    def test_apache_avro_agrees(self) -> None:
        def plain(node: Any) -> Any:
            # Apache's Python writes {"type": "long"} for a logical type, against the specification's [PRIMITIVES].
            if isinstance(node, list):
                return [plain(each) for each in node]
            if isinstance(node, dict) and "logicalType" in node:
                return node["type"]
            return {key: plain(value) for key, value in node.items()} if isinstance(node, dict) else node

        apache = avro.schema.parse(json.dumps(plain(SCHEMA)))
        assert apache.fingerprint("CRC-64-AVRO") == fingerprint(SCHEMA)

    def test_docs_and_defaults_do_not_count(self) -> None:
        other = changed(lambda schema: schema["fields"][3].update(default=6, doc="urgency"))
        assert fingerprint(other) == fingerprint(SCHEMA)


SECRET = "hunter2-do-not-log"
UNFIT = {
    "missing field": {k: v for k, v in job().items() if k != "jobId"},
    "missing nullable field": {k: v for k, v in job().items() if k != "idempotencyKey"} | {"jobId": 1},
    "missing payload": {k: v for k, v in job().items() if k != "payload"},
    "missing job type": {k: v for k, v in job().items() if k != "jobType"},
    "unknown field": job(shoeSize=SECRET),
    "wrong type": job(priority=SECRET),
    "wrong type in a union": job(idempotencyKey=[SECRET]),
    "int over 32 bits": job(priority=2**31),
    "long over 64 bits": job(payload={"since": 2**63}),
    "lone surrogate": job(jobId=f"{SECRET}\ud800"),
    "no time zone": job(createdAt=datetime(2026, 1, 1)),  # noqa: DTZ001 - that is the point
    "not an instant": job(createdAt=SECRET),
    "unknown job type": job(f"mail.{SECRET}"),
    "payload of another type": job("mail.send", {"since": 7}),
    "unknown payload field": job(payload={"since": 7, "password": SECRET}),
    "payload is no record": job(payload=SECRET),
    "unknown symbol": job("mail.send", {"to": [], "urgency": SECRET}),
}


class TestEncode:
    @pytest.mark.parametrize("record", UNFIT.values(), ids=UNFIT.keys())
    def test_what_does_not_fit_is_refused_without_quoting_it(
        self, codec: Codec, record: dict[str, Any]
    ) -> None:
        with pytest.raises(DoesNotFit) as caught:
            codec.encode(record)
        assert SECRET not in str(caught.value)
        assert caught.value.__context__ is None or caught.value.__suppress_context__

    def test_the_field_is_named(self, codec: Codec) -> None:
        with pytest.raises(DoesNotFit, match="field priority"):
            codec.encode(job(priority="high"))
        with pytest.raises(DoesNotFit, match=r"none of mail\.count, mail\.ping, mail\.send"):
            codec.encode(job("mail.unheard_of"))

    def test_too_large(self) -> None:
        codec = Codec(SCHEMA, max_bytes=200)
        with pytest.raises(DoesNotFit, match="more than the 200 allowed"):
            codec.encode(job(jobId="x" * 200))

    def test_the_record_is_left_alone(self, codec: Codec) -> None:
        record = job()
        codec.encode(record)
        assert record == job()


def garbage(codec: Codec) -> dict[str, bytes]:
    good = codec.encode(job())
    return {
        "nothing": b"",
        "one byte": b"\xc3",
        "marker only": b"\xc3\x01",
        "marker and half a fingerprint": good[:7],
        "header only": good[:10],
        "half an id": b"\x00\x00\x00",
        "text": b"hello, is this the queue?",
        "json": b'{"jobId": "1"}',
        "other single-object version": b"\xc3\x02" + good[2:],
        "cut short": good[:-1],
        "trailing bytes": good + b"\x00",
        "bad utf-8": good[:10] + b"\x04\xff\xfe" + good[12:],
        "no such branch": good[:-2] + b"\x63\x00",
        "negative length": good[:10] + b"\x01" + good[10:],
        "endless varint": good[:10] + b"\xff" * 64,
    }


class TestGarbage:
    @pytest.mark.parametrize("what", list(garbage(Codec(SCHEMA))))
    def test_is_not_avro(self, codec: Codec, what: str) -> None:
        with pytest.raises(NotAvro):
            codec.decode(garbage(codec)[what])

    def test_too_large_is_refused_unread(self, codec: Codec) -> None:
        with pytest.raises(NotAvro, match="more than"):
            codec.decode(codec.header + b"\x00" * MAX_BYTES)

    @pytest.mark.parametrize("claim", [2**20, 2**31 - 1, 2**40, 2**62])
    @pytest.mark.parametrize("what", ["string", "array", "map", "bytes"])
    def test_huge_lengths_allocate_nothing(self, codec: Codec, what: str, claim: int) -> None:
        length = _varint(claim)
        head = (
            _varint(5) + b"job-1" + _varint(9) + b"mail.send" + _varint(0) + _varint(5) + b"\x00" + _varint(2)
        )
        body = {
            "string": length,
            "array": head + length,
            "map": head + b"\x00" + length,
            "bytes": head + b"\x00\x00\x00\x00" + length,
        }[what]
        tracemalloc.start()
        started = time.perf_counter()
        with pytest.raises(NotAvro):
            codec.decode(codec.header + body)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1_000_000
        assert time.perf_counter() - started < 1

    @settings(max_examples=1000)
    @given(st.binary(max_size=300))
    @example(b"\xc3\x01" + b"\x00" * 8)
    @example(b"\x00" * 5)
    def test_any_bytes(self, data: bytes) -> None:
        with pytest.raises((NotAvro, UnknownSchema)):
            Codec(SCHEMA).decode(data)

    @settings(max_examples=1000)
    @given(st.binary(max_size=200))
    def test_any_body(self, codec: Codec, body: bytes) -> None:
        _decodes_or_refuses(codec, codec.header + body)

    @settings(max_examples=1000)
    @given(jobs, st.data())
    def test_any_damage(self, codec: Codec, record: dict[str, Any], data: st.DataObject) -> None:
        value = bytearray(codec.encode(record))
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(10, len(value) - 1))
            value[at] = data.draw(st.integers(0, 255))
        _decodes_or_refuses(codec, bytes(value))

    @settings(max_examples=500)
    @given(st.binary(max_size=200))
    def test_any_body_of_an_older_writer(self, body: bytes) -> None:
        older = changed(lambda schema: schema["fields"].pop(3))
        codec = Codec(SCHEMA, [older])
        _decodes_or_refuses(codec, b"\xc3\x01" + fingerprint(older) + body)


def _varint(number: int) -> bytes:
    zigzag, out = number << 1, bytearray()
    while zigzag > 0x7F:
        out.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    return bytes([*out, zigzag])


def _decodes_or_refuses(codec: Codec, data: bytes) -> None:
    try:
        record = codec.decode(data)
    except (NotAvro, UnknownSchema):
        return
    assert record["jobType"] in codec.job_types


class TestPayloadMismatch:
    @pytest.mark.parametrize("stated", ["mail.send", "mail.ping", "mail.unheard_of", ""])
    def test_job_type_must_name_the_record(self, codec: Codec, stated: str) -> None:
        data = raw(SCHEMA, job(jobType=stated, payload=("streams.jobs.mail.Count", {"since": 7})))
        with pytest.raises(PayloadMismatch, match="Count"):
            codec.decode(data)

    def test_records_of_the_same_shape_are_told_apart(self) -> None:
        twin = {**COUNT, "name": "Recount", "jobType": "mail.recount"}
        codec = Codec(changed(lambda schema: schema["fields"][-1].update(type=[COUNT, twin])))
        record = job("mail.recount")
        assert codec.decode(codec.encode(record)) == record


class TestVersions:
    def test_an_older_writer_is_read_in_todays_shape(self) -> None:
        older = changed(
            lambda schema: (schema["fields"].pop(3), schema["fields"][-1].update(type=[SEND, COUNT]))
        )
        record = job()
        del record["priority"]
        data = Codec(older).encode(record)
        assert Codec(SCHEMA, [older]).decode(data) == job(priority=5)

    def test_a_newer_job_type_waits_for_a_newer_reader(self) -> None:
        """The schema may be known before the code: the job type is not, so the job is kept for later."""
        older = changed(lambda schema: schema["fields"][-1].update(type=[COUNT]))
        codec = Codec(older, [SCHEMA])
        assert codec.decode(Codec(SCHEMA).encode(job())) == job()
        with pytest.raises(UnknownSchema):
            codec.decode(Codec(SCHEMA).encode(job("mail.ping", {})))

    def test_an_unknown_fingerprint_is_named(self, codec: Codec) -> None:
        header = b"\xc3\x01\x01\x02\x03\x04\x05\x06\x07\x08"
        with pytest.raises(UnknownSchema, match="0102030405060708") as caught:
            codec.decode(header + b"body")
        assert caught.value.header == header

    def test_an_unknown_id_is_named(self, codec: Codec) -> None:
        with pytest.raises(UnknownSchema, match="id 258") as caught:
            codec.decode(b"\x00\x00\x00\x01\x02body")
        assert caught.value.header == b"\x00\x00\x00\x01\x02"

    def test_a_registry_id_frames_what_is_written(self) -> None:
        codec = Codec(SCHEMA, registry_id=258)
        data = codec.encode(job())
        assert data[:5] == b"\x00\x00\x00\x01\x02"
        assert codec.decode(data) == job()
        assert codec.decode(Codec(SCHEMA).encode(job())) == job()


class Shelf:
    """Schemas that turn up while a process runs; remembers who asked."""

    def __init__(self) -> None:
        self.schemas: dict[bytes, Schema] = {}
        self.asked: list[bytes] = []
        self.now = 100.0

    def lookup(self, header: bytes) -> Schema | None:
        self.asked.append(header)
        return self.schemas.get(header)

    def codec(self, schema: Schema = SCHEMA) -> Codec:
        return Codec(
            schema,
            lookup=self.lookup,
            lookup_every=timedelta(seconds=5),
            clock=lambda: self.now,
            max_bytes=2000,
        )


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


class TestRefresh:
    older = changed(lambda schema: schema["fields"].pop(4))

    def _data(self) -> bytes:
        record = job()
        del record["idempotencyKey"]
        return Codec(self.older).encode(record)

    def test_decode_never_looks_up(self, shelf: Shelf) -> None:
        codec = shelf.codec()
        with pytest.raises(UnknownSchema):
            codec.decode(self._data())
        assert shelf.asked == []
        assert codec.missing == {self._data()[:10]}

    def test_a_schema_found_later_is_used(self, shelf: Shelf) -> None:
        codec, data = shelf.codec(), self._data()
        with pytest.raises(UnknownSchema):
            codec.decode(data)
        assert codec.refresh() is False
        shelf.schemas[data[:10]] = self.older
        shelf.now += 5
        assert codec.refresh() is True
        assert codec.decode(data) == job()
        assert codec.missing == frozenset()

    def test_at_most_one_look_in_five_seconds(self, shelf: Shelf) -> None:
        codec, data = shelf.codec(), self._data()
        looks = []
        for now in (100.0, 100.5, 102.0, 104.9, 105.0, 106.0, 109.9, 110.0):
            shelf.now = now
            with pytest.raises(UnknownSchema):
                codec.decode(data)
            codec.refresh()
            looks.append(len(shelf.asked))
        assert looks == [1, 1, 1, 1, 2, 2, 2, 3]

    def test_made_up_fingerprints_do_not_pile_up(self, shelf: Shelf) -> None:
        codec = shelf.codec()
        for number in range(10_000):
            with pytest.raises(UnknownSchema):
                codec.decode(b"\xc3\x01" + struct.pack("<Q", number))
        assert len(codec.missing) == 64
        assert b"\xc3\x01" + struct.pack("<Q", 9_999) in codec.missing

    def test_a_lookup_that_fails_is_tried_again(self, shelf: Shelf) -> None:
        def broken(header: bytes) -> Schema | None:
            raise ConnectionError

        codec = Codec(SCHEMA, lookup=broken)
        with pytest.raises(UnknownSchema):
            codec.decode(self._data())
        with pytest.raises(ConnectionError):
            codec.refresh()
        assert codec.missing == {self._data()[:10]}

    def test_a_schema_of_another_topic_is_refused_for_good(self, shelf: Shelf) -> None:
        codec, header = shelf.codec(), b"\x00\x00\x00\x00\x07"
        shelf.schemas[header] = {"type": "record", "name": "other.Thing", "fields": [field("a", "string")]}
        with pytest.raises(UnknownSchema):
            codec.decode(header + b"\x02a")
        codec.refresh()
        with pytest.raises(NotAvro, match=r"written as a other\.Thing"):
            codec.decode(header + b"\x02a")

    def test_a_hostile_schema_is_never_read_with(self, shelf: Shelf) -> None:
        codec, header = shelf.codec(), b"\x00\x00\x00\x00\x08"
        shelf.schemas[header] = changed(
            lambda schema: schema["fields"].append(field("bomb", {"type": "array", "items": "null"}))
        )
        with pytest.raises(UnknownSchema):
            codec.decode(header)
        codec.refresh()
        with pytest.raises(NotAvro, match="no bytes"):
            codec.decode(header + _varint(2**40) * 20)


RECURSIVE = {"type": "record", "name": "Node", "fields": [field("next", ["null", "Node"])]}
EMPTY = {"type": "record", "name": "Empty", "fields": [field("nested", {**PING, "name": "Deep"})]}
UNSAFE = {
    "recursive": RECURSIVE,
    "recursive through an array": {
        "type": "record",
        "name": "Tree",
        "fields": [field("children", {"type": "array", "items": "Tree"})],
    },
    "array of nulls": {
        "type": "record",
        "name": "R",
        "fields": [field("a", {"type": "array", "items": "null"})],
    },
    "array of empty records": {
        "type": "record",
        "name": "R",
        "fields": [field("a", {"type": "array", "items": EMPTY})],
    },
    "array of fixed without bytes": {
        "type": "record",
        "name": "R",
        "fields": [field("a", {"type": "array", "items": {"type": "fixed", "name": "F", "size": 0}})],
    },
    "deep inside": {
        "type": "record",
        "name": "R",
        "fields": [
            field("before", "long"),
            field("m", {"type": "map", "values": ["null", {"type": "array", "items": PING}]}),
        ],
    },
}


@pytest.mark.parametrize("schema", UNSAFE.values(), ids=UNSAFE.keys())
def test_unsafe_schemas_are_refused(schema: Schema) -> None:
    with pytest.raises(UnsafeSchema):
        parsed(schema)


def test_array_items_with_bytes_are_fine() -> None:
    parsed(
        {"type": "record", "name": "R", "fields": [field("a", {"type": "array", "items": ["null", "long"]})]}
    )
