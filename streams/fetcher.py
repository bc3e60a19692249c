"""Where aiokafka's fetcher falls short: header names that are no UTF-8, and a partition that holds up the others."""

import struct
from collections.abc import Iterator
from typing import Any, cast

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords


class Lenient(bytearray):
    """Bytes whose text is read with what is no UTF-8 replaced."""

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        return Lenient(found) if isinstance(found, bytearray) else found

    def decode(self, encoding: str = "utf-8", errors: str = "replace") -> str:
        return super().decode(encoding, errors)


class ReadableBatch:
    """A batch of aiokafka's that can be read whatever bytes a header's name is made of.

    aiokafka 0.14.0 raises on a name that is no UTF-8, which any client may write: each worker would end at that
    record, and end again when it is started. Then the batch is read again, leniently; the fetcher skips what it
    has had of it.
    """

    def __init__(self, batch: Any, raw: bytes) -> None:
        self._batch = batch
        self._raw = raw

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._batch
        except UnicodeDecodeError:
            batch = _DefaultRecordBatchPy(self._raw)
            batch._maybe_uncompress()
            batch._buffer = Lenient(batch._buffer)
            yield from batch


class ReadableRecords:
    """What aiokafka fetched of a partition, as batches that can be read."""

    def __init__(self, data: bytes) -> None:
        self._records = MemoryRecords(data)
        self._rest = memoryview(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._records, name)

    def next_batch(self) -> Any:
        batch = self._records.next_batch()
        if batch is None:
            return None
        # A batch begins with its base offset, 8 bytes, and the length of what follows, 4 bytes.
        end = 12 + struct.unpack_from(">i", self._rest, 8)[0]
        raw, self._rest = self._rest[:end], self._rest[end:]
        return ReadableBatch(batch, cast(bytes, raw))


class Fetcher(fetcher.Fetcher):  # type: ignore[misc]
    """Aiokafka's fetcher, in which a partition that is not read on for a moment is in no other's way for long.

    It asks a broker for nothing while anything that it has from there was not taken, by itself for 100 ms; after that
    for the other partitions, and for that one again when these have been answered, which Faust lets take 1.5 s.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options | {"prefetch_backoff": 0.02, "fetch_max_wait_ms": 100})

    def _get_actions_per_node(self, assignment: Any) -> Any:
        *actions, timeout, invalid_metadata, resumed = super()._get_actions_per_node(assignment)
        if len(self._in_flight) > len(self._pending_tasks):
            # An answer was taken note of before its task had told of its end, which it tells nobody who waits:
            # aiokafka 0.14.0 asks for nothing for 200 ms then.
            timeout = 0.0
        return *actions, timeout, invalid_metadata, resumed
