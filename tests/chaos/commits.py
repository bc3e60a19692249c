"""Every position that a group ever committed, as the broker itself remembers them: no sample misses one."""

import struct
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from streams.consuming import End, consumed
from tests.chaos.history import Place

TOPIC = "__consumer_offsets"
READ_WITHIN_SECONDS = 30


@dataclass
class Commits:
    """What a group wrote since it was last deleted."""

    positions: dict[Place, list[int]] = field(default_factory=lambda: defaultdict(list))
    """The commits of each partition in their order."""
    generations: int = 0
    """How often its members had to find together."""

    @property
    def count(self) -> int:
        return sum(map(len, self.positions.values()))

    def steps_back(self) -> list[str]:
        """Return where a commit was lower than the one before."""
        return [
            f"{topic}/{partition}: {after} after {before}"
            for (topic, partition), commits in self.positions.items()
            for before, after in pairwise(commits)
            if after < before
        ]


def commits_of(group: str, kafka: dict[str, Any]) -> Commits:
    """Return all commits of a group; the topic is compacted, but not the part that is written to."""
    found = Commits()
    for key, value in _records(kafka):
        version, rest = struct.unpack_from(">h", key)[0], key[2:]
        name, rest = _text(rest)
        if name != group:
            continue
        if version == 2:  # the group itself; its value: version, protocol, generation, ...
            if value is not None:
                found.generations = max(found.generations, struct.unpack(">i", _text(value[2:])[1][:4])[0])
            else:
                found.generations = 0
            continue
        topic, rest = _text(rest)
        place = (topic, struct.unpack(">i", rest)[0])
        if value is None:
            found.positions.pop(place, None)
        else:
            found.positions[place].append(struct.unpack_from(">q", value, 2)[0])
    return found


def _text(raw: bytes) -> tuple[str, bytes]:
    length = struct.unpack_from(">h", raw)[0]
    return raw[2 : 2 + length].decode(), raw[2 + length :]


def _records(kafka: dict[str, Any]) -> Iterator[tuple[bytes, bytes | None]]:
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
    consumer.assign([TopicPartition(TOPIC, number, 0) for number in left])
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
