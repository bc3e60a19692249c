"""`GET /metrics`: it parses, says what is so, and has no more series the more organizations there are."""

import asyncio
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from streams.errors import Transient
from streams.health import HealthServer, Readiness
from streams.jobs import Job
from streams.metrics import ORGANIZATIONS, page
from streams.outcome import Outcome
from streams.progress import Progress
from streams.queues import CRITICAL, INTEGRATIONS
from streams.settings import load_settings
from streams.standings import OTHERS
from tests.rig import Alert, Do, Rig, Sync, eventually, handle, handle_slow

pytestmark = pytest.mark.usefixtures("no_handlers")

REFERENCE = Path(__file__).parents[2] / "docs/reference/metrics.md"


def scraped(rig: Rig) -> dict[str, dict[tuple[str, ...], float]]:
    """Return the samples of a scrape: name to values of the labels, sorted by their names, to value."""
    families = text_string_to_metric_families(page(rig.worker).decode())
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in families:
        assert family.type in ("gauge", "counter")
        found.setdefault(family.name + "_total" * (family.type == "counter"), {})
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            assert labels not in found.setdefault(sample.name, {}), "a series is there once"
            found[sample.name][labels] = sample.value
    return found


async def succeeds(job: Job[Alert]) -> None:
    if job.payload.number:
        raise Transient("no")


async def test_it_says_what_runs_waits_and_has_ended() -> None:
    slow = handle_slow()
    handle(succeeds, CRITICAL)
    async with Rig(options={"worker_concurrency": 1}) as rig:
        for _ in range(3):
            rig.put(Do(number=1))
        for number in (0, 0, 1):
            rig.put(Alert(number=number))
        await eventually(lambda: slow.ran)
        await rig.settled(CRITICAL)
        found = scraped(rig)
        assert found["streams_queue_slots"]["webhooks",] == 1
        assert found["streams_queue_running"]["webhooks",] == 1
        assert found["streams_queue_window_records"]["webhooks",] == 2
        assert found["streams_queue_window_bytes"]["webhooks",] > 0
        assert found["streams_queue_partitions"]["webhooks",] == 2
        assert found["streams_queue_position_span"]["webhooks",] == 3
        assert found["streams_jobs_ended_total"]["completed", "critical"] == 2
        assert found["streams_jobs_ended_total"]["retried", "critical"] == 1
        assert found["streams_outcomes_unsettled"][()] == 0
        assert found["streams_organization_running"]["acme",] == 1
        assert found["streams_organization_queued"]["acme",] == 2
        slow.goes_on.set()
        await rig.settled()
        assert scraped(rig)["streams_jobs_ended_total"]["completed", "webhooks"] == 3


async def test_what_limits_refuse_is_counted_by_kind_and_what_they_hold() -> None:
    async def synchronises(job: Job[Sync]) -> None:
        return None

    handle(synchronises, INTEGRATIONS)
    async with Rig() as rig:
        for _ in range(30):
            rig.put(Sync())
        await eventually(lambda: rig.worker.limits.refusals)
        found = scraped(rig)
        assert found["streams_limit_refusals_total"]["organization", "rate", "integrations"] > 0
        assert found["streams_queue_window_limited"]["integrations",] > 0


async def test_with_a_hundred_organizations_twenty_have_series_and_the_others_share_one() -> None:
    slow = handle_slow()
    async with Rig(options={"worker_concurrency": 1}) as rig:
        for number in range(100):
            for _ in range(1 + number % 7):
                rig.put(Do(number=1), organization=f"org-{number}")
        await eventually(lambda: slow.ran)
        before = scraped(rig)
        for name, series in before.items():
            if name.startswith("streams_organization_"):
                assert len(series) == ORGANIZATIONS + 1
                assert (OTHERS,) in series
        slow.goes_on.set()
        total = sum(before["streams_organization_queued"].values())
        assert total + sum(before["streams_organization_running"].values()) == sum(
            1 + number % 7 for number in range(100)
        )
        await rig.settled()


async def test_the_port_answers_in_the_format_of_prometheus() -> None:
    handle(succeeds, CRITICAL)
    async with Rig() as rig:
        progress = Progress([], nothing, now_s=0.0)
        settings = load_settings(_env_file=None, health_port=0)
        health = HealthServer(settings, "primary", rig.worker, progress, Readiness([]))
        await health.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", health.port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        writer.write_eof()
        head, _, body = (await asyncio.wait_for(reader.read(), 5)).partition(b"\r\n\r\n")
        writer.close()
        assert head.startswith(
            b"HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
        )
        names = {family.name for family in text_string_to_metric_families(body.decode())}
        assert "streams_queue_running" in names
        await health.stop()


async def nothing() -> str | None:
    return None


async def test_the_reference_lists_every_metric_with_its_labels_and_no_other() -> None:
    from streams.metrics import OUTCOMES

    listed = dict(re.findall(r"^\| `(streams_\w+)` \| ([^|]*) \|", REFERENCE.read_text(), re.M))
    handle(succeeds, CRITICAL)
    async with Rig() as rig:
        rig.put(Alert())
        await rig.settled(CRITICAL)
        rig.worker.limits.refused("critical", "rate:queue=critical")
        families = list(text_string_to_metric_families(page(rig.worker).decode()))
    samples = {sample.name: sample for family in families for sample in family.samples}
    assert set(listed) == set(samples)
    for name, cell in listed.items():
        assert set(re.findall(r"`(\w+)`", cell)) == set(samples[name].labels), name
    assert set(OUTCOMES) == set(Outcome.__args__)
    for outcome in OUTCOMES.values():
        assert f"`{outcome}`" in REFERENCE.read_text()
