"""Topics on the real broker: made, mended, checked, and never shrunk."""

import asyncio
from datetime import timedelta

import pytest

from streams import topics
from streams.errors import ConfigError
from streams.queues import QUEUES, RETRY_DELAYS
from tests.processes import Pipeline

pytestmark = pytest.mark.stack


def test_every_topic_is_there_and_a_second_ensure_changes_nothing(pipeline: Pipeline) -> None:
    names = {topic.name for topic in topics.expected(pipeline.settings)}
    assert len(names) == 27
    assert names >= {queue.topic for queue in QUEUES.values()} | {
        queue.dead_letter_topic for queue in QUEUES.values()
    }
    assert names >= set(RETRY_DELAYS) | {"jobs.lifecycle", "jobs.lifecycle.dlt"}
    assert topics.ensure(pipeline.settings) == []
    asyncio.run(topics.verify(pipeline.settings))


def test_more_partitions_and_another_retention_are_mended_and_told(pipeline: Pipeline) -> None:
    pipeline.environment["KAFKA_PARTITIONS"] = "6"
    pipeline.environment["JOBS_RETENTION"] = "21d"
    refused = pipeline.command("topics", "verify")
    assert refused.returncode == 1
    assert "partitions should be 6, is 4" in refused.stderr
    mended = pipeline.command("topics", "ensure")
    assert mended.returncode == 0
    assert "jobs.emails: partitions should be 6, is 4" in mended.stdout
    assert "jobs.emails: retention.ms should be 1814400000, is 1209600000" in mended.stdout
    assert "27 topics are as they should be" in pipeline.command("topics", "verify").stdout


def test_what_was_mended_can_be_seen_at_once(pipeline: Pipeline) -> None:
    for days in (22, 23, 24):
        changed = pipeline.settings.model_copy(update={"jobs_retention": timedelta(days=days)})
        assert topics.ensure(changed)
        asyncio.run(topics.verify(changed))


def test_a_topic_is_never_shrunk_and_nothing_else_is_changed(pipeline: Pipeline) -> None:
    smaller = pipeline.settings.model_copy(update={"kafka_partitions": 3})
    with pytest.raises(
        ConfigError, match=r"cannot shrink; nothing was changed: .*partitions should be 3, is 4"
    ):
        topics.ensure(smaller)
    asyncio.run(topics.verify(pipeline.settings))
