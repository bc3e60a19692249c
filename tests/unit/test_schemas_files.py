"""The files in schemas/avro: they are what the models say, and every version that ever was is kept."""

import copy
import json
from datetime import UTC, datetime
from pathlib import Path

import avro.schema
import pytest
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from click.testing import CliRunner

import cli.schemas as commands
from schemas import Schema, UnknownSchema, files, open_codec
from schemas.canonical import fingerprint
from schemas.compatibility import Incompatible
from streams import agents
from streams.codecs import schema_of
from streams.jobs import HANDLERS
from streams.queues import QUEUES, Queue

agents.load()
pytestmark = pytest.mark.usefixtures("shipped_handlers")
TOPICS = (*QUEUES, files.LIFECYCLE)


@pytest.mark.parametrize("queue", QUEUES.values(), ids=QUEUES)
class TestModelIsSchema:
    def test_the_file_is_what_the_models_say(self, queue: Queue) -> None:
        assert files.current(queue.name) == schema_of(queue)

    def test_every_job_type_has_its_record(self, queue: Queue) -> None:
        types = {handler.job_type for handler in HANDLERS.values() if handler.queue is queue}
        codec = open_codec(queue.name)
        assert types
        assert set(codec.job_types) == types
        for job_type in types:
            assert codec.record_name(job_type).endswith(f".{HANDLERS[job_type].payload.__name__}")


@pytest.mark.parametrize("name", TOPICS)
class TestHistory:
    def test_holds_todays_version(self, name: str) -> None:
        assert files.find(name, fingerprint(files.current(name))) is not None

    def test_goes_by_fingerprint(self, name: str) -> None:
        folder = files.DIRECTORY / "history" / name
        for path in folder.glob("*.avsc"):
            assert path.stem == fingerprint(json.loads(path.read_text())).hex()

    def test_is_readable_with_todays_schema(self, name: str) -> None:
        assert files.problems(name, files.current(name)) == []
        new = avro.schema.parse(json.dumps(files.current(name)))
        for version in files.history(name):
            old = avro.schema.parse(json.dumps(version))
            verdict = ReaderWriterCompatibilityChecker().get_compatibility(new, old)  # type: ignore[no-untyped-call]
            assert verdict.compatibility is SchemaCompatibilityType.compatible, verdict.messages


def test_no_file_is_left_from_a_queue_that_went() -> None:
    assert {path.stem for path in files.DIRECTORY.glob("*.avsc")} == set(TOPICS)
    assert {path.name for path in (files.DIRECTORY / "history").iterdir()} == set(TOPICS)


FIRST: Schema = {
    "type": "record",
    "name": "MailJob",
    "namespace": "streams.jobs.mail",
    "fields": [{"name": "jobId", "type": "string"}],
}


def with_field(**field: object) -> Schema:
    schema = copy.deepcopy(FIRST)
    schema["fields"].append(field)
    return schema


SECOND = with_field(name="note", type="string", default="")


