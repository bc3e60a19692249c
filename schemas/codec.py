"""Records to bytes and back.

CodecError
├── NotAvro             bytes that will never be a record of this topic: dead letter
│   └── PayloadMismatch `jobType` names one record, the payload holds another
├── UnknownSchema       well marked, but written with a schema this process does not have yet: later
└── DoesNotFit          a record that the schema refuses; nothing was encoded

A value starts with the marker of its framing: C3 01 and the 8 bytes of a CRC-64-AVRO fingerprint (Avro
single-object encoding), or 00 and the 4 bytes of a registry id (Confluent wire format). Readers take both.
No message quotes a value: payloads may hold secrets.
"""

import re
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from io import BytesIO
from typing import Any, NamedTuple

from fastavro import schemaless_reader, schemaless_writer
from fastavro.read import SchemaResolutionError
from fastavro.write import LOGICAL_WRITERS

from schemas.canonical import (
    Schema,
    UnsafeSchema,
    definitions,
    fingerprint,
    parsed,
    without_logical_types,
)

SINGLE_OBJECT = b"\xc3\x01"
CONFLUENT = b"\x00"
_SINGLE_OBJECT_HEADER, _CONFLUENT_HEADER = 10, 5

MAX_BYTES = 1024 * 1024
"""The largest value of a record, header included."""

Record = dict[str, Any]
Lookup = Callable[[bytes], Schema | None]
"""Header to the schema it stands for, or None; may read files and call a registry, so it may block."""

_MAX_MISSING = 64
_READ_ERRORS = (
    EOFError,
    ValueError,
    IndexError,
    OverflowError,
    TypeError,
    KeyError,
    StopIteration,
    struct.error,
)
_WRITE_ERRORS = (ValueError, TypeError, KeyError, AttributeError, OverflowError, IndexError, struct.error)


_write_timestamp = LOGICAL_WRITERS["long-timestamp-micros"]


def _write_aware_timestamp(value: Any, schema: Schema) -> Any:
    if isinstance(value, datetime) and value.tzinfo is None:
        raise ValueError("a datetime without a time zone")
    return _write_timestamp(value, schema)


# fastavro takes a datetime without a zone for local time, which differs from machine to machine.
LOGICAL_WRITERS["long-timestamp-micros"] = _write_aware_timestamp


class CodecError(Exception):
    """Root of the errors of this module."""


class NotAvro(CodecError):
    """The bytes are no record of this topic, and never will be."""


class PayloadMismatch(NotAvro):
    """`jobType` and the record in `payload` disagree."""


class UnknownSchema(CodecError):
    """The schema is not known yet; `header` says which: 10 bytes of a fingerprint or 5 of a registry id."""

    def __init__(self, message: str, header: bytes) -> None:
        super().__init__(message)
        self.header = header


class DoesNotFit(CodecError):
    """The record cannot be written: a field is missing, unknown or of the wrong type, or it is too large."""


class _Writer(NamedTuple):
    """How to read what one schema wrote; `reader` is None when that is the current schema."""

    schema: Schema
    reader: Schema | None
    only_payload: str | None
    refusal: str | None


