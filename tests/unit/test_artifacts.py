"""Artifacts belong to one organization each and are whole or absent."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from providers.artifacts import FolderArtifacts, NotFound, artifacts
from providers.errors import Refused


@pytest.fixture
def store(tmp_path: Path) -> FolderArtifacts:
    return FolderArtifacts(tmp_path / "artifacts")


def test_what_was_written_is_read(store: FolderArtifacts) -> None:
    uri = store.write("acme", "reports/2025/march.pdf", b"old")
    assert uri == "artifact://acme/reports/2025/march.pdf"
    assert store.write("acme", "reports/2025/march.pdf", b"new") == uri
    assert store.read("acme", uri) == b"new"
    assert [path.name for path in store.path("acme", uri).parent.iterdir()] == ["march.pdf"]


def test_missing_is_a_refusal_of_its_own(store: FolderArtifacts) -> None:
    store.write("acme", "folder/file", b"x")
    for name in ("nothing", "folder"):
        with pytest.raises(NotFound, match="does not exist"):
            store.read("acme", f"artifact://acme/{name}")


def test_another_organizations_artifact_is_refused(store: FolderArtifacts) -> None:
    uri = store.write("acme", "file", b"x")
    for organization in ("acm", "acme2", "acme/..", "", "other"):
        with pytest.raises(Refused):
            store.read(organization, uri)
        with pytest.raises(Refused):
            store.path(organization, uri)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "..",
        "../other/file",
        "a/../../other/file",
        "a//b",
        "a/",
        ".hidden",
        "a/./b",
        "a\\b",
        "a\0b",
    ],
)
def test_names_that_lead_elsewhere_are_refused(store: FolderArtifacts, name: str) -> None:
    store.write("other", "file", b"secret")
    with pytest.raises(Refused):
        store.write("acme", name, b"x")
    with pytest.raises(Refused):
        store.read("acme", f"artifact://acme/{name}")


@pytest.mark.parametrize(
    "uri", ["acme/file", "file:///etc/passwd", "artifact:/acme/file", "artifact://acme", ""]
)
def test_other_uris_are_refused(store: FolderArtifacts, uri: str) -> None:
    with pytest.raises(Refused):
        store.read("acme", uri)


def test_symbolic_links_do_not_lead_out(store: FolderArtifacts, tmp_path: Path) -> None:
    secret = store.path("other", store.write("other", "file", b"secret"))
    folder = store.path("acme", store.write("acme", "file", b"x")).parent
    (folder / "link").symlink_to(secret)
    (folder / "folder").symlink_to(secret.parent)
    for name in ("link", "folder/file", "folder/new"):
        with pytest.raises(Refused, match="leaves the folder"):
            store.read("acme", f"artifact://acme/{name}")
        with pytest.raises(Refused, match="leaves the folder"):
            store.write("acme", name, b"x")
    (folder.parent / "evil").symlink_to(secret.parent)
    with pytest.raises(Refused):
        store.read("evil", "artifact://evil/file")
    with pytest.raises(Refused):
        store.delete_older_than("evil", "", timedelta(0), datetime.now(UTC) + timedelta(days=1))
    assert secret.read_bytes() == b"secret"


def test_a_larger_file_than_asked_for_is_refused(store: FolderArtifacts) -> None:
    uri = store.write("acme", "file", b"12345")
    assert store.read("acme", uri, max_bytes=5) == b"12345"
    with pytest.raises(Refused, match="5 bytes, more than the 4"):
        store.read("acme", uri, max_bytes=4)


def test_a_failed_write_leaves_the_old_file(store: FolderArtifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = store.write("acme", "file", b"old")

    def full(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        store.write("acme", "file", b"new")
    assert store.read("acme", uri) == b"old"
    assert [path.name for path in store.path("acme", uri).parent.iterdir()] == ["file"]


def test_old_artifacts_are_deleted_by_prefix_and_organization(store: FolderArtifacts) -> None:
    now, day = datetime(2025, 3, 31, tzinfo=UTC), timedelta(days=1)

    def written(organization: str, name: str, age: timedelta) -> str:
        uri = store.write(organization, name, b"x")
        then = (now - age).timestamp()
        os.utime(store.path(organization, uri), (then, then))
        return uri

    old = written("acme", "text/a/old", 31 * day)
    kept = [
        ("acme", written("acme", "text/young", 29 * day)),
        ("acme", written("acme", "reports/old", 31 * day)),
        ("other", written("other", "text/old", 31 * day)),
    ]
    assert store.delete_older_than("acme", "text/", 30 * day, now) == 1
    with pytest.raises(NotFound):
        store.read("acme", old)
    for organization, uri in kept:
        assert store.read(organization, uri) == b"x"
    assert store.delete_older_than("nobody", "", 30 * day, now) == 0
    with pytest.raises(Refused):
        store.delete_older_than("..", "", 30 * day, now)


def test_the_environment_names_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ARTIFACT_DIR", str(tmp_path / "one"))
    uri = artifacts().write("acme", "file", b"x")
    assert (tmp_path / "one/acme/file").read_bytes() == b"x"
    monkeypatch.setenv("ARTIFACT_DIR", str(tmp_path / "two"))
    with pytest.raises(NotFound):
        artifacts().read("acme", uri)
