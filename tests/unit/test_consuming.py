"""What plain consumers return, with the types it always has."""

from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from streams.consuming import Consumed, End, consumed


class Read:
    """A message as confluent-kafka returns it."""

    def __init__(self, headers: Any = None, error: KafkaError | None = None) -> None:
        self._headers, self._error = headers, error

    def topic(self) -> str:
        return "jobs.emails"

    def partition(self) -> int:
        return 1

    def offset(self) -> int:
        return 7

    def error(self) -> KafkaError | None:
        return self._error

    def key(self) -> bytes:
        return b"acme"

    def value(self) -> None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return 1, 1000

    def headers(self) -> Any:
        if isinstance(self._headers, Exception):
            raise self._headers
        return self._headers


def one(message: Any) -> Consumed | End:
    (found,) = consumed([message])
    return found


@pytest.mark.parametrize(
    ("headers", "kept"),
    [
        (None, {}),
        ([], {}),
        ([("a", b"1"), ("b", None), ("a", b"2")], {"a": b"2"}),
        (SystemError("returned a result with an exception set"), {}),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), {}),
    ],
)
def test_headers_are_those_that_can_be_read_and_have_a_value(headers: Any, kept: dict[str, bytes]) -> None:
    assert one(Read(headers)) == Consumed("jobs.emails", 1, 7, 1000, b"acme", None, kept)


def test_a_place_is_named_and_can_be_gone_on_from() -> None:
    found = one(Read())
    assert isinstance(found, Consumed)
    assert found.place == "jobs.emails/1/7"
    assert (found.at().offset, found.at(1).offset) == (7, 8)


def test_the_end_of_a_partition_is_no_error_and_others_are() -> None:
    assert one(Read(error=KafkaError(KafkaError._PARTITION_EOF))) == End("jobs.emails", 1)
    with pytest.raises(KafkaException):
        one(Read(error=KafkaError(KafkaError._ALL_BROKERS_DOWN)))
