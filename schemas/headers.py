"""The headers of a record as confluent-kafka read it."""

from operator import methodcaller

from confluent_kafka import Message

# Called from C, where the interpreter looks whether an error is set: confluent-kafka 2.16 sets one for a name that
# is no UTF-8, but returns a list with a hole in it, and a call that Python 3.11 has specialised takes that list
# and crashes.
_headers_of = methodcaller("headers")


def headers_of(message: Message) -> list[tuple[str, bytes | None]]:
    """Return the headers of a record that was read; none when a name among them is no UTF-8."""
    try:
        return list(_headers_of(message) or [])
    except (UnicodeDecodeError, SystemError):
        return []
