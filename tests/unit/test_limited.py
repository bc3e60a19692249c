"""What limits do to the jobs of a worker: whom they hold back, and how soon they let go."""

import asyncio
import time
from datetime import timedelta

import pytest

from providers.errors import RateLimited
from ratelimit import Candidate, Concurrency, Done, Lease, Mark, Run
from streams.jobs import Job
from streams.queues import CRITICAL, EMAILS, INTEGRATIONS, WEBHOOKS
from tests.rig import Alert, Do, Mail, Rig, Sync, eventually, handle

pytestmark = pytest.mark.usefixtures("no_handlers")

SECOND, DAY = timedelta(seconds=1), timedelta(days=1)


async def say(rig: Rig, **values: str | None) -> None:
    await rig.control.say(values, DAY if None in values.values() else None, by="test")
    await rig.worker.hear()


class Busy:
    """Counts how many run at a time, in all and for each organization."""

    def __init__(self) -> None:
        self.now: dict[str, int] = {}
        self.most: dict[str, int] = {}
        self.ran: list[str] = []

    async def run(self, job: Job[Do], seconds: float = 0.002) -> None:
        self._count(job, 1)
        await asyncio.sleep(seconds)
        self._count(job, -1)
        self.ran.append(job.organization_id)

    def _count(self, job: Job[Do], step: int) -> None:
        for name in ("all", job.organization_id):
            self.now[name] = self.now.get(name, 0) + step
            self.most[name] = max(self.most.get(name, 0), self.now[name])


class TestConcurrency:
    async def test_a_queue_runs_no_more_at_a_time_and_no_fewer(self) -> None:
        busy = Busy()

        async def does(job: Job[Do]) -> None:
            await busy.run(job)

        handle(does)
        async with Rig() as rig:
            await say(rig, **{"limit:concurrency:queue=webhooks": "3"})
            began = time.monotonic()
            for number in range(300):
                rig.put(Do(number=number), organization=f"org-{number % 7}")
            await rig.settled()
            assert busy.most["all"] == 3
            assert len(busy.ran) == 300
            assert time.monotonic() - began < 5, "a place that is given back here is taken at once"

    async def test_an_organization_at_its_limit_holds_back_nobody_else(self) -> None:
        busy, ends = Busy(), asyncio.Event()

        async def does(job: Job[Do]) -> None:
            if job.organization_id == "acme":
                busy._count(job, 1)
                await ends.wait()
                busy._count(job, -1)
            busy.ran.append(job.organization_id)

        handle(does)
        async with Rig() as rig:
            await say(rig, **{"limit:concurrency:organization=*": "2"})
            for number in range(9):
                rig.put(Do(number=number))
            rig.put(Do(), organization="globex")
            await eventually(lambda: busy.ran == ["globex"])
            assert busy.most["acme"] == 2
            ends.set()
            await rig.settled()
            assert busy.most["acme"] == 2

    async def test_places_that_another_worker_holds_are_asked_for_again(self) -> None:
        async def does(job: Job[Do]) -> None:
            return None

        handle(does)
        async with Rig() as rig:
            await say(rig, **{"limit:concurrency:queue=webhooks": "1"})
            held = (Concurrency("concurrency:queue=webhooks", 1),)
            (elsewhere,) = await rig.ledger.admit([Candidate("globex:1", "", held)])
            assert isinstance(elsewhere, Run)
            rig.put(Do())
            asked = rig.ledger.asked
            await eventually(lambda: rig.ledger.asked >= asked + 2)
            assert not rig.events("completed")
            assert await rig.ledger.settle([Mark("globex:1", elsewhere.token, Done(), held)]) == [True]
            await eventually(lambda: len(rig.events("completed")) == 1, within_seconds=2)

    async def test_a_renewed_lease_keeps_its_place(self) -> None:
        ends = asyncio.Event()

        async def waits(job: Job[Do]) -> None:
            await ends.wait()

        handle(waits)
        async with Rig(lease=3 * SECOND, options={"lease": "3s"}) as rig:
            await say(rig, **{"limit:concurrency:queue=webhooks": "1"})
            rig.put(Do(), job_id="first")
            await eventually(lambda: rig.worker.pipelines[WEBHOOKS.topic].runs.unfinished())
            rig.put(Do(), job_id="second")
            (one,) = rig.worker.pipelines[WEBHOOKS.topic].runs.unfinished()
            ends_first = one.leased_until
            await eventually(lambda: time.monotonic() > ends_first + 0.5 and one.leased_until > ends_first)
            assert rig.worker.pipelines[WEBHOOKS.topic].runs.unfinished() == [one]
            assert one.lease() == Lease(
                one.identity, one.token, (Concurrency("concurrency:queue=webhooks", 1),)
            )
            ends.set()
            await rig.settled()


