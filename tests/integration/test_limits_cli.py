"""What operators type to limit jobs: the real commands, a real Redis, and a worker that hears of it."""

import asyncio
import json
import secrets
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from click.testing import CliRunner, Result

import devstack
from cli.main import main
from ratelimit import Candidate, Gate, Limit, Limited, Run
from ratelimit.control import Listener
from ratelimit.redis import RedisAdmission
from streams.control import control_of
from streams.jobs import HANDLERS
from streams.limits import DeliveryLimits
from streams.settings import settings

pytestmark = pytest.mark.stack


@pytest.fixture(autouse=True)
def prefix(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = f"test-{secrets.token_hex(6)}"
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("REDIS_PREFIX", name)
    settings.cache_clear()
    yield name
    settings.cache_clear()


def limits(*arguments: str, fails: bool = False) -> Result:
    result = CliRunner().invoke(main, ["limits", *arguments])
    assert (result.exit_code != 0) == fails, result.output
    return result


def rows(*arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in limits(*arguments, "--json").output.splitlines()]


def held(job_type: str, organization: str) -> list[str]:
    """Return what a worker that starts now holds a job to."""

    async def hear() -> DeliveryLimits:
        known = DeliveryLimits()
        async with control_of(settings()) as control:
            known.hear(await Listener(control).news())
        return known

    known = asyncio.run(hear()).of(HANDLERS[job_type], organization).limits
    return [str(one) for one in known if not isinstance(one, Gate)]


def test_limits_are_set_listed_and_taken_back() -> None:
    assert "queue=emails" in limits("list").output
    limits("set", "--queue", "emails", "--rate", "5/min burst 2", "--concurrency", "3", "--by", "ana")
    assert {"scope": "queue=emails", "kind": "rate", "allowed": "5/m burst 2", "by": "operators"} in rows(
        "list"
    )
    limits("set", "--provider", "stripe", "--org", "*", "--rate", "1/s", "--by", "ana")
    assert held("email.send", "acme") == [
        "Concurrency(name='concurrency:queue=emails', most=3)",
        str(Limit("rate:queue=emails", 5, timedelta(minutes=1), 2)),
    ]
    assert str(Limit("rate:provider=stripe,organization=acme", 1, timedelta(seconds=1))) in held(
        "stripe.sync", "acme"
    )
    limits("unset", "--queue", "emails", "--by", "bo")
    assert held("email.send", "acme") == [str(Limit("rate:queue=emails", 100, timedelta(minutes=1)))]
    assert [(one["by"], one["what"], one["was"], one["now"]) for one in rows("audit")] == [
        ("ana", "limit:rate:queue=emails", None, "5/m burst 2"),
        ("ana", "limit:concurrency:queue=emails", None, "3"),
        ("ana", "limit:rate:provider=stripe,organization=*", None, "1/s"),
        ("bo", "limit:concurrency:queue=emails", "3", None),
        ("bo", "limit:rate:queue=emails", "5/m burst 2", None),
    ]
    assert [one["by"] for one in rows("audit", "--limit", "2")] == ["bo", "bo"]


def test_an_organization_has_what_its_plan_says() -> None:
    limits("plan", "set", "gold", "--queue", "integrations", "--rate", "50/s")
    limits("plan", "set", "gold", "--concurrency", "8")
    limits("assign", "acme", "gold")
    name = "queue=integrations,organization=acme"
    assert held("stripe.sync", "acme") == [
        "Concurrency(name='concurrency:organization=acme', most=8)",
        str(Limit(f"rate:{name}", 50, timedelta(seconds=1))),
    ]
    assert len(held("stripe.sync", "globex")) == 1
    scopes = [one["scope"] for one in rows("list", "--org", "acme") if one["by"] == "operators"]
    assert scopes == [
        "organization=plan:gold",
        "queue=integrations,organization=plan:gold",
        "organization=acme",
    ]
    assert not [one for one in rows("list", "--org", "globex") if one["by"] == "operators"]
    limits("plan", "unset", "gold", "--queue", "integrations")
    limits("assign", "acme")
    assert held("stripe.sync", "acme") == [str(Limit(f"rate:{name}", 10, timedelta(seconds=1)))]
    assert [one["now"] for one in rows("audit")][-2:] == [None, None]


def test_weights_and_caps_are_set_for_organizations_and_plans() -> None:
    limits(
        "set", "--org", "acme", "--weight", "4", "--backlog", "100000", "--concurrency", "8", "--by", "ana"
    )
    limits("set", "--org", "*", "--backlog", "none")
    limits("plan", "set", "gold", "--weight", "2.50", "--by", "ana")
    said = [(one["scope"], one["kind"], one["allowed"]) for one in rows("list") if one["by"] == "operators"]
    assert said == [
        ("organization=*", "backlog", "none"),
        ("organization=acme", "backlog", "100000"),
        ("organization=acme", "concurrency", "8"),
        ("organization=acme", "weight", "4"),
        ("organization=plan:gold", "weight", "2.5"),
    ]
    assert held("email.send", "acme") == [
        "Concurrency(name='concurrency:organization=acme', most=8)",
        str(Limit("rate:queue=emails", 100, timedelta(minutes=1))),
    ]
    limits("unset", "--org", "acme", "--kind", "weight")
    mine = [one["kind"] for one in rows("list", "--org", "acme") if one["by"] == "operators"]
    assert mine == ["backlog", "backlog", "concurrency"]
    assert "of kind weight" in limits("unset", "--org", "acme", "--kind", "weight", fails=True).output
    limits("plan", "unset", "gold", "--kind", "weight")
    limits("unset", "--org", "acme")
    assert [one["scope"] for one in rows("list") if one["by"] == "operators"] == ["organization=*"]
    assert (rows("audit")[1]["what"], rows("audit")[1]["now"]) == ("limit:weight:organization=acme", "4")


def test_a_provider_that_asked_to_wait_is_admitted_again() -> None:
    async def pushed() -> tuple[object, object]:
        configuration = settings()
        admission = RedisAdmission.from_url(configuration.redis, prefix=configuration.redis_prefix)
        gate = (Gate("gate:provider=stripe"),)
        await admission.push("gate:provider=stripe", timedelta(hours=1))
        [before] = await admission.admit([Candidate("acme:1", "", gate)])
        await asyncio.to_thread(limits, "lift", "stripe")
        [after] = await admission.admit([Candidate("acme:1", "", gate)])
        await admission.close()
        return before, after

    before, after = asyncio.run(pushed())
    assert isinstance(before, Limited)
    assert isinstance(after, Run)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["set", "--queue", "mail", "--rate", "1/s"], "unknown queue 'mail'"),
        (["set", "--type", "email.sent", "--rate", "1/s"], "unknown type 'email.sent'"),
        (["set", "--queue", "emails"], "say how much is allowed"),
        (["set", "--rate", "1/s"], "a limit holds for a queue"),
        (["set", "--queue", "emails", "--rate", "often"], "expected a rate such as 20/s"),
        (["set", "--queue", "emails", "--concurrency", "0"], "at least 1"),
        (["set", "--org", "plan:gold", "--rate", "1/s"], "--org takes the id of an organization"),
        (
            ["set", "--queue", "emails", "--weight", "2"],
            "a weight is of an organization or a plan as a whole",
        ),
        (["set", "--org", "a", "--queue", "emails", "--backlog", "2"], "a backlog is of an organization"),
        (["set", "--org", "*", "--weight", "2"], "a weight is beside that of the others, which is 1"),
        (["set", "--org", "acme", "--weight", "101"], "expected a weight from 0.01 to 100, got '101'"),
        (["set", "--org", "acme", "--backlog", "few"], "expected how many jobs may be unfinished"),
        (["unset", "--queue", "emails"], "nothing was set for queue=emails"),
        (["assign", "acme:1", "gold"], "expected the id of an organization"),
        (["plan", "set", "go:ld", "--rate", "1/s"], "a plan is named like an organization"),
        (["lift", "strip"], "unknown provider 'strip'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(arguments: list[str], sentence: str) -> None:
    assert sentence in limits(*arguments, fails=True).output


def test_without_redis_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{devstack.process.free_port()}/0")
    settings.cache_clear()
    assert "Redis cannot answer" in limits("set", "--queue", "emails", "--rate", "1/s", fails=True).output
