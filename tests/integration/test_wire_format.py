"""A stranger who follows docs/reference/wire-format.md gets a job run; one who does not is refused as it says."""

import os
import re
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from streams.consuming import Consumed
from streams.queues import QUEUES
from tests.processes import ROOT, Pipeline, wait_until

pytestmark = pytest.mark.stack

PAGE = ROOT / "docs/reference/wire-format.md"


def test_the_example_of_the_page_is_run(pipeline: Pipeline) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    environment = {**os.environ, **pipeline.environment}
    ended = subprocess.run(
        [sys.executable, "-c", example, "acme"], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=30,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    pipeline.worker().start()
    pipeline.wait_for("completed", 1)
    (done,) = [event for event in pipeline.events() if event["kind"] == "completed"]
    assert done["organizationId"] == "acme"
    assert done["attempt"] == 1


def test_a_wrong_key_header_or_body_is_buried_with_its_bytes_and_the_reason(pipeline: Pipeline) -> None:
    queue = QUEUES["critical"]
    codec = pipeline.codec(queue)

    def job(name: str, **wrong: object) -> bytes:
        stated = {
            "jobId": name, "jobType": "test.work", "organizationId": "acme", "createdAt": datetime.now(UTC),
            "payload": {"number": 1, "workMs": 0, "failAttempts": 0, "how": "transient", "password": ""}, **wrong,
        }  # fmt: skip
        return codec.encode(stated)

    def headers(name: str, **wrong: bytes | None) -> dict[str, bytes]:
        stated: dict[str, bytes | None] = {
            "ce_id": name.encode(), "ce_type": b"test.work", "organization-id": b"acme"
        }  # fmt: skip
        stated.update(wrong)
        return {key: value for key, value in stated.items() if value is not None}

    cases: dict[str, tuple[bytes | None, bytes, dict[str, bytes], bytes]] = {
        "key": (b"other", job("key"), headers("key"), b"the key is b'other' but organizationId is 'acme'"),
        "no-key": (None, job("no-key"), headers("no-key"), b"the key is missing"),
        "no-id": (b"acme", job("no-id"), headers("no-id", ce_id=None), b"ce_id is missing; expected jobId 'no-id'"),
        "type": (b"acme", job("type"), headers("type", ce_type=b"x"), b"ce_type is b'x' but jobType is 'test.work'"),
        "organization": (
            b"acme", job("organization"), {**headers("organization"), "organization-id": b"rival"},
            b"organization-id is b'rival' but organizationId is 'acme'",
        ),
        "attempt": (b"acme", job("attempt"), {**headers("attempt"), "attempt": b"-1"}, b"header attempt must be"),
        "body": (b"acme", codec.header + b"\x02", headers("body"), b"the body is not a"),
        "trailing": (b"acme", job("trailing") + b"\x00", headers("trailing"), b"follow the record"),
        "plain": (b"acme", b'{"json": true}', headers("plain"), b"neither the single-object nor the Confluent"),
    }  # fmt: skip
    for key, value, stated, _ in cases.values():
        pipeline.produce(queue.topic, key, value, stated)
    pipeline.produce(queue.topic, b"acme", job("fine"), headers("fine"))
    pipeline.worker().start()
    pipeline.wait_for("completed", 1)
    wait_until(lambda: len(pipeline.records(queue.dead_letter_topic)) == len(cases), 20, "all are buried")

    letters = {_case(letter, cases): letter for letter in pipeline.records(queue.dead_letter_topic)}
    assert set(letters) == set(cases)
    for name, (key, value, stated, reason) in cases.items():
        letter = letters[name]
        assert (letter.key, letter.value) == (key, value)
        assert stated.items() <= letter.headers.items()
        assert letter.headers["reason"] == b"invalid record"
        assert reason in letter.headers["error-message"], (name, letter.headers["error-message"])
    # Whose job the others are is not proven, so no organization is told of them.
    assert {event["jobId"] for event in pipeline.events()} == {"attempt", "fine"}


def _case(letter: Consumed, cases: dict[str, tuple[bytes | None, bytes, dict[str, bytes], bytes]]) -> str:
    (name,) = [name for name, (_, value, stated, _) in cases.items()
               if value == letter.value and stated.items() <= letter.headers.items()]  # fmt: skip
    return name
