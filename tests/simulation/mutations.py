"""Defects put into the core, or taken out of its care, one at a time: the simulation must object to each.

The first are what stock Faust 0.15.3 does to a job queue.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from unittest.mock import patch

from ratelimit import Answer, Candidate, Mark, Released
from ratelimit.model import ModelAdmission
from streams import offset_map
from streams.delivery import Delivery, Record
from streams.intake import Intake
from streams.lanes import Lane, Line
from streams.offset_map import OffsetMap
from streams.offsets import PartitionOffsets
from streams.outcome import Attempt, DeadLetter, Outcome, Retry
from streams.pipeline import Pipeline
from streams.queues import Queue
from streams.settle import Settlement
from streams.surplus import Surplus
from streams.window import Window
from streams.worker import Partition, Worker
from tests.simulation.broker import Group
from tests.simulation.ledger import Connection, Redis
from tests.simulation.loop import Process
from tests.simulation.member import Member
from tests.simulation.plan import Kind

MUTATIONS: dict[str, "Mutation"] = {}


@dataclass(frozen=True)
class Mutation:
    """One defect: what it replaces, by what, and what the simulation is to say about it."""

    owner: type | str
    name: str
    function: Any
    objection: str
    only: Kind | None = None
    """What has to go wrong for it to show, when that is rare."""

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the defect in."""
        if isinstance(self.owner, str):
            with patch(f"{self.owner}.{self.name}", self.function):
                yield
        else:
            with patch.object(self.owner, self.name, self.function):
                yield


def mutation(owner: type | str, name: str, objection: str, only: Kind | None = None) -> Callable[[Any], Any]:
    """Register the decorated function as a defect."""

    def register(function: Any) -> Any:
        MUTATIONS[function.__name__] = Mutation(owner, name, function, objection, only)
        return function

    return register


# -- what stock Faust does --------------------------------------------------------------------------------


@mutation(PartitionOffsets, "settle", "neither ended nor a record left")
def commits_past_a_running_job_when_later_ones_end_first(self: PartitionOffsets, offset: int) -> None:
    self.position = max(self.position or 0, offset + 1)


@mutation(PartitionOffsets, "_beyond", "neither ended nor a record left")
def takes_a_running_job_for_settled_when_a_later_one_is(self: PartitionOffsets) -> Iterator[tuple[int, int]]:
    if self.settled and self.position is not None:
        yield self.position, self.next_offset


_decode = offset_map.decode


@mutation("streams.offsets", "decode", "neither ended nor a record left")
def takes_one_more_for_settled_than_the_commit_before_says(position: int, metadata: str) -> OffsetMap:
    latest_ms, bounds = _decode(position, metadata)
    return OffsetMap(latest_ms, [bound + number % 2 for number, bound in enumerate(bounds)])


_finish = Settlement.finish


@mutation(Settlement, "finish", "neither ended nor a record left")
def acknowledges_a_job_whose_handler_raised(
    self: Settlement, delivery: Delivery, outcome: Outcome, attempt: Attempt, *more: Any
) -> None:
    if isinstance(outcome, Retry | DeadLetter):
        delivery.offsets.settle(delivery.offset)
    else:
        _finish(self, delivery, outcome, attempt, *more)


@mutation(Settlement, "refuse", "in no dead-letter topic")
def acknowledges_poison_when_it_is_read(
    self: Settlement, queue: Queue, record: Record, offsets: PartitionOffsets, error: Exception
) -> None:
    offsets.settle(record.offset)


_hand_over = Worker.hand_over


@mutation(Worker, "hand_over", "neither ended nor a record left")
async def drops_what_it_holds_when_it_stops(self: Worker, grace: timedelta) -> None:
    for offsets in self._offsets.values():
        for offset in range(offsets.next_offset):
            offsets.settle(offset)
    await _hand_over(self, grace)


_take = Worker.take


@mutation(Worker, "take", "neither ended nor a record left", only="join")
def drops_what_arrives_for_a_paused_partition(
    self: Worker, partition: Partition, records: Iterable[Record]
) -> None:
    for record in records:
        if self.has_room(partition):
            _take(self, partition, [record])


@mutation(Member, "same", "neither ended nor a record left", only="rebalance")
def hands_in_what_it_fetched_before_a_rebalance(*assignments: PartitionOffsets | None) -> bool:
    return True


@mutation(Member, "read_again", "not drained|neither ended nor a record left", only="rebalance")
def skips_what_it_fetched_during_a_rebalance(self: Member, first: Mapping[Partition, int]) -> None:
    pass


