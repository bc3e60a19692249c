"""Bugs of other projects that the core alone shows it does not have; docs/explanation/delivery.md tells them all."""

import asyncio
import time
from collections.abc import Sequence
from datetime import timedelta
from unittest.mock import patch

import pytest

from ratelimit import Answer, Candidate
from streams.agents import MODULES, load
from streams.app import _configuration
from streams.jobs import HANDLERS, Job
from streams.queues import CRITICAL, WEBHOOKS
from streams.settings import load_settings
from streams.worker import Partition
from tests.rig import Alert, Do, Read, Rig, eventually, handle
from tests.unit.conftest import no_handlers

__all__ = ["no_handlers"]

SECOND = timedelta(seconds=1)
HERE = Partition(WEBHOOKS.topic, 0)


def test_no_handler_may_run_for_longer_than_the_group_waits_for_a_poll() -> None:
    """aiokafka #848: a consumer that does not poll for so long leaves its group, though its job still runs."""
    load()
    configured = _configuration("primary", load_settings(_env_file=None))
    longest = max(one.timeout for one in HANDLERS.values() if one.function.__module__ in MODULES)
    assert longest.total_seconds() * 10 < configured["broker_max_poll_interval"]


@pytest.mark.usefixtures("no_handlers")
async def test_a_blocked_loop_makes_no_job_fail_or_run_again() -> None:
    """bull #1685: jobs whose locks ran out counted as stalled, and failed when that had happened too often."""
    runs: list[str] = []

    async def works(job: Job[Do]) -> None:
        runs.append(job.id)
        await asyncio.sleep(0.1)
        if job.payload.number:
            time.sleep(3.5)  # noqa: ASYNC251 - it is the bug of a handler that is tried here

    handle(works, max_attempts=1)
    # All leases run out meanwhile, those of jobs that end at once with it and those of jobs that go on.
    async with Rig(lease=3 * SECOND, options={"lease": 3 * SECOND, "worker_concurrency": 12}) as rig:
        for number in range(12):
            rig.put(Do(number=int(number == 5)), job_id=f"job-{number}")
        await rig.settled()
        assert sorted(runs) == sorted(event["jobId"] for event in rig.events("completed"))
        assert len(set(runs)) == len(runs) == 12
        assert set(rig.kinds()) <= {"started", "completed"}
        assert rig.carried() == [], "nothing was retried"
        for number in range(12):
            rig.put(Do(), job_id=f"job-{number}")
        await rig.settled()
        assert len(runs) == 12, "the ledger knows all of them"


@pytest.mark.usefixtures("no_handlers")
async def test_what_was_given_up_before_it_began_runs_when_its_partition_comes_back() -> None:
    """parallel-consumer #365, the other way round: without a ledger, what did not run is not taken for done."""
    ends = asyncio.Event()
    runs: list[str] = []

    async def waits(job: Job[Alert]) -> None:
        runs.append(job.id)
        await ends.wait()

    handle(waits, CRITICAL)
    here = Partition(CRITICAL.topic, 0)
    async with Rig(options={"worker_concurrency": 1}) as rig:
        rig.ledger.down = True
        pipeline = rig.worker.pipelines[CRITICAL.topic]
        # Those that just ended let as many be admitted ahead of a free slot.
        for _ in range(10):
            pipeline.runs._ready.ended()
        given = [rig.record(Alert(number=number), job_id=f"job-{number}") for number in range(6)]
        records = [
            Read(CRITICAL.topic, 0, offset, b"acme", value, list(headers.items()))
            for offset, (_, value, headers) in enumerate(given)
        ]
        rig.worker.take(here, records)
        await eventually(lambda: len(pipeline.runs.unfinished()) == 6, "all are admitted")
        await rig.worker.hand_over(SECOND / 100)
        rig.worker.forget()
        rig.worker.assign([here])
        rig.worker.take(here, records)
        ends.set()
        await eventually(lambda: rig.position(CRITICAL) == 6, "all are settled")
        assert sorted(runs) == [f"job-{number}" for number in range(6)], "each ran once"


@pytest.mark.usefixtures("no_handlers")
async def test_what_arrives_while_admission_is_asked_takes_the_slots_that_are_free() -> None:
    """parallel-consumer #857, for a moment: records in the window waited though there was room to run them."""
    ends = asyncio.Event()
    runs: list[str] = []

    async def waits(job: Job[Do]) -> None:
        runs.append(job.id)
        await ends.wait()

    handle(waits)
    async with Rig(options={"worker_concurrency": 10}) as rig:
        admit, asked, answered = rig.ledger.admit, asyncio.Event(), asyncio.Event()

        async def slowly(candidates: Sequence[Candidate]) -> list[Answer]:
            asked.set()
            await answered.wait()
            return await admit(candidates)

        with patch.object(rig.ledger, "admit", slowly):
            for number in range(4):
                rig.put(Do(), job_id=f"job-{number}")
            await asked.wait()
            for number in range(4, 8):
                rig.put(Do(), job_id=f"job-{number}")
            answered.set()
            try:
                await eventually(lambda: len(runs) == 8, "all run at once", within_seconds=2)
            finally:
                ends.set()
                await rig.settled()


@pytest.mark.usefixtures("no_handlers")
async def test_a_partition_that_comes_back_has_no_position_until_its_own_records_are_settled() -> None:
    """parallel-consumer #894: what was running at a rebalance moved the position beyond the end of the partition."""
    ends = asyncio.Event()
    runs: list[str] = []

    async def waits(job: Job[Do]) -> None:
        runs.append(job.id)
        if job.payload.number:
            await ends.wait()

    handle(waits)
    async with Rig() as rig:
        given = [rig.record(Do(number=number % 2), job_id=f"job-{number}") for number in range(4)]
        records = [
            Read(WEBHOOKS.topic, 0, offset, b"acme", value, list(headers.items()))
            for offset, (_, value, headers) in enumerate(given)
        ]
        rig.worker.take(HERE, records)
        await eventually(lambda: len(runs) == 4 and rig.position() == 1)
        for _ in range(3):
            await rig.worker.hand_over(SECOND / 100)
            assert rig.position() in (None, 1)
            rig.worker.forget()
            assert rig.worker.positions() == {}
            rig.worker.assign([HERE])
            assert rig.position() is None, "it is Kafka that knows where to begin"
            rig.worker.take(HERE, records[1:])
        ends.set()
        await eventually(lambda: rig.position() == 4, "all are settled")
        assert sorted(runs) == [f"job-{number}" for number in range(4)], "each ran once"
