"""Which changes of a schema are allowed, with Apache's checker and fastavro's reader as second opinions."""

import copy
import json
from io import BytesIO
from typing import Any

import avro.schema
import pytest
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from fastavro import parse_schema, schemaless_reader, schemaless_writer
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import Schema
from schemas.compatibility import incompatibilities


def record(*fields: Schema, name: str = "R", **more: Any) -> Schema:
    return {"type": "record", "name": name, "fields": list(fields), **more}


def field(name: str, kind: Any, **more: Any) -> Schema:
    return {"name": name, "type": kind, **more}


def enum(*symbols: str, name: str = "E", **more: Any) -> Schema:
    return {"type": "enum", "name": name, "symbols": list(symbols), **more}


MICROS = {"type": "long", "logicalType": "timestamp-micros"}
MILLIS = {"type": "long", "logicalType": "timestamp-millis"}
A = field("a", "string")
SEND = record(field("to", "string"), name="Send")
COUNT = record(field("since", "long"), name="Count")


def typed(kind: Any) -> Schema:
    return record(A, field("f", kind))


ALLOWED = {
    "nothing": (record(A), record(A)),
    "new field with a default": (record(A), record(A, field("b", "int", default=1))),
    "new optional field": (record(A), record(A, field("b", ["null", "int"], default=None))),
    "field removed": (record(A, field("b", "int")), record(A)),
    "fields reordered": (record(A, field("b", "int")), record(field("b", "int"), A)),
    "default changed": (record(field("b", "int", default=1)), record(field("b", "int", default=2))),
    "int to long": (typed("int"), typed("long")),
    "int to double": (typed("int"), typed("double")),
    "long to float": (typed("long"), typed("float")),
    "float to double": (typed("float"), typed("double")),
    "string to bytes": (typed("string"), typed("bytes")),
    "to optional": (typed("string"), typed(["null", "string"])),
    "to optional and wider": (typed("int"), typed(["null", "long"])),
    "union branch added": (typed([SEND]), typed([SEND, COUNT])),
    "union branches reordered": (typed([SEND, COUNT]), typed([COUNT, SEND])),
    "enum symbol added": (typed(enum("x")), typed(enum("x", "y"))),
    "enum symbol removed, with a default": (typed(enum("x", "y")), typed(enum("x", default="x"))),
    "items wider": (typed({"type": "array", "items": "int"}), typed({"type": "array", "items": "long"})),
    "values wider": (typed({"type": "map", "values": "int"}), typed({"type": "map", "values": "long"})),
    "field of a branch added": (
        typed([SEND]),
        typed([record(*SEND["fields"], field("cc", "string", default=""), name="Send")]),
    ),
}

REFUSED = {
    "new field without a default": (
        record(A),
        record(A, field("b", "int")),
        "R.b: is new and has no default",
    ),
    "field renamed": (record(A), record(field("b", "string")), "R.b: is new"),
    "record renamed": (record(A), record(A, name="S"), "R, is named S"),
    "string to long": (typed("string"), typed("long"), "R.f: was string, is long"),
    "long to int": (typed("long"), typed("int"), "R.f: was long, is int"),
    "double to float": (typed("double"), typed("float"), "R.f"),
    "no longer optional": (typed(["null", "string"]), typed("string"), "R.f: was null, is string"),
    "union branch removed": (typed([SEND, COUNT]), typed([SEND]), "R.f: Count is no longer among Send"),
    "enum symbol removed": (typed(enum("x", "y")), typed(enum("x")), "R.f: lost y"),
    "enum renamed": (typed(enum("x")), typed(enum("x", name="F")), "R.f: was named E"),
    "items narrower": (
        typed({"type": "array", "items": "long"}),
        typed({"type": "array", "items": "int"}),
        r"R.f\[\]: was long, is int",
    ),
    "values narrower": (
        typed({"type": "map", "values": "long"}),
        typed({"type": "map", "values": "int"}),
        r"R.f\{\}: was long",
    ),
    "to list": (typed("string"), typed({"type": "array", "items": "string"}), "R.f: was string, is array"),
    "field of a branch without a default": (
        typed([SEND, COUNT]),
        typed([record(*SEND["fields"], field("cc", "string"), name="Send"), COUNT]),
        "R.f.cc: is new",
    ),
    "fixed of another size": (
        typed({"type": "fixed", "name": "F", "size": 4}),
        typed({"type": "fixed", "name": "F", "size": 8}),
        "had 4 bytes, has 8",
    ),
}

STRICTER = {
    "another unit of time": (typed(MILLIS), typed(MICROS), "was timestamp-millis, is timestamp-micros"),
    "a time becomes a number": (typed(MICROS), typed("long"), "was timestamp-micros, is long"),
    "an optional number becomes a time": (typed(["null", "long"]), typed(["null", MICROS]), "was long"),
    "bytes to string": (typed("bytes"), typed("string"), "was bytes, is string"),
    "another job type": (
        typed([{**SEND, "jobType": "mail.send"}]),
        typed([{**SEND, "jobType": "mail.post"}]),
        "payload of mail.send, is of mail.post",
    ),
}


def apache_allows(reader: Schema, writer: Schema) -> bool:
    new, old = (avro.schema.parse(json.dumps(each)) for each in (reader, writer))
    verdict = ReaderWriterCompatibilityChecker().get_compatibility(new, old).compatibility  # type: ignore[no-untyped-call]
    return verdict is SchemaCompatibilityType.compatible