# -- the order of settlement ------------------------------------------------------------------------------


@mutation(Settlement, "finish", "neither ended nor a record left")
def settles_before_the_retry_is_durable(
    self: Settlement, delivery: Delivery, outcome: Outcome, attempt: Attempt, *more: Any
) -> None:
    _finish(self, delivery, outcome, attempt, *more)
    if isinstance(outcome, Retry):
        delivery.offsets.settle(delivery.offset)


_refuse = Settlement.refuse


@mutation(Settlement, "refuse", "in no dead-letter topic")
def settles_poison_before_its_letter_is_durable(
    self: Settlement, queue: Queue, record: Record, offsets: PartitionOffsets, error: Exception
) -> None:
    _refuse(self, queue, record, offsets, error)
    offsets.settle(record.offset)


@mutation(Settlement, "finish", "before the ledger knew")
def settles_before_the_ledger_knows(
    self: Settlement, delivery: Delivery, outcome: Outcome, attempt: Attempt, *more: Any
) -> None:
    _finish(self, delivery, outcome, attempt, *more)
    if not isinstance(outcome, Retry):
        delivery.offsets.settle(delivery.offset)


# -- leases and fences ------------------------------------------------------------------------------------

_admit = ModelAdmission.admit


@mutation(ModelAdmission, "admit", "ran to its end|ended|told")
async def ignores_the_fence(self: ModelAdmission, candidates: Sequence[Candidate]) -> list[Answer]:
    return await _admit(self, [replace(one, fence="~~") for one in candidates])


_admit_in_redis = Redis.admit


@mutation(Redis, "admit", "ran on|ran to its end")
async def ignores_leases(
    self: Redis, candidates: Sequence[Candidate], process: Process, doubted: set[str]
) -> list[Answer]:
    held = [Mark(one.identity, self.holdings[one.identity].token, Released()) for one in candidates
            if one.identity in self.holdings]  # fmt: skip
    await self.settle(held)
    return await _admit_in_redis(self, candidates, process, doubted)


@mutation(Connection, "renew", "did not renew")
async def renews_no_lease(self: Connection, leases: Sequence[tuple[str, str]]) -> list[bool]:
    return [True for _ in leases]


@mutation(Connection, "settle", "before the ledger knew")
async def tells_the_ledger_nothing(self: Connection, marks: Sequence[Mark]) -> list[bool]:
    return [True for _ in marks]


# -- the order of ordering keys ---------------------------------------------------------------------------


@mutation(Connection, "keep_in_line", "ran before|at the same time")
async def keeps_no_place_in_line(self: Connection, places: Sequence[object]) -> None:
    pass


@mutation(Window, "released", "not drained")
def never_lets_the_next_in_line_go(self: Window, delivery: Delivery) -> None:
    pass


@mutation(Pipeline, "make_way", "not drained")
def lets_those_that_wait_fill_the_window(self: Pipeline, *partitions: object) -> None:
    pass


_pop = Line.pop


@mutation(Line, "pop", "ran before|at the same time")
def takes_several_of_a_line_at_once(self: Line) -> Delivery:
    delivery = _pop(self)
    self.busy.discard(delivery)
    return delivery


# -- what is skipped --------------------------------------------------------------------------------------


@mutation(Surplus, "skip", "not drained")
def forgets_what_it_skips(self: Surplus, lane: Lane, *record: Any) -> None:
    pass


@mutation(PartitionOffsets, "skip", "neither ended nor a record left")
def settles_what_it_skips(self: PartitionOffsets, offset: int) -> None:
    self.settle(offset)


@mutation(Intake, "take_back", "not drained")
def drops_what_it_reads_back(self: Intake, *records: object) -> None:
    pass


_take_all = Intake.take


@mutation(Intake, "take", "ran before")
def lets_what_is_read_pass_what_is_skipped(
    self: Intake, records: Iterable[Record], offsets: PartitionOffsets
) -> None:
    surplus = self._window.surplus
    with (
        patch.object(surplus, "skipped_unread", return_value=False),
        patch.object(surplus, "takes", lambda lane, delivery: not surplus.crowds(lane)),
    ):
        _take_all(self, records, offsets)


# -- the world around ---------------------------------------------------------------------------------------


@mutation(Group, "accepts", "set the position|neither ended|before the ledger knew")
def credits_the_commits_of_zombies(self: Group, name: str, generation: int) -> bool:
    return True


@mutation("streams.delivery", "not_before_of", "early")
def runs_retries_early(headers: Mapping[str, bytes]) -> None:
    return None
