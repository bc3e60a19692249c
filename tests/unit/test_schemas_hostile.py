"""Hostile bytes and hostile schemas: they end in an answer, never in a crash, never in gigabytes."""

import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas import MAX_BYTES, Codec, NotAvro, Schema, UnknownSchema
from schemas.canonical import UnsafeSchema, fingerprint, parsed
from tests.schemas_topic import PING, SCHEMA, changed, field, job, jobs, varint


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(SCHEMA)


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
        length = varint(claim)
        head = varint(5) + b"job-1" + varint(9) + b"mail.send" + varint(0) + varint(5) + b"\x00" + varint(2)
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

    @settings(max_examples=400)
    @given(st.binary(max_size=300))
    @example(b"\xc3\x01" + b"\x00" * 8)
    @example(b"\x00" * 5)
    def test_any_bytes(self, data: bytes) -> None:
        with pytest.raises((NotAvro, UnknownSchema)):
            Codec(SCHEMA).decode(data)

    @settings(max_examples=400)
    @given(st.binary(max_size=200))
    def test_any_body(self, codec: Codec, body: bytes) -> None:
        _decodes_or_refuses(codec, codec.header + body)

    @settings(max_examples=400)
    @given(jobs, st.data())
    def test_any_damage(self, codec: Codec, record: dict[str, Any], data: st.DataObject) -> None:
        value = bytearray(codec.encode(record))
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(10, len(value) - 1))
            value[at] = data.draw(st.integers(0, 255))
        _decodes_or_refuses(codec, bytes(value))

    @settings(max_examples=200)
    @given(st.binary(max_size=200))
    def test_any_body_of_an_older_writer(self, body: bytes) -> None:
        older = changed(lambda schema: schema["fields"].pop(3))
        codec = Codec(SCHEMA, [older])
        _decodes_or_refuses(codec, b"\xc3\x01" + fingerprint(older) + body)


def _decodes_or_refuses(codec: Codec, data: bytes) -> None:
    try:
        record = codec.decode(data)
    except (NotAvro, UnknownSchema):
        return
    assert record["jobType"] in codec.job_types


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
