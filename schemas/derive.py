"""The Avro schema of a pydantic model, so that the model is the one place where a shape is stated.

| Python | Avro |
|---|---|
| `str` `int` `float` `bool` `bytes` | string, long, double, boolean, bytes |
| `datetime` `date` | long timestamp-micros, int date |
| `list[T]` `dict[str, T]` | array, map |
| `T \\| None` | union with null, default null |
| `StrEnum`, `Literal` of strings | enum |
| a model | record, defined where it first appears |

Anything else is refused, with the field and what to use instead.
"""

import inspect
import re
import types
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AwareDatetime, BaseModel
from pydantic.fields import FieldInfo

from schemas.canonical import Schema, parsed

TIMESTAMP = {"type": "long", "logicalType": "timestamp-micros"}
_DATE = {"type": "int", "logicalType": "date"}
_SCALARS: dict[Any, Any] = {
    str: "string",
    int: "long",
    float: "double",
    bool: "boolean",
    bytes: "bytes",
    datetime: TIMESTAMP,
    AwareDatetime: TIMESTAMP,
    date: _DATE,
}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _common(name: str, kind: Any, doc: str, **default: Any) -> Schema:
    return {"name": name, "type": kind, **default, "doc": doc}


_JOB_FIELDS = (
    _common("jobId", "string", "Unique; a job that completed is not run again"),
    _common("jobType", "string", "Names the record in payload: its attribute jobType"),
    _common("organizationId", "string", "Also the key of the record"),
    _common("createdAt", TIMESTAMP, "When the producer stated the job"),
    _common("priority", "int", "1, the most urgent, to 10", default=5),
    _common(
        "idempotencyKey",
        ["null", "string"],
        "Jobs of one organization with the same key run once",
        default=None,
    ),
    _common(
        "orderingKey",
        ["null", "string"],
        "Kept for running the jobs of one key in order; not acted on yet",
        default=None,
    ),
    _common("maxAttempts", ["null", "int"], "Instead of what the job type allows", default=None),
)


class NotDerivable(TypeError):
    """A model has a field that Avro cannot hold safely; the message says which and what to use instead."""


def record_schema(model: type[BaseModel], namespace: str) -> Schema:
    """Return the record schema of a model; its name is the class's, its fields go by their wire names."""
    schema = _Derivation().record(model, ())
    schema = {"type": "record", "name": schema["name"], "namespace": namespace, **schema}
    parsed(schema)
    return schema


def job_schema(queue: str, payloads: Mapping[str, type[BaseModel]]) -> Schema:
    """Return the schema of a queue's topic: what every job has, and a union of one payload record a job type.

    A payload record names its job type in the attribute `jobType`.
    """
    derivation = _Derivation()
    union = []
    for job_type, model in sorted(payloads.items()):
        union.append(derivation.type_of(model, f"payload of {job_type}", model.__name__, ()))
        definition = derivation.named[model.__name__]
        definition["jobType"] = job_type
        definition["fields"] = definition.pop("fields")  # last, where a reader of the file looks for them
    schema = {
        "type": "record",
        "name": "".join(part.capitalize() for part in queue.split("-")) + "Job",
        "namespace": f"streams.jobs.{queue.replace('-', '_')}",
        "doc": f"A job of the queue {queue}, as its producer stated it.",
        "fields": [
            *_JOB_FIELDS,
            {"name": "payload", "type": union, "doc": "One record per job type of the queue"},
        ],
    }
    parsed(schema)
    return schema


