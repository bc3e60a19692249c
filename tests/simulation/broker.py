"""A simulated Kafka: logs of records, a consumer group with generations, and what may go wrong with both."""

import asyncio
import random
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from confluent_kafka import KafkaError

from streams.producer import Message, Producer
from streams.worker import Partition
from tests.simulation.loop import PROCESS, Loop, Process

SESSION_SECONDS = 3.0
REBALANCE_SECONDS = 6.0
"""How long a rebalance waits for members that have not given up their partitions."""
WATCH_SECONDS = 0.25


class CommitFailed(Exception):
    """Positions were not committed, or nobody knows whether they were."""


@dataclass(slots=True, eq=False)
class Stored:
    """A record in a log; it has the shape of what a consumer reads."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]
    copies: int = 0
    """By how many it was read."""

    @property
    def facts(self) -> dict[str, bytes]:
        return dict(self.headers)


@dataclass
class Log:
    """One partition; offsets may have gaps, as transactions of others leave them."""

    records: list[Stored] = field(default_factory=list)
    end: int = 0

    def since(self, offset: int, most: int) -> list[Stored]:
        if offset >= self.end:
            return []
        first = bisect_left(self.records, offset, key=lambda one: one.offset)
        return self.records[first : first + most]


class Broker:
    """Holds the logs; `healthy` says whether it answers."""

    def __init__(self, loop: Loop, chance: random.Random, partitions: int, gaps: bool) -> None:
        self.loop = loop
        self.partitions = partitions
        self.healthy = True
        self.logs: dict[Partition, Log] = {}
        self.commits: dict[Partition, int] = {}
        self.metadata: dict[Partition, str] = {}
        """What was committed beside those positions."""
        self.forwarded: dict[Partition, int] = {}
        """The positions of the retry forwarder's group."""
        self.on_append: list[Callable[[Stored], None]] = []
        self._chance = chance
        self._gaps = gaps
        self._arrivals: list[asyncio.Future[None]] = []

    def of(self, topic: str) -> list[Stored]:
        """Return the records of a topic."""
        return [
            one for number in range(self.partitions) for one in self.log(Partition(topic, number)).records
        ]

    def log(self, partition: Partition) -> Log:
        log = self.logs.get(partition)
        if log is None:
            log = self.logs[partition] = Log()
        return log

    def append(self, message: Message) -> Stored:
        """Put a record into its log, now."""
        number = zlib.crc32(message.key or b"") % self.partitions
        log = self.log(Partition(message.topic, number))
        if self._gaps and self._chance.random() < 0.1:
            log.end += self._chance.randrange(1, 3)
        headers = [(name, data) for name, data in message.headers or [] if isinstance(data, bytes)]
        now_ms = int((self.loop.time() + WORLD_BEGINS) * 1000)
        stored = Stored(message.topic, number, log.end, now_ms, message.key, message.value, headers)
        log.records.append(stored)
        log.end += 1
        for listener in self.on_append:
            listener(stored)
        arrivals, self._arrivals = self._arrivals, []
        for arrival in arrivals:
            if not arrival.done():
                arrival.set_result(None)
        return stored

    async def recovered(self) -> None:
        """Return when the broker answers."""
        while not self.healthy:  # noqa: ASYNC110 - polling costs nothing where time is virtual
            await asyncio.sleep(0.05)

    async def arrival(self, positions: Callable[[], Mapping[Partition, int]], wait_seconds: float) -> None:
        """Return when there is something to read from the positions on, or after a while."""
        await self.slowly()
        await self.recovered()
        if not self.read(positions(), 1):
            arrival = self.loop.create_future()
            self._arrivals.append(arrival)
            await asyncio.wait([arrival], timeout=wait_seconds)

    def read(self, positions: Mapping[Partition, int], most: int) -> dict[Partition, list[Stored]]:
        """Return the records from the positions on, at most so many of each partition."""
        if not self.healthy:
            return {}
        found = {partition: self.log(partition).since(at, most) for partition, at in positions.items()}
        return {partition: records for partition, records in found.items() if records}

    async def slowly(self) -> None:
        """Take the time of half a round trip; now and then so long that a rebalance overtakes it."""
        slow = self._chance.random() < 0.03
        await asyncio.sleep(self._chance.uniform(0.3, 4.0) if slow else self._chance.uniform(0.001, 0.005))


