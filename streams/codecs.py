"""The codec of every topic, made from the schema files, the handlers and the registry."""

from collections.abc import Mapping
from functools import lru_cache

from schemas import Codec, Registry, RegistryError, Schema, files, open_codec
from schemas.derive import NotDerivable, job_schema
from streams.errors import ConfigError
from streams.jobs import HANDLERS
from streams.queues import LIFECYCLE_TOPIC, QUEUES, Queue
from streams.settings import Settings


def schema_of(queue: Queue) -> Schema:
    """Return the schema of a queue's topic as its registered handlers ask for it."""
    payloads = {one.job_type: one.payload for one in HANDLERS.values() if one.queue.name == queue.name}
    try:
        return job_schema(queue.name, dict(sorted(payloads.items())))
    except NotDerivable as error:
        raise ConfigError(f"{queue.name}: {error}") from error


def codecs(settings: Settings) -> Mapping[str, Codec]:
    """Return queue name to codec; raises ConfigError when the registry does not take a schema."""
    # Handlers from elsewhere add job types that the files here do not have.
    derived = bool(settings.handler_modules)
    return {
        queue.name: _codec(settings, queue.name, queue.topic, schema_of(queue) if derived else None)
        for queue in QUEUES.values()
    }


def lifecycle_codec(settings: Settings) -> Codec:
    """Return the codec of lifecycle events; raises ConfigError when the registry does not take the schema."""
    return _codec(settings, files.LIFECYCLE, LIFECYCLE_TOPIC)


_registry = lru_cache(maxsize=1)(Registry)
"""The registry at a URL: all codecs share its connections and what it has looked up."""


def _codec(settings: Settings, name: str, topic: str, schema: Schema | None = None) -> Codec:
    try:
        return open_codec(
            name,
            schema=schema,
            registry=_registry(settings.schema_registry_url) if settings.schema_registry_url else None,
            topic=topic,
            also_in=settings.schema_history,
            plain_instants=name == files.LIFECYCLE,
        )
    except RegistryError as error:
        raise ConfigError(f"SCHEMA_REGISTRY_URL: {error}") from error
