"""Records to bytes and back: framing, every way bytes can be wrong, and schemas that turn up later."""

import json
import struct
from datetime import datetime, timedelta
from typing import Any

import avro.schema
import pytest
from hypothesis import given

from schemas import Codec, DoesNotFit, NotAvro, PayloadMismatch, Schema, UnknownSchema
from schemas.canonical import fingerprint
from tests.schemas_topic import COUNT, SCHEMA, SEND, changed, field, job, jobs, raw, varint


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(SCHEMA)


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
            codec.decode(header + varint(2**40) * 20)
