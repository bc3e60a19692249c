"""Selectors: what they match, what they never match, and what is no selector."""

from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from streams.jobs import HANDLERS, Job, Payload, secret
from streams.queues import WEBHOOKS
from streams.selectors import DEPTH_MAX, LENGTH_MAX, InvalidSelector, check_selector, selector_of
from tests.deliveries import delivery
from tests.rig import handle


class Colour(Enum):
    RED = "red"


class Address(Payload):
    post_code: str = "1010"
    from_: str | None = None
    key: str = secret(default="hidden")


class Mail(Payload):
    template: str = "welcome"
    reply_to: str | None = None
    count: int = 3
    share: float = 0.5
    urgent: bool = True
    recipients: list[str] = Field(["ada@example.org", "bob@example.org"])
    colour: Colour = Colour.RED
    at: datetime = datetime(2026, 3, 1, 12, tzinfo=UTC)
    data: bytes = b"\xff"
    labels: dict[str, str] = Field({"cost-centre": "7", "kind": "bill"})
    address: Address = Address()
    password: str = secret(default="hidden")


MAIL = delivery(payload=Mail(), priority=7, attempt=2)


@pytest.mark.parametrize(
    "text",
    [
        'type == "test.job" and payload.template == "welcome"',
        'queue == "emails" and organization != "globex"',
        "attempt == 2 and priority > 6",
        "not attempt < 2",
        'type == "other" or (organization == "acme" and attempt <= 2)',
        'payload.template in ["goodbye", "welcome"]',
        'payload.template not in ["goodbye"]',
        '"ada@example.org" in payload.recipients',
        '"nobody@example.org" not in payload.recipients',
        '"come" in payload.template',
        'payload.template >= "w"',
        "payload.replyTo == null and payload.reply_to == None",
        "payload.template != null",
        "payload.count >= 3 and payload.count == 3.0 and payload.share < 1",
        "payload.count > -1",
        "payload.urgent == true and payload.urgent != false",
        'payload.colour == "red"',
        'payload.at >= "2026-03-01" and payload.at < "2026-03-02"',
        'payload.data == "_w=="',
        'payload.labels.kind == "bill" and payload.labels["cost-centre"] == "7"',
        'payload.address.postCode == "1010" and payload.address["post_code"] == "1010"',
        'payload["address"].from_ == null',
        'payload.template == payload["template"]',
        '\n type ==\n "test.job" ',
        'payload.recipients == ["ada@example.org", "bob@example.org"]',
    ],
)
def test_it_matches(text: str) -> None:
    assert selector_of(text)(MAIL) is True