WORLD_BEGINS = 1_800_000_000.0
"""Seconds since the epoch at which every world begins."""


class SimulatedProducer(Producer):
    """Writes to the simulated broker, each record after a delay of its own, until all are there.

    What is on its way when its process dies may arrive all the same, or not.
    """

    def __init__(self, broker: Broker, chance: random.Random, process: Process) -> None:
        self._broker = broker
        self._chance = chance
        self._process = process
        self.refuse_next = False
        self.closed = False
        self.die_after_appends: int | None = None
        """Its process is killed once so many more records are there, before it learns of the last."""

    async def send(self, messages: Sequence[Message]) -> list[KafkaError]:
        if self.refuse_next:
            self.refuse_next = False
            await asyncio.sleep(self._chance.uniform(0.001, 0.02))
            return [KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)]
        loop = self._broker.loop
        done = loop.create_future()
        left = len(messages)

        def arrive(message: Message) -> None:
            nonlocal left
            if not self._broker.healthy:
                outside(loop, self._chance.uniform(0.05, 0.2), arrive, message)
                return
            if self._process.dead and self._chance.random() < 0.5:
                return
            self._broker.append(message)
            left -= 1
            if self.die_after_appends is not None:
                self.die_after_appends -= 1
                if self.die_after_appends <= 0:
                    self.die_after_appends = None
                    self._process.kill()
            if not left:
                outside(loop, self._chance.uniform(0.001, 0.01), acknowledge)

        def acknowledge() -> None:
            if not done.done():
                done.set_result(None)

        slowest = 1.0 if self._chance.random() < 0.05 else 0.02
        for message in messages:
            outside(loop, self._chance.uniform(0.001, slowest), arrive, message)
        await done
        return []

    def close(self, timeout: timedelta = timedelta(0)) -> int:
        self.closed = True
        return 0


def outside(loop: Loop, delay_seconds: float, function: Callable[..., object], *arguments: Any) -> None:
    """Call a function later in no process: what is on the wire does not die with its sender."""
    token = PROCESS.set(None)
    try:
        loop.call_later(delay_seconds, function, *arguments)
    finally:
        PROCESS.reset(token)


@dataclass
class Membership:
    """What the coordinator knows of a member."""

    name: str
    seen_at: float
    joining: "asyncio.Future[tuple[int, list[Partition]]] | None" = None


