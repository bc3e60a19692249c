"""Bugs of other projects that the core alone shows it does not have; docs/explanation/delivery.md tells them all."""

import asyncio
import time
from datetime import timedelta

import pytest

from streams.agents import MODULES, load
from streams.app import _configuration
from streams.jobs import HANDLERS, Job
from streams.queues import WEBHOOKS
from streams.settings import load_settings
from streams.worker import Partition
from tests.rig import Do, Read, Rig, eventually, handle
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
