"""The invariants: checked at every append and commit while a world lives, and once more when it has drained."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING

from ratelimit import fence
from streams.delivery import EPOCH, not_before_of
from streams.offset_map import settled_beyond
from streams.queues import LIFECYCLE_TOPIC, QUEUES, RETRY_DELAYS, Queue
from streams.worker import Partition
from tests.simulation.broker import Stored
from tests.simulation.jobs import TIMEOUT
from tests.simulation.ledger import Grant, Holding
from tests.simulation.order import out_of_order
from tests.simulation.plan import Planned, identity_of, unleased
from tracking.events import Event, event_of
from tracking.fold import fold, key_of, status_of
from tracking.states import INITIAL, MOVES, Status

if TYPE_CHECKING:
    from tests.simulation.world import Execution, World

JOB_TOPICS = {queue.topic for queue in QUEUES.values()}
DEAD_LETTER_TOPICS = {queue.dead_letter_topic for queue in QUEUES.values()}
CRASH_LIMIT = 5
ENDS = ("completed", "dead")
SKEW = timedelta(seconds=10)
"""Clocks of one world differ by no more, before they jump."""


class Judge:
    """Watches one world and keeps what it objects to."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.violations: list[str] = []
        self._by_id = {job.job_id: job for job in world.plan.jobs}
        self._records: dict[str, list[Stored]] = defaultdict(list)
        self._events: dict[str, list[Event]] = defaultdict(list)
        self._ended: dict[str, set[str]] = defaultdict(set)
        self._ended_at: dict[str, float] = {}
        """When a job was first told to have ended."""
        self._poison: dict[bytes, list[Stored]] = {one[3]: [] for one in world.plan.poison}
        self._buried: set[bytes] = set()
        self._positions: dict[Partition, int] = {}
        self._beyond: dict[Partition, set[int]] = defaultdict(set)

    def object(self, what: str) -> None:
        """Note that an invariant does not hold."""
        if len(self.violations) < 20:
            self.violations.append(f"at {self._world.loop.time():.3f} s: {what}")

    # -- while it lives ----------------------------------------------------------------------------------

    def appended(self, record: Stored) -> None:
        """Take note of a record that is in its log from now on."""
        if record.topic == LIFECYCLE_TOPIC:
            event = event_of(self._world.events_codec.decode(record.value or b""))
            self._events[event.job_id].append(event)
            if event.kind in ENDS:
                self._ended[event.job_id].add(event.kind)
                self._ended_at.setdefault(event.job_id, self._world.loop.time())
            return
        name = record.facts.get("ce_id", b"").decode()
        if record.topic in DEAD_LETTER_TOPICS:
            if not name:
                self._buried.add(record.value or b"")
            return
        if name:
            self._records[name].append(record)
        elif record.value in self._poison:
            self._poison[record.value].append(record)
        else:
            self.object(f"a record of nobody in {record.topic}: {record.value!r}")

    def committed(self, name: str, positions: Mapping[Partition, int]) -> None:
        """Object to positions that cover a record whose outcome is not durable."""
        for partition, position in positions.items():
            before = self._positions.get(partition, 0)
            if position < before:
                self.object(f"{name} set the position of {partition} back from {before} to {position}")
            self._positions[partition] = position
            # What lies beyond is taken for settled by whoever reads the partition next.
            beyond = settled_beyond(position, self._world.broker.metadata[partition])
            before_this = self._beyond[partition]
            for record in self._world.broker.log(partition).records:
                if before <= record.offset < position or record.offset in beyond - before_this:
                    self._covered(name, record)
            self._beyond[partition] = beyond

    def _covered(self, name: str, record: Stored) -> None:
        where = f"{record.topic}/{record.partition}/{record.offset}"
        job_id = record.facts.get("ce_id", b"").decode()
        if not job_id:
            if record.value not in self._buried:
                self.object(f"{name} committed beyond {where}, whose bytes are in no dead-letter topic")
            return
        job = self._by_id[job_id]
        if self._carried(job_id):
            return
        if not self._ended[job_id]:
            self.object(
                f"{name} committed beyond {where}: job {job.number} has neither ended nor a record left"
            )
        for child in self._world.plan.jobs:
            if (
                child.parent == job.number
                and "completed" in self._ended[job_id]
                and not self._records[child.job_id]
            ):
                self.object(f"{name} committed beyond {where}: follow-up {child.number} was not published")
        redis = self._world.redis
        held = redis.holdings.get(identity_of(job))
        if held is None or held.process.name != name or held.fence > _fence(record) or unleased(job.queue):
            return
        # A ledger that was lost may lease what had ended to one who then learns from the position that it had.
        if not (redis.flushed and self._ended_at.get(job_id, inf) < held.granted_at):
            self.object(f"{name} committed beyond {where} before the ledger knew of its outcome")

    def _carried(self, job_id: str) -> bool:
        """Return whether a record of the job will be read again, or for the first time."""
        broker = self._world.broker
        for record in self._records[job_id]:
            partition = Partition(record.topic, record.partition)
            positions = broker.forwarded if record.topic in RETRY_DELAYS else broker.commits
            if record.offset >= positions.get(partition, 0) and record.offset not in self._beyond[partition]:
                return True
        return False

    def drained(self) -> bool:
        """Return whether every job has ended and every position is behind its last record."""
        if any(not self._ended[job.job_id] for job in self._expected()):
            return False
        broker = self._world.broker
        for partition, log in broker.logs.items():
            positions = broker.forwarded if partition.topic in RETRY_DELAYS else broker.commits
            read = partition.topic in JOB_TOPICS or partition.topic in RETRY_DELAYS
            if read and log.records and positions.get(partition, 0) <= log.records[-1].offset:
                return False
        return True

    def _expected(self) -> Iterable[Planned]:
        """Return the jobs that must end: those published, and the follow-ups of those that complete."""
        jobs = self._world.plan.jobs
        return (
            job for job in jobs if job.parent is None or "completed" in self._ended[jobs[job.parent].job_id]
        )

    # -- when it has drained -----------------------------------------------------------------------------

    def judge(self) -> None:
        """Check all that can be said at the end."""
        world = self._world
        self.violations += self._world.redis.broken
        self._positions_are_at_the_ends()
        runs: dict[int, list[Execution]] = defaultdict(list)
        for execution in self._world.executions:
            runs[execution.number].append(execution)
        grants: dict[str, list[Grant]] = defaultdict(list)
        for grant in self._world.redis.grants:
            grants[grant.identity].append(grant)
            if grant.took_over is not None:
                self._must_explain(grant, grant.took_over)
        for job in self._expected():
            self._job(job, runs[job.number], grants[identity_of(job)])
        for line in self._lines():
            for objection in out_of_order(line, runs, grants, world.loop.time()):
                self.object(objection)
        for data in set(self._poison) - self._buried:
            self.object(f"{data!r} is in no dead-letter topic")
        for member in self._world.members:
            if member.failed is not None and member.process.name not in self._world.faults.refused:
                self.object(f"{member.process.name} failed: {member.failed!r}")
        for error in self._world.loop.errors:
            self.object(f"nobody caught {error.get('exception')!r}: {error.get('message')}")

    def _positions_are_at_the_ends(self) -> None:
        if not self.drained():
            broker = self._world.broker
            left = {
                f"{one.topic}/{one.number}": (broker.commits.get(one, 0), log.end)
                for one, log in broker.logs.items()
                if one.topic in JOB_TOPICS and broker.commits.get(one, 0) < log.end
            }
            open_jobs = [job.number for job in self._expected() if not self._ended[job.job_id]]
            self.object(f"not drained: jobs {open_jobs}, positions {left}")
        for member in self._world.alive():
            for pipeline in member.worker.pipelines.values():
                if pipeline.window.records or pipeline.window.surplus.lanes or pipeline.runs.unfinished():
                    self.object(
                        f"{member.process.name} keeps {pipeline.window.records} records in its window,"
                        f" {len(pipeline.window.surplus)} skipped and"
                        f" {len(pipeline.runs.unfinished())} running on {pipeline.queue.name}"
                    )

    def _must_explain(self, grant: Grant, lost: Holding) -> None:
        """Object to a lease that ran out although nothing kept its worker from renewing it."""
        process, began, until = lost.process, lost.renewed_at, lost.until
        member = next(one for one in self._world.members if one.process is process)
        troubles = member.connection.network.troubles + process.pauses
        if process.died_at is not None and process.died_at <= until:
            return
        if any(start <= until and end >= began for start, end in troubles):
            return
        self.object(
            f"{grant.process.name} took {grant.identity} over at {grant.at:.3f} s: {process.name} did not renew"
            f" its lease after {began:.3f} s"
        )

    def _job(self, job: Planned, runs: list["Execution"], grants: list[Grant]) -> None:
        world = self._world
        takeovers = sum(one.took_over is not None for one in grants)
        loose = self._loose(job.queue)
        # A process that is stopped for long wakes up to handlers whose time is over.
        overdue = sum(
            run.how == "cancelled" and run.end(0) - run.began >= TIMEOUT.total_seconds() for run in runs
        )
        self._end(job, takeovers, loose)
        self._moves(job, takeovers, overdue, loose)
        self._not_early(job, runs)
        attempts = {run.attempt for run in runs}
        if not attempts <= set(range(1, job.attempts + 1 + overdue)):
            self.object(f"job {job.number} ran attempts {sorted(attempts)}; {job.attempts} were to be made")
        if loose:
            return
        self._apart(job, runs, grants)
        held = world.redis.holdings.get(identity_of(job))
        if held is not None:
            self.object(f"job {job.number} has ended and is leased to {held.process.name} still")
        finished = [run for run in runs if run.ended is not None and run.how != "cancelled"]
        allowed = len({one.fence for one in grants}) + takeovers
        if len(finished) > allowed:
            self.object(
                f"job {job.number} ran to its end {len(finished)} times; deliveries and lost leases explain {allowed}"
            )

    def _loose(self, queue: Queue) -> bool:
        """Return whether deliveries know nothing of each other: they had no lease, or the ledger was lost."""
        world = self._world
        return bool(world.redis.flushed) or (
            unleased(queue) and any(one.connection.network.troubles for one in world.members)
        )

    def _lines(self) -> Iterator[Sequence[Planned]]:
        """Yield the jobs of each ordering key in the order in which they were written to their queue's topic."""
        lines: dict[tuple[Queue, str, str], dict[int, Planned]] = defaultdict(dict)
        for job in self._expected():
            offsets = [one.offset for one in self._records[job.job_id] if one.topic == job.queue.topic]
            if job.line is not None and offsets and not self._loose(job.queue):
                lines[job.queue, job.organization, job.line][min(offsets)] = job
        for line in lines.values():
            yield [job for _, job in sorted(line.items())]

    def _end(self, job: Planned, takeovers: int, loose: bool) -> None:
        expected = "completed" if job.completes else "dead"
        ends = self._ended[job.job_id]
        crashed = takeovers >= CRASH_LIMIT
        if ends != {expected} and not (crashed and "dead" in ends):
            self.object(f"job {job.number} ended {sorted(ends) or 'never'}; it was to be {expected}")
        told = [event for event in self._events[job.job_id] if event.kind in ENDS]
        if len(told) > 1 + takeovers and not loose:
            self.object(
                f"job {job.number} was told to have ended {len(told)} times, with {takeovers} lost leases"
            )
        (row,) = fold(self._events[job.job_id]) or [{"status": "unknown"}]
        if row["status"] not in ends:
            self.object(f"job {job.number} folds to {row['status']}; it ended {sorted(ends)}")

    def _moves(self, job: Planned, takeovers: int, overdue: int, loose: bool) -> None:
        events = sorted(self._events[job.job_id], key=key_of)
        states = [status_of(event) for event in events]
        if states and states[0] not in INITIAL:
            self.object(f"job {job.number} begins {states[0]}")
        for (one, before), (other, after) in pairwise(zip(events, states, strict=True)):
            if one.kind == other.kind == "queued" and (job.copies > 1 or job.parent is not None):
                continue  # published twice, or by a parent whose end was told twice
            # Whoever took over ends the same attempt again, or a later one when its own time was over.
            again = other.attempt - one.attempt
            if loose or (takeovers and before is after and again <= overdue):
                continue
            if not legal(before, after):
                self.object(f"job {job.number} moved from {before} to {after} ({one.kind} to {other.kind})")
            # A worker that dies may leave a retry without the event that tells of it.
            if other.attempt > one.attempt + 1 and not takeovers:
                self.object(f"job {job.number} went from attempt {one.attempt} to {other.attempt}")

    def _not_early(self, job: Planned, runs: list["Execution"]) -> None:
        stated: dict[int, list[datetime]] = defaultdict(list)
        for record in self._records[job.job_id]:
            facts = record.facts
            stated[int(facts.get("attempt", b"1"))].append(not_before_of(facts) or EPOCH)
        due = {attempt: min(instants) for attempt, instants in stated.items()}
        skewed = any(self._world.plan.skews)
        for run in runs:
            member = next(one for one in self._world.members if one.process is run.process)
            by_clock = run.began_by_clock + member.jumped_back + (SKEW if skewed else timedelta(0))
            jumps = sum((abs(one.ahead_by_jumps) for one in self._world.members), timedelta(0))
            if run.attempt in due and by_clock + jumps < due[run.attempt]:
                self.object(
                    f"job {job.number} ran attempt {run.attempt} at {run.began:.3f} s,"
                    f" {due[run.attempt] - run.began_by_clock} early"
                )

    def _apart(self, job: Planned, runs: list["Execution"], grants: list[Grant]) -> None:
        """Object to executions at the same time, unless the first one's worker had lost its lease by then."""
        now = self._world.loop.time()
        ordered = sorted(runs, key=lambda run: run.began)
        for index, first in enumerate(ordered):
            for second in ordered[index + 1 :]:
                if second.began >= first.end(now):
                    continue
                lost = any(
                    one.took_over is not None
                    and one.took_over.process is first.process
                    and one.at <= second.began
                    for one in grants
                )
                if not lost:
                    self.object(
                        f"job {job.number} ran on {first.process.name} from {first.began:.3f} s to"
                        f" {first.end(now):.3f} s and on {second.process.name} from {second.began:.3f} s"
                    )


def legal(before: Status, after: Status) -> bool:
    """Return whether a job may be seen to move so: coming due and a short run have no event of their own."""
    quiet = (Status.QUEUED, Status.RUNNING)
    reached = {before}
    for _ in range(3):
        if any(after in MOVES[state] for state in reached):
            return True
        reached |= {state for one in reached for state in MOVES[one] if state in quiet}
    return False


def _fence(record: Stored) -> str:
    facts = record.facts
    return fence("", int(facts.get("attempt", b"1")), int(facts.get("snoozes", b"0")))
