"""What does not fit is refused in a sentence that says what was expected and what came; nothing is lost."""

import json
import shutil
from pathlib import Path

import pytest

from schemas import files
from schemas.canonical import fingerprint
from schemas.codec import Codec
from streams.client import Jobs, SyncJobs
from streams.errors import InvalidJob, NotAccepted
from streams.publication import Publication
from streams.queues import CRITICAL, RETRY_DELAYS
from streams.settings import load_settings
from tests.handlers import Work
from tests.processes import Pipeline

pytestmark = pytest.mark.stack


def test_the_command_line_refuses_what_it_cannot_publish(pipeline: Pipeline) -> None:
    data = json.dumps({"number": 1})
    refusals = {
        ("critical", "test.work", "--data", data): "organization_id must be 1 to 128 letters",
        ("critical", "test.work", "--org", "", "--data", data): "got nothing",
        (
            "critical",
            "no.such.type",
            "--org",
            "acme",
            "--data",
            data,
        ): "unknown job type 'no.such.type' on critical",
        (
            "no-queue",
            "test.work",
            "--org",
            "acme",
            "--data",
            data,
        ): "unknown queue 'no-queue'; expected one of",
        (
            "critical",
            "test.work",
            "--org",
            "acme",
            "--data",
            '{"number": "canary"}',
        ): "number: Input should be a valid",
        (
            "critical",
            "test.work",
            "--org",
            "acme",
            "--data",
            '{"nmber": 1}',
        ): "nmber: Extra inputs are not permitted",
        ("critical", "test.work", "--org", "acme", "--data", "{"): "--data is not JSON",
        ("critical", "test.work", "--org", "acme", "--data", "@no-such-file"): "no-such-file cannot be read",
        (
            "critical",
            "test.work",
            "--org",
            "acme",
            "--delay",
            "soon",
            "--data",
            data,
        ): "expected a duration such as",
    }
    for arguments, sentence in refusals.items():
        ended = pipeline.command("publish", *arguments)
        assert ended.returncode == 1, arguments
        assert sentence in ended.stderr, (arguments, ended.stderr)
        assert "Traceback" not in ended.stderr
        assert "canary" not in ended.stderr
    assert pipeline.records(CRITICAL.topic) == []


def test_lines_from_standard_input_are_published_up_to_the_one_that_does_not_fit(pipeline: Pipeline) -> None:
    line = {"type": "test.work", "organizationId": "acme", "payload": {"number": 1}}
    ended = pipeline.command("publish", "critical", given="\n".join([json.dumps(line)] * 3))
    assert (ended.returncode, len(ended.stdout.split())) == (0, 3)
    wrong = json.dumps({**line, "priority": 99})
    ended = pipeline.command("publish", "critical", given=f"{json.dumps(line)}\n{wrong}\n")
    assert ended.returncode == 1
    assert "priority must be 1 (most urgent) to 10, got 99" in ended.stderr
    assert len(pipeline.records(CRITICAL.topic)) == 3


async def test_a_payload_of_two_megabytes_is_refused_before_it_leaves(pipeline: Pipeline) -> None:
    async with Jobs(pipeline.settings) as jobs:
        with pytest.raises(InvalidJob, match=r"more than the \d+ allowed"):
            await jobs.publish(Work(password="x" * 2_000_000), organization_id="acme")
        with pytest.raises(InvalidJob, match="got nothing"):
            await jobs.publish(Work(), organization_id="")
    assert pipeline.records(CRITICAL.topic) == []


async def test_a_broker_that_is_down_is_told_within_the_timeout(pipeline: Pipeline) -> None:
    nowhere = load_settings(
        kafka_bootstrap_servers="127.0.0.1:1", publish_timeout="1s", handler_modules=("tests.handlers",)
    )
    async with Jobs(nowhere) as jobs:
        with pytest.raises(NotAccepted, match="accepted 0 of 2 jobs and did not confirm 2") as caught:
            await jobs.publish_many([Publication(Work(), "acme", job_id=f"job-{n}") for n in range(2)])
    assert (caught.value.accepted, caught.value.unconfirmed) == ((), ("job-0", "job-1"))


def test_a_record_with_an_unknown_schema_waits_until_the_schema_is_there(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    newer = files.current("critical")
    newer = {**newer, "fields": [*newer["fields"], {"name": "later", "type": "int", "default": 0}]}
    with SyncJobs(pipeline.settings) as jobs:
        jobs.publish(Work(), organization_id="acme")
    newer["fields"] = [
        field if field["name"] != "payload" else {**field, "type": _payloads(pipeline)}
        for field in newer["fields"]
    ]
    (known,) = pipeline.records(CRITICAL.topic)
    job = pipeline.codec(CRITICAL).decode(known.value or b"")
    value = Codec(newer).encode({**job, "jobId": "later-1", "later": 7})
    headers = {**known.headers, "ce_id": b"later-1"}
    pipeline.produce(CRITICAL.topic, b"acme", value, headers)

    history = tmp_path / "history"
    folder = history / "history" / "critical"
    folder.mkdir(parents=True)
    worker = pipeline.worker(SCHEMA_HISTORY=str(history), UNKNOWN_SCHEMA_DELAY="1s").start()
    pipeline.wait_for("completed", 1)
    pipeline.wait_for_record(
        next(iter(RETRY_DELAYS)),
        lambda record: record.headers["ce_id"] == b"later-1" and record.value == value,
    )
    shutil.copy(files.DIRECTORY / "critical.avsc", folder / "unrelated.avsc")
    (folder / f"{fingerprint(newer).hex()}.avsc").write_text(json.dumps(newer))
    pipeline.wait_for("completed", 2)
    assert pipeline.records(CRITICAL.dead_letter_topic) == []
    assert worker.terminate() == 0


def _payloads(pipeline: Pipeline) -> list[object]:
    (field,) = [one for one in pipeline.codec(CRITICAL).schema["fields"] if one["name"] == "payload"]
    return list(field["type"])