class Codec:
    """Encode with the current schema of one topic, decode what any known version of it wrote.

    `history` holds earlier versions. `lookup` finds the rest: `decode` never calls it, it raises
    UnknownSchema at once and leaves the header to `refresh`. Not bound to a thread: one may `refresh` while
    another decodes. With `plain_instants` a record to be encoded has its timestamps as integers, in the unit of
    the schema, which spares the encoder a fifth of its time; what is decoded has datetimes either way.
    """

    def __init__(
        self,
        schema: Schema,
        history: Iterable[Schema] = (),
        *,
        registry_id: int | None = None,
        lookup: Lookup | None = None,
        lookup_every: timedelta = timedelta(seconds=5),
        clock: Callable[[], float] = time.monotonic,
        max_bytes: int = MAX_BYTES,
        plain_instants: bool = False,
    ) -> None:
        self.schema = schema
        self.max_bytes = max_bytes
        self._parsed = parsed(schema)
        # Logical types are no part of the fingerprint: the bytes are the same.
        self._written = parsed(without_logical_types(schema)) if plain_instants else self._parsed
        self._record_names = _payload_records(self._parsed)
        self._job_types = {name: job_type for job_type, name in self._record_names.items()}
        self._ints = [field["name"] for field in self._parsed["fields"] if field["type"] == "int"]
        self._writers: dict[bytes, _Writer] = {}
        self._missing: dict[bytes, float | None] = {}
        self._lookup = lookup
        self._lookup_every = lookup_every.total_seconds()
        self._clock = clock
        for version in (*history, schema):
            self._learn(SINGLE_OBJECT + fingerprint(version), version)
        self._header = SINGLE_OBJECT + fingerprint(schema)
        if registry_id is not None:
            self._header = CONFLUENT + struct.pack(">I", registry_id)
            self._learn(self._header, schema)

    @property
    def header(self) -> bytes:
        """Return what every encoded value starts with."""
        return self._header

    @property
    def job_types(self) -> tuple[str, ...]:
        """Return the job types this topic carries, in the order of the payload's union."""
        return tuple(self._record_names)

    def record_name(self, job_type: str) -> str:
        """Return the full name of the payload record of a job type; KeyError when there is none."""
        return self._record_names[job_type]

    def encode(self, record: Mapping[str, Any]) -> bytes:
        """Return the value of a record; its `payload` is a plain dict, and `jobType` names it."""
        buffer = BytesIO()
        buffer.write(self._header)
        try:
            if self._record_names:
                record = {**record, "payload": (self._record_names[record["jobType"]], record["payload"])}
            schemaless_writer(buffer, self._written, record, strict_allow_default=True)
        except _WRITE_ERRORS as error:
            raise DoesNotFit(self._why(error, record)) from None
        for name in self._ints:
            # fastavro writes an int of any size; no other reader would accept it.
            if not -(2**31) <= record.get(name, 0) < 2**31:
                raise DoesNotFit(f"field {name} does not fit into 32 bits")
        if buffer.tell() > self.max_bytes:
            raise DoesNotFit(
                f"the record takes {buffer.tell()} bytes, more than the {self.max_bytes} allowed"
            )
        return buffer.getvalue()

    def decode(self, data: bytes | memoryview) -> Record:
        """Return the record in the current shape: what an older writer lacked is filled in."""
        if len(data) > self.max_bytes:
            raise NotAvro(f"the value has {len(data)} bytes, more than the {self.max_bytes} allowed")
        size = _SINGLE_OBJECT_HEADER if data[:1] == SINGLE_OBJECT[:1] else _CONFLUENT_HEADER
        writer = self._writers.get(bytes(data[:size]))
        if writer is None:
            raise self._unknown(bytes(data[:size]))
        if writer.refusal is not None:
            raise NotAvro(writer.refusal)
        body = BytesIO(data)
        body.seek(size)
        try:
            # True, True: a union of several records yields (name, record), a nullable record just the record.
            record: Record = schemaless_reader(body, writer.schema, writer.reader, True, True)  # type: ignore[assignment]
        except SchemaResolutionError:
            raise UnknownSchema(
                "written with a newer schema than this reader has", bytes(data[:size])
            ) from None
        except _READ_ERRORS as error:
            raise NotAvro(f"the body is not a {self._parsed['name']}: {type(error).__name__}") from None
        if body.read(1):
            raise NotAvro(f"{len(data) - body.tell() + 1} bytes follow the record")
        if self._job_types:
            self._unwrap(record, writer)
        return record

    @property
    def missing(self) -> frozenset[bytes]:
        """Return the headers that decode met and does not know."""
        return frozenset(self._missing)

    def refresh(self) -> bool:
        """Look up the schemas that decode missed and return whether one was found.

        Blocks on files and HTTP, so call it in a thread. A header is looked up at most once per
        `lookup_every`; an error of the lookup passes through, and the header stays missing.
        """
        if self._lookup is None:
            return False
        found = False
        now = self._clock()
        for header, looked_up in list(self._missing.items()):
            if looked_up is not None and now - looked_up < self._lookup_every:
                continue
            self._missing[header] = now
            schema = self._lookup(header)
            if schema is not None:
                self._learn(header, schema)
                self._missing.pop(header, None)
                found = True
        return found

    def _learn(self, header: bytes, schema: Schema) -> None:
        refusal, writer = None, self._parsed
        try:
            writer = parsed(schema)
        except UnsafeSchema as error:
            refusal = f"written with a schema that is not read: {error}"
        else:
            if writer["name"] != self._parsed["name"]:
                refusal = f"written as a {writer['name']}, expected a {self._parsed['name']}"
        reader = None if writer == self._parsed else self._parsed
        self._writers[header] = _Writer(writer, reader, _only_payload(writer), refusal)

    def _unknown(self, header: bytes) -> CodecError:
        is_single = header[:2] == SINGLE_OBJECT and len(header) == _SINGLE_OBJECT_HEADER
        is_confluent = header[:1] == CONFLUENT and len(header) == _CONFLUENT_HEADER
        if not is_single and not is_confluent:
            return NotAvro("the value starts with neither the single-object nor the Confluent marker")
        if header not in self._missing:
            # Bounded: anyone may send made-up fingerprints. The oldest gives way.
            if len(self._missing) >= _MAX_MISSING:
                self._missing.pop(next(iter(self._missing)), None)
            self._missing[header] = None
        if is_single:
            return UnknownSchema(f"no schema with the fingerprint {header[2:].hex()} yet", header)
        return UnknownSchema(
            f"no schema with the registry id {int.from_bytes(header[1:], 'big')} yet", header
        )

    def _unwrap(self, record: Record, writer: _Writer) -> None:
        payload = record["payload"]
        name, record["payload"] = payload if type(payload) is tuple else (writer.only_payload, payload)
        if self._job_types.get(name) != record["jobType"]:
            raise PayloadMismatch(f"jobType does not name the record in payload, which is a {name}")

    def _why(self, error: Exception, record: Mapping[str, Any]) -> str:
        if self._record_names and record.get("jobType") not in self._record_names:
            return f"jobType is none of {', '.join(self._record_names)}"
        field = re.search(r"[Ff]ield (\w+)", str(error))
        where = f"field {field[1]}" if field else "a field"
        return f"{where} does not fit {self._parsed['name']}: {type(error).__name__}"


def _payload_records(schema: Schema) -> dict[str, str]:
    """Return job type to full record name, from the `jobType` attribute of each payload record."""
    return {d["jobType"]: d["name"] for d in definitions(schema) if "jobType" in d}


def _only_payload(schema: Schema) -> str | None:
    """Return the record name of a payload union with one branch: fastavro does not name that one."""
    for field in schema["fields"]:
        if field["name"] == "payload" and isinstance(field["type"], list) and len(field["type"]) == 1:
            (branch,) = field["type"]
            return str(branch if isinstance(branch, str) else branch["name"])
    return None
