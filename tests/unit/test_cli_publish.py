"""`streams publish`: what is typed or piped becomes publications, and what does not fit is a sentence."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import cli.publish as command
from cli.main import main
from streams.client import SyncJobs
from streams.errors import BacklogFull, NotAccepted
from streams.publication import Publication
from streams.settings import load_settings

PAYLOAD = {"template": "welcome", "to": ["ada@example.org"], "variables": {"name": "Ada"}}


class Client(SyncJobs):
    """Accepts everything, or what `accepts` says."""

    published: list[Publication]
    accepts = 10**9

    def __init__(self) -> None:
        super().__init__(load_settings(_env_file=None))
        type(self).published = []

    def publish_many(self, publications: Sequence[Publication]) -> list[str]:
        self._prepare(publications)
        ids = [one.job_id or f"made-{len(self.published) + index}" for index, one in enumerate(publications)]
        self.published.extend(publications)
        if len(ids) > self.accepts:
            raise NotAccepted(
                "broker:1 accepted some", accepted=ids[: self.accepts], unconfirmed=ids[self.accepts :]
            )
        return ids


@pytest.fixture(autouse=True)
def _client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "SyncJobs", Client)
    monkeypatch.setattr(Client, "accepts", 10**9)


def publish(*arguments: str, given: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, ["publish", *arguments], input=given)


def lines(*objects: Any) -> str:
    return "\n".join(one if isinstance(one, str) else json.dumps(one) for one in objects)


def line(**changes: Any) -> dict[str, Any]:
    return {"type": "email.send", "organizationId": "acme", "payload": PAYLOAD, **changes}


def test_one_job_with_all_that_can_be_said() -> None:
    ended = publish(
        "emails", "email.send", "--org", "acme", "--data", json.dumps(PAYLOAD), "--delay", "1.5h",
        "--priority", "2", "--key", "invoice-9", "--max-attempts", "4",
    )  # fmt: skip
    assert (ended.exit_code, ended.output) == (0, "made-0\n")
    (one,) = Client.published
    assert one.payload.model_dump()["to"] == ["ada@example.org"]
    assert (one.organization_id, one.delay, one.priority) == ("acme", timedelta(hours=1.5), 2)
    assert (one.idempotency_key, one.max_attempts) == ("invoice-9", 4)


def test_data_comes_from_a_file_or_from_standard_input(tmp_path: Path) -> None:
    (tmp_path / "mail.json").write_text(json.dumps(PAYLOAD))
    base = ("emails", "email.send", "--org", "acme", "--data")
    assert publish(*base, f"@{tmp_path}/mail.json").exit_code == 0
    assert publish(*base, "@-", given=json.dumps(PAYLOAD)).exit_code == 0
    assert len(Client.published) == 1


def test_lines_fill_in_from_the_options_and_override_them() -> None:
    at = "2026-03-01T12:00:00+00:00"
    ended = publish(
        "emails", "email.send", "--org", "acme", "--priority", "7",
        given=lines({"payload": PAYLOAD}, "", line(organizationId="globex", priority=1, jobId="x", runAt=at)),
    )  # fmt: skip
    assert (ended.exit_code, ended.output) == (0, "made-0\nx\n")
    assert [(one.organization_id, one.priority, one.run_at) for one in Client.published] == [
        ("acme", 7, None), ("globex", 1, datetime(2026, 3, 1, 12, tzinfo=UTC)),
    ]  # fmt: skip


def test_many_lines_are_sent_in_batches_and_a_wrong_one_says_what_went_before() -> None:
    given = lines(*[line() for _ in range(command.BATCH + 5)], line(priority=11))
    ended = publish("emails", given=given)
    assert ended.exit_code == 1
    assert ended.output.count("made-") == command.BATCH
    sentence = f"line {command.BATCH + 6}: priority must be 1 (most urgent) to 10, got 11"
    assert f"{sentence} ({command.BATCH} jobs were published before it)" in ended.output


WRONG: dict[str, tuple[str | bytes, str]] = {
    "no JSON": (lines("", "{"), "line 2 is not JSON"),
    "no object": (lines("[1]"), "line 1 must be a JSON object, got list"),
    "endless nesting": ("[" * 100_000, "line 1 is not JSON"),
    "no UTF-8": (b'{"a": "\xff"}', "line 0 is not UTF-8"),
    "unknown field": (lines("", line(organisation="acme")), "line 2: unknown field 'organisation'; expected"),
    "no type": (lines(line(type=None)), "line 1: unknown job type None on emails; expected one of email.send"),
    "type of a queue elsewhere": (lines(line(type="critical.alert")), "unknown job type 'critical.alert' on emails"),
    "list as type": (lines(line(type=["email.send"])), "line 1: unknown job type"),
    "no organization": (lines(line(organizationId="")), "line 1: organization_id must be 1 to 128 letters"),
    "number as organization": (lines(line(organizationId=7)), "line 1: organization_id must be 1 to 128 letters"),
    "priority in words": (lines(line(priority="high")), "line 1: priority must be 1 (most urgent) to 10, got 'high'"),
    "attempts as text": (lines(line(maxAttempts="3")), "line 1: max_attempts must be 1 to 1000, got '3'"),
    "number as key": (lines(line(idempotencyKey=7)), "line 1: idempotency_key must be a text, got int"),
    "delay as number": (lines(line(delay=30)), "line 1: delay or runAt: "),
    "no instant": (lines(line(runAt="tomorrow")), "line 1: delay or runAt: "),
    "no zone": (lines(line(runAt="2026-03-01T12:00:00")), "line 1: run_at must have a time zone"),
    "payload of another shape": (lines(line(payload=[1])), "line 1: the payload does not fit email.send"),
    "surrogates": (lines(line(payload={**PAYLOAD, "template": "\ud800"})), "line 1: the payload does not fit"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "sentence"), WRONG.values(), ids=WRONG)
def test_a_wrong_line_is_a_sentence_and_nothing_is_sent(given: str | bytes, sentence: str) -> None:
    ended = publish("emails", given=given)
    assert ended.exit_code == 1, ended.exception
    assert isinstance(ended.exception, SystemExit), ended.exception
    assert sentence in ended.output
    assert "(0 jobs were published before it)" in ended.output
    assert Client.published == []


def test_a_refusal_does_not_quote_the_payload() -> None:
    ended = publish("emails", given=lines(line(payload={**PAYLOAD, "to": "hunter2"})))
    assert ended.exit_code == 1
    assert "hunter2" not in ended.output


def test_what_was_accepted_is_printed_when_a_backlog_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(client: Client, publications: Sequence[Publication]) -> list[str]:
        raise BacklogFull(
            "acme has 9 unfinished jobs",
            organizations=["acme"],
            retry_after=timedelta(seconds=5),
            accepted=["of-globex"],
            refused=["of-acme"],
        )

    monkeypatch.setattr(Client, "publish_many", full)
    ended = publish("emails", given=lines(line(), line(organizationId="globex")))
    assert (ended.exit_code, ended.stdout) == (1, "of-globex\n")
    assert ended.stderr == "Error: acme has 9 unfinished jobs\n"


def test_what_was_accepted_is_printed_when_the_rest_was_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "accepts", 2)
    ended = publish("emails", given=lines(*[line(jobId=f"job-{number}") for number in range(3)]))
    assert ended.exit_code == 1
    assert ended.output.splitlines()[:2] == ["job-0", "job-1"]
    assert "broker:1 accepted some" in ended.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("mails",), "unknown queue 'mails'; expected one of critical"),
        (("emails", "email.send", "--org", "acme", "--data", "{"), "--data is not JSON"),
        (("emails", "email.send", "--org", "acme", "--data", "@/no/such"), "/no/such cannot be read"),
        (("emails", "email.send", "--data", json.dumps(PAYLOAD)), "organization_id must be"),
        (
            ("emails", "email.send", "--org", "a", "--data", json.dumps(PAYLOAD), "--delay", "soon"),
            "expected a duration such as 500ms",
        ),
        (
            (
                "emails",
                "email.send",
                "--org",
                "a",
                "--data",
                json.dumps(PAYLOAD),
                "--delay",
                "9999999999999d",
            ),
            "less than a billion days",
        ),
    ],
)
def test_a_wrong_option_is_a_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    ended = publish(*arguments)
    assert ended.exit_code == 1
    assert isinstance(ended.exception, SystemExit), ended.exception
    assert sentence in ended.output


def test_a_file_that_is_no_text_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "mail.json").write_bytes(b"\xff\xfe")
    ended = publish("emails", "email.send", "--org", "acme", "--data", f"@{tmp_path}/mail.json")
    assert "mail.json is not UTF-8" in ended.output
