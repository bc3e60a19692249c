"""Files that jobs read and write: uploads, extracted text, reports.

A job names a file by its URI, `artifact://<organization>/<name>`, never by a path, and reaches files of its
own organization only.
"""

import os
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from providers.errors import Refused

SCHEME = "artifact://"


class NotFound(Refused):
    """The organization has no artifact of that name."""


class Artifacts(Protocol):
    """Where artifacts are kept. Every call raises Refused for a URI of another organization."""

    def read(self, organization_id: str, uri: str, *, max_bytes: int | None = None) -> bytes:
        """Return the content; raises NotFound, or Refused when it is larger than `max_bytes`."""
        ...

    def write(self, organization_id: str, name: str, data: bytes) -> str:
        """Write the whole content or nothing, replacing what had this name, and return the URI."""
        ...

    def path(self, organization_id: str, uri: str) -> Path:
        """Return where the artifact is, or would be."""
        ...

    def delete_older_than(self, organization_id: str, prefix: str, age: timedelta, now: datetime) -> int:
        """Delete artifacts whose name starts with `prefix` , written before `now - age`; count them."""
        ...


class FolderArtifacts:
    """Artifacts in a folder, one subfolder per organization.

    A symbolic link that leaves the organization's subfolder is refused. The check happens before the access:
    whoever can change links in the folder in between is trusted.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def read(self, organization_id: str, uri: str, *, max_bytes: int | None = None) -> bytes:
        path = self.path(organization_id, uri)
        if not path.is_file():
            raise NotFound(f"{uri} does not exist")
        size = path.stat().st_size
        if max_bytes is not None and size > max_bytes:
            raise Refused(f"{uri} has {size} bytes, more than the {max_bytes} accepted")
        return path.read_bytes()

    def write(self, organization_id: str, name: str, data: bytes) -> str:
        uri = f"{SCHEME}{organization_id}/{name}"
        path = self.path(organization_id, uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        # A leading dot keeps it apart from every artifact: no part of a name may start with one.
        unfinished = path.with_name(f".{uuid4().hex}")
        try:
            with unfinished.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        return uri

    def path(self, organization_id: str, uri: str) -> Path:
        if not _is_plain(organization_id):
            raise Refused(f"{organization_id!r} cannot be the owner of an artifact")
        if not uri.startswith(SCHEME):
            raise Refused(f"expected a URI {SCHEME}<organization>/<name>, got {uri!r}")
        owner, _, name = uri.removeprefix(SCHEME).partition("/")
        if owner != organization_id:
            raise Refused(f"{uri} does not belong to organization {organization_id}")
        if not all(_is_plain(part) for part in name.split("/")):
            raise Refused(
                f"an artifact's name has parts joined by '/', none empty or starting with '.': {name!r}"
            )
        folder = self._root / organization_id
        path = folder / name
        if not path.resolve().is_relative_to(folder):
            raise Refused(f"{uri} leaves the folder of its organization")
        return path

    def delete_older_than(self, organization_id: str, prefix: str, age: timedelta, now: datetime) -> int:
        if not _is_plain(organization_id):
            raise Refused(f"{organization_id!r} cannot be the owner of an artifact")
        before = (now - age).timestamp()
        folder, deleted = self._root / organization_id, 0
        if folder.is_symlink():
            raise Refused(f"the folder of organization {organization_id} is a symbolic link")
        for parent, _, names in os.walk(folder, followlinks=False):
            for path in (Path(parent, name) for name in names):
                named = path.relative_to(folder).as_posix().startswith(prefix)
                if named and path.lstat().st_mtime < before:
                    path.unlink(missing_ok=True)
                    deleted += 1
        return deleted


def _is_plain(part: str) -> bool:
    """Return whether one part of a path is harmless: a name of a file, not a way to another folder."""
    return (
        part != ""
        and not part.startswith(".")
        and part.isprintable()
        and "\\" not in part
        and "/" not in part
    )


def artifacts() -> Artifacts:
    """Return the artifacts in the folder that ARTIFACT_DIR names, `./artifacts` when it is not set."""
    return _in_folder(os.environ.get("ARTIFACT_DIR", "artifacts"))


@cache
def _in_folder(root: str) -> FolderArtifacts:
    return FolderArtifacts(Path(root))
