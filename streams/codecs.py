"""The codec of every topic, made from the schema files, the handlers and the registry."""

from collections.abc import Mapping
from pathlib import Path

from schemas import files
from schemas.canonical import Schema
from schemas.codec import CONFLUENT, Codec, Lookup
from schemas.derive import job_schema
from schemas.registry import Registry, RegistryError
from streams.errors import ConfigError
from streams.jobs import HANDLERS
from streams.queues import LIFECYCLE_TOPIC, QUEUES, Queue
from streams.settings import Settings


def schema_of(queue: Queue) -> Schema:
    """Return the schema of a queue's topic as its registered handlers ask for it."""
    payloads = {one.job_type: one.payload for one in HANDLERS.values() if one.queue.name == queue.name}
    return job_schema(queue.name, dict(sorted(payloads.items())))


def codecs(settings: Settings) -> Mapping[str, Codec]:
    """Return queue name to codec; raises ConfigError when the registry does not take a schema."""
    registry = _registry(settings)
    return {
        queue.name: _codec(
            queue.name,
            # Handlers from elsewhere add job types that the files here do not have.
            schema_of(queue) if settings.handler_modules else files.current(queue.name),
            queue.topic,
            registry,
            settings.schema_history,
        )
        for queue in QUEUES.values()
    }


def lifecycle_codec(settings: Settings) -> Codec:
    """Return the codec of lifecycle events."""
    return _codec(
        files.LIFECYCLE,
        files.current(files.LIFECYCLE),
        LIFECYCLE_TOPIC,
        _registry(settings),
        settings.schema_history,
    )


def _registry(settings: Settings) -> Registry | None:
    return Registry(settings.schema_registry_url) if settings.schema_registry_url else None


def _codec(name: str, schema: Schema, topic: str, registry: Registry | None, directory: Path | None) -> Codec:
    try:
        registry_id = registry.register(f"{topic}-value", schema) if registry else None
    except RegistryError as error:
        raise ConfigError(f"SCHEMA_REGISTRY_URL: {error}") from error
    history = files.history(name)
    if files.current(name) != schema:
        history.append(files.current(name))
    return Codec(schema, history, registry_id=registry_id, lookup=_lookup(name, registry, directory))


def _lookup(name: str, registry: Registry | None, directory: Path | None) -> Lookup:
    """Return how a schema that is not known yet is found: by registry id, or in the folders of schemas."""

    def look(header: bytes) -> Schema | None:
        if header[:1] == CONFLUENT:
            return registry.schema(int.from_bytes(header[1:], "big")) if registry else None
        for folder in (files.DIRECTORY, directory):
            found = files.find(name, header[2:], folder) if folder else None
            if found is not None:
                return found
        return None

    return look
