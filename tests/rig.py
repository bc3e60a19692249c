"""A worker for tests, whole but for Kafka and Redis: records are handed in, and what it writes is kept."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from confluent_kafka import KafkaError

from ratelimit import AdmissionUnavailable, Answer, Candidate, Lease, Mark
from ratelimit.backlog import ModelBacklog
from ratelimit.control import ModelControl, Said
from ratelimit.model import ModelAdmission
from schemas import Codec, files
from streams.backoff import Backoff
from streams.codecs import schema_of
from streams.delivery import envelope
from streams.jobs import HANDLERS, TYPE_OF_PAYLOAD, Handler, Job, Payload, handles, secret
from streams.producer import Message, Producer
from streams.queues import LIFECYCLE_TOPIC, QUEUES, WEBHOOKS, Queue, WorkerType
from streams.settings import load_settings
from streams.worker import Partition, Worker

QUICK = Backoff(
    first=timedelta(milliseconds=1), minimum=timedelta(milliseconds=1), cap=timedelta(milliseconds=5)
)


class Do(Payload):
    """The input of jobs on `webhooks`, where tests put most of theirs."""

    number: int = 0
    data: bytes = b""
    password: str = secret(default="")


class Alert(Payload):
    """The input of jobs on `critical`, which goes on without Redis."""

    number: int = 0


class Mail(Payload):
    """The input of jobs on `emails`, limited as a queue."""

    number: int = 0


class Sync(Payload):
    """The input of jobs on `integrations`, limited for each organization."""

    number: int = 0


def handle(function: Callable[[Job[Any]], Any], queue: Queue = WEBHOOKS, **options: Any) -> Handler:
    """Register a handler of the payload that it is annotated with, as `test.<payload>`."""
    (annotation,) = [one for name, one in function.__annotations__.items() if name != "return"]
    name = f"test.{annotation.__args__[0].__name__.lower()}"
    given = {"timeout": timedelta(seconds=20), "max_attempts": 3, "backoff": QUICK, **options}
    handles(queue, name, **given)(function)
    return HANDLERS[name]


class Slow:
    """A handler that waits with the jobs that have a number, and remembers what became of whom."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.stopped: list[str] = []
        self.cleaned: list[str] = []
        self.goes_on = asyncio.Event()

    async def __call__(self, job: Job[Do]) -> None:
        self.ran.append(job.id)
        if job.payload.number:
            try:
                await self.goes_on.wait()
            except asyncio.CancelledError:
                self.stopped.append(job.id)
                await asyncio.sleep(0.01)
                self.cleaned.append(job.id)
                raise


def handle_slow() -> Slow:
    """Register a handler that waits, and return what it remembers."""
    slow = Slow()

    async def runs(job: Job[Do]) -> None:
        await slow(job)

    handle(runs)
    return slow


async def eventually(true: Callable[[], object], what: str = "", within_seconds: float = 10) -> None:
    """Return as soon as something is true; AssertionError when it does not become so in time."""
    deadline = time.monotonic() + within_seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {within_seconds:g} s: {what}"
        await asyncio.sleep(0.002)


@dataclass
class Clock:
    """The wall clock, and what a test adds to it."""

    ahead: timedelta = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


class RecordingProducer(Producer):
    """Keeps what it is given; writes when `open`, and refuses when `error` is set."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.open = asyncio.Event()
        self.open.set()
        self.error: KafkaError | None = None
        self.closed = False

    async def send(self, messages: Sequence[Message]) -> list[KafkaError]:
        await self.open.wait()
        if self.error is not None:
            return [self.error]
        self.sent += messages
        return []

    def close(self, timeout: timedelta = timedelta(0)) -> int:
        self.closed = True
        return 0


class Ledger(ModelAdmission):
    """The model of admission, which can be away, and remembers how runs ended."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.down = False
        self.refuses_pushes = False
        self.marks: list[Mark] = []
        self.asked = 0

    async def admit(self, candidates: Sequence[Candidate]) -> list[Answer]:
        self._check()
        self.asked += 1
        return await super().admit(candidates)

    async def settle(self, marks: Sequence[Mark]) -> list[bool]:
        self._check()
        self.marks += marks
        return await super().settle(marks)

    async def renew(self, leases: Sequence[Lease]) -> list[bool]:
        self._check()
        return await super().renew(leases)

    async def push(self, gate: str, wait: timedelta) -> None:
        if self.refuses_pushes:
            raise AdmissionUnavailable("read-only for the test")
        await super().push(gate, wait)

    def _check(self) -> None:
        if self.down:
            raise AdmissionUnavailable("down for the test")


class Megaphone(ModelControl):
    """The model of what operators say, which can be away for those who listen."""

    down = False

    async def after(self, version: int) -> list[Said]:
        if self.down:
            raise AdmissionUnavailable("down for the test")
        return await super().after(version)


