"""From pydantic models to Avro schemas, and what is refused on the way."""

from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Annotated, Any, Literal, Optional
from uuid import UUID

import avro.schema
import pytest
from fastavro import parse_schema
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, SecretStr, create_model
from pydantic.alias_generators import to_camel

from schemas import Codec
from schemas.canonical import render
from schemas.derive import NotDerivable, job_schema, record_schema


class Model(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Plain(Enum):
    ONE = "one"


class Address(Model):
    """Where someone lives."""

    street: str
    zip_code: str = "0000"


TIMESTAMP = {"type": "long", "logicalType": "timestamp-micros"}
COLOUR = {"type": "enum", "name": "Colour", "symbols": ["red", "blue"]}
ADDRESS = {
    "type": "record",
    "name": "Address",
    "doc": "Where someone lives.",
    "fields": [
        {"name": "street", "type": "string"},
        {"name": "zipCode", "type": "string", "default": "0000"},
    ],
}
MONDAY = datetime(2026, 5, 18, tzinfo=UTC)
MICROS = 1_779_062_400_000_000


@pytest.mark.parametrize(
    ("annotation", "avro_type"),
    [
        (str, "string"),
        (int, "long"),
        (float, "double"),
        (bool, "boolean"),
        (bytes, "bytes"),
        (datetime, TIMESTAMP),
        (AwareDatetime, TIMESTAMP),
        (date, {"type": "int", "logicalType": "date"}),
        (list[int], {"type": "array", "items": "long"}),
        (list[list[str]], {"type": "array", "items": {"type": "array", "items": "string"}}),
        (dict[str, float], {"type": "map", "values": "double"}),
        (Annotated[str, Field(min_length=1)], "string"),
        (Colour, COLOUR),
        (Literal["one", "two"], {"type": "enum", "name": "ThingValue", "symbols": ["one", "two"]}),
        (Address, ADDRESS),
        (list[Address], {"type": "array", "items": ADDRESS}),
        (dict[str, list[Address]], {"type": "map", "values": {"type": "array", "items": ADDRESS}}),
    ],
    ids=str,
)
class TestTypes:
    def test_required(self, annotation: Any, avro_type: Any) -> None:
        assert _field(annotation) == {"name": "value", "type": avro_type}

    def test_optional(self, annotation: Any, avro_type: Any) -> None:
        expected = {"name": "value", "type": ["null", avro_type], "default": None}
        assert _field(annotation | None, None) == expected
        assert _field(Optional[annotation]) == expected  # noqa: UP045 - both spellings are in use


@pytest.mark.parametrize(
    ("annotation", "default", "avro_default"),
    [
        (str, "x", "x"),
        (int, 3, 3),
        (float, 3, 3),
        (bool, True, True),
        (bytes, b"\x00\xff", "\x00\xff"),
        (datetime, MONDAY, MICROS),
        (date, date(1970, 1, 11), 10),
        (list[int], Field(default_factory=list), []),
        (list[int], [1, 2], [1, 2]),
        (dict[str, str], Field(default_factory=dict), {}),
        (Colour, Colour.BLUE, "blue"),
        (Literal["a", "b"], "b", "b"),
        (Address, Address(street="s"), {"street": "s", "zipCode": "0000"}),
    ],
    ids=str,
)
def test_defaults(annotation: Any, default: Any, avro_default: Any) -> None:
    field = _field(annotation, default)
    assert field["default"] == avro_default
    assert type(field["default"]) is type(avro_default)


def test_default_of_an_optional_comes_first_in_its_union() -> None:
    assert _field(str | None, "x") == {"name": "value", "type": ["string", "null"], "default": "x"}


def test_a_default_that_differs_each_time_is_none_at_all() -> None:
    assert "default" not in _field(datetime, Field(default_factory=lambda: datetime.now(UTC)))


def test_wire_names_and_docs() -> None:
    class Thing(Model):
        """A thing."""

        some_name: str = Field(description="What it is called")
        other: int = Field(serialization_alias="theOther")

    schema = record_schema(Thing, "some.space")
    assert (schema["name"], schema["namespace"], schema["doc"]) == ("Thing", "some.space", "A thing.")
    assert schema["fields"] == [
        {"name": "someName", "type": "string", "doc": "What it is called"},
        {"name": "theOther", "type": "long"},
    ]


def test_a_record_is_defined_once() -> None:
    class Trip(Model):
        start: Address
        stops: list[Address]

    start, stops = record_schema(Trip, "t")["fields"]
    assert start["type"] == ADDRESS
    assert stops["type"] == {"type": "array", "items": "Address"}


class Node(Model):
    children: list["Node"] = []


class Nothing(Model):
    pass


def _other_address() -> type[BaseModel]:
    return create_model("Address", house=(str, ...))


REFUSED = {
    "Decimal": (Decimal, "minor units"),
    "UUID": (UUID, "use str"),
    "Any": (Any, "use str"),
    "SecretStr": (SecretStr, "marked as a secret"),
    "set": (set[str], "list"),
    "tuple": (tuple[str, ...], "list"),
    "plain list": (list, "list"),
    "plain dict": (dict, "dict"),
    "dict with int keys": (dict[int, str], "dict"),
    "union": (int | str, "union of 2 types"),
    "enum that is no str": (Plain, "use StrEnum"),
    "Literal of numbers": (Literal[1, 2], "no Avro symbol"),
    "Literal with a slash": (Literal["a/b"], "no Avro symbol"),
    "recursion": (Node, "contains itself"),
    "array of nothing": (list[Nothing], "take no bytes"),
    "nested": (dict[str, list[Decimal]], "minor units"),
}


@pytest.mark.parametrize(("annotation", "instead"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_with_what_to_use_instead(annotation: Any, instead: str) -> None:
    with pytest.raises((NotDerivable, ValueError), match=instead):
        _field(annotation)


def test_two_types_of_one_name_are_refused() -> None:
    with pytest.raises(NotDerivable, match="called Address"):
        record_schema(create_model("Thing", a=(Address, ...), b=(_other_address(), ...)), "t")


class TestJobSchema:
    class Send(Model):
        """One message."""

        to: list[Address]
        colour: Colour = Colour.RED

    class Fetch(Model):
        since: AwareDatetime

    schema = job_schema("big-mail", {"mail.send": Send, "mail.fetch": Fetch})

    def test_envelope(self) -> None:
        assert self.schema["name"] == "BigMailJob"
        assert self.schema["namespace"] == "streams.jobs.big_mail"
        fields = {f["name"]: (f["type"], f.get("default", "required")) for f in self.schema["fields"]}
        fields.pop("payload")
        assert fields == {
            "jobId": ("string", "required"),
            "jobType": ("string", "required"),
            "organizationId": ("string", "required"),
            "createdAt": (TIMESTAMP, "required"),
            "priority": ("int", 5),
            "idempotencyKey": (["null", "string"], None),
            "orderingKey": (["null", "string"], None),
            "maxAttempts": (["null", "int"], None),
        }

    def test_payload_names_its_job_types(self) -> None:
        union = self.schema["fields"][-1]["type"]
        assert [(branch["name"], branch["jobType"]) for branch in union] == [
            ("Fetch", "mail.fetch"),
            ("Send", "mail.send"),
        ]

    def test_order_of_registration_does_not_matter(self) -> None:
        assert job_schema("big-mail", {"mail.fetch": self.Fetch, "mail.send": self.Send}) == self.schema

    def test_both_libraries_take_it(self) -> None:
        parse_schema(self.schema.copy())
        avro.schema.parse(render(self.schema))

    def test_a_model_goes_through_the_codec(self) -> None:
        payload = self.Send(to=[Address(street="s")], colour=Colour.BLUE)
        job = {
            "jobId": "1", "jobType": "mail.send", "organizationId": "acme", "createdAt": MONDAY, "priority": 1,
            "idempotencyKey": None, "orderingKey": "k", "maxAttempts": 3,
        }  # fmt: skip
        codec = Codec(self.schema)
        dumped = payload.model_dump(by_alias=True)
        decoded = codec.decode(codec.encode({**job, "payload": dumped}))
        assert self.Send.model_validate(decoded["payload"]) == payload
        assert {**decoded, "payload": None} == {**job, "payload": None}

    def test_a_payload_inside_a_payload(self) -> None:
        class Batch(Model):
            one: TestJobSchema.Send

        schema = job_schema("q", {"a.batch": Batch, "b.send": self.Send})
        assert schema["fields"][-1]["type"][1] == "Send"
        assert Codec(schema).job_types == ("a.batch", "b.send")


def _field(annotation: Any, default: Any = ...) -> dict[str, Any]:
    model = create_model("Thing", value=(annotation, default))
    (field,) = record_schema(model, "t")["fields"]
    return dict(field)
