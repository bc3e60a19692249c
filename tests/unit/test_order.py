"""Jobs of one ordering key run one at a time and in the order of publication, whatever becomes of those ahead."""

import asyncio
from collections.abc import Mapping
from datetime import timedelta

import pytest
from confluent_kafka import KafkaError

from streams.errors import Poison, Transient
from streams.jobs import Job
from streams.queues import CRITICAL, WEBHOOKS
from streams.worker import Partition
from tests.conftest import ExpectedErrors
from tests.rig import Alert, Do, Rig, eventually, handle

pytestmark = pytest.mark.usefixtures("no_handlers")

SECOND = timedelta(seconds=1)


def ordered(runs: list[int], *, fails: Mapping[int, int] | None = None, **options: object) -> None:
    """Register a handler that notes what it runs, and fails some numbers so many times."""
    left = dict(fails or {})

    async def works(job: Job[Do]) -> None:
        number = job.payload.number
        runs.append(number)
        await asyncio.sleep(0.001)
        if left.get(number, 0) > 0:
            left[number] -= 1
            raise Transient("once more", delay=10 * SECOND)

    handle(works, **{"ordering": "key", **options})  # type: ignore[arg-type]


async def test_one_at_a_time_in_the_order_of_publication_while_other_keys_go_on() -> None:
    runs: list[tuple[str, int]] = []
    now: list[str] = []
    most = 0

    async def works(job: Job[Do]) -> None:
        nonlocal most
        key = job.organization_id + str(job.payload.number % 3)
        assert key not in now
        now.append(key)
        most = max(most, len(now))
        await asyncio.sleep(0.002)
        now.remove(key)
        runs.append((key, job.payload.number))

    handle(works, ordering="key")
    async with Rig() as rig:
        for number in range(60):
            organization = f"org-{number % 2}"
            rig.put(Do(number=number), organization=organization, orderingKey=f"k{number % 3}",
                    priority=10 - number % 10)  # fmt: skip
        await rig.settled()
    assert most > 1
    assert len(runs) == 60
    for key in dict(runs):
        mine = [number for one, number in runs if one == key]
        assert mine == sorted(mine)


async def test_jobs_without_a_key_and_of_types_without_order_run_side_by_side() -> None:
    both = asyncio.Barrier(4)

    async def meets(job: Job[Do]) -> None:
        await both.wait()

    async def alerts(job: Job[Alert]) -> None:
        await both.wait()

    handle(meets, ordering="key")
    handle(alerts, CRITICAL)
    async with Rig() as rig:
        rig.put(Do())
        rig.put(Do())
        rig.put(Alert(), orderingKey="k")
        rig.put(Alert(), orderingKey="k")
        await rig.settled()
        await rig.settled(CRITICAL)


async def test_a_retry_blocks_its_key_until_it_has_ended() -> None:
    runs: list[int] = []
    ordered(runs, fails={0: 2})
    async with Rig() as rig:
        for number in range(3):
            rig.put(Do(number=number), orderingKey="k")
        rig.put(Do(number=9), orderingKey="other")
        await eventually(lambda: len(rig.carried()) == 1 and 9 in runs)
        for attempt in (1, 2):
            await eventually(lambda: len(rig.carried()) == attempt)  # noqa: B023
            rig.clock.ahead += 9 * SECOND
            await asyncio.sleep(0.05)
            assert [one for one in runs if one < 9] == [0] * attempt
            rig.clock.ahead += 1.1 * SECOND
            rig.put_again(rig.carried()[-1])
            await eventually(lambda: runs.count(0) == attempt + 1)  # noqa: B023
        await rig.settled()
    assert [one for one in runs if one < 9] == [0, 0, 0, 1, 2]


async def test_a_retry_may_be_passed_where_that_is_asked() -> None:
    runs: list[int] = []
    ordered(runs, fails={0: 1}, on_retry="pass")
    async with Rig() as rig:
        for number in range(3):
            rig.put(Do(number=number), orderingKey="k")
        await rig.settled()
        assert runs == [0, 1, 2]
        rig.clock.ahead += 11 * SECOND
        rig.put_again(rig.carried()[0])
        await rig.settled()
    assert runs == [0, 1, 2, 0]


async def test_a_dead_job_lets_the_next_one_of_its_key_go_on() -> None:
    runs: list[int] = []

    async def works(job: Job[Do]) -> None:
        runs.append(job.payload.number)
        if job.payload.number == 0:
            raise Poison("never")

    handle(works, ordering="key")
    async with Rig() as rig:
        rig.put(Do(number=0), orderingKey="k")
        rig.put(Do(number=1), orderingKey="k")
        await rig.settled()
    assert runs == [0, 1]


