"""The schemas of every topic as files, and every version they ever had.

`avro/<name>.avsc` is what is written today: one per queue, and `lifecycle`. `avro/history/<name>/` holds all
versions, today's too, each under its fingerprint in hexadecimal, in the order of the bytes in a record.
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
    """Return every version, in no particular order."""
    return [_read(path) for path in sorted((directory / "history" / name).glob("*.avsc"))]


def find(name: str, mark: bytes, directory: Path = DIRECTORY) -> Schema | None:
    """Return the version with a fingerprint, or None."""
    path = _kept(name, mark, directory)
    return _read(path) if path.exists() else None


def problems(name: str, schema: Schema, directory: Path = DIRECTORY) -> list[str]:
    """Return a sentence for each thing that keeps the schema from being today's; empty when it is today's."""
    found = [f"{name}: {each}" for each in _refusals(name, schema, directory)]
    path = directory / f"{name}.avsc"
    if not path.exists() or _read(path) != schema:
        found.append(f"{name}: {path} is not what the models say; run `streams schemas write`")
    if not _kept(name, fingerprint(schema), directory).exists():
        found.append(f"{name}: this version is not in the history; run `streams schemas write`")
    return found


def write(name: str, schema: Schema, directory: Path = DIRECTORY) -> bool:
    """Make the schema today's, keep it in the history, and return whether a file changed.

    Raises Incompatible when it cannot read what an earlier version wrote; then nothing is written.
    """
    refused = _refusals(name, schema, directory)
    if refused:
        raise refused[0]
    today, kept = directory / f"{name}.avsc", _kept(name, fingerprint(schema), directory)
    text, changed = render(schema), False
    # The history first: a version that was written with must never be missing there.
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(text, encoding="utf-8")
        changed = True
    if not today.exists() or _read(today) != schema:
        today.write_text(text, encoding="utf-8")
        changed = True
    return changed


def _refusals(name: str, schema: Schema, directory: Path) -> list[Incompatible]:
    found = {
        str(each): each for writer in history(name, directory) for each in incompatibilities(schema, writer)
    }
    return list(found.values())


def _kept(name: str, mark: bytes, directory: Path) -> Path:
    return directory / "history" / name / f"{mark.hex()}.avsc"


def _read(path: Path) -> Schema:
    schema: Schema = json.loads(path.read_text(encoding="utf-8"))
    return schema