@pytest.mark.parametrize(
    "text",
    [
        'payload.missing == "x"',
        'payload.missing != "x"',
        "payload.missing == null",
        "payload.missing != null",
        'payload.missing not in ["x"]',
        "payload.missing < 1",
        'payload.template.deeper == "x"',
        "payload.template == 1",
        "payload.template != 1",
        "payload.template < 1",
        'payload.count == "3"',
        'payload.count < "4"',
        "payload.urgent == 1",
        "payload.count == true",
        "payload.urgent < true",
        "payload.reply_to < null",
        "1 in payload.count",
        "1 not in payload.count",
        "1 in payload.template",
        '"x" in payload.labels',
        "payload.labels == null",
        "payload.address != null",
        "payload.recipients < [1]",
        'payload.count in [true, "3"]',
        'payload.password == "hidden"',
        'payload.password != "x"',
        'payload.address.key == "hidden"',
        "payload.model_fields == null",
        "payload.__class__ == null",
    ],
)
def test_it_does_not_match(text: str) -> None:
    assert selector_of(text)(MAIL) is False


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "column 1"),
        ("type", "column 1: expected a comparison"),
        ('type == "a" and organization', "column 17: expected a comparison"),
        ('type == "é" and foo == 1', "column 17: 'foo' is no field"),
        ('"a" == "a"', "column 1: expected a comparison with a field"),
        ("payload == 1", "column 1: 'payload' is no field"),
        ("type.x == 1", "column 1: 'type.x' is no field"),
        ("payload[0] == 1", 'column 9: expected the name of a field, as in payload["name"]'),
        ("len(payload.to) == 1", "column 1"),
        ('payload.to() == "x"', "column 1: expected a comparison with a field"),
        ('type == f"{queue}"', "column 9"),
        ('type == b"x"', "column 9: 'b\"x\"' is no value"),
        ("attempt == 1j", "column 12: '1j' is no value"),
        ("attempt == ...", "column 12: '...' is no value"),
        ("attempt == 1 + 1", "column 12: '1 + 1' is no value"),
        ("attempt in (1, 2)", "column 12: '(1, 2)' is no value"),
        ("attempt in [1, [2]]", "column 16: '[2]' is no value"),
        ("attempt in [priority]", "column 13: 'priority' is no value"),
        ('type is "a"', "this comparison is none of them"),
        ("1 < attempt < 3", "one comparison at a time"),
        ("lambda: attempt == 1", "column 1: expected a comparison"),
        ("attempt == 1 if true else attempt == 2", "column 1: expected a comparison"),
        ("(attempt := 1) == 1", "column 1: expected a comparison with a field"),
        ("attempt = 1", "column 9: invalid syntax"),
        ("(type == 'a'", "'(' was never closed"),
        ("attempt == 1; import os", "column 13"),
        ("\0", "null bytes"),
        ("type == '\ud800'", "allowed are"),
        ("(" * 300 + "1", "allowed are"),
        ("-" * 900 + "1 == attempt", "column 1"),
        ("not " * (DEPTH_MAX + 1) + "attempt == 1", f"it is deeper than {DEPTH_MAX}"),
        ("payload" + ".a" * 100 + " == 1", "it is deeper"),
        ("x" * (LENGTH_MAX + 1), "at most 1000 characters, got 1001"),
    ],
)
def test_what_is_no_selector_is_told_with_its_place(text: str, says: str) -> None:
    with pytest.raises(InvalidSelector) as told:
        selector_of(text)
    assert says in str(told.value)


ATOMS = st.sampled_from(
    ["type", "payload.count", "payload.recipients", "payload.x", "null", "true", "1", '"a"', "[1]", "(", ")",
     "and", "or", "not", "==", "!=", "<", "in", "[", "]", ".", ",", "payload", "attempt", "-", "lambda"]
)  # fmt: skip


@given(st.one_of(st.lists(ATOMS, max_size=12).map(" ".join), st.text(max_size=60)))
def test_whatever_is_typed_is_a_selector_or_a_sentence_and_none_raises_later(text: str) -> None:
    with suppress(InvalidSelector):
        assert selector_of(text)(MAIL) in (True, False)


VALUES: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers() | st.text())
)


@given(VALUES, st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "in", "not in"]), VALUES)
def test_values_of_any_kind_are_compared_without_an_error(a: Any, relation: str, b: Any) -> None:
    class Anything(Payload):
        a: Any
        b: Any

    one = delivery(payload=Anything.model_construct(a=a, b=b))
    assert selector_of(f"payload.a {relation} payload.b")(one) in (True, False)


class TestCheck:
    @pytest.fixture(autouse=True)
    def _handler(self, no_handlers: None) -> None:
        async def sends(job: Job[Mail]) -> None:
            return None

        handle(sends, WEBHOOKS)

    @pytest.mark.parametrize(
        "text",
        [
            'type == "test.mail" and payload.replyTo == "x"',
            'type in ["test.mail"] and queue != "emails" and payload.reply_to != null',
            'payload.template == "nonsense"',
        ],
    )
    def test_what_jobs_can_have_is_fine(self, text: str) -> None:
        check_selector(text, HANDLERS.values())

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ('type == "test.male"', "unknown type 'test.male'; expected one of test.mail"),
            ('type in ["test.mail", "x"]', "unknown type 'x'"),
            ('"emial" == queue', "unknown queue 'emial'"),
            ("payload.templat == 'x'", "no job type has a field payload.templat"),
            ("payload.password == 'x'", "payload.password is secret"),
            ("attempt", "expected a comparison"),
        ],
    )
    def test_what_no_job_can_have_is_told(self, text: str, says: str) -> None:
        with pytest.raises(InvalidSelector) as told:
            check_selector(text, HANDLERS.values())
        assert says in str(told.value)
