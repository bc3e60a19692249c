"""Jobs of one ordering key have their effects in the order of publication, through retries, crashes and rebalances."""

from collections import defaultdict
from itertools import pairwise

import pytest

from streams.client import SyncJobs
from streams.publication import Publication
from tests.handlers import Step
from tests.processes import Pipeline, wait_until

pytestmark = pytest.mark.stack

KEYS = 12
STEPS = 25


def test_each_key_has_its_effects_in_order_whoever_is_killed(pipeline: Pipeline) -> None:
    wanted = [
        Publication(
            Step(number=number, fail_attempts=int(number % 6 == key % 6), delay_ms=1200 if key == 0 else 10),
            f"org-{key % 4}",
            ordering_key=f"key-{key}",
        )
        for number in range(STEPS)
        for key in range(KEYS)
    ]
    with SyncJobs(pipeline.settings) as jobs:
        job_ids = jobs.publish_many(wanted)
    steps = {
        job_id: (one.ordering_key, one.payload.number)
        for job_id, one in zip(job_ids, wanted, strict=True)
        if isinstance(one.payload, Step)
    }
    first, second = pipeline.worker().start(), pipeline.worker()
    wait_until(lambda: len(pipeline.effects()) > 60, 60, "a fifth has ended")
    second.start()
    first.kill()
    wait_until(lambda: len(pipeline.effects()) > 150, 60, "a half has ended")
    first.start()
    wait_until(lambda: len(pipeline.effects()) > 200, 60, "two thirds have ended")
    second.kill()
    pipeline.wait_for("completed", KEYS * STEPS, 90)
    assert first.terminate() == 0

    begun: dict[str | None, list[int]] = defaultdict(list)
    ended: dict[str | None, set[int]] = defaultdict(set)
    for one in pipeline.executions():
        key, number = steps[one.job_id]
        if one.what == "start":
            assert ended[key] >= set(range(number)), f"{key}: {number} began before all before it had ended"
            begun[key].append(number)
        elif one.what == "end":
            ended[key].add(number)
    assert len(begun) == KEYS
    for numbers in begun.values():
        assert all(before <= after for before, after in pairwise(numbers))
        assert set(numbers) == set(range(STEPS))
