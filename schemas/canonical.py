"""The names in a schema, its fingerprint, and the shapes that no reader should meet."""

import json
from collections.abc import Iterator
from typing import Any

from fastavro import parse_schema
from fastavro.schema import fingerprint as _fingerprint
from fastavro.schema import to_parsing_canonical_form

Schema = dict[str, Any]
"""An Avro record schema as `json.loads` gives it."""


class UnsafeSchema(ValueError):
    """A schema that decodes hostile bytes into a crash or into gigabytes, or that Avro does not allow."""


def canonical_form(schema: Schema) -> str:
    """Return the Parsing Canonical Form: what decides how bytes are read, no docs, no defaults."""
    return to_parsing_canonical_form(parse_schema(schema))


def fingerprint(schema: Schema) -> bytes:
    """Return the CRC-64-AVRO of the Parsing Canonical Form: 8 bytes in the order the header has them."""
    return bytes.fromhex(_fingerprint(canonical_form(schema), "CRC-64-AVRO"))


def render(schema: Schema) -> str:
    """Return the text of a schema file."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def parsed(schema: Schema) -> Schema:
    """Return the schema with every name in full, as fastavro reads it; checked by `refuse_unsafe`."""
    # A copy by way of JSON: fastavro marks what it parsed, and a marked schema loses its own text.
    result = parse_schema(json.loads(json.dumps(_unmarked(schema))))
    if not isinstance(result, dict):
        raise UnsafeSchema("the schema of a topic must be a record")
    refuse_unsafe(result)
    return result


def without_logical_types(schema: Any) -> Any:
    """Return the schema with each logical type as the type that its bytes have."""
    if isinstance(schema, list):
        return [without_logical_types(one) for one in schema]
    if isinstance(schema, dict):
        return {key: without_logical_types(value) for key, value in schema.items() if key != "logicalType"}
    return schema


def definitions(schema: Any) -> Iterator[Schema]:
    """Yield every record, enum and fixed that a parsed schema defines, the outermost first."""
    if isinstance(schema, list):
        for branch in schema:
            yield from definitions(branch)
    elif isinstance(schema, dict):
        if "name" in schema:
            yield schema
        for field in schema.get("fields", ()):
            yield from definitions(field["type"])
        for inner in ("items", "values"):
            if inner in schema:
                yield from definitions(schema[inner])


def refuse_unsafe(schema: Schema) -> None:
    """Raise UnsafeSchema for a recursive schema and for an array of items without bytes.

    fastavro's C code recurses with the data: a few kilobytes of nesting overflow the stack and end the
    process. An array of zero-size items is a few bytes that claim to be billions of items.
    """
    named = {definition["name"]: definition for definition in definitions(schema)}
    _walk(schema, named, ())


def _walk(schema: Any, named: dict[str, Schema], inside: tuple[str, ...]) -> bool:
    """Return whether a value of the schema can take no bytes; `inside` names the records around it."""
    if isinstance(schema, list):
        for branch in schema:
            _walk(branch, named, inside)
        return False
    if isinstance(schema, str):
        if schema in inside:
            raise UnsafeSchema(f"{schema} contains itself; a recursive schema lets data overflow the stack")
        return _walk(named[schema], named, inside) if schema in named else schema == "null"
    kind = schema["type"]
    if kind in ("record", "error"):
        deeper = (*inside, schema["name"])
        # Every field is walked, also after one that takes bytes.
        return not [field for field in schema["fields"] if not _walk(field["type"], named, deeper)]
    if kind == "array":
        if _walk(schema["items"], named, inside):
            where = inside[-1] if inside else "the schema"
            raise UnsafeSchema(f"{where} has an array whose items take no bytes; a few bytes claim billions")
        return False
    if kind == "map":
        _walk(schema["values"], named, inside)
        return False
    if kind == "fixed":
        return bool(schema["size"] == 0)
    if kind == "enum":
        return False
    return _walk(kind, named, inside)


def _unmarked(schema: Schema) -> Schema:
    return {key: value for key, value in schema.items() if not key.startswith("__")}
