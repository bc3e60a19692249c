"""The wire: what a record's value looks like, how it may change, and reading its headers.

`open_codec("emails")` gives what most callers need; `docs/reference/wire-format.md` is the contract.
"""

from pathlib import Path

from schemas import files
from schemas.canonical import Schema
from schemas.codec import (
    CONFLUENT,
    MAX_BYTES,
    SINGLE_OBJECT,
    Codec,
    CodecError,
    DoesNotFit,
    NotAvro,
    PayloadMismatch,
    Record,
    UnknownSchema,
)
from schemas.registry import Registry, RegistryError

__all__ = [
    "MAX_BYTES",
    "Codec",
    "CodecError",
    "DoesNotFit",
    "NotAvro",
    "PayloadMismatch",
    "Record",
    "Registry",
    "RegistryError",
    "Schema",
    "UnknownSchema",
    "open_codec",
]


def open_codec(
    name: str,
    *,
    schema: Schema | None = None,
    registry: Registry | None = None,
    topic: str | None = None,
    also_in: Path | None = None,
    plain_instants: bool = False,
) -> Codec:
    """Return the codec of a queue, or of `lifecycle`.

    With a registry it registers the schema under `<topic>-value` (which blocks, and raises RegistryError) and
    encodes in the Confluent wire format; without, in single-object encoding. It decodes both either way,
    registry ids only with a registry. `topic` is `jobs.<name>` and `schema` the file's unless given;
    `also_in` is one more folder, with a history of its own, where schemas may turn up while this process runs.
    `plain_instants` is `Codec`'s.
    """

    def lookup(header: bytes) -> Schema | None:
        if header[:2] == SINGLE_OBJECT:
            found = files.find(name, header[2:])
            return files.find(name, header[2:], also_in) if found is None and also_in else found
        if registry is not None and header[:1] == CONFLUENT:
            return registry.schema(int.from_bytes(header[1:], "big"))
        return None

    if schema is None:
        schema = files.current(name)
    registry_id = None
    if registry is not None:
        registry_id = registry.register(f"{topic or f'jobs.{name}'}-value", schema)
    return Codec(
        schema,
        files.history(name),
        registry_id=registry_id,
        lookup=lookup,
        plain_instants=plain_instants,
    )
