"""Every topic's codec: from the files, from the handlers there are, or with a registry."""

from functools import lru_cache
from typing import Any
from unittest.mock import patch

import pytest

from schemas import Registry, files
from streams import agents
from streams.codecs import codecs, lifecycle_codec
from streams.errors import ConfigError
from streams.jobs import HANDLERS, TYPE_OF_PAYLOAD, Job, Payload
from streams.queues import EMAILS, QUEUES
from streams.settings import load_settings
from tests.deliveries import NOON
from tests.rig import handle


class Probe(Payload):
    """A payload from a module of someone else's."""

    number: int = 0


async def probe(job: Job[Probe]) -> None:
    return None


def settings(**given: Any) -> Any:
    return load_settings(_env_file=None, **given)


def test_without_further_handlers_the_files_are_the_schemas() -> None:
    agents.load()
    for name, codec in codecs(settings()).items():
        assert codec.schema == files.current(name)
        assert codec.header[:2] == b"\xc3\x01"
    assert lifecycle_codec(settings()).schema == files.current(files.LIFECYCLE)


def test_handlers_from_elsewhere_join_and_what_the_files_versions_wrote_is_still_read() -> None:
    agents.load()
    plain = codecs(settings())[EMAILS.name]
    job = {
        "jobId": "job-1", "jobType": "email.send_bulk", "organizationId": "acme", "createdAt": NOON, "priority": 5,
        "idempotencyKey": None, "orderingKey": None, "maxAttempts": None,
        "payload": {"template": "welcome", "recipients": []},
    }  # fmt: skip
    written = plain.encode(job)
    with patch.dict(HANDLERS), patch.dict(TYPE_OF_PAYLOAD):
        handle(probe, EMAILS)
        codec = codecs(settings(handler_modules="tests.in_process"))[EMAILS.name]
        assert set(codec.job_types) == {*plain.job_types, "test.probe"}
        assert codec.header != plain.header
        assert codec.decode(written)["jobId"] == "job-1"
        assert plain.job_types == codecs(settings())[EMAILS.name].job_types, "only where it was asked for"


def test_one_registry_is_opened_for_all_codecs_of_a_process() -> None:
    agents.load()
    opened = []

    class Opened(Registry):
        def __init__(self, url: str) -> None:
            opened.append(url)
            super().__init__(url)

    with patch("streams.codecs._registry", lru_cache(Opened)):
        codecs(settings(schema_registry_url="mock://one"))
        lifecycle_codec(settings(schema_registry_url="mock://one"))
    assert opened == ["mock://one"]


def test_a_registry_that_is_away_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match="SCHEMA_REGISTRY_URL: the registry did not answer"):
        lifecycle_codec(settings(schema_registry_url="http://127.0.0.1:9"))


def test_a_registry_makes_the_confluent_format() -> None:
    agents.load()
    made = codecs(settings(schema_registry_url="mock://"))
    assert {codec.header[:1] for codec in made.values()} == {b"\x00"}
    assert len({codec.header for codec in made.values()}) == len(QUEUES), "one registry for all of them"