class TestScopes:
    async def test_a_limit_of_a_job_type_holds_back_no_other(self) -> None:
        async def does(job: Job[Do]) -> None:
            return None

        async def alerts(job: Job[Alert]) -> None:
            return None

        handle(does)
        handle(alerts, WEBHOOKS)
        async with Rig() as rig:
            await say(rig, **{"limit:rate:type=test.do": "1/h"})
            for number in range(5):
                rig.put(Do(number=number))
            for number in range(5):
                rig.put(Alert(number=number))
            await eventually(lambda: len(rig.events("completed")) == 6)
            assert [one["jobType"] for one in rig.events("completed")].count("test.do") == 1
            await say(rig, **{"limit:rate:type=test.do": "none"})
            await eventually(lambda: len(rig.events("completed")) == 10, within_seconds=2)
            await rig.settled()

    async def test_what_is_set_holds_at_once_and_frees_what_waits(self) -> None:
        async def sends(job: Job[Mail]) -> None:
            return None

        handle(sends, EMAILS)
        async with Rig() as rig:
            await say(rig, **{"limit:rate:queue=emails": "2/h"})
            for number in range(5):
                rig.put(Mail(number=number))
            await eventually(lambda: len(rig.events("completed")) == 2)
            await say(rig, **{"limit:rate:queue=emails": "100/s"})
            await eventually(lambda: len(rig.events("completed")) == 5)
            await rig.settled(EMAILS)

    async def test_a_worker_that_starts_later_knows_what_was_set(self) -> None:
        async with Rig() as rig:
            await rig.control.say({"limit:rate:queue=emails": "7/s", "plan-of:acme": "gold"}, None)
            await eventually(lambda: rig.worker.limits.rules.plan_of == {"acme": "gold"}, within_seconds=2)


class TestProviders:
    async def test_a_429_stops_its_provider_everywhere_and_spends_no_attempt(self) -> None:
        ran: list[str] = []

        async def calls(job: Job[Sync]) -> None:
            ran.append(job.organization_id)
            if job.organization_id == "acme" and job.payload.number == 0 and len(ran) == 1:
                raise RateLimited("come back later", SECOND)

        async def also_calls(job: Job[Do]) -> None:
            ran.append("do")

        async def others(job: Job[Mail]) -> None:
            ran.append("mail")

        handle(calls, INTEGRATIONS, provider="bank")
        handle(also_calls, provider="bank")
        handle(others, EMAILS)
        async with Rig() as rig:
            rig.put(Sync(), job_id="first")
            await eventually(lambda: rig.events("snoozed"))
            pushed_at = time.monotonic()
            await eventually(lambda: "gate:provider=bank" in rig.ledger._allowances._shut)
            rig.put(Sync(number=1), organization="globex")
            rig.put(Do())
            rig.put(Mail())
            await eventually(lambda: ran == ["acme", "mail"])
            await eventually(lambda: sorted(ran[2:]) == ["do", "globex"])
            assert time.monotonic() - pushed_at > 0.9
            (carried,) = rig.carried()
            headers = dict(carried.headers or [])
            assert (headers["attempt"], headers["snoozes"]) == (b"1", b"1")

    async def test_a_push_is_repeated_until_redis_takes_it(self) -> None:
        async def calls(job: Job[Do]) -> None:
            raise RateLimited("come back later", SECOND * 30)

        handle(calls, provider="bank")
        async with Rig() as rig:
            rig.ledger.refuses_pushes = True
            rig.put(Do())
            await eventually(lambda: rig.events("snoozed"))
            assert "gate:provider=bank" not in rig.ledger._allowances._shut
            rig.ledger.refuses_pushes = False
            await eventually(lambda: "gate:provider=bank" in rig.ledger._allowances._shut)
            await rig.settled()

    async def test_a_429_of_a_handler_without_a_provider_stops_nobody(self) -> None:
        async def posts(job: Job[Do]) -> None:
            if job.payload.number == 0:
                raise RateLimited("come back later", DAY)

        handle(posts)
        async with Rig() as rig:
            rig.put(Do())
            await eventually(lambda: rig.events("snoozed"))
            rig.put(Do(number=1))
            await rig.settled()
            assert len(rig.events("completed")) == 1


class TestWithoutRedis:
    async def test_a_local_queue_goes_on_at_its_share_of_the_limits(self) -> None:
        busy = Busy()

        async def does(job: Job[Do]) -> None:
            await busy.run(job)

        handle(does)
        async with Rig(options={"on_redis_down": "webhooks:local"}) as rig:
            await say(rig, **{"limit:concurrency:queue=webhooks": "4", "limit:rate:organization=*": "6/h"})
            for other in ("primary/2", "primary/3"):
                await rig.ledger.present(other, DAY)
            rig.worker.live._heard(await rig.ledger.present("primary/worker-1", DAY))
            rig.ledger.down = True
            for number in range(8):
                rig.put(Do(number=number), organization=f"org-{number % 2}")
            await eventually(lambda: len(busy.ran) == 4)
            await asyncio.sleep(0.05)
            assert sorted(busy.ran) == ["org-0"] * 2 + ["org-1"] * 2, "two of six each: a third"
            assert busy.most["all"] == 1, "of four at a time, a third"
            rig.ledger.down = False
            rig.worker.pipelines[WEBHOOKS.topic].limits_changed()
            await rig.settled()
            assert len(busy.ran) == 8

    async def test_what_a_queue_does_is_set_for_each(self) -> None:
        async def does(job: Job[Do]) -> None:
            return None

        async def alerts(job: Job[Alert]) -> None:
            return None

        handle(does)
        handle(alerts, CRITICAL)
        async with Rig(options={"on_redis_down": "webhooks:open, critical:closed"}) as rig:
            rig.ledger.down = True
            rig.put(Alert())
            rig.put(Do())
            await rig.settled(WEBHOOKS)
            assert not [one for one in rig.events() if one["queue"] == "critical"]
            rig.ledger.down = False
            await rig.settled(CRITICAL)
