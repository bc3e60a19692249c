"""How organizations stand: on one worker, added up over several, and what fades of it."""

import math
from datetime import timedelta

import pytest

from streams.answers import answer
from streams.jobs import Job
from streams.questions import Answers
from streams.queues import WEBHOOKS
from streams.rules import Rate, Rule, Scope, allowed_text
from streams.standings import OTHERS, Standing, first, standings
from streams.top import summed
from streams.usage import KNOWN_MAX, Usage, lately
from tests.rig import Do, Rig, eventually, handle, handle_slow


class TestUsage:
    def test_what_was_used_fades_to_a_third_within_a_minute(self) -> None:
        usage = Usage()
        usage.fade(100.0)
        usage.add("acme", 0.5)
        usage.add("acme", 0.25)
        assert usage.all() == {"acme": 0.75}
        usage.fade(160.0)
        assert usage.all()["acme"] == pytest.approx(0.75 / math.e)

    def test_a_long_run_counts_as_what_it_used_lately(self) -> None:
        usage = Usage()
        usage.add("acme", 600.0)
        assert usage.all()["acme"] == pytest.approx(lately(600.0)) == pytest.approx(60.0, rel=0.01)
        assert lately(0.5) == pytest.approx(0.5, rel=0.01)

    def test_it_forgets_who_used_nothing_any_more_and_keeps_only_the_first_of_many(self) -> None:
        usage = Usage()
        usage.fade(0.0)
        usage.add("acme", 0.001)
        for second in range(1, 900, 10):
            usage.fade(float(second))
        assert usage.all() == {}
        for number in range(KNOWN_MAX + 50):
            usage.add(f"org-{number}", 0.1 + number)
        usage.fade(900.0)
        assert len(usage.all()) == KNOWN_MAX
        assert "org-0" not in usage.all()


class TestOneWorker:
    @pytest.mark.usefixtures("no_handlers")
    async def test_running_queued_and_limited_are_told_apart(self) -> None:
        slow = handle_slow()
        async with Rig(options={"worker_concurrency": 2, "organization_weights": {"acme": 3}}) as rig:
            rule = Rule("rate", Scope(organization="held"), Rate(1, timedelta(hours=1)))
            await rig.control.say({rule.name: allowed_text(rule.allowed)}, None)
            await rig.worker.hear()
            for _ in range(3):
                rig.put(Do(), organization="held")
            await eventually(lambda: rig.worker.limits.refusals)
            for number in range(6):
                rig.put(Do(number=1), organization="acme", job_id=f"acme-{number}")
            await eventually(lambda: len(slow.ran) == 3)
            rig.put(Do(number=1), organization="globex")
            found = standings(rig.worker)
            assert (found["acme"].running, found["acme"].queued) == (2, 4)
            assert found["acme"].weight == 3.0
            assert (found["globex"].queued, found["globex"].limited) == (1, 0)
            assert (found["held"].queued, found["held"].limited) == (0, 2)
            assert found["held"].seconds > 0
            assert standings(rig.worker, "emails") == {}
            slow.goes_on.set()
            await eventually(lambda: len(slow.ran) == 8)

    @pytest.mark.usefixtures("no_handlers")
    async def test_what_is_skipped_is_counted(self) -> None:
        slow = handle_slow()
        async with Rig(options={"worker_concurrency": 1, "window_records": 20}) as rig:
            window = rig.worker.pipelines[WEBHOOKS.topic].window
            window._pace.average = 10.0
            for _ in range(30):
                rig.put(Do(number=1))
            found = standings(rig.worker)["acme"]
            assert found.skipped > 0
            assert found.skipped + found.queued + found.running == 30
            slow.goes_on.set()
            await rig.settled()

    @pytest.mark.usefixtures("no_handlers")
    async def test_a_question_that_is_none_is_an_error(self) -> None:
        async def does(job: Job[Do]) -> None:
            return None

        handle(does)
        async with Rig() as rig:
            for question in ({}, {"what": "else"}, {"what": "job"}, {"what": "job", "jobId": 1}):
                with pytest.raises(ValueError, match="expected a question of this version"):
                    answer(rig.worker, question)


def test_those_that_use_most_come_first_and_the_rest_is_one() -> None:
    found = {f"org-{number}": Standing(running=1, seconds=number, weight=1.0) for number in range(10)}
    top = first(found, 3)
    assert list(top) == ["org-9", "org-8", "org-7", OTHERS]
    assert top[OTHERS] == Standing(running=7, seconds=21, weight=7.0, organizations=7)
    assert list(first(found, 10)) == [f"org-{number}" for number in reversed(range(10))]


def told(**of: Standing) -> dict[str, dict[str, float]]:
    return {
        name: {slot: getattr(standing, slot) for slot in Standing.__slots__} for name, standing in of.items()
    }


def test_workers_are_added_up_with_shares_of_seconds_and_of_weights() -> None:
    one = told(acme=Standing(running=1, seconds=30, weight=2), globex=Standing(queued=4, seconds=5, weight=1))
    others = Standing(skipped=9, seconds=5, weight=3, organizations=3)
    two = told(acme=Standing(running=2, seconds=10, weight=2), _other=others)
    top = summed(Answers({"a": one, "b": two}, ["c"]), 1)
    assert top.silent == ("c",)
    acme, rest = top.rows
    assert (acme.organization_id, acme.running, acme.slot_seconds) == ("acme", 3, 40)
    assert [acme.share, acme.fair_share] == pytest.approx([0.8, 2 / 6])
    assert (rest.organization_id, rest.organizations) == (OTHERS, 4)
    assert [rest.queued, rest.skipped, rest.share] == pytest.approx([4, 9, 0.2])
    assert summed(Answers({}), 5).rows == ()
