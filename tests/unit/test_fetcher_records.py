"""Records whose header names are any bytes are read like all others."""

from typing import Any

import pytest
from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from hypothesis import given
from hypothesis import strategies as st

from streams.fetcher import ReadableRecords


def batch(base: int, names: list[bytes | None], compression: int = 0) -> bytes:
    """Return a batch with one record for each name; a record of None has no header."""
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=compression, is_transactional=0, producer_id=-1, producer_epoch=-1,
        base_sequence=-1, batch_size=1_000_000,
    )  # fmt: skip
    for index, name in enumerate(names):
        headers = [] if name is None else [("x" * len(name), b"data"), ("ce_id", b"job")]
        builder.append(index, 1000 + index, b"key", b"value %d" % index, headers)
    data = bytearray(builder.build())
    at = 0
    for name in names:
        if name:
            at = data.index(b"x" * len(name) + b"\x08data", at)
            data[at : at + len(name)] = name
            at += len(name)
    data[0:8] = base.to_bytes(8, "big")
    return bytes(data)


def read(data: bytes) -> list[Any]:
    """Return the records as the fetcher takes them, by offset: it skips those it has had."""
    records, found, position = ReadableRecords(data), [], 0
    while records.has_next():
        for record in records.next_batch():
            if record.offset >= position:
                found.append(record)
                position = record.offset + 1
    return found


def test_the_fetcher_uses_it() -> None:
    assert fetcher.MemoryRecords is ReadableRecords


def test_one_odd_name_spoils_no_record_before_or_after_it() -> None:
    data = batch(10, [b"good", b"\xff\xfe", None]) + batch(13, [None]) + batch(14, [b"\xc3", b"fine"])
    found = read(data)
    assert [one.offset for one in found] == [10, 11, 12, 13, 14, 15]
    assert [one.value for one in found] == [
        b"value 0",
        b"value 1",
        b"value 2",
        b"value 0",
        b"value 0",
        b"value 1",
    ]
    names = [[name for name, _ in one.headers] for one in found]
    assert names == [["good", "ce_id"], ["��", "ce_id"], [], [], ["�", "ce_id"], ["fine", "ce_id"]]
    assert all(one.key == b"key" for one in found)
    assert [one.timestamp for one in found] == [1000, 1001, 1002, 1000, 1000, 1001]


@given(st.lists(st.none() | st.binary(min_size=1, max_size=8), min_size=1, max_size=5))
def test_any_name_is_read(names: list[bytes | None]) -> None:
    found = read(batch(0, names))
    assert [[name for name, _ in one.headers] for one in found] == [
        [] if name is None else [name.decode("utf-8", "replace"), "ce_id"] for name in names
    ]


@pytest.mark.parametrize("compression", [1, 2, 3, 4], ids=["gzip", "snappy", "lz4", "zstd"])
def test_so_it_is_in_compressed_batches(compression: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(str):
        """A name that is encoded as no name should be."""

        def encode(self, *_: Any, **__: Any) -> bytes:
            return b"\xff\xfe"

    from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

    builder = _DefaultRecordBatchBuilderPy(
        magic=2, compression_type=compression, is_transactional=0, producer_id=-1, producer_epoch=-1,
        base_sequence=-1, batch_size=1_000_000,
    )  # fmt: skip
    builder.append(0, 1000, b"key", b"v" * 1000, [(Odd("odd"), b"data")])
    (one,) = read(bytes(builder.build()))
    assert (one.headers, one.value) == ([("��", b"data")], b"v" * 1000)


def test_crc_and_the_rest_of_a_batch_are_aiokafkas() -> None:
    data = bytearray(batch(0, [None]))
    records = ReadableRecords(bytes(data))
    assert records.size_in_bytes() == len(data)
    whole = records.next_batch()
    assert whole.validate_crc()
    assert (whole.base_offset, whole.next_offset, whole.is_control_batch) == (0, 1, False)
    assert records.next_batch() is None
    data[-1] ^= 1
    assert not ReadableRecords(bytes(data)).next_batch().validate_crc()
