"""Every position that a group ever committed, as the broker itself remembers them: no sample misses one."""

import struct
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from streams.consuming import End, consumed
from tests.chaos.history import Commit, Place

TOPIC = "__consumer_offsets"
READ_WITHIN_SECONDS = 30


@dataclass
class Commits:
    """What a group wrote since it was last deleted."""

    places: dict[Place, list[Commit]] = field(default_factory=lambda: defaultdict(list))
    """The commits of each partition in their order."""
    generations: int = 0
    """How often its members had to find together."""

    @property
    def count(self) -> int:
        return sum(map(len, self.places.values()))

    def steps_back(self) -> list[str]:
        """Return where a commit was lower than the one before."""
        return [
            f"{topic}/{partition}: {after.position} after {before.position}"
            for (topic, partition), commits in self.places.items()
            for before, after in pairwise(commits)
            if after.position < before.position
        ]


def commits_of(group: str, kafka: dict[str, Any]) -> Commits:
    """Return all commits of a group."""
    return commits(kafka)[group]


def commits(kafka: dict[str, Any], since: Mapping[int, int] | None = None) -> Mapping[str, Commits]:
    """Return all commits of each group; the topic is compacted, but not the part that is written to.

    `since` is where to begin in the partitions of the topic, at their start where it does not say. Keys and values:
    `OffsetCommitKey.json` and `OffsetCommitValue.json` of Kafka's group coordinator, versions 1 to 4.
    """
    groups: dict[str, Commits] = defaultdict(Commits)
    for key, value in _records(kafka, since or {}):
        version, rest = struct.unpack_from(">h", key)[0], key[2:]
        name, rest = _text(rest)
        found = groups[name]
        if version == 2:  # the group itself; its value: version, protocol, generation, ...
            if value is not None:
                found.generations = max(found.generations, struct.unpack(">i", _text(value[2:])[1][:4])[0])
            else:
                found.generations = 0
            continue
        topic, rest = _text(rest)
        place = topic, struct.unpack(">i", rest)[0]
        if value is None:
            found.places.pop(place, None)
        else:
            found.places[place].append(_commit(place, value))
    return groups


def _commit(place: Place, value: bytes) -> Commit:
    version, position = struct.unpack_from(">hq", value)
    read = _text if version < 4 else _compact_text
    metadata, rest = read(value[14:] if version >= 3 else value[10:])
    # The broker's clock is cut to milliseconds; what was written in the same one came before.
    return Commit((struct.unpack_from(">q", rest)[0] + 1) / 1000, *place, position, metadata)


def _text(raw: bytes) -> tuple[str, bytes]:
    length = struct.unpack_from(">h", raw)[0]
    return raw[2 : 2 + length].decode(), raw[2 + length :]


def _compact_text(raw: bytes) -> tuple[str, bytes]:
    """Read a text whose length, plus one, is an unsigned varint (KIP-482); of metadata no more than two bytes."""
    length, start = (raw[0], 1) if raw[0] < 0x80 else (raw[0] & 0x7F | raw[1] << 7, 2)
    end = start + length - 1
    return raw[start:end].decode(), raw[end:]


def _records(kafka: dict[str, Any], since: Mapping[int, int]) -> Iterator[tuple[bytes, bytes | None]]:
    consumer = Consumer(
        {
            **kafka,
            "group.id": "chaos-commits",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "log_level": 2,
        }
    )
    left: set[int] = set(consumer.list_topics(TOPIC, timeout=10).topics[TOPIC].partitions)
    consumer.assign([TopicPartition(TOPIC, number, since.get(number, 0)) for number in left])
    deadline = time.monotonic() + READ_WITHIN_SECONDS
    try:
        while left and time.monotonic() < deadline:
            for one in consumed(consumer.consume(10_000, 0.2)):
                if isinstance(one, End):
                    left.discard(one.partition)
                elif one.key is not None:
                    yield one.key, one.value
    finally:
        consumer.close()
    assert not left, f"{TOPIC} was not read to its end"
