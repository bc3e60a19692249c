"""A schema registry that speaks Confluent's HTTP protocol."""

import json
from datetime import timedelta
from typing import Any

from schemas.canonical import Schema, render


class RegistryError(Exception):
    """The registry cannot be reached, or refuses a schema; the message says which of the two and why."""


class Registry:
    """Register schemas and look them up by id; every call may block for as long as the timeout.

    `url` may name several servers, separated by commas, and may hold user and password. `mock://` is a
    registry in memory, one for each object.
    """

    def __init__(self, url: str, *, timeout: timedelta = timedelta(seconds=5)) -> None:
        # Imported here: it takes 20 MiB, which only a process that talks to a registry should pay.
        from confluent_kafka.schema_registry import SchemaRegistryClient
        from confluent_kafka.schema_registry.common._httpx_compat import httpx
        from confluent_kafka.schema_registry.error import SchemaRegistryError

        self._refused: type[Any] = SchemaRegistryError
        self._unreachable: tuple[type[Exception], ...] = (httpx.HTTPError, OSError, ValueError)
        # One retry only: `Codec.refresh` comes back by itself, and a start that waits long looks like a hang.
        self._client = SchemaRegistryClient.new_client(
            {"url": url, "timeout": timeout.total_seconds(), "max.retries": 1, "retries.wait.ms": 200}
        )

    def register(self, subject: str, schema: Schema) -> int:
        """Return the id of the schema under the subject, registering it when the registry has it not yet.

        Needs no permission to write when somebody registered it before.
        """
        from confluent_kafka.schema_registry import Schema as RegistrySchema

        wanted = RegistrySchema(render(schema), "AVRO")
        try:
            try:
                known = self._client.lookup_schema(subject, wanted).schema_id
            except self._refused as error:
                if error.http_status_code != 404:
                    raise
                known = None
            return self._client.register_schema(subject, wanted) if known is None else known
        except self._refused as error:
            raise RegistryError(f"the registry refuses the schema of {subject}: {error}") from error
        except self._unreachable as error:
            raise RegistryError(f"the registry did not answer for {subject}: {error}") from error

    def schema(self, schema_id: int) -> Schema | None:
        """Return the schema with the id, or None when the registry has no such Avro record."""
        try:
            found = self._client.get_schema(schema_id)
        except self._refused as error:
            if error.http_status_code == 404:
                return None
            raise RegistryError(f"the registry refuses to show schema {schema_id}: {error}") from error
        except self._unreachable as error:
            raise RegistryError(f"the registry did not answer for schema {schema_id}: {error}") from error
        if found.schema_type not in (None, "AVRO") or found.schema_str is None:
            return None
        schema = json.loads(found.schema_str)
        return schema if isinstance(schema, dict) else None