async def test_the_next_one_waits_until_the_end_before_it_is_durable() -> None:
    runs: list[int] = []
    ordered(runs)
    async with Rig() as rig:
        rig.producer.open.clear()
        rig.put(Do(number=0), orderingKey="k")
        rig.put(Do(number=1), orderingKey="k")
        rig.put(Do(number=9), orderingKey="other")
        await eventually(lambda: len(runs) == 2)
        await asyncio.sleep(0.05)
        assert sorted(runs) == [0, 9]
        rig.producer.open.set()
        await rig.settled()
    assert runs[-1] == 1


async def test_another_worker_knows_what_waits_ahead() -> None:
    """The first one waits in a retry topic when the partition moves: the new owner reads only what is behind it."""
    runs: list[int] = []
    ordered(runs, fails={0: 1})
    async with Rig() as first:
        first.put(Do(number=0), orderingKey="k")
        await first.settled()
        (carried,) = first.carried()
        async with Rig() as second:
            second.ledger._ledger, second.ledger._lines = first.ledger._ledger, first.ledger._lines
            second._next.update(first._next)
            second.put(Do(number=1), orderingKey="k")
            second.put(Do(number=2), orderingKey="k")
            await asyncio.sleep(0.05)
            assert runs == [0]
            second.clock.ahead += 11 * SECOND
            second.put_again(carried)
            await eventually(lambda: second.position() == second._next[Partition(WEBHOOKS.topic, 0)])
    assert runs == [0, 0, 1, 2]


async def test_a_retry_that_was_never_written_keeps_no_place(expected_errors: ExpectedErrors) -> None:
    """The worker ends as it cannot write the retry; where the job runs again, it dies of something else."""
    expected_errors.add("'settle' ended by BrokerRefused")
    runs: list[int] = []

    async def works(job: Job[Do]) -> None:
        runs.append(job.payload.number)
        if job.payload.number == 0:
            raise Transient("once more", delay=10 * SECOND) if len(runs) == 1 else Poison("never")

    handle(works, ordering="key")
    async with Rig(fails=True) as first:
        first.producer.error = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)
        first.put(Do(number=0), orderingKey="k", job_id="job-0")
        await eventually(first.worker.failure.done)
        async with Rig() as second:
            second.ledger._ledger, second.ledger._lines = first.ledger._ledger, first.ledger._lines
            second.clock.ahead += 31 * SECOND
            second.put(Do(number=0), orderingKey="k", job_id="job-0")
            second.put(Do(number=1), orderingKey="k")
            await second.settled()
    assert runs == [0, 0, 1]


async def test_what_waits_behind_a_blocked_key_does_not_stop_its_partition() -> None:
    runs: list[int] = []
    ordered(runs, fails={0: 1})
    async with Rig() as rig:
        for number in range(5):
            rig.put(Do(number=number), orderingKey="k")
        for number in range(100, 200):
            rig.put(Do(number=number), organization="globex")
        await rig.settled()
        assert [one for one in runs if one < 100] == [0]
        carried = rig.carried()
        assert len(carried) == 5
        assert rig.kinds().count("snoozed") == 0
        rig.clock.ahead += 60 * SECOND
        # Those behind come back first, and in no order.
        for message in reversed(carried):
            rig.put_again(message)
        await rig.settled()
        assert [one for one in runs if one < 100] == [0, 0, 1, 2, 3, 4]
        assert rig.ledger._lines == {"webhooks:acme:k": {}}


async def test_those_behind_a_job_that_keeps_running_step_aside_with_it_and_come_after_it() -> None:
    runs: list[int] = []
    goes_on = asyncio.Event()

    async def works(job: Job[Do]) -> None:
        if job.payload.number == 0:
            await goes_on.wait()
        runs.append(job.payload.number)

    handle(works, ordering="key")
    async with Rig() as rig:
        for number in range(3):
            rig.put(Do(number=number), orderingKey="k")
        for number in range(100, 200):
            rig.put(Do(number=number), organization="globex")
        await rig.settled()
        assert 0 not in runs
        carried = rig.carried()
        assert len(carried) == 3
        goes_on.set()
        await eventually(lambda: 0 in runs)
        rig.clock.ahead += 60 * SECOND
        for message in reversed(carried):
            rig.put_again(message)
        await rig.settled()
    assert [one for one in runs if one < 100] == [0, 1, 2]
