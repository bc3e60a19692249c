"""May a schema change? Only so that what earlier versions wrote can still be read (BACKWARD).

The rules are Avro's schema resolution, and three more, because a record that resolves can still change its
meaning: a logical type stays what it is, a payload record keeps its job type, and bytes do not become a
string (not all bytes are UTF-8). Aliases are not used: a rename is a removal and an addition.
"""

from collections.abc import Iterator
from typing import Any

from schemas.canonical import Schema, definitions, parsed

_PROMOTIONS = {
    "int": {"long", "float", "double"},
    "long": {"float", "double"},
    "float": {"double"},
    "string": {"bytes"},
}


class Incompatible(ValueError):
    """A change makes records unreadable; the message names the field and the reason."""


def incompatibilities(reader: Schema, writer: Schema) -> list[Incompatible]:
    """Return what keeps the reader from reading every record of the writer; empty when nothing does."""
    new, old = parsed(reader), parsed(writer)
    return [Incompatible(f"{where}: {why}") for where, why in _Check(new, old).compare(new, old, new["name"])]


class _Check:
    """One comparison of two parsed schemas; looks names up in the schema that uses them."""

    def __init__(self, reader: Schema, writer: Schema) -> None:
        self._new = {definition["name"]: definition for definition in definitions(reader)}
        self._old = {definition["name"]: definition for definition in definitions(writer)}

    def compare(self, reader: Any, writer: Any, where: str) -> Iterator[tuple[str, str]]:
        """Yield a place and a reason for every part of the reader that cannot read the writer's."""
        reader, writer = self._new.get(_key(reader), reader), self._old.get(_key(writer), writer)
        if isinstance(writer, list):
            for branch in writer:
                yield from self.compare(reader, branch, where)
            return
        if isinstance(reader, list):
            yield from self._branch(reader, writer, where)
            return
        new_kind, old_kind = _kind(reader), _kind(writer)
        if _logical(reader) != _logical(writer):
            yield where, f"was {_logical(writer) or old_kind}, is {_logical(reader) or new_kind}"
        elif new_kind != old_kind:
            if new_kind not in _PROMOTIONS.get(old_kind, ()):
                yield where, f"was {old_kind}, is {new_kind}, and the one cannot be read as the other"
        elif new_kind == "array":
            yield from self.compare(reader["items"], writer["items"], f"{where}[]")
        elif new_kind == "map":
            yield from self.compare(reader["values"], writer["values"], f"{where}{{}}")
        elif new_kind in ("record", "enum", "fixed"):
            yield from self._named(reader, writer, new_kind, where)

    def _branch(self, reader: list[Any], writer: Any, where: str) -> Iterator[tuple[str, str]]:
        """Compare with the branch of the same name or type, or any that fits when there is none."""
        same = [branch for branch in reader if self._same(branch, writer)]
        if same:
            yield from self.compare(same[0], writer, where)
        elif all(any(self.compare(branch, writer, where)) for branch in reader):
            yield where, f"{_title(writer)} is no longer among {', '.join(_title(each) for each in reader)}"

    def _same(self, reader: Any, writer: Any) -> bool:
        return _title(self._new.get(_key(reader), reader)) == _title(writer)

    def _named(self, reader: Schema, writer: Schema, kind: str, where: str) -> Iterator[tuple[str, str]]:
        if reader["name"] != writer["name"]:
            yield where, f"was named {writer['name']}, is named {reader['name']}"
        elif reader.get("jobType") != writer.get("jobType"):
            yield (
                where,
                f"{reader['name']} was the payload of {writer.get('jobType')}, is of {reader.get('jobType')}",
            )
        elif kind == "fixed" and reader["size"] != writer["size"]:
            yield where, f"had {writer['size']} bytes, has {reader['size']}"
        elif kind == "enum":
            lost = [symbol for symbol in writer["symbols"] if symbol not in reader["symbols"]]
            if lost and "default" not in reader:
                yield where, f"lost {', '.join(lost)}, and the enum has no default for them"
        elif kind == "record":
            yield from self._fields(reader, writer, where)

    def _fields(self, reader: Schema, writer: Schema, where: str) -> Iterator[tuple[str, str]]:
        old = {field["name"]: field for field in writer["fields"]}
        for field in reader["fields"]:
            place = f"{where}.{field['name']}"
            if field["name"] in old:
                yield from self.compare(field["type"], old[field["name"]]["type"], place)
            elif "default" not in field:
                yield place, "is new and has no default, so records without it cannot be read"


def _key(schema: Any) -> str:
    return schema if isinstance(schema, str) else ""


def _kind(schema: Any) -> str:
    kind = schema["type"] if isinstance(schema, dict) else schema
    return str(kind)


def _logical(schema: Any) -> str | None:
    return schema.get("logicalType") if isinstance(schema, dict) else None


def _title(schema: Any) -> str:
    return str(schema["name"]) if isinstance(schema, dict) and "name" in schema else _kind(schema)
