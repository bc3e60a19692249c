"""What operators type to pause, kill and drain: the real commands, and the model of what they say."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from click.testing import CliRunner, Result

import cli.control
from cli.main import main
from ratelimit import AdmissionUnavailable
from ratelimit.control import Listener, ModelControl
from ratelimit.model import ModelAdmission
from ratelimit.redis import RedisAdmission
from streams.agents import load
from streams.kills import MOST
from streams.operators import Operators
from tests.deliveries import NOON

load()

pytestmark = pytest.mark.usefixtures("shipped_handlers")

MAIL = 'type == "email.send" and payload.template == "welcome"'


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> ModelControl:
    """Let commands say things to a model."""
    model = ModelControl()

    @asynccontextmanager
    async def opened(_: object) -> AsyncIterator[ModelControl]:
        yield model

    monkeypatch.setattr(cli.control, "control_of", opened)
    return model


@pytest.fixture
def admission(monkeypatch: pytest.MonkeyPatch) -> ModelAdmission:
    model = ModelAdmission()
    monkeypatch.setattr(RedisAdmission, "from_url", lambda *_, **__: model)
    return model


def do(*arguments: str, fails: bool = False) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code != 0) == fails, result.output
    return result


def rows(*arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in do(*arguments, "--json").output.splitlines()]


def test_pauses_are_set_listed_and_ended(control: ModelControl) -> None:
    assert "nothing is paused" in do("paused").output
    said = do("pause", "--queue", "emails", "--org", "acme", "--for", "2h", "--reason", "why", "--by", "ana")
    assert "queue=emails,organization=acme: paused for 2:00:00" in said.output
    do("pause", "--provider", "stripe", "--by", "bo")
    first, second = rows("paused")
    assert {**first, "since": None, "until": None} == {
        "scope": "queue=emails,organization=acme", "since": None, "until": None, "by": "ana", "reason": "why",
    }  # fmt: skip
    assert first["until"] > first["since"]
    assert (second["scope"], second["until"], second["reason"]) == ("provider=stripe", None, "")
    assert "provider=stripe" in do("paused").output
    operators = Operators()
    assert operators.hear(asyncio.run(Listener(control).news()), NOON)
    assert {one.by for one in operators.pauses.known.values()} == {"ana", "bo"}

    refused = do("resume", "--queue", "emails", fails=True).output
    assert "queue=emails is not paused; paused: provider=stripe; queue=emails,organization=acme" in refused
    do("resume", "--queue", "emails", "--org", "acme", "--by", "bo")
    assert [one["scope"] for one in rows("paused")] == ["provider=stripe"]
    changes = [(one["by"], one["what"], one["now"] is None) for one in rows("audit")]
    assert changes == [
        ("ana", "pause:queue=emails,organization=acme", False),
        ("bo", "pause:provider=stripe", False),
        ("bo", "pause:queue=emails,organization=acme", True),
    ]
    assert len(rows("audit", "--limit", "1")) == 1
    assert rows("limits", "audit") == []


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ((), "say what: --queue, --type, --provider, --org"),
        (("--queue", "*"), "a pause names what it stops"),
        (("--queue", "mails"), "unknown queue 'mails'"),
        (("--type", "email.sent"), "unknown type 'email.sent'"),
        (("--provider", "smtp"), "unknown provider 'smtp'"),
        (("--org", "a b"), "--org takes the id of an organization, got 'a b'"),
        (("--queue", "emails", "--provider", "stripe"), "no job can be of queue=emails,provider=stripe"),
        (("--queue", "emails", "--for", "soon"), "expected a duration such as"),
    ],
)
def test_what_cannot_be_paused_is_told(control: ModelControl, typed: tuple[str, ...], says: str) -> None:
    assert says in do("pause", *typed, fails=True).output
    assert asyncio.run(control.after(0)) == []


def test_kill_switches_are_set_listed_and_lifted(control: ModelControl) -> None:
    assert "no kill switch holds" in do("kills").output
    output = do("kill", MAIL, "--reason", "wrong list", "--by", "ana").output
    [row] = rows("kills")
    assert row["id"] in output
    assert (row["selector"], row["by"], row["reason"]) == (MAIL, "ana", "wrong list")
    assert "those that do: " + row["id"] in do("kill", "--lift", "nonsense", fails=True).output
    do("kill", "--lift", row["id"], "--by", "bo")
    assert rows("kills") == []
    assert [(one["by"], one["what"]) for one in rows("audit")] == [
        ("ana", f"kill:{row['id']}"), ("bo", f"kill:{row['id']}"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ((), "say either which jobs, by a selector, or which kill switch to --lift"),
        ((MAIL, "--lift", "1"), "say either"),
        ((MAIL,), "say why with --reason"),
        (("type == 1 +", "--reason", "x"), "invalid syntax; allowed are"),
        (('type == "email.sent"', "--reason", "x"), "unknown type 'email.sent'"),
        (("payload.tempalte == 'x'", "--reason", "x"), "no job type has a field payload.tempalte"),
    ],
)
def test_what_kills_nothing_is_told(control: ModelControl, typed: tuple[str, ...], says: str) -> None:
    assert says in do("kill", *typed, fails=True).output
    assert asyncio.run(control.after(0)) == []


def test_there_are_never_too_many_kill_switches(control: ModelControl) -> None:
    for _ in range(MOST):
        do("kill", MAIL, "--reason", "x")
    assert f"{MOST} kill switches hold already" in do("kill", MAIL, "--reason", "x", fails=True).output


def test_a_worker_that_lives_is_drained(control: ModelControl, admission: ModelAdmission) -> None:
    assert "no worker lives" in do("alive").output
    for name in ("primary/web-1", "document/web-1", "primary/web-2"):
        asyncio.run(admission.present(name, timedelta(minutes=1)))
    assert rows("alive") == [
        {"id": "web-1", "type": "document"},
        {"id": "web-1", "type": "primary"},
        {"id": "web-2", "type": "primary"},
    ]
    refused = do("drain", "web-3", fails=True)
    those = "those that live: document/web-1, primary/web-1, primary/web-2"
    assert f"no worker lives that is called 'web-3'; {those}" in refused.output
    refused = do("drain", "web-1", fails=True)
    assert f"2 workers are called 'web-1'; {those}" in refused.output
    done = do("drain", "primary/web-1", "--grace", "5m", "--by", "ana")
    assert "primary/web-1 was told to end; what runs has 0:05:00 to end" in done.output
    do("drain", "web-2", "--by", "ana")
    assert [(one.name, json.loads(one.value or "")) for one in asyncio.run(control.after(0))] == [
        ("drain:primary/web-1", {"graceSeconds": 300, "by": "ana"}),
        ("drain:primary/web-2", {"graceSeconds": 3600, "by": "ana"}),
    ]
    assert [one["what"] for one in rows("audit")] == [
        "drain:primary/web-1", "drain:primary/web-2",
    ]  # fmt: skip


def test_without_redis_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def closed(_: object) -> AsyncIterator[ModelControl]:
        raise AdmissionUnavailable("Redis cannot answer: refused")
        yield ModelControl()

    monkeypatch.setattr(cli.control, "control_of", closed)
    for typed in (("pause", "--org", "acme"), ("paused",), ("kills",), ("audit",)):
        assert "Error: Redis cannot answer: refused" in do(*typed, fails=True).output