class TestWrite:
    def test_a_new_version_joins_the_history(self, tmp_path: Path) -> None:
        assert files.write("mail", FIRST, tmp_path) is True
        assert files.write("mail", SECOND, tmp_path) is True
        assert files.current("mail", tmp_path) == SECOND
        assert files.find("mail", fingerprint(FIRST), tmp_path) == FIRST
        assert files.find("mail", fingerprint(SECOND), tmp_path) == SECOND
        assert files.find("mail", bytes(8), tmp_path) is None
        assert len(files.history("mail", tmp_path)) == 2

    def test_the_same_again_changes_nothing(self, tmp_path: Path) -> None:
        files.write("mail", FIRST, tmp_path)
        assert files.write("mail", FIRST, tmp_path) is False

    def test_a_doc_changes_the_file_and_not_the_history(self, tmp_path: Path) -> None:
        files.write("mail", FIRST, tmp_path)
        documented = {**FIRST, "doc": "A job."}
        assert files.write("mail", documented, tmp_path) is True
        assert files.current("mail", tmp_path) == documented
        assert files.history("mail", tmp_path) == [FIRST]

    @pytest.mark.parametrize(
        "field",
        [{"name": "note", "type": "string"}, {"name": "note", "type": "long", "default": 0}],
        ids=["no default", "another type"],
    )
    def test_an_unreadable_change_is_refused_and_nothing_written(
        self, tmp_path: Path, field: dict[str, object]
    ) -> None:
        """The second breaks only with an earlier version, no longer with today's."""
        for version in (FIRST, SECOND, FIRST):
            files.write("mail", version, tmp_path)
        before = {path: path.read_text() for path in tmp_path.rglob("*.avsc")}
        with pytest.raises(Incompatible, match=r"MailJob\.note: (is new and has no default|was string)"):
            files.write("mail", with_field(**field), tmp_path)
        assert {path: path.read_text() for path in tmp_path.rglob("*.avsc")} == before

    def test_problems_are_sentences(self, tmp_path: Path) -> None:
        files.write("mail", FIRST, tmp_path)
        assert files.problems("mail", FIRST, tmp_path) == []
        different, missing = files.problems("mail", SECOND, tmp_path)
        assert "not what the models say" in different
        assert "not in the history" in missing


class TestCommands:
    def test_write_then_check(self, tmp_path: Path) -> None:
        at = ["--directory", str(tmp_path)]
        assert CliRunner().invoke(commands.schemas, ["check", *at]).exit_code == 1
        written = CliRunner().invoke(commands.schemas, ["write", *at])
        assert written.exit_code == 0, written.output
        assert {path.stem for path in tmp_path.glob("*.avsc")} == set(TOPICS)
        checked = CliRunner().invoke(commands.schemas, ["check", *at])
        assert checked.exit_code == 0, checked.output
        assert fingerprint(files.current("emails")).hex() in checked.output

    def test_the_projects_own_files_pass(self) -> None:
        assert CliRunner().invoke(commands.schemas, ["check"]).exit_code == 0

    def test_a_refusal_names_field_and_reason(self, tmp_path: Path) -> None:
        earlier = copy.deepcopy(files.current("emails"))
        earlier["fields"][0]["type"] = "long"
        files.write("emails", earlier, tmp_path)
        refused = CliRunner().invoke(commands.schemas, ["write", "--directory", str(tmp_path)])
        assert refused.exit_code == 1
        assert "emails is left as it was" in refused.output
        assert "EmailsJob.jobId: was long, is string" in refused.output


class TestOpenCodec:
    event = {  # noqa: RUF012 - read only
        **{field["name"]: field.get("default") for field in files.current(files.LIFECYCLE)["fields"]},
        "eventId": "0197", "kind": "completed", "at": datetime(2026, 5, 17, tzinfo=UTC), "jobId": "1",
        "jobType": "email.send", "queue": "emails", "organizationId": "acme", "attempt": 1, "maxAttempts": 5,
        "queuedAt": datetime(2026, 5, 17, tzinfo=UTC),
        "error": {"kind": "ValueError", "message": "m", "stack": None, "fingerprint": "f"},
    }  # fmt: skip

    def test_a_lifecycle_event(self) -> None:
        codec = open_codec(files.LIFECYCLE)
        assert codec.decode(codec.encode(self.event)) == self.event

    def test_a_version_that_turns_up_in_another_folder(self, tmp_path: Path) -> None:
        newer = copy.deepcopy(files.current(files.LIFECYCLE))
        newer["fields"].append({"name": "mood", "type": "string", "default": ""})
        data = open_codec(files.LIFECYCLE, schema=newer).encode({**self.event, "mood": "good"})
        codec = open_codec(files.LIFECYCLE, also_in=tmp_path)
        with pytest.raises(UnknownSchema):
            codec.decode(data)
        files.write(files.LIFECYCLE, newer, tmp_path)
        assert codec.refresh() is True
        assert codec.decode(data) == self.event