class _Derivation:
    """The named types of one schema: each is defined where it first appears and referred to after that."""

    def __init__(self) -> None:
        self.named: dict[str, Schema] = {}
        self._origins: dict[str, object] = {}

    def record(self, model: type[BaseModel], inside: tuple[type, ...]) -> Schema:
        if model in inside:
            raise NotDerivable(f"{model.__name__} contains itself; hold a reference, such as an id, instead")
        schema: Schema = {"type": "record", "name": model.__name__}
        if model.__doc__:
            schema["doc"] = inspect.cleandoc(model.__doc__)
        schema["fields"] = [
            self._field(model, name, info, (*inside, model)) for name, info in model.model_fields.items()
        ]
        return schema

    def _field(self, model: type[BaseModel], name: str, info: FieldInfo, inside: tuple[type, ...]) -> Schema:
        where = f"{model.__name__}.{name}"
        wire = info.serialization_alias or info.alias or name
        if not _NAME.fullmatch(wire):
            raise NotDerivable(f"{where} goes by {wire!r}, which is no Avro name; use letters, digits and _")
        kind = self.type_of(info.annotation, where, model.__name__ + wire[0].upper() + wire[1:], inside)
        field: Schema = {"name": wire, "type": kind}
        is_optional = isinstance(kind, list)
        if info.default_factory in (list, dict) or not (info.is_required() or info.default_factory):
            default = info.get_default(call_default_factory=True, validated_data={})
            if is_optional and default is not None:
                # Avro wants the default's branch first.
                kind.sort(key=lambda branch: branch == "null")
            field["default"] = _plain(default, where)
        elif is_optional:
            field["default"] = None
        if info.description:
            field["doc"] = info.description
        return field

    def type_of(self, annotation: Any, where: str, enum_name: str, inside: tuple[type, ...]) -> Any:
        """Return the Avro type; `enum_name` is for a Literal, which has none of its own."""
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            return self.type_of(arguments[0], where, enum_name, inside)
        if annotation in _SCALARS:
            known = _SCALARS[annotation]
            return dict(known) if isinstance(known, dict) else known
        if origin in (Union, types.UnionType):
            others = [argument for argument in arguments if argument is not type(None)]
            if len(others) == 1:
                return ["null", self.type_of(others[0], where, enum_name, inside)]
            raise NotDerivable(
                f"{where} is a union of {len(others)} types; use one type, or a record for each"
            )
        if origin is Literal:
            return self._enum(enum_name, list(arguments), annotation, where)
        if origin is list:
            return {"type": "array", "items": self.type_of(arguments[0], where, enum_name, inside)}
        if origin is dict and arguments[0] is str:
            return {"type": "map", "values": self.type_of(arguments[1], where, enum_name, inside)}
        if isinstance(annotation, type) and issubclass(annotation, Enum):
            if not issubclass(annotation, str):
                raise NotDerivable(f"{where} is a {annotation.__name__}, an enum that is no str; use StrEnum")
            symbols = [member.value for member in annotation]
            return self._enum(annotation.__name__, symbols, annotation, where)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return self._named(annotation.__name__, annotation, lambda: self.record(annotation, inside))
        raise NotDerivable(f"{where} is {_words(annotation)}; {_instead(annotation, origin)}")

    def _enum(self, name: str, symbols: list[Any], origin: object, where: str) -> Any:
        for symbol in symbols:
            if not isinstance(symbol, str) or not _NAME.fullmatch(symbol):
                raise NotDerivable(
                    f"{where} allows {symbol!r}, which is no Avro symbol; use a str with a pattern instead"
                )
        return self._named(name, origin, lambda: {"type": "enum", "name": name, "symbols": symbols})

    def _named(self, name: str, origin: object, define: Any) -> Any:
        if name in self.named:
            if self._origins[name] != origin:
                raise NotDerivable(f"two different types are called {name}; rename one")
            return name
        schema: Schema = define()
        if name in self.named:
            raise NotDerivable(f"two different types are called {name}; rename one")
        self.named[name], self._origins[name] = schema, origin
        return schema


def _plain(value: Any, where: str) -> Any:
    """Return a default as Avro writes it in JSON."""
    match value:
        case Enum():
            return value.value
        case None | bool() | str() | int() | float():
            return value
        case bytes():
            return value.decode("latin-1")
        case datetime() if value.tzinfo is not None:
            return (value - _EPOCH) // timedelta(microseconds=1)
        case date() if not isinstance(value, datetime):
            return (value - _EPOCH.date()).days
        case list() | tuple():
            return [_plain(item, where) for item in value]
        case Mapping():
            return {key: _plain(item, where) for key, item in value.items()}
        case BaseModel():
            fields = type(value).model_fields
            return {
                info.serialization_alias or info.alias or name: _plain(getattr(value, name), where)
                for name, info in fields.items()
            }
    raise NotDerivable(f"the default of {where}, a {type(value).__name__}, has no form in Avro")


def _words(annotation: Any) -> str:
    return getattr(annotation, "__name__", None) or repr(annotation)


def _instead(annotation: Any, origin: Any) -> str:
    """Return what to use in place of a type that is refused."""
    name = _words(annotation)
    if name == "Decimal":
        return "use an int of minor units, such as cents, or a str"
    if name in ("SecretStr", "SecretBytes"):
        return "use a str that is marked as a secret"
    if origin in (set, frozenset, tuple) or annotation in (list, set, tuple):
        return "use list[T]"
    if origin is dict or annotation is dict:
        return "use dict[str, T]"
    return "use str, int, float, bool, bytes, datetime, date, list[T], dict[str, T], an enum or a model"