@pytest.mark.parametrize(("writer", "reader"), ALLOWED.values(), ids=ALLOWED.keys())
def test_allowed(writer: Schema, reader: Schema) -> None:
    assert incompatibilities(reader, writer) == []
    assert apache_allows(reader, writer)


@pytest.mark.parametrize(("writer", "reader", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_with_field_and_reason(writer: Schema, reader: Schema, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        raise incompatibilities(reader, writer)[0]
    assert not apache_allows(reader, writer)


@pytest.mark.parametrize(("writer", "reader", "why"), STRICTER.values(), ids=STRICTER.keys())
def test_refused_though_avro_would_resolve_it(writer: Schema, reader: Schema, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        raise incompatibilities(reader, writer)[0]
    assert apache_allows(reader, writer)


def test_every_reason_is_given() -> None:
    new = record(field("a", "long"), field("b", "int"))
    assert len(incompatibilities(new, record(A))) == 2


# Random evolutions. Named types get the name of their place, so that writer and reader have the same names, and
# only promotions on which Avro and this project agree occur.
primitives = st.sampled_from(["int", "long", "float", "double", "string", "boolean"])
KINDS = ("primitive", "array", "map", "optional", "enum", "record", "union")


@st.composite
def kinds(draw: st.DrawFn, place: str, depth: int = 2) -> Any:
    match draw(st.sampled_from(KINDS if depth else ("primitive", "enum"))):
        case "array":
            return {"type": "array", "items": draw(kinds(f"{place}i", depth - 1))}
        case "map":
            return {"type": "map", "values": draw(kinds(f"{place}v", depth - 1))}
        case "optional":
            return ["null", draw(primitives)]
        case "enum":
            symbols = draw(st.lists(st.sampled_from("xyz"), min_size=1, unique=True))
            default = {"default": symbols[0]} if draw(st.booleans()) else {}
            return {"type": "enum", "name": f"E{place}", "symbols": symbols, **default}
        case "record":
            return draw(records(place, depth - 1))
        case "union":
            branches = draw(st.lists(st.sampled_from("pqr"), min_size=1, unique=True))
            return [draw(records(f"{place}{branch}", depth - 1)) for branch in branches]
        case _:
            return draw(primitives)


@st.composite
def records(draw: st.DrawFn, place: str, depth: int) -> Schema:
    names = draw(st.lists(st.sampled_from("abc"), min_size=1, unique=True))
    return {
        "type": "record",
        "name": f"R{place}",
        "fields": [field(name, draw(kinds(f"{place}{name}", depth))) for name in names],
    }


@st.composite
def evolutions(draw: st.DrawFn) -> tuple[Schema, Schema]:
    """Return a writer and a reader: fields added, removed, replaced by another draw, given a default."""
    writer = draw(records("", 2))
    reader = copy.deepcopy(writer)
    fields = reader["fields"]
    for change in draw(st.lists(st.sampled_from(["replace", "remove", "add", "default"]), max_size=2)):
        at = draw(st.integers(0, len(fields) - 1))
        match change:
            case "replace":
                fields[at] = field(fields[at]["name"], draw(kinds(fields[at]["name"])))
            case "remove" if len(fields) > 1:
                fields.pop(at)
            case "add" if "d" not in [each["name"] for each in fields]:
                fields.append(field("d", draw(kinds("d"))))
            case "default" if "d" not in [each["name"] for each in fields]:
                fields.append(field("d", ["null", "long"], default=None))
    return writer, reader


def example_of(kind: Any, number: int) -> Any:
    """Return a value of a type; enough numbers reach every branch and symbol."""
    if isinstance(kind, list):
        branch = kind[number % len(kind)]
        value = example_of(branch, number // len(kind))
        return (branch["name"], value) if isinstance(branch, dict) and "name" in branch else value
    name = kind["type"] if isinstance(kind, dict) else kind
    match name:
        case "record":
            return {each["name"]: example_of(each["type"], number) for each in kind["fields"]}
        case "enum":
            return kind["symbols"][number % len(kind["symbols"])]
        case "array":
            return [example_of(kind["items"], number)]
        case "map":
            return {"k": example_of(kind["values"], number)}
    return {"null": None, "string": "s", "boolean": True, "float": 0.5, "double": 0.5}.get(name, number)


@settings(max_examples=500)
@given(evolutions())
def test_apache_agrees_on_random_evolutions(evolution: tuple[Schema, Schema]) -> None:
    writer, reader = evolution
    assert (incompatibilities(reader, writer) == []) == apache_allows(reader, writer)


@settings(max_examples=300)
@given(evolutions())
def test_what_is_allowed_is_readable(evolution: tuple[Schema, Schema]) -> None:
    writer, reader = evolution
    if incompatibilities(reader, writer):
        return
    old, new = parse_schema(copy.deepcopy(writer)), parse_schema(copy.deepcopy(reader))
    for number in range(12):
        buffer = BytesIO()
        schemaless_writer(buffer, old, example_of(writer, number))
        buffer.seek(0)
        read = schemaless_reader(buffer, old, new)
        assert isinstance(read, dict)
        assert set(read) == {each["name"] for each in reader["fields"]}
