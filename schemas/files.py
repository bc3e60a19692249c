"""The schemas of every topic as files, and every version they once had.

`avro/<name>.avsc` is what is written today: one per queue, and `lifecycle`. `avro/history/<name>/` holds
earlier versions, each under its fingerprint in hexadecimal, in the order of the bytes in a record.
"""

import json
from pathlib import Path

from schemas.canonical import Schema, fingerprint, render
from schemas.compatibility import Incompatible, incompatibilities

DIRECTORY = Path(__file__).parent / "avro"
LIFECYCLE = "lifecycle"


def current(name: str, directory: Path = DIRECTORY) -> Schema:
    """Return the schema that records are written with; FileNotFoundError when there is none."""
    return _read(directory / f"{name}.avsc")


def history(name: str, directory: Path = DIRECTORY) -> list[Schema]:
    """Return the earlier versions, in no particular order."""
    return [_read(path) for path in sorted((directory / "history" / name).glob("*.avsc"))]


def find(name: str, mark: bytes, directory: Path = DIRECTORY) -> Schema | None:
    """Return the version with a fingerprint, today's or an earlier one, or None."""
    earlier = directory / "history" / name / f"{mark.hex()}.avsc"
    if earlier.exists():
        return _read(earlier)
    today = directory / f"{name}.avsc"
    if today.exists() and fingerprint(schema := _read(today)) == mark:
        return schema
    return None


def refusals(name: str, schema: Schema, directory: Path = DIRECTORY) -> list[Incompatible]:
    """Return why the schema cannot read what today's or an earlier version wrote; empty when it can."""
    writers = history(name, directory)
    if (directory / f"{name}.avsc").exists():
        writers.append(current(name, directory))
    found = {str(each): each for writer in writers for each in incompatibilities(schema, writer)}
    return list(found.values())


def write(name: str, schema: Schema, directory: Path = DIRECTORY) -> bool:
    """Make the schema today's and return whether the file changed.

    What it replaces goes to the history when its fingerprint is another. Raises Incompatible when an
    earlier version could no longer be read; then nothing is written.
    """
    refused = refusals(name, schema, directory)
    if refused:
        raise refused[0]
    path = directory / f"{name}.avsc"
    text = render(schema)
    if path.exists():
        if path.read_text(encoding="utf-8") == text:
            return False
        replaced = current(name, directory)
        mark = fingerprint(replaced)
        if mark != fingerprint(schema):
            kept = directory / "history" / name / f"{mark.hex()}.avsc"
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(render(replaced), encoding="utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return True


def _read(path: Path) -> Schema:
    schema: Schema = json.loads(path.read_text(encoding="utf-8"))
    return schema