@dataclass
class Read:
    """A record as it is read."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]
    timestamp: int = 0


@dataclass
class Rig:
    """A running worker and what is around it; `async with Rig() as rig`."""

    worker_type: WorkerType = "primary"
    lease: timedelta = timedelta(seconds=30)
    options: dict[str, Any] = field(default_factory=dict)
    fails: bool = False

    async def __aenter__(self) -> Self:
        self.clock = Clock()
        self.producer = RecordingProducer()
        self.ledger = Ledger(lease=self.lease, clock=self.clock)
        self.control = Megaphone(clock=self.clock)
        self.backlog = ModelBacklog(self.ledger, clock=self.clock)
        self.codecs = {
            queue.name: Codec(
                schema_of(queue)
                if any(one.queue is queue for one in HANDLERS.values())
                else files.current(queue.name)
            )
            for queue in QUEUES.values()
        }
        self.events_codec = Codec(files.current(files.LIFECYCLE))
        settings = {"_env_file": None, "worker_id": "worker-1", "process_count": 1, **self.options}
        self.worker = Worker(
            self.worker_type,
            load_settings(**settings),
            codecs=self.codecs,
            lifecycle_codec=self.events_codec,
            admission=self.ledger,
            producer=self.producer,
            clock=self.clock,
            control=self.control,
            backlog=self.backlog,
        )
        self.worker.assign(Partition(topic, number) for topic in self.worker.topics for number in range(2))
        self._next: defaultdict[Partition, int] = defaultdict(int)
        self.worker.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.worker.stop_admitting()
        async with asyncio.timeout(30):
            await self.worker.close()
        if kind is None:
            assert self.worker.failure.done() == self.fails, self.worker.failure

    def record(
        self, payload: Payload, *, organization: str = "acme", job_id: str | None = None,
        headers: Mapping[str, bytes] | None = None, **fields: Any,
    ) -> tuple[Queue, bytes, dict[str, bytes]]:  # fmt: skip
        """Return what a foreign producer would write for a job: its queue, value and headers."""
        one = HANDLERS[TYPE_OF_PAYLOAD[type(payload)]]
        name = job_id or str(uuid4())
        job = {
            "jobId": name, "jobType": one.job_type, "organizationId": organization, "createdAt": self.clock(),
            "priority": 5, "idempotencyKey": None, "orderingKey": None, "maxAttempts": None,
            "payload": payload.model_dump(by_alias=True), **fields,
        }  # fmt: skip
        value = self.codecs[one.queue.name].encode(job)
        stated = envelope(name, one.job_type, organization, one.queue, self.clock())
        return one.queue, value, {**stated, "ce_source": b"/test", **(headers or {})}

    def put(self, payload: Payload, *, organization: str = "acme", partition: int = 0, **options: Any) -> int:
        """Hand in a job as if it had been read, and return its offset."""
        queue, value, headers = self.record(payload, organization=organization, **options)
        return self.put_bytes(queue, organization.encode(), value, headers, partition)

    def put_bytes(
        self,
        queue: Queue,
        key: bytes | None,
        value: bytes | None,
        headers: Mapping[str, bytes],
        partition: int = 0,
    ) -> int:
        """Hand in a record as if it had been read, and return its offset."""
        where = Partition(queue.topic, partition)
        offset, self._next[where] = self._next[where], self._next[where] + 1
        self.worker.take(where, [Read(queue.topic, partition, offset, key, value, list(headers.items()))])
        return offset

    def put_again(self, message: Message, queue: Queue | None = None) -> int:
        """Hand in what the worker wrote to a queue or a retry topic, as the forwarder would bring it."""
        headers = {name: bytes(data) for name, data in message.headers or [] if isinstance(data, bytes)}
        return self.put_bytes(queue or QUEUES[headers["queue"].decode()], message.key, message.value, headers)

    def position(self, queue: Queue = WEBHOOKS, partition: int = 0) -> int | None:
        """Return what may be committed."""
        return self.worker.positions().get(Partition(queue.topic, partition))

    async def settled(self, queue: Queue = WEBHOOKS, partition: int = 0) -> None:
        """Wait until all that was handed in on a partition is settled."""
        wanted = self._next[Partition(queue.topic, partition)]
        await eventually(lambda: self.position(queue, partition) == wanted, f"position {wanted}")

    def written(self, topic: str) -> list[Message]:
        """Return what was written to a topic."""
        return [message for message in self.producer.sent if message.topic == topic]

    def carried(self) -> list[Message]:
        """Return what was written to queues and retry topics."""
        topics = {queue.topic for queue in QUEUES.values()}
        return [
            one for one in self.producer.sent if one.topic in topics or one.topic.startswith("jobs.retry.")
        ]

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Return the lifecycle events that were written."""
        events = [self.events_codec.decode(one.value or b"") for one in self.written(LIFECYCLE_TOPIC)]
        return [event for event in events if kind in (None, event["kind"])]

    def kinds(self) -> list[str]:
        """Return the kinds of all events in their order."""
        return [event["kind"] for event in self.events()]


def headers_of(message: Message) -> dict[str, str]:
    """Return the headers of a message as texts."""
    pairs: Iterable[tuple[str, Any]] = message.headers or []
    return {name: data.decode() for name, data in pairs}


async def cancelled(work: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for its end."""
    work.cancel()
    with suppress(asyncio.CancelledError):
        await work