class Group:
    """The coordinator of the workers' consumer group: eager rebalances, generations, sessions."""

    def __init__(self, broker: Broker, chance: random.Random, topics: Iterable[str]) -> None:
        self.generation = 0
        self.on_commit: list[Callable[[str, Mapping[Partition, int], bool], None]] = []
        self.owners: dict[Partition, str] = {}
        self._broker = broker
        self._chance = chance
        self._partitions = [
            Partition(topic, number) for topic in topics for number in range(broker.partitions)
        ]
        self._members: dict[str, Membership] = {}
        self._rebalance_until: float | None = None
        self._cut: dict[str, float] = {}
        """Members that do not reach the coordinator, and until when."""
        self.lose_commits: dict[str, tuple[int, bool]] = {}
        """By member: how many commits fail, and whether they are carried out all the same."""

    def cut(self, name: str, seconds: float) -> None:
        """Keep a member from reaching the coordinator."""
        self._cut[name] = self._broker.loop.time() + seconds

    def rebalance(self) -> None:
        """Have all members join anew, as when the topics change."""
        self._prepare()

    def mend(self) -> None:
        """Let every member reach the coordinator, and lose no more commits."""
        self._cut.clear()
        self.lose_commits.clear()

    async def watch(self) -> None:
        """Expire sessions and end rebalances that take too long."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            now = self._broker.loop.time()
            for member in list(self._members.values()):
                if member.joining is None and now - member.seen_at > SESSION_SECONDS:
                    self._remove(member.name)
            if self._rebalance_until is not None:
                self._try_rebalance(now)

    async def join(self, name: str) -> tuple[int, list[Partition]]:
        """Return the next generation and the partitions in it, once every member has given up its own."""
        await self._reach(name)
        loop = self._broker.loop
        joining = loop.create_future()
        self._members[name] = Membership(name, loop.time(), joining)
        self._prepare()
        assigned: tuple[int, list[Partition]] = await joining
        await asyncio.sleep(self._chance.uniform(0.001, 0.02))
        return assigned

    async def heartbeat(self, name: str, generation: int) -> bool:
        """Return whether the member keeps its partitions; False when it must give them up and join again."""
        await self._reach(name)
        member = self._members.get(name)
        if member is None or generation != self.generation:
            return False
        member.seen_at = self._broker.loop.time()
        return self._rebalance_until is None

    async def leave(self, name: str) -> None:
        """Take a member out."""
        await self._reach(name)
        self._remove(name)

    async def commit(
        self,
        name: str,
        generation: int,
        positions: Mapping[Partition, int],
        metadata: Mapping[Partition, str],
    ) -> None:
        """Commit positions; raises CommitFailed when the member is of an older generation, or by bad luck."""
        await self._reach(name)
        failures, carried_out = self.lose_commits.get(name, (0, False))
        if failures:
            self.lose_commits[name] = (failures - 1, carried_out)
        accepted = self.accepts(name, generation) and (not failures or carried_out)
        if accepted:
            self._broker.commits.update(positions)
            self._broker.metadata.update(metadata)
        for listener in self.on_commit:
            listener(name, positions, accepted)
        await asyncio.sleep(self._chance.uniform(0.001, 0.01))
        if failures or not accepted:
            raise CommitFailed(f"{name} in generation {generation}, now is {self.generation}")

    def accepts(self, name: str, generation: int) -> bool:
        """Return whether a commit of that member counts."""
        return name in self._members and generation == self.generation

    def committed(self, partition: Partition) -> tuple[int, str]:
        """Return the committed position, 0 for none, and its metadata."""
        return self._broker.commits.get(partition, 0), self._broker.metadata.get(partition, "")

    async def _reach(self, name: str) -> None:
        await asyncio.sleep(self._chance.uniform(0.001, 0.01))
        while not self._broker.healthy or self._cut.get(name, 0.0) > self._broker.loop.time():  # noqa: ASYNC110
            await asyncio.sleep(0.1)

    def _remove(self, name: str) -> None:
        if self._members.pop(name, None) is not None:
            self._prepare()

    def _prepare(self) -> None:
        if self._rebalance_until is None:
            self._rebalance_until = self._broker.loop.time() + REBALANCE_SECONDS
        self._try_rebalance(self._broker.loop.time())

    def _try_rebalance(self, now: float) -> None:
        """Begin the next generation when every member has joined, or those that have not are out of time."""
        assert self._rebalance_until is not None
        late = [one.name for one in self._members.values() if one.joining is None]
        if late and now < self._rebalance_until:
            return
        for name in late:
            del self._members[name]
        self._rebalance_until = None
        self.generation += 1
        shares = self._shares()
        self.owners = {partition: name for name, share in shares.items() for partition in share}
        for member in self._members.values():
            joining, member.joining, member.seen_at = member.joining, None, now
            if joining is not None and not joining.done():
                joining.set_result((self.generation, shares[member.name]))

    def _shares(self) -> dict[str, list[Partition]]:
        """Share the partitions out evenly; a member keeps what it had where that is even."""
        names = list(self._members)
        shares: dict[str, list[Partition]] = {name: [] for name in names}
        if not names:
            return shares
        most = -(-len(self._partitions) // len(names))
        sticky = self._chance.random() < 0.7
        for partition in self._partitions:
            owner = self.owners.get(partition, "")
            if not sticky or owner not in shares or len(shares[owner]) >= most:
                fewest = min(len(share) for share in shares.values())
                owner = self._chance.choice([name for name in names if len(shares[name]) == fewest])
            shares[owner].append(partition)
        return shares
